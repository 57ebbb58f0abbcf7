"""One process: the AlexNet networks, their data, and how they learn.

Nothing in this package knows about Ray, Horovod or Prometheus; `cluster` composes those around it.
"""
