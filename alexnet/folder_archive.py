"""Checkpoints in a folder of a file system: written on a desk, synced, and renamed into place.

A folder `step-00000400` is therefore a whole checkpoint unless the disk damaged it later; that is
what its hashes are for. `best.json` names the step that has scored best so far, and that score.

The desk is a hidden folder beside the checkpoints. What its writer changes, it changes by a rename
from the desk or to it. Once the desk has been taken away, none succeeds.
"""

import json
import logging
import os
import re
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from alexnet.checkpoint import (
    FACTS,
    MANIFEST,
    STATE,
    Best,
    Checkpoint,
    State,
    Written,
    read,
    verifies,
    write_files,
)
from alexnet.errors import DataError

BEST = "best.json"
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class FolderArchive:
    """The checkpoints in `folder`, which need not exist. Methods as of `Archive`."""

    folder: Path

    def __str__(self) -> str:
        return str(self.folder)

    def newest(self) -> Checkpoint | None:  # noqa: D102
        for path in reversed(self.finished()):
            try:
                return read(path)
            except DataError as error:
                log.warning("%s; trying the one before", error)
        return None

    def latest(self) -> Written | None:  # noqa: D102
        for path in reversed(self.finished()):
            with suppress(FileNotFoundError):  # deleted just now, or damaged
                at = (path / MANIFEST).stat().st_mtime
                return Written(step=int(path.name.removeprefix("step-")), at=at)
        return None

    def best(self) -> Best | None:  # noqa: D102
        marked = self.marked()
        return marked if marked and self.of(marked.step).is_dir() else None

    def marked(self) -> Best | None:
        """Return what has been marked as the best, whether or not it is there."""
        path = self.folder / BEST
        try:
            found = json.loads(path.read_bytes())
            return Best(step=int(found["step"]), top1=float(found["top1"]))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError, KeyError) as error:
            log.warning("%s: damaged, forgotten: %s", path, error)
            return None

    def read_step(self, step: int) -> Checkpoint:  # noqa: D102
        return read(self.of(step))

    def take_over(self, name: str) -> "FolderDesk":  # noqa: D102
        folder = self.folder
        for left in [*folder.glob(".desk-*"), *folder.glob(".gone-*"), *folder.glob(".step-*")]:
            gone = folder / f".gone-{secrets.token_hex(4)}"
            left.rename(gone)
            shutil.rmtree(gone, ignore_errors=True)  # a writer may be at it still
        desk = folder / f".desk-{name}"
        desk.mkdir(parents=True)
        return FolderDesk(desk)

    def clear(self) -> None:  # noqa: D102
        if self.folder.is_dir():
            shutil.rmtree(self.folder)

    def of(self, step: int) -> Path:
        """Return where the checkpoint of `step` steps is, or would be."""
        return self.folder / f"step-{step:08d}"

    def finished(self) -> list[Path]:
        """Return where there are checkpoints, in the order of their steps."""
        return sorted(path for path in self._children() if re.fullmatch(r"step-\d{8}", path.name))

    def _children(self) -> Iterator[Path]:
        return self.folder.iterdir() if self.folder.is_dir() else iter(())


@dataclass(frozen=True)
class FolderDesk:
    """The desk at `path`, beside the checkpoints. Methods as of `Desk`."""

    path: Path

    def __str__(self) -> str:
        return str(self.path.parent)

    @property
    def _archive(self) -> FolderArchive:
        return FolderArchive(self.path.parent)

    def newest(self) -> Checkpoint | None:  # noqa: D102
        return self._archive.newest()

    def begin(self, restored_step: int) -> None:  # noqa: D102
        marked = self._archive.marked()
        # The run goes on from before it, or somebody has deleted it.
        if marked and (marked.step > restored_step or not self.best()):
            (self.path.parent / BEST).rename(self.path / BEST)

    def best(self) -> Best | None:  # noqa: D102
        return self._archive.best()

    def mark_best(self, found: Best) -> None:  # noqa: D102
        partial = self.path / BEST
        partial.write_text(json.dumps(asdict(found)))
        _sync(partial)
        partial.rename(self.path.parent / BEST)
        _sync(self.path.parent)

    def write(self, step: int, state: State, facts: Mapping[str, Any]) -> Path:  # noqa: D102
        final = self._archive.of(step)
        partial = self.path / final.name
        try:
            partial.mkdir()
            write_files(partial, state, {**facts, "step": step})
            for path in (partial / STATE, partial / FACTS, partial / MANIFEST, partial):
                _sync(path)
            if final.exists():  # of an earlier attempt: the same step, or damaged
                self._delete(final)
            partial.rename(final)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)  # gives the space back
            raise
        _sync(final.parent)
        return final

    def tidy(self, step: int, keep: int) -> None:  # noqa: D102
        archive = self._archive
        for path in archive.finished():
            if path.name > archive.of(step).name:  # damaged, or the run had gone on from there
                self._delete(path)
        self._prune(keep)

    def is_taken(self) -> bool:  # noqa: D102
        return not self.path.is_dir()

    def leave(self) -> None:  # noqa: D102
        shutil.rmtree(self.path, ignore_errors=True)

    def _prune(self, keep: int) -> None:
        archive, marked = self._archive, self.best()
        finished = archive.finished()
        best = archive.of(marked.step) if marked else None
        if old := [path for path in finished[:-keep] if path != best]:
            whole = next(filter(verifies, reversed(finished)), None)
            for path in old:
                if path != whole:
                    self._delete(path)

    def _delete(self, path: Path) -> None:
        gone = self.path / f"gone-{path.name}"
        shutil.rmtree(gone, ignore_errors=True)
        path.rename(gone)
        shutil.rmtree(gone)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
