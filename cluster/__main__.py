"""`python -m cluster`: the same as `alexnet`."""

from cluster.cli import main

main()
