"""Where images come from: a folder, a tar of one, or the embedded digits.

A source lists its items first (cheap: names only) and reads the bytes of one item on demand, from
any thread, so that `prepare` may choose order and parallelism.
"""

import bz2
import gzip
import hashlib
import lzma
import os
import shutil
import tarfile
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import Any

from alexnet.errors import DataError

TRAIN, VALIDATION = "train", "validation"
SPLIT_NAMES = {
    **dict.fromkeys(("train", "training", "training_set"), TRAIN),
    **dict.fromkeys(("validation", "valid", "val", "test", "test_set"), VALIDATION),
}
IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif"}


@dataclass(frozen=True, kw_only=True)
class Item:
    """One image that a source offers."""

    key: str  # unique in the source; decides its place in the shards
    split: str  # TRAIN or VALIDATION
    class_name: str


@dataclass(frozen=True, kw_only=True)
class Source:
    """A listed source. `read` returns an item's encoded bytes and may be called from any thread."""

    items: tuple[Item, ...]
    read: Callable[[Item], bytes]

    @property
    def classes(self) -> list[str]:
        """Class names in label order."""
        return sorted({item.class_name for item in self.items})


@contextmanager
def open_source(name: str, validation_share: float) -> Iterator[Source]:
    """List `name`: 'digits', a folder of images, or a tar (also compressed) of such a folder.

    A tree without a validation folder gives up `validation_share` of its images to one, chosen by
    a hash of the path, so that adding images moves none of the old ones.

    Raises:
        DataError: nothing there, no images, or an empty class folder.
    """
    if name == "digits":
        yield _digits()
        return
    path = Path(name)
    if path.is_dir():
        yield _folder(path, validation_share)
    elif path.is_file() and tarfile.is_tarfile(path):
        with _plain_tar(path) as plain:
            yield _tar(path, plain, validation_share)
    elif path.exists():
        raise DataError(f"{name}: neither a folder nor a tar archive of images")
    else:
        raise DataError(
            f"{name}: no such dataset; expected a folder, a tar of one, or the name 'digits'"
        )


def _digits() -> Source:
    """scikit-learn's handwritten digits; every fifth image is held out."""
    from PIL import Image
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

    def read(item: Item) -> bytes:
        buffer = BytesIO()
        Image.fromarray(pixels[index_of[item.key]]).save(buffer, "PNG")
        return buffer.getvalue()

    return Source(items=items, read=read)


def _folder(root: Path, validation_share: float) -> Source:
    files, folders = [], []
    for parent, names, leaves in os.walk(root, followlinks=True):
        here, real = Path(parent).relative_to(root), Path(parent).resolve()
        names[:] = [name for name in names if not real.is_relative_to((real / name).resolve())]
        folders += [(here / name).as_posix() for name in names]
        files += [(here / leaf).as_posix() for leaf in leaves]
    items = _tree(str(root), files, folders, validation_share)
    return Source(items=items, read=lambda item: (root / item.key).read_bytes())


@contextmanager
def _plain_tar(path: Path) -> Iterator[Path]:
    """Yield an uncompressed copy of the archive (itself, if it is), for reads at any offset."""
    openers: dict[bytes, Callable[..., Any]] = {
        b"\x1f\x8b": gzip.open,
        b"BZ": bz2.open,
        b"\xfd7": lzma.open,
    }
    with path.open("rb") as file:
        opener = openers.get(file.read(2))
    if opener is None:
        yield path
        return
    with tempfile.NamedTemporaryFile(suffix=".tar") as copy:
        try:
            with opener(path, "rb") as compressed:
                shutil.copyfileobj(compressed, copy, 1 << 20)
        except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
            raise DataError(f"{path}: a damaged archive: {error}") from None
        copy.flush()
        yield Path(copy.name)


def _tar(path: Path, plain: Path, validation_share: float) -> Source:
    try:
        with tarfile.open(plain, "r:") as archive:
            members = archive.getmembers()
    except tarfile.TarError as error:
        raise DataError(f"{path}: a damaged archive: {error}") from None
    for member in members:
        parts = PurePosixPath(member.name).parts
        if ".." in parts or member.name.startswith("/"):
            raise DataError(f"{path}: member {member.name!r} points out of the archive")
    place = {_clean(m.name): (m.offset_data, m.size) for m in members if m.isfile()}
    folders = [_clean(m.name) for m in members if m.isdir()]
    items = _tree(str(path), place, folders, validation_share)
    handle = plain.open("rb")

    def read(item: Item) -> bytes:
        offset, size = place[item.key]
        return os.pread(handle.fileno(), size, offset)

    return Source(items=items, read=read)


def _clean(name: str) -> str:
    return PurePosixPath(name).as_posix().removeprefix("./")


def _tree(
    origin: str, files: Iterable[str], folders: Iterable[str], validation_share: float
) -> tuple[Item, ...]:
    """Items of `[...]/[split/[...]]class/image.jpg` paths."""
    images = sorted(
        path
        for path in map(PurePosixPath, files)
        if path.suffix.lower() in IMAGE_SUFFIXES and not _hidden(path) and len(path.parts) > 1
    )
    for path in images:
        _check_name(origin, path)
    if not images:
        raise DataError(f"{origin}: no images; expected split/class/*.jpg or class/*.jpg")
    _refuse_empty(origin, images, map(PurePosixPath, folders))
    split_of = {path: _named_split(path) for path in images}
    unplaced = [path for path, split in split_of.items() if split is None]
    if 0 < len(unplaced) < len(images):
        raise DataError(
            f"{origin}: {unplaced[0]} is in neither a train nor a validation folder, "
            f"but other images are"
        )
    if VALIDATION not in split_of.values():
        split_of = {path: _hashed_split(path, validation_share) for path in images}
    items = tuple(
        Item(key=str(path), split=str(split_of[path]), class_name=path.parts[-2]) for path in images
    )
    _check_classes(origin, items)
    return items


def _check_name(origin: str, path: PurePosixPath) -> None:
    if path.parts[-2].lower() in SPLIT_NAMES:
        raise DataError(
            f"{origin}: {path} stands right in the folder of a split; expected "
            f"{path.parent}/CLASS/{path.name}"
        )
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise DataError(f"{origin}: the name {str(path)!r} is not UTF-8; rename it") from None


def _hidden(path: PurePosixPath) -> bool:
    return any(part.startswith(".") or part == "__MACOSX" for part in path.parts)


def _named_split(path: PurePosixPath) -> str | None:
    named = [SPLIT_NAMES[part.lower()] for part in path.parts[:-2] if part.lower() in SPLIT_NAMES]
    return named[-1] if named else None


def _hashed_split(path: PurePosixPath, validation_share: float) -> str:
    digest = hashlib.sha256(str(path).encode()).digest()
    return VALIDATION if int.from_bytes(digest[:8]) < validation_share * 2**64 else TRAIN


def _refuse_empty(
    origin: str, images: list[PurePosixPath], folders: Iterable[PurePosixPath]
) -> None:
    """Every folder must lead to an image: an empty class is a mistake, not a class."""
    used = {parent for path in images for parent in path.parents}
    empty = sorted(str(path) for path in folders if path not in used and not _hidden(path))
    if empty:
        raise DataError(f"{origin}: folder {empty[0]!r} has no images; remove it or fill it")


def _check_classes(origin: str, items: tuple[Item, ...]) -> None:
    by_split = {
        split: {item.class_name for item in items if item.split == split}
        for split in (TRAIN, VALIDATION)
    }
    if not by_split[TRAIN]:
        raise DataError(f"{origin}: no training images; expected a folder named train")
    if not by_split[VALIDATION]:
        raise DataError(f"{origin}: no validation images; raise the validation share")
    if strange := sorted(by_split[VALIDATION] - by_split[TRAIN]):
        raise DataError(f"{origin}: class {strange[0]!r} is in validation but not in training")
