"""Grain over ArrayRecord, decoded in threads or in worker processes."""

from pathlib import Path
from typing import Any

from loaders import common

OUTPUT = "grain.array_record"


def convert(images: common.Images, path: Path) -> None:
    """Write the images as one ArrayRecord file, each record on its own: a label and a JPEG."""
    from array_record.python.array_record_module import ArrayRecordWriter

    writer = ArrayRecordWriter(str(path), "group_size:1,uncompressed")
    for file, label in images:
        writer.write(label.to_bytes(4) + file.read_bytes())
    writer.close()


def batches(
    data: Path,
    cores: int,
    *,
    decoder: str = "simplejpeg",
    workers: int = 0,  # processes; 0: all is done in this one
    threads: int = 2,  # a process
    prefetch: int = 4,  # batches a process
    batch: str = "map",  # map: a thread makes whole batches; iter: single images
) -> Any:
    """Return the dataset."""
    import grain

    decode = common.DECODERS[decoder]

    def load(record: bytes, generator: Any) -> tuple[Any, int]:
        image = decode(record[4:])
        return common.crop_and_mirror(image, generator.random(3)), int.from_bytes(record[:4])

    source = grain.sources.ArrayRecordDataSource(str(data / OUTPUT))
    rows = grain.MapDataset.source(source).seed(0).shuffle().repeat().random_map(load)
    if batch == "map":
        reading = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=prefetch)
        dataset = rows.batch(common.BATCH).to_iter_dataset(reading)
    else:
        reading = grain.ReadOptions(
            num_threads=threads, prefetch_buffer_size=prefetch * common.BATCH
        )
        dataset = rows.to_iter_dataset(reading).batch(common.BATCH)
    if workers:
        dataset = dataset.mp_prefetch(grain.MultiprocessingOptions(workers, prefetch))
    return dataset


if __name__ == "__main__":
    common.main(batches, OUTPUT, convert)
