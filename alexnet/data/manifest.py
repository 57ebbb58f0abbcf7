"""What a manifest says of a set: its shards, and the colour statistics of its training pixels."""

import json
from dataclasses import asdict

import numpy as np

from alexnet.data.images import Pixels
from alexnet.data.parquet import Columns
from alexnet.data.shards import SCHEMA_VERSION, Shard

# Pixel count, sums of R, G, B, and sums of their products: whole numbers, which add up the same in
# any order.
Moments = tuple[int, tuple[int, ...], tuple[tuple[int, ...], ...]]
NO_MOMENTS: Moments = (0, (0, 0, 0), ((0, 0, 0),) * 3)
AT_ONCE = 1 << 16  # pixels: as floating point numbers they take 24 bytes


def moments_of(pixels: Pixels) -> Moments:
    """Return the moments of an image's colours, uint8 [height, width, 3]."""
    colours = pixels.reshape(-1, 3)
    total, products = np.zeros(3), np.zeros((3, 3))  # exact: 64 M pixels stay below 2^53
    for at in range(0, len(colours), AT_ONCE):
        some = colours[at : at + AT_ONCE].astype(np.float64)
        total += some.sum(0)
        products += some.T @ some
    return (
        len(colours),
        tuple(int(x) for x in total),
        tuple(tuple(int(x) for x in row) for row in products),
    )


def add(a: Moments, b: Moments) -> Moments:
    """Return the moments of two sets of pixels together."""
    return (
        a[0] + b[0],
        tuple(x + y for x, y in zip(a[1], b[1], strict=True)),
        tuple(
            tuple(x + y for x, y in zip(r, s, strict=True)) for r, s in zip(a[2], b[2], strict=True)
        ),
    )


def manifest_of(
    classes: list[str],
    columns: Columns,
    splits: dict[str, list[Shard]],
    moments: Moments,
    rejected: int,
) -> str:
    """Return the text of `manifest.json`."""
    count, total, products = moments
    mean = np.array(total, np.float64) / count
    covariance = np.array(products, np.float64) / count - np.outer(mean, mean)
    tree = {
        "schema_version": SCHEMA_VERSION,
        "classes": classes,
        "columns": asdict(columns),
        "rejected": rejected,
        "statistics": {
            "mean": mean.tolist(),
            "std": np.sqrt(np.diag(covariance)).tolist(),
            "covariance": covariance.tolist(),
        },
        "splits": {
            name: {
                "rows": sum(group.rows for shard in shards for group in shard.row_groups),
                "shards": [asdict(shard) for shard in shards],
            }
            for name, shards in splits.items()
        },
    }
    return json.dumps(tree, indent=1, ensure_ascii=False)
