"""The faults of `make chaos`: each is done to real processes, and each has to end well."""
