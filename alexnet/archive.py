"""Where the checkpoints of a run are kept: below the run directory, or in an object store.

An archive is all of them; a desk is the right of one writer, rank 0 of one attempt, to change it.
A new desk ends that of the attempt before, however late its writer wakes up.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from alexnet.checkpoint import Best, Checkpoint, State, Written
from alexnet.data.storage import Location
from alexnet.folder_archive import FolderArchive
from alexnet.store_archive import StoreArchive


class Archive(Protocol):
    """All checkpoints of a run. Its string is the name that a user knows it by."""

    def newest(self) -> Checkpoint | None:
        """Return the newest one that verifies; walk back over damaged ones."""

    def latest(self) -> Written | None:
        """Return which is the newest, without a look into it."""

    def best(self) -> Best | None:
        """Return what has been marked as the best, if that is there."""

    def read_step(self, step: int) -> Checkpoint:
        """Verify and load the checkpoint of `step` steps; DataError if it is damaged or missing."""

    def take_over(self, name: str) -> "Desk":
        """Return a new desk; what writers before have left half-done goes."""

    def clear(self) -> None:
        """Delete all that a run has left here."""


class Desk(Protocol):
    """One writer's right to change an archive. It may be sent to another process."""

    def newest(self) -> Checkpoint | None:
        """Return what the writer is to go on from: as of an archive."""

    def begin(self, restored_step: int) -> None:
        """Go on from the checkpoint that `newest` returned, or from nothing (0)."""

    def best(self) -> Best | None:
        """Return the best one on the way to where the writer is."""

    def mark_best(self, found: Best) -> None:
        """Make the checkpoint of that step the best."""

    def write(self, step: int, state: State, facts: Mapping[str, Any]) -> Path | Location:
        """Add a checkpoint, and return where it is once it is safe there."""

    def tidy(self, step: int, keep: int) -> None:
        """Delete what came before or in the place of the checkpoint just written.

        But never the `keep` newest, nor the best, nor the newest one that verifies.
        """

    def is_taken(self) -> bool:
        """Whether another writer has taken over, so that nothing can be changed any more."""

    def leave(self) -> None:
        """Give the desk up."""


def open_archive(run: Path, store: str | None) -> Archive:
    """Return the archive of the run directory `run`, or the one in an object store, if named."""
    return StoreArchive(Location.of(store)) if store else FolderArchive(run / "checkpoints")
