"""From images on a disk to micro-batches: sources, shards, order, batches."""
