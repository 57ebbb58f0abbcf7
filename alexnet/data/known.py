"""Sets that are known by name or by the form in which their authors publish them.

CIFAR (Krizhevsky 2009): pickled batches. ImageNet (ILSVRC2012): a tar of class tars, a validation
tar, and a development kit. The digits come with scikit-learn; a synthetic set is computed.
"""

import os
import pickle
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path, PurePosixPath
from tarfile import TarInfo
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from alexnet.data.images import Pixels, encode_jpeg
from alexnet.data.sources import (
    TRAIN,
    VALIDATION,
    Files,
    Item,
    Source,
    check_classes,
    open_files,
    tar_members,
)
from alexnet.errors import DataError

Labels = npt.NDArray[np.int64]
IMAGENET_TRAIN = "ILSVRC2012_img_train.tar"
IMAGENET_VALIDATION = "ILSVRC2012_img_val.tar"
IMAGENET_KIT = "ILSVRC2012_devkit_t12.tar.gz"
IMAGENET_TRUTH = "ILSVRC2012_validation_ground_truth.txt"
IMAGENET_MEANING = "meta.mat"


def named(name: str) -> Source | None:
    """Return the set of that name; None: it is none of these, but may be a path."""
    if name == "digits":
        return _digits()
    if name in ("cifar10", "cifar100"):
        return _keras_cifar(name)
    if name.startswith("synthetic:"):
        return _synthetic(name)
    return None


def recognised(files: Files) -> Source | None:
    """Return the set that these files are the published form of; None: they are not."""
    by_name = {PurePosixPath(path).name: path for path in files.sizes}
    if "data_batch_1" in by_name and "test_batch" in by_name:
        return _cifar10(files, by_name)
    if {"train", "test", "meta"} <= set(by_name):
        return _cifar100(files, by_name)
    if IMAGENET_TRAIN in by_name or IMAGENET_VALIDATION in by_name:
        return _imagenet(files, by_name)
    return None


def _digits() -> Source:
    """scikit-learn's handwritten digits; every fifth image is held out."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    pixels = (digits.images * (255 / 16)).round().astype("uint8")
    items = tuple(
        Item(
            key=f"digits/{index:04d}.png",
            split=VALIDATION if index % 5 == 4 else TRAIN,
            class_name=str(label),
        )
        for index, label in enumerate(digits.target)
    )
    index_of = {item.key: index for index, item in enumerate(items)}
    return Source(items=items, read=lambda item: _png(pixels[index_of[item.key]]))


def _synthetic(name: str) -> Source:
    """`synthetic:IMAGES[:CLASSES[:SIDE]]`: smooth noise with a tint a class, the same for ever."""
    try:
        images, classes, side = (*map(int, name.split(":")[1:]), *(10, 320)[name.count(":") - 1 :])
    except ValueError:
        images = classes = side = 0
    if not (classes >= 1 and 10 * classes <= images <= 10**8 and 8 <= side <= 4096):
        raise DataError(
            f"{name}: expected synthetic:IMAGES[:CLASSES[:SIDE]] with at least 10 images a class, "
            "at most 100 million in all, and a side of 8 to 4096 pixels"
        )
    items = tuple(
        Item(
            key=f"synthetic/{index:08d}.jpg",
            split=VALIDATION if index // classes % 10 == 9 else TRAIN,
            class_name=f"class-{index % classes:04d}",
        )
        for index in range(images)
    )

    def read(item: Item) -> bytes:
        return encode_jpeg(_noise(int(PurePosixPath(item.key).stem), classes, side), quality=90)

    return Source(items=items, read=read)


def _noise(index: int, classes: int, side: int) -> Pixels:
    """Octaves of noise over a colour of the class: about as many bytes as a photograph's JPEG."""
    height, width = side, side * 4 // 3
    rng = np.random.default_rng([2012, index])
    tint = np.random.default_rng([2012, classes, index % classes]).uniform(64, 192, 3)
    total = np.broadcast_to(tint, (height, width, 3)).astype(np.float32)
    for cells, strength in ((3, 60), (12, 30), (48, 14), (side, 4)):
        coarse = rng.uniform(-strength, strength, (cells, cells, 3)).astype(np.float32)
        channels = [
            Image.fromarray(coarse[..., c]).resize((width, height), Image.Resampling.BICUBIC)
            for c in range(3)
        ]
        total = total + np.stack([np.asarray(channel) for channel in channels], axis=-1)
    return total.clip(0, 255).astype(np.uint8)


def _keras_cifar(name: str) -> Source:
    """CIFAR as Keras fetches, verifies and caches it."""
    import keras

    loader = {"cifar10": keras.datasets.cifar10, "cifar100": keras.datasets.cifar100}[name]
    try:
        (x, y), (x_test, y_test) = loader.load_data()
    except Exception as error:  # whatever the network and an archive can bring
        reason = " ".join(str(error).split())
        raise DataError(
            f"{name}: Keras cannot load it: {reason}; name the folder or the tar.gz that its "
            "authors publish instead"
        ) from None
    classes = tuple(f"{label:0{len(str(y.max()))}d}" for label in range(int(y.max()) + 1))
    return _arrays(name, classes, {TRAIN: (x, y.ravel()), VALIDATION: (x_test, y_test.ravel())})


def _cifar10(files: Files, by_name: dict[str, str]) -> Source:
    def load(name: str) -> tuple[Pixels, Labels]:
        return _cifar_batch(files, by_name, name, "labels")

    parts = [load(f"data_batch_{number}") for number in range(1, 6)]
    train = np.concatenate([x for x, _ in parts]), np.concatenate([y for _, y in parts])
    classes = _cifar_classes(files, by_name, "batches.meta", "label_names")
    return _arrays("cifar10", classes, {TRAIN: train, VALIDATION: load("test_batch")})


def _cifar100(files: Files, by_name: dict[str, str]) -> Source:
    splits = {
        split: _cifar_batch(files, by_name, name, "fine_labels")
        for split, name in ((TRAIN, "train"), (VALIDATION, "test"))
    }
    return _arrays("cifar100", _cifar_classes(files, by_name, "meta", "fine_label_names"), splits)


def _cifar_batch(
    files: Files, by_name: dict[str, str], name: str, labels: str
) -> tuple[Pixels, Labels]:
    tree = _unpickle(files, by_name, name)
    try:
        pixels = np.asarray(tree["data"], np.uint8).reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        numbers = np.asarray(tree[labels], np.int64)
        if numbers.shape != (len(pixels),):
            raise ValueError(f"{len(pixels)} images, labels of shape {numbers.shape}")
    except (KeyError, ValueError, TypeError, OverflowError) as error:
        raise DataError(f"{files.origin}: {name} is no CIFAR batch: {error}") from None
    return pixels, numbers


def _cifar_classes(files: Files, by_name: dict[str, str], name: str, key: str) -> tuple[str, ...]:
    try:
        return tuple(map(str, _unpickle(files, by_name, name)[key]))
    except (KeyError, TypeError) as error:
        raise DataError(f"{files.origin}: {name} names no classes: {error}") from None


class _PlainUnpickler(pickle.Unpickler):
    """Arrays, numbers, text and containers only: a pickle may otherwise run anything."""

    ALLOWED = (
        ("numpy.core.multiarray", "_reconstruct"),
        ("numpy._core.multiarray", "_reconstruct"),
        ("numpy", "ndarray"),
        ("numpy", "dtype"),
        ("_codecs", "encode"),
    )

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return super().find_class(module.replace("numpy.core", "numpy._core"), name)


def _unpickle(files: Files, by_name: dict[str, str], name: str) -> dict[str, Any]:
    if name not in by_name:
        raise DataError(f"{files.origin}: {name} is missing")
    try:
        return dict(_PlainUnpickler(BytesIO(files.read(by_name[name])), encoding="latin1").load())
    except Exception as error:  # a damaged pickle can bring any
        reason = " ".join(str(error).split())
        raise DataError(f"{files.origin}: {name} cannot be read: {reason}") from None


def _arrays(
    name: str, classes: tuple[str, ...], splits: dict[str, tuple[Pixels, Labels]]
) -> Source:
    """Images in memory, uint8 [n, height, width, 3], stored without loss."""
    pixels: dict[str, Pixels] = {}
    items = []
    for split, (images, labels) in splits.items():
        if len(labels) and not 0 <= labels.min() <= labels.max() < len(classes):
            wrong = labels[(labels < 0) | (labels >= len(classes))][0]
            raise DataError(f"{name}: label {wrong} is none of the {len(classes)} classes")
        for index, (image, label) in enumerate(zip(images, labels.tolist(), strict=True)):
            item = Item(
                key=f"{name}/{split}/{index:05d}.png", split=split, class_name=classes[label]
            )
            pixels[item.key] = image
            items.append(item)
    return Source(items=tuple(items), read=lambda item: _png(pixels[item.key]), class_names=classes)


def _imagenet(files: Files, by_name: dict[str, str]) -> Source:
    """ILSVRC2012 as it ships: both image archives and the development kit in one folder."""
    root = Path(files.origin)
    if not root.is_dir():
        raise DataError(f"{files.origin}: ImageNet's archives must lie in a local folder")
    for needed in (IMAGENET_TRAIN, IMAGENET_VALIDATION):
        if needed not in by_name:
            raise DataError(f"{files.origin}: ImageNet's {needed} is missing")
    parts = [
        *_imagenet_train(root / by_name[IMAGENET_TRAIN]),
        *_imagenet_validation(root / by_name[IMAGENET_VALIDATION], _imagenet_truth(files, by_name)),
    ]
    items, piece_of = tuple(item for item, _ in parts), {item.key: piece for item, piece in parts}
    check_classes(files.origin, items)
    return Source(items=items, read=lambda item: piece_of[item.key].read())


@dataclass(frozen=True)
class _Piece:
    """Bytes somewhere in a file."""

    path: Path
    offset: int
    size: int

    def read(self) -> bytes:
        with self.path.open("rb") as file:
            return os.pread(file.fileno(), self.size, self.offset)


def _imagenet_train(archive: Path) -> Iterator[tuple[Item, _Piece]]:
    """A tar of tars, one a class, named after its WordNet number."""
    for inner in filter(TarInfo.isfile, tar_members(archive)):
        class_name = PurePosixPath(inner.name).stem
        for image in filter(TarInfo.isfile, tar_members(archive, inner.offset_data)):
            key = f"train/{class_name}/{image.name}"
            item = Item(key=key, split=TRAIN, class_name=class_name)
            yield item, _Piece(archive, image.offset_data, image.size)


def _imagenet_validation(archive: Path, truth: list[str]) -> Iterator[tuple[Item, _Piece]]:
    """Images numbered from 1, whose classes are the lines of the ground truth."""
    for image in filter(TarInfo.isfile, tar_members(archive)):
        name = PurePosixPath(image.name).name
        digits = PurePosixPath(name).stem.rpartition("_")[2]
        number = int(digits) if digits.isdecimal() else 0
        if not 1 <= number <= len(truth):
            raise DataError(f"{archive}: {name} is none of the {len(truth)} in {IMAGENET_TRUTH}")
        class_name = truth[number - 1]
        key = f"validation/{class_name}/{name}"
        item = Item(key=key, split=VALIDATION, class_name=class_name)
        yield item, _Piece(archive, image.offset_data, image.size)


def _imagenet_truth(files: Files, by_name: dict[str, str]) -> list[str]:
    """WordNet numbers of the validation images, in order, from the kit or its two files."""
    from scipy.io import loadmat

    if IMAGENET_KIT in by_name:
        with open_files(str(Path(files.origin) / by_name[IMAGENET_KIT])) as kit:
            return _imagenet_truth(kit, {PurePosixPath(path).name: path for path in kit.sizes})
    for needed in (IMAGENET_TRUTH, IMAGENET_MEANING):
        if needed not in by_name:
            raise DataError(
                f"{files.origin}: ImageNet's {needed} is missing; it comes in {IMAGENET_KIT}"
            )
    try:
        synsets = loadmat(BytesIO(files.read(by_name[IMAGENET_MEANING])))["synsets"].ravel()
        meaning = {
            int(synset["ILSVRC2012_ID"].item()): str(synset["WNID"].item()) for synset in synsets
        }
        return [meaning[int(line)] for line in files.read(by_name[IMAGENET_TRUTH]).split()]
    except Exception as error:  # a damaged kit can bring any
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise DataError(
            f"{files.origin}: {IMAGENET_TRUTH} cannot be read with {IMAGENET_MEANING}: {reason}"
        ) from None


def _png(pixels: npt.NDArray[np.uint8]) -> bytes:
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()
