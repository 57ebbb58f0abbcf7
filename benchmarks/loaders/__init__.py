"""One module a loader, all with the command line of `loaders.common`.

To be run in `benchmarks/`, each with the Python of its own environment: `python -m loaders.NAME`.
"""
