"""Programs that train AlexNet-BN a few steps, each in its own way, and how they are run.

A program is one process of `--ranks`. It takes some steps to warm up, waits until all ranks have,
and times `--steps` more; a line of JSON comes of it, with the seconds of each step.
"""
