"""tf.data over TFRecord files, tuned as its performance guide has it.

Files are read in parallel and interleaved, encoded records are shuffled in a buffer, decoding and
cropping are one fused operation, and nothing waits for an order.
"""

from pathlib import Path
from typing import Any

from loaders import common

OUTPUT = "tfrecord"
SHARDS = 8


def convert(images: common.Images, folder: Path) -> None:
    """Write the images as `SHARDS` files of tf.train.Example."""
    import tensorflow as tf

    folder.mkdir()
    for shard in range(SHARDS):
        name = folder / f"train-{shard:05d}-of-{SHARDS:05d}"
        with tf.io.TFRecordWriter(str(name)) as writer:
            for file, label in images[shard::SHARDS]:
                image = tf.train.Feature(bytes_list=tf.train.BytesList(value=[file.read_bytes()]))
                number = tf.train.Feature(int64_list=tf.train.Int64List(value=[label]))
                features = tf.train.Features(feature={"image": image, "label": number})
                writer.write(tf.train.Example(features=features).SerializeToString())


def load(record: Any) -> tuple[Any, Any]:
    """Parse, decode, crop and mirror one record.

    TensorFlow's default inverse DCT is the fast one; the other loaders decode accurately.
    """
    import tensorflow as tf

    features = {
        "image": tf.io.FixedLenFeature([], tf.string),
        "label": tf.io.FixedLenFeature([], tf.int64),
    }
    example = tf.io.parse_single_example(record, features)
    draws = tf.random.uniform([3])
    patch = (tf.io.extract_jpeg_shape(example["image"])[:2] - common.PATCH) // 2
    corner = patch + tf.cast(draws[:2] * (common.PATCH - common.SIZE + 1), tf.int32)
    window = tf.concat([corner, [common.SIZE, common.SIZE]], 0)
    image = tf.image.decode_and_crop_jpeg(example["image"], window, channels=3)
    # tf.reverse has a kernel for pixels; image[:, ::-1] takes twice as long as decoding.
    image = tf.cond(draws[2] < 0.5, lambda: tf.reverse(image, [1]), lambda: image)
    return tf.ensure_shape(image, [common.SIZE, common.SIZE, 3]), example["label"]


def batches(
    data: Path,
    cores: int,
    *,
    maps: int = 0,  # records decoded at a time; 0: AUTOTUNE
    fuse: int = 0,  # 1: map and batch in one
    packs: int = 0,  # batches put together at a time; 0: one
    pool: int = 0,  # threads of a pool of its own; 0: TensorFlow's
    reads: int = 4,  # files open at a time
    buffer: int = 1024,  # records shuffled together: as many as ours
    prefetch: int = 0,  # batches; 0: AUTOTUNE
) -> Any:
    """Return the dataset."""
    import tensorflow as tf

    auto = tf.data.AUTOTUNE
    files = sorted(map(str, (data / OUTPUT).iterdir()))
    dataset = (
        tf.data.Dataset.from_tensor_slices(files)
        .shuffle(len(files))
        .repeat()
        .interleave(tf.data.TFRecordDataset, cycle_length=reads, num_parallel_calls=auto)
        .shuffle(buffer)
        .map(load, maps or auto)
        .batch(common.BATCH, drop_remainder=True, num_parallel_calls=packs or None)
        .prefetch(prefetch or auto)
    )
    options = tf.data.Options()
    options.deterministic = False
    options.experimental_optimization.map_and_batch_fusion = bool(fuse)
    options.threading.max_intra_op_parallelism = 1
    if pool:
        options.threading.private_threadpool_size = pool
    return dataset.with_options(options)


if __name__ == "__main__":
    common.main(batches, OUTPUT, convert)
