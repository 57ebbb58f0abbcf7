"""torch.utils.data.DataLoader over a folder of JPEG files, decoded in worker processes."""

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from loaders import common


class Folder(Dataset):
    """The exported images, cropped and mirrored."""

    def __init__(self, data: Path, decoder: str) -> None:
        """List the files in `data`."""
        self._images = [(str(file), label) for file, label in common.exported(data)]
        self._decode = common.DECODERS[decoder]

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        path, label = self._images[index]
        with open(path, "rb") as file:  # noqa: PTH123 (quicker than a Path's)
            image = self._decode(file.read())
        return common.crop_and_mirror(image, [random.random() for _ in range(3)]), label


class Endless(Sampler[int]):
    """One permutation after the other, so that no epoch ends."""

    def __init__(self, size: int) -> None:
        """Permute `size` rows."""
        self._size = size

    def __iter__(self) -> Iterator[int]:
        while True:
            yield from torch.randperm(self._size).tolist()


def loader(dataset: Any, workers: int, prefetch: int, **options: Any) -> DataLoader:
    """Return a DataLoader whose workers stay and have a thread each."""
    if workers:
        options.update(prefetch_factor=prefetch, persistent_workers=True)
    return DataLoader(
        dataset, batch_size=common.BATCH, num_workers=workers, drop_last=True, **options
    )


def batches(
    data: Path, cores: int, *, decoder: str = "simplejpeg", workers: int = 2, prefetch: int = 4
) -> DataLoader:
    """Return the DataLoader; `prefetch` is batches a worker."""
    dataset = Folder(data, decoder)
    return loader(dataset, workers, prefetch, sampler=Endless(len(dataset)))


if __name__ == "__main__":
    common.main(batches)
