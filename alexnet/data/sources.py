"""Where images come from: a folder or an archive of class folders, or a set known by its form.

A source lists its items first (cheap: names only) and reads the bytes of one item on demand, from
any thread, so that `prepare` may choose order and parallelism.
"""

import bz2
import gzip
import hashlib
import lzma
import os
import shutil
import struct
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from alexnet.data.images import MAX_BYTES
from alexnet.data.storage import Location, explained
from alexnet.errors import DataError

TRAIN, VALIDATION = "train", "validation"
SPLIT_NAMES = {
    **dict.fromkeys(("train", "training", "training_set"), TRAIN),
    **dict.fromkeys(("validation", "valid", "val", "test", "test_set"), VALIDATION),
}
IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif"}
OTHER_SUFFIXES = {".heic", ".heif", ".avif", ".tif", ".tiff"}  # told, not passed over
DAMAGE = (  # what Python's readers of archives raise
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    EOFError,
    OSError,
    ValueError,
    IndexError,
    RuntimeError,  # encrypted, or a compression that is not known
)


@dataclass(frozen=True, kw_only=True)
class Item:
    """One image that a source offers."""

    key: str  # unique in the source; decides its place in the shards
    split: str  # TRAIN or VALIDATION
    class_name: str
    size: int = 0  # bytes, where the listing tells


@dataclass(frozen=True, kw_only=True)
class Source:
    """A listed source. `read` returns an item's encoded bytes and may be called from any thread."""

    items: tuple[Item, ...]
    read: Callable[[Item], bytes]
    class_names: tuple[str, ...] = ()  # in label order; empty: the items', sorted

    @property
    def classes(self) -> list[str]:
        """Class names in label order."""
        return list(self.class_names) or sorted({item.class_name for item in self.items})


@dataclass(frozen=True, kw_only=True)
class Files:
    """The files of a folder or an archive."""

    origin: str
    sizes: dict[str, int]  # of the files, by their path
    folders: tuple[str, ...]
    read: Callable[[str], bytes]


@contextmanager
def open_source(name: str, validation_share: float) -> Iterator[Source]:
    """List the images of `name`.

    It is a folder, or a tar (also compressed) or zip of one, local or a URI, that holds class
    folders, CIFAR as its authors pack it, or ImageNet's archives; or 'digits', 'cifar10',
    'cifar100' or 'synthetic:IMAGES'.

    A tree without a validation folder gives up `validation_share` of its images to one, chosen by
    a hash of the path, so that adding images moves none of the old ones.

    Raises:
        DataError: nothing there, no images, or an empty class folder.
    """
    from alexnet.data import known

    if named := known.named(name):
        yield named
        return
    with open_files(name) as files:
        yield known.recognised(files) or tree(files, validation_share)


@contextmanager
def open_files(name: str) -> Iterator[Files]:
    """List the files of a folder or an archive.

    Raises:
        DataError: neither is there.
    """
    place = Location.of(name)
    with ExitStack() as stack:
        if place.is_local and place.local.is_dir():
            yield _local_folder(place.local)
        elif place.exists():
            yield _archive(name, stack.enter_context(place.fetched()), stack)
        elif not place.is_local and (sizes := place.files()):
            yield _far_folder(name, place, sizes)
        else:
            raise DataError(
                f"{name}: no such dataset; expected a folder, a tar or a zip of one, or a name: "
                "digits, cifar10, cifar100, synthetic:IMAGES"
            )


def _archive(name: str, path: Path, stack: ExitStack) -> Files:
    with _damage_told(name):
        if tarfile.is_tarfile(path):
            return _tar_files(name, stack.enter_context(_plain_tar(path)))
        if zipfile.is_zipfile(path):
            return _zip_files(name, stack.enter_context(zipfile.ZipFile(path)))
    raise DataError(f"{name}: neither a folder nor a tar or zip archive of images")


@contextmanager
def _damage_told(origin: str) -> Iterator[None]:
    with explained(origin):
        try:
            yield
        except DAMAGE as error:
            if isinstance(error, OSError) and error.errno:
                raise  # not the archive's fault
            reason = " ".join(str(error).split()) or "it ends early"
            raise DataError(f"{origin}: a damaged archive: {reason}") from None


def _local_folder(root: Path) -> Files:
    sizes, folders = {}, []
    above = {root: [root.resolve()]}  # real folders from the root down to here
    for parent, names, leaves in os.walk(root, followlinks=True):
        here, line = Path(parent).relative_to(root), above.pop(Path(parent))
        reals = {name: (line[-1] / name).resolve() for name in names}
        loops = {n for n, real in reals.items() if any(up.is_relative_to(real) for up in line)}
        names[:] = [name for name in names if name not in loops]
        above |= {root / here / name: [*line, reals[name]] for name in names}
        folders += [(here / name).as_posix() for name in names]
        for leaf in leaves:
            try:
                sizes[(here / leaf).as_posix()] = (root / here / leaf).stat().st_size
            except OSError:  # a link to nowhere, or to itself: it fails when it is read
                sizes[(here / leaf).as_posix()] = 0

    def read(path: str) -> bytes:
        if (root / path).exists() and not (root / path).is_file():
            raise DataError("not a regular file")  # a pipe would be waited for
        return (root / path).read_bytes()

    return Files(origin=str(root), sizes=sizes, folders=tuple(folders), read=read)


def _far_folder(name: str, place: Location, sizes: dict[str, int]) -> Files:
    return Files(origin=name, sizes=sizes, folders=(), read=lambda path: (place / path).read())


@contextmanager
def _plain_tar(path: Path) -> Iterator[Path]:
    """Yield an uncompressed copy of the archive (itself, if it is), for reads at any offset."""
    openers: dict[bytes, Callable[..., Any]] = {
        b"\x1f\x8b": gzip.open,
        b"BZ": bz2.open,
        b"\xfd7": lzma.open,
    }
    with path.open("rb") as file:
        start = file.read(512)
    opener = openers.get(start[:2])
    if opener is None or start[257:262] == b"ustar":  # a plain one may begin with a name in "BZ"
        yield path
        return
    with tempfile.NamedTemporaryFile(suffix=".tar") as copy:
        with opener(path, "rb") as compressed:
            shutil.copyfileobj(compressed, copy, 1 << 20)
        copy.flush()
        yield Path(copy.name)


def tar_members(path: Path, offset: int = 0, origin: str = "") -> list[tarfile.TarInfo]:
    """Return what is in an uncompressed tar, which may begin inside of a file.

    `origin` is what errors call it.

    Raises:
        DataError: damaged, or a member points out of it.
    """
    with _damage_told(origin or str(path)), path.open("rb") as file:
        file.seek(offset)
        with tarfile.open(fileobj=file, mode="r:") as archive:
            members = [member for member in archive.getmembers() if member.name != "."]
            file.seek(archive.offset)  # where `tarfile` found no further header
            if file.read(tarfile.BLOCKSIZE).strip(b"\0"):
                raise tarfile.ReadError(f"byte {archive.offset} begins no member")
    _refuse_escape(origin or str(path), (member.name for member in members))
    return members


def _tar_files(origin: str, path: Path) -> Files:
    members = tar_members(path, origin=origin)
    place = {_clean(m.name): (m.offset_data, m.size) for m in members if m.isfile()}
    handle = path.open("rb")

    def read(name: str) -> bytes:
        begin, size = place[name]
        return os.pread(handle.fileno(), size, begin)

    return Files(
        origin=origin,
        sizes={name: size for name, (_, size) in place.items()},
        folders=tuple(_clean(m.name) for m in members if m.isdir()),
        read=read,
    )


def _zip_files(origin: str, archive: zipfile.ZipFile) -> Files:
    members = {_clean(member.filename): member for member in archive.infolist()}
    _refuse_escape(origin, (member.filename for member in members.values()))

    def read(name: str) -> bytes:
        try:
            return archive.read(members[name])
        except DAMAGE as error:
            raise DataError(f"damaged in the archive: {error or 'it ends early'}") from None

    return Files(
        origin=origin,
        sizes={name: m.file_size for name, m in members.items() if not m.is_dir()},
        folders=tuple(name for name, member in members.items() if member.is_dir()),
        read=read,
    )


def _refuse_escape(origin: str, names: Iterable[str]) -> None:
    for name in names:
        if ".." in PurePosixPath(name).parts or name.startswith("/"):
            raise DataError(f"{origin}: member {name!r} points out of the archive")


def _clean(name: str) -> str:
    return PurePosixPath(name).as_posix().removeprefix("./")


def tree(files: Files, validation_share: float) -> Source:
    """Return the images of `[...]/[split/[...]]class/image.jpg` paths.

    Raises:
        DataError: there are none, or they don't make two splits of the same classes.
    """
    items = _items(files.origin, files.sizes, files.folders, validation_share)

    def read(item: Item) -> bytes:
        if item.size > MAX_BYTES:
            raise DataError(f"{item.size} bytes, at most {MAX_BYTES} allowed")
        if (suffix := PurePosixPath(item.key).suffix.lower()) in OTHER_SUFFIXES:
            raise DataError(f"{suffix[1:].upper()} is not read: save it as JPEG or PNG")
        return files.read(item.key)

    return Source(items=items, read=read)


def _items(
    origin: str, sizes: dict[str, int], folders: Iterable[str], validation_share: float
) -> tuple[Item, ...]:
    images = sorted(
        path
        for path in map(PurePosixPath, sizes)
        if path.suffix.lower() in IMAGE_SUFFIXES | OTHER_SUFFIXES
        and not _hidden(path)
        and len(path.parts) > 1
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
        split_of = {path: hashed_split(str(path), validation_share) for path in images}
    items = tuple(
        Item(
            key=str(path),
            split=str(split_of[path]),
            class_name=path.parts[-2],
            size=sizes[str(path)],
        )
        for path in images
    )
    check_classes(origin, items)
    return items


def _check_name(origin: str, path: PurePosixPath) -> None:
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise DataError(f"{origin}: the name {str(path)!r} is not UTF-8; rename it") from None
    if len(str(path).splitlines()) > 1:
        raise DataError(f"{origin}: the name {str(path)!r} has a line break in it; rename it")
    if path.parts[-2].lower() in SPLIT_NAMES:
        raise DataError(
            f"{origin}: {path} stands right in the folder of a split; expected "
            f"{path.parent}/CLASS/{path.name}"
        )


def _hidden(path: PurePosixPath) -> bool:
    return any(part.startswith(".") or part == "__MACOSX" for part in path.parts)


def _named_split(path: PurePosixPath) -> str | None:
    named = [SPLIT_NAMES[part.lower()] for part in path.parts[:-2] if part.lower() in SPLIT_NAMES]
    return named[-1] if named else None


def hashed_split(key: str, validation_share: float) -> str:
    """Return the split that a key belongs to, whatever other keys there are."""
    digest = hashlib.sha256(key.encode()).digest()
    return VALIDATION if int.from_bytes(digest[:8]) < validation_share * 2**64 else TRAIN


def _refuse_empty(
    origin: str, images: list[PurePosixPath], folders: Iterable[PurePosixPath]
) -> None:
    """Every folder must lead to an image: an empty class is a mistake, not a class."""
    used = {parent for path in images for parent in path.parents}
    empty = sorted(str(path) for path in folders if path not in used and not _hidden(path))
    if empty:
        raise DataError(f"{origin}: folder {empty[0]!r} has no images; remove it or fill it")


def check_classes(origin: str, items: tuple[Item, ...]) -> None:
    """Raise DataError unless there are two splits of the same classes."""
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
