"""MosaicML Streaming: MDS shards of raw JPEG bytes, decoded in a DataLoader's worker processes."""

import random
import sys
from importlib.machinery import ModuleSpec
from importlib.util import module_from_spec
from pathlib import Path
from typing import Any

from loaders import common
from loaders.torch_folder import loader

OUTPUT = "mds"


def import_streaming() -> Any:
    """Import streaming with a stand-in for torchvision, of which it names two things at import.

    The registry's torchvision is built for CUDA and does not import beside a CPU build of torch;
    nothing of it is used here.
    """
    for name in ("", ".datasets", ".transforms", ".transforms.functional"):
        module = module_from_spec(ModuleSpec("torchvision" + name, None))
        vars(module).update(VisionDataset=object, to_tensor=None)
        sys.modules[module.__name__] = module
    import streaming

    return streaming


def convert(images: common.Images, folder: Path) -> None:
    """Write the images as MDS shards of at most 8 MiB."""
    writer = import_streaming().MDSWriter
    columns = {"image": "bytes", "label": "int"}
    with writer(out=str(folder), columns=columns, size_limit=8 << 20) as shards:
        for file, label in images:
            shards.write({"image": file.read_bytes(), "label": label})


def batches(
    data: Path,
    cores: int,
    *,
    decoder: str = "simplejpeg",
    workers: int = 2,
    prefetch: int = 4,  # batches a worker
    predownload: int = 8 * common.BATCH,  # samples looked up in advance; this is the default
) -> Any:
    """Return the DataLoader."""
    streaming = import_streaming()
    decode = common.DECODERS[decoder]

    class Images(streaming.StreamingDataset):
        def __getitem__(self, at: int) -> tuple[Any, int]:
            row = super().__getitem__(at)
            draws = [random.random() for _ in range(3)]
            return common.crop_and_mirror(decode(row["image"]), draws), row["label"]

    streaming.base.util.clean_stale_shared_memory()
    dataset = Images(
        local=str(data / OUTPUT),
        batch_size=common.BATCH,
        shuffle=True,
        num_canonical_nodes=1,
        predownload=predownload,
        epoch_size=1 << 18,  # far more than is measured: no epoch ends
    )
    return loader(dataset, workers, prefetch)


if __name__ == "__main__":
    common.main(batches, OUTPUT, convert)
