"""Files here or far away: one name for a local path or a `pyarrow.fs` URI, and what far ones need.

A far store fails now and then, so every request is tried again with growing pauses; it is slow, so
byte ranges are kept on a local disk, within a bound, for all ranks of a node.
"""

import errno
import fcntl
import hashlib
import logging
import os
import random
import re
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import pyarrow as pa
from pyarrow import fs

from alexnet.errors import ConfigError, DataError

log = logging.getLogger(__name__)

ATTEMPTS = 8
FIRST_PAUSE = 0.1  # seconds; doubles with every attempt
HOPELESS = ("ACCESS_DENIED", "INVALID_ACCESS_KEY", "SIGNATURE_DOES_NOT_MATCH", "NO_SUCH_BUCKET")
PASSWORD = re.compile(r"(\w+)://[^?]*:[^?]*@([^?]*)")
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Location:
    """A file or a folder, local or in a store that `pyarrow.fs` knows (file, s3, gs, hdfs)."""

    filesystem: fs.FileSystem
    path: str
    prefix: str  # with `path` in between, the name that a user would write
    suffix: str

    @staticmethod
    def of(name: str | Path) -> "Location":
        """Return the location that `name`, a path or a URI, stands for.

        Raises:
            ConfigError: a URI that pyarrow does not know, or one with a password in it.
        """
        text = str(name)
        if "://" not in text:
            local = str(Path(text).absolute())
            return Location(filesystem=fs.LocalFileSystem(), path=local, prefix="", suffix="")
        refuse_credentials(text)
        try:
            filesystem, path = fs.FileSystem.from_uri(text)
        except (pa.ArrowException, OSError, ValueError, KeyError) as error:
            raise ConfigError(f"{text}: not a location: {_one_line(error)}") from None
        if isinstance(filesystem, fs.LocalFileSystem):
            return Location.of(path)
        whole, question, query = text.partition("?")
        prefix = whole.rstrip("/").removesuffix(path.strip("/"))
        return Location(
            filesystem=filesystem, path=path, prefix=prefix, suffix=f"{question}{query}"
        )

    def __str__(self) -> str:
        return f"{self.prefix}{self.path}{self.suffix}"

    def __truediv__(self, child: str) -> "Location":
        return replace(self, path=f"{self.path.rstrip('/')}/{child}")

    @property
    def is_local(self) -> bool:
        """Whether `local` may be used."""
        return isinstance(self.filesystem, fs.LocalFileSystem)

    @property
    def local(self) -> Path:
        """The path of a local file or folder."""
        assert self.is_local
        return Path(self.path)

    def info(self) -> fs.FileInfo:
        """Return type and size; a type of NotFound where there is nothing."""
        return self.attempt(lambda: self.filesystem.get_file_info(self.path))

    def exists(self) -> bool:
        """Whether a file is here."""
        return bool(self.info().type == fs.FileType.File)

    def files(self) -> dict[str, int]:
        """Return the sizes of all files below this folder, if it is one, by their path from it."""
        selector = fs.FileSelector(self.path, recursive=True, allow_not_found=True)
        infos = self.attempt(lambda: self.filesystem.get_file_info(selector))
        return {
            os.path.relpath(info.path, self.path): info.size
            for info in infos
            if info.type == fs.FileType.File
        }

    def read(self) -> bytes:
        """Return the whole file, in one request."""

        def once() -> bytes:
            with self.filesystem.open_input_file(self.path) as file:
                return bytes(file.read())

        return self.attempt(once)

    def read_range(self, offset: int, length: int) -> bytes:
        """Return `length` bytes from `offset` on.

        Raises:
            OSError: also where the file ends before that.
        """

        def once() -> bytes:
            with self.filesystem.open_input_file(self.path) as file:
                data = bytes(file.read_at(length, offset))
            if len(data) != length:
                raise OSError(f"{self}: {len(data)} of {length} bytes at {offset}")
            return data

        return self.attempt(once)

    def digest(self) -> tuple[int, str]:
        """Return the file's size and SHA-256."""

        def once() -> tuple[int, str]:
            digest, size = hashlib.sha256(), 0
            with self.filesystem.open_input_stream(self.path) as stream:
                while block := stream.read(8 << 20):
                    digest.update(block)
                    size += len(block)
            return size, digest.hexdigest()

        return self.attempt(once)

    def write(self, data: bytes) -> None:
        """Write a whole file, at once where the store can (a local disk cannot)."""

        def once() -> None:
            with self.filesystem.open_output_stream(self.path) as file:
                file.write(data)

        self.attempt(once)

    def upload(self, source: Path) -> None:
        """Copy a local file to here."""
        target = self.filesystem
        self.attempt(
            lambda: fs.copy_files(
                str(source),
                self.path,
                source_filesystem=fs.LocalFileSystem(),
                destination_filesystem=target,
            )
        )

    def delete(self) -> None:
        """Delete the file, if it is there."""

        def once() -> None:
            with suppress(FileNotFoundError):
                self.filesystem.delete_file(self.path)

        self.attempt(once)

    @contextmanager
    def fetched(self) -> Iterator[Path]:
        """Yield a local copy of this file (itself, if it is local)."""
        if self.is_local:
            yield self.local
            return
        with tempfile.TemporaryDirectory() as folder:
            copy = Path(folder) / Path(self.path).name
            self.attempt(lambda: fs.copy_files(self.path, str(copy), self.filesystem))
            yield copy

    def attempt(self, request: Callable[[], T]) -> T:
        """Return what `request` to this place's store returns, if need be at a later attempt."""
        return request() if self.is_local else persistently(request)


def refuse_credentials(name: str) -> None:
    """Raise ConfigError, without telling it, if a URI has a user or a password in it."""
    if match := PASSWORD.match(name):
        raise ConfigError(
            f"{match[1]}://...@{match[2]}: credentials do not belong in a path; set them in the "
            "environment (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, "
            "GOOGLE_APPLICATION_CREDENTIALS)"
        )


def absolute(name: str) -> str:
    """Return a name that means the same from every working directory."""
    return name if "://" in name else str(Path(name).absolute())


def persistently(request: Callable[[], T], sleep: Callable[[float], None] = time.sleep) -> T:
    """Return what `request` returns, trying again after an error that may pass."""
    for attempt in range(ATTEMPTS):
        try:
            return request()
        except (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError):
            raise
        except OSError as error:
            if attempt == ATTEMPTS - 1 or any(word in str(error) for word in HOPELESS):
                raise
            log.warning("trying again: %s", _one_line(error))
            sleep(FIRST_PAUSE * 2**attempt * random.uniform(0.5, 1.5))
    raise AssertionError("unreachable")


class RangeCache:
    """Pieces of far files on a local disk, shared by processes; the longest unused go first."""

    def __init__(self, folder: Path, limit: int) -> None:
        """Keep at most `limit` bytes in `folder`."""
        self._folder = folder
        self._limit = limit

    def get(self, key: str, fetch: Callable[[], bytes]) -> bytes:
        """Return the piece named `key`, fetched if it is not here."""
        path = self._folder / key
        try:
            data = path.read_bytes()
            os.utime(path)
            return data
        except OSError:  # mostly because it is not here
            data = fetch()
        try:
            self._keep(path, data)
        except OSError as error:  # full, or read-only: slower, but right
            log.warning("cannot cache in %s: %s", self._folder, error.strerror)
        return data

    def forget(self, key: str) -> None:
        """Drop a piece that turned out damaged."""
        (self._folder / key).unlink(missing_ok=True)

    def _keep(self, path: Path, data: bytes) -> None:
        if len(data) > self._limit:
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        with self._locked():
            self._make_room(len(data))
            partial = path.with_name(f".{path.name}.{os.getpid()}")
            try:
                partial.write_bytes(data)
                partial.rename(path)
            finally:
                partial.unlink(missing_ok=True)

    def _make_room(self, size: int) -> None:
        pieces = [(entry.stat(), entry.path) for entry in os.scandir(self._folder)]
        total = size + sum(stat.st_size for stat, _ in pieces)
        for stat, path in sorted(pieces, key=lambda piece: piece[0].st_mtime):
            if total <= self._limit:
                return
            Path(path).unlink(missing_ok=True)
            total -= stat.st_size

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with (self._folder.parent / f".{self._folder.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


@contextmanager
def explained(what: str) -> Iterator[None]:
    """Turn an error of a disk or a store into one line about `what`."""
    try:
        yield
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise DataError(f"{what}: the disk is full; make room and run it again") from None
        raise DataError(f"{what}: {error.strerror or _one_line(error)}") from None


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())
