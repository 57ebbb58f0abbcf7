"""Rows to tensors: decoding and augmentation in TensorFlow's C++ threads.

Python only hands over the encoded bytes of one micro-batch at a time; decoding, resizing and the
random changes run off its lock. Images stay uint8 until they are on the device.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from alexnet.config import AugmentConfig, DataConfig
from alexnet.data.order import Order
from alexnet.data.shards import Split
from alexnet.errors import DataError

Batch = tuple[tf.Tensor, tf.Tensor]
Encoded = tuple[list[bytes], npt.NDArray[np.int64], npt.NDArray[np.int64]]


class ChunkReader:
    """Looks up single rows of a split and keeps the chunks last used."""

    def __init__(self, split: Split, capacity: int) -> None:
        """Keep at most `capacity` chunks in memory."""
        self._split = split
        self._capacity = capacity
        self._chunks: OrderedDict[int, tuple[list[bytes], npt.NDArray[np.int64]]] = OrderedDict()
        self._first_rows = np.cumsum((0, *split.chunk_rows))[:-1]

    def rows(self, rows: npt.NDArray[np.int64]) -> tuple[list[bytes], npt.NDArray[np.int64]]:
        """Return encoded images and labels, int64 [n], of row numbers [n]."""
        images, labels = [], np.empty(len(rows), np.int64)
        chunks = np.searchsorted(self._first_rows, rows, side="right") - 1
        for at, (row, chunk) in enumerate(zip(rows.tolist(), chunks.tolist(), strict=True)):
            chunk_images, chunk_labels = self._chunk(chunk)
            within = row - int(self._first_rows[chunk])
            images.append(chunk_images[within])
            labels[at] = chunk_labels[within]
        return images, labels

    def _chunk(self, chunk: int) -> tuple[list[bytes], npt.NDArray[np.int64]]:
        if chunk in self._chunks:
            self._chunks.move_to_end(chunk)
        else:
            if len(self._chunks) >= self._capacity:
                self._chunks.popitem(last=False)
            self._chunks[chunk] = self._split.read_chunk(chunk)
        return self._chunks[chunk]


class Batches:
    """A tf.data pipeline out of which an error of reading comes as it is, not wrapped."""

    def __init__(
        self,
        encoded: Callable[[], Iterator[Encoded]],
        pipeline: Callable[[tf.data.Dataset], tf.data.Dataset],
    ) -> None:
        """Send what `encoded` yields through `pipeline`."""
        self._encoded = encoded
        self._error: DataError | None = None
        signature = (
            tf.TensorSpec([None], tf.string),
            tf.TensorSpec([None], tf.int64),
            tf.TensorSpec([None, 2], tf.int64),
        )
        source = tf.data.Dataset.from_generator(self._read, output_signature=signature)
        self._dataset = pipeline(source)

    def __iter__(self) -> Iterator[Batch]:
        """Yield (images, labels).

        Raises:
            DataError: a chunk cannot be read.
        """
        try:
            yield from self._dataset
        except tf.errors.OpError:
            if self._error:
                raise self._error from None
            raise

    def _read(self) -> Iterator[Encoded]:
        try:
            yield from self._encoded()
        except DataError as error:
            self._error = error
            raise


def training_batches(
    split: Split, order: Order, virtual_workers: range, config: DataConfig, first_step: int
) -> Batches:
    """Endless batches of one rank, from `first_step` on.

    Each is (images uint8 [k, micro_batch, size, size, 3], labels int64 [k, micro_batch]) for the k
    virtual workers of the rank. What a row becomes depends on (seed, epoch, row) alone.
    """
    mean_chunk = max(1.0, split.rows / len(split.chunk_rows))
    window_chunks = int(config.window / mean_chunk) + 3
    reader = ChunkReader(split, capacity=len(virtual_workers) * window_chunks)

    def encoded() -> Iterator[Encoded]:
        step = first_step
        while True:
            for virtual_worker in virtual_workers:
                rows = order.rows(step, virtual_worker)
                epoch = np.full_like(rows, (order.seed << 24) + order.epoch_of(step))
                yield *reader.rows(rows), np.stack([epoch, rows], axis=1)
            step += 1

    def decode(image: tf.Tensor, label: tf.Tensor, seed: tf.Tensor) -> Batch:
        pixels = decode_and_resize(image, config.image_size)
        return augment(pixels, config.augment, seed), label

    def pipeline(source: tf.data.Dataset) -> tf.data.Dataset:
        micro_batches = _decoded(source, decode, config.threads, order.micro_batch)
        return micro_batches.batch(len(virtual_workers), drop_remainder=True).prefetch(2)

    return Batches(encoded, pipeline)


def evaluation_batches(split: Split, rows: range, config: DataConfig, batch: int) -> Batches:
    """Every row of `rows` once, in order: (images uint8 [n, size, size, 3], labels int64 [n]).

    n is `batch` but for the last.
    """
    reader = ChunkReader(split, capacity=2)

    def encoded() -> Iterator[Encoded]:
        for at in range(rows.start, rows.stop, batch):
            numbers = np.arange(at, min(at + batch, rows.stop))
            yield *reader.rows(numbers), np.zeros((len(numbers), 2), np.int64)

    def decode(image: tf.Tensor, label: tf.Tensor, seed: tf.Tensor) -> Batch:
        return decode_and_resize(image, config.image_size), label

    def pipeline(source: tf.data.Dataset) -> tf.data.Dataset:
        return _decoded(source, decode, config.threads, batch).prefetch(2)

    return Batches(encoded, pipeline)


def _decoded(
    source: tf.data.Dataset, decode: Callable[..., Batch], threads: int, batch: int
) -> tf.data.Dataset:
    options = tf.data.Options()
    if threads:
        options.threading.private_threadpool_size = threads
    images = source.unbatch().map(decode, tf.data.AUTOTUNE, deterministic=True)
    return images.batch(batch).with_options(options)


def decode_and_resize(encoded: tf.Tensor, size: int) -> tf.Tensor:
    """Return uint8 [size, size, 3] of an encoded JPEG, PNG, BMP or GIF, stretched to the square."""
    image = tf.io.decode_image(encoded, channels=3, expand_animations=False)
    resized = tf.image.resize(image, [size, size], method="bilinear", antialias=True)
    pixels = tf.cast(tf.clip_by_value(tf.round(resized), 0.0, 255.0), tf.uint8)
    return tf.ensure_shape(pixels, [size, size, 3])


def augment(image: tf.Tensor, config: AugmentConfig, seed: tf.Tensor) -> tf.Tensor:
    """Shift, zoom and flip uint8 [size, size, 3]; edges repeat. `seed` is int64 [2].

    One affine resampling, as Keras' ImageDataGenerator does (shift and zoom drawn for each axis),
    but bilinear; none at all where nothing is configured.
    """
    if config == AugmentConfig():
        return image
    size = image.shape[0]
    draw = tf.random.stateless_uniform([6], seed, minval=-1.0, maxval=1.0, alg="philox")
    scale = 1.0 + config.zoom * draw[0:2]
    shift = config.shift * size * draw[2:4]
    flips = tf.constant([config.horizontal_flip, config.vertical_flip])
    scale = tf.where(flips & (draw[4:6] < 0), -scale, scale)
    centre = (size - 1) / 2
    offset = centre + shift - scale * centre  # output pixel p reads scale * p + offset
    zero = tf.zeros([])
    transform = tf.stack([scale[0], zero, offset[0], zero, scale[1], offset[1], zero, zero])
    moved = tf.raw_ops.ImageProjectiveTransformV3(
        images=tf.cast(image, tf.float32)[None],  # it would cut off, not round, integers
        transforms=transform[None],
        output_shape=[size, size],
        fill_value=0.0,
        interpolation="BILINEAR",
        fill_mode="NEAREST",
    )[0]
    return tf.cast(tf.round(moved), tf.uint8)
