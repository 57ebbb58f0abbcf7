"""Checkpoints that prove themselves: written whole or not at all, restored only if they verify.

A checkpoint is a folder `step-00000400` with `state.safetensors` (all variables), `checkpoint.json`
(what is needed to build the model again) and `manifest.json` (SHA-256 of both). It is written on a
desk, synced, and renamed into place, so that a folder with that name is a whole checkpoint unless
the disk damaged it later; that is what the hashes are for.

`best.json` names the step of the checkpoint with the best held-out score so far, and that score.

A desk is a hidden folder beside the checkpoints that belongs to one writer. What a writer changes,
it changes by a rename from its desk or to it. Once the desk has been taken away, none succeeds.
"""

import hashlib
import json
import logging
import os
import re
import secrets
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from alexnet.errors import AlexnetError, BadNumbersError, ConfigError, DataError

STATE, FACTS, MANIFEST = "state.safetensors", "checkpoint.json", "manifest.json"
BEST = "best.json"
State = Mapping[str, npt.NDArray[Any]]

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A restored checkpoint."""

    path: Path
    step: int  # steps taken
    facts: dict[str, Any]  # of `checkpoint.json`
    state: State

    def check_fits(self, variables: Mapping[str, Any]) -> None:
        """Raise ConfigError unless the state has exactly these names and shapes."""
        for name in sorted({*self.state, *variables}):
            have = tuple(self.state[name].shape) if name in self.state else "nothing"
            want = tuple(variables[name].shape) if name in variables else "nothing"
            if have != want:
                raise ConfigError(
                    f"{self.path}: a checkpoint of another model: it holds {have} for {name}, "
                    f"the configured model has {want}; name another run_dir or pass --replace"
                )


@dataclass(frozen=True, kw_only=True)
class Best:
    """The first checkpoint of those that have scored highest."""

    step: int
    top1: float  # on the held-out split


def state_sha256(state: State) -> str:
    """Return a hash over names, types, shapes and values."""
    digest = hashlib.sha256()
    for name in sorted(state):
        array = np.asarray(state[name], order="C")
        digest.update(f"{name} {array.dtype} {array.shape}\n".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def take_over(folder: Path, name: str) -> Path:
    """Return a new desk in `folder`; those that are there, and what they hold, go.

    A writer that was left behind, however late it wakes up, can no longer change a checkpoint.
    """
    for left in [*folder.glob(".desk-*"), *folder.glob(".gone-*"), *folder.glob(".step-*")]:
        gone = folder / f".gone-{secrets.token_hex(4)}"
        left.rename(gone)
        shutil.rmtree(gone, ignore_errors=True)  # a writer may be at it still
    desk = folder / f".desk-{name}"
    desk.mkdir(parents=True)
    return desk


def write(desk: Path, step: int, state: State, facts: Mapping[str, Any]) -> Path:
    """Write a checkpoint beside `desk` and return its path once it is safe on the disk."""
    final, partial = desk.parent / _name(step), desk / _name(step)
    try:
        _write_files(partial, state, {**facts, "step": step})
        if final.exists():  # of an earlier attempt: the same step, or damaged
            _delete(final, desk)
        partial.rename(final)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)  # gives the space back
        raise
    _sync(desk.parent)
    return final


def _write_files(folder: Path, state: State, facts: Mapping[str, Any]) -> None:
    folder.mkdir()
    arrays = {name: np.asarray(array, order="C") for name, array in state.items()}
    save_file(arrays, folder / STATE)
    _write_json(folder / FACTS, facts)
    _write_json(folder / MANIFEST, {name: _sha256(folder / name) for name in (STATE, FACTS)})
    for path in (folder / STATE, folder / FACTS, folder / MANIFEST, folder):
        _sync(path)


def read(path: Path) -> Checkpoint:
    """Verify and load the checkpoint folder `path`.

    Raises:
        DataError: something is missing or does not have its recorded hash.
    """
    try:
        _verify(path)
        facts = json.loads((path / FACTS).read_bytes())
        return Checkpoint(path=path, step=facts["step"], facts=facts, state=load_file(path / STATE))
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise DataError(f"{path}: not a checkpoint: {error}") from None


def read_step(folder: Path, step: int) -> Checkpoint:
    """Verify and load the checkpoint of `step` steps below `folder`; errors as `read`."""
    return read(folder / _name(step))


def verifies(path: Path) -> bool:
    """Return whether the checkpoint folder `path` has the hashes that it records."""
    try:
        _verify(path)
    except (OSError, ValueError, KeyError, TypeError, DataError):
        return False
    return True


def _verify(path: Path) -> None:
    hashes = json.loads((path / MANIFEST).read_bytes())
    for name in (STATE, FACTS):
        if hashes[name] != _sha256(path / name):
            raise DataError(f"{path / name}: damaged: its SHA-256 is not the recorded one")


def newest(folder: Path) -> Checkpoint | None:
    """Return the newest checkpoint below `folder` that verifies; walk back over damaged ones."""
    for path in reversed(_finished(folder)):
        try:
            return read(path)
        except DataError as error:
            log.warning("%s; trying the one before", error)
    return None


def best(folder: Path) -> Best | None:
    """Return what has been marked as the best below `folder`, if that is there."""
    try:
        found = Best(**json.loads((folder / BEST).read_bytes()))
        return found if (folder / _name(found.step)).is_dir() else None
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError) as error:
        log.warning("%s: damaged, forgotten: %s", folder / BEST, error)
        return None


def mark_best(desk: Path, found: Best) -> None:
    """Make `found` the best beside `desk`."""
    partial = desk / BEST
    _write_json(partial, asdict(found))
    _sync(partial)
    partial.rename(desk.parent / BEST)
    _sync(desk.parent)


def forget_best(desk: Path, after: int) -> None:
    """Unmark a best of more steps: the run goes on from before it."""
    marked = best(desk.parent)
    if marked and marked.step > after:
        (desk.parent / BEST).rename(desk / BEST)


def prune(desk: Path, keep: int) -> None:
    """Delete checkpoints beside `desk`, but never the `keep` newest, nor the best.

    Nor the newest one that verifies, which is among those as a rule.
    """
    finished, marked = _finished(desk.parent), best(desk.parent)
    old = [path for path in finished[:-keep] if not marked or path.name != _name(marked.step)]
    if not old:
        return
    whole = next(filter(verifies, reversed(finished)), None)
    for path in old:
        if path != whole:
            _delete(path, desk)


def abandon(desk: Path, after: int) -> None:
    """Delete checkpoints of more steps: damaged, or the run would not have been restored before."""
    for path in _finished(desk.parent):
        if path.name > _name(after):
            _delete(path, desk)


class BackgroundWriter:
    """Writes checkpoints behind the training, at most one at a time.

    A disk that fails is put up with until it has done so `max_failures` times in a row. That, and
    any other error of the writer's thread, is raised in the caller by `check`.
    """

    def __init__(
        self,
        desk: Path,
        keep: int,
        written: Callable[[int], None],
        failed: Callable[[int, str], None] = lambda step, reason: None,
        max_failures: int = 1,
        restored_step: int = 0,
    ) -> None:
        """Write beside `desk`, keep the newest `keep`, and tell what has become of each step.

        A run that was restored has its checkpoint of `restored_step` there.
        """
        forget_best(desk, restored_step)
        self._desk = desk
        self._keep = keep
        self._written = written
        self._failed = failed
        self._max_failures = max_failures
        self._newest = restored_step
        self._failures: list[AlexnetError] = []  # in a row
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None

    def submit(self, step: int, state: State, facts: Mapping[str, Any]) -> None:
        """Start writing; waits for the one before if that still runs."""
        self._join()
        self.check()
        self._thread = threading.Thread(
            target=self._write, args=(step, state, facts), name="checkpoint"
        )
        self._thread.start()

    @property
    def best_top1(self) -> float:
        """The score of the best checkpoint so far; less than any if there is none."""
        marked = best(self._desk.parent)
        return marked.top1 if marked else -1.0

    def mark_best(self, step: int, top1: float) -> None:
        """Mark the newest checkpoint as the best, once it is there; if it got there."""
        self._join()
        self.check()
        try:
            if self._newest == step:
                mark_best(self._desk, Best(step=step, top1=top1))
        except OSError as error:
            self._error = self._disk_failure(step, error)

    def check(self) -> None:
        """Raise what has kept the writer from going on, once."""
        error, self._error = self._error, None
        if error:
            raise error

    def finish(self) -> None:
        """Return once nothing is being written; raise unless the last one is on the disk."""
        self._join()
        self.check()
        if self._failures:
            raise self._failures[-1]

    def _join(self) -> None:
        if self._thread:
            self._thread.join()
            self._thread = None

    def _write(self, step: int, state: State, facts: Mapping[str, Any]) -> None:
        try:
            _refuse_bad_numbers(step, state)
            write(self._desk, step, state, facts)
            abandon(self._desk, step)
            prune(self._desk, self._keep)
            self._newest = step
            self._failures.clear()
            self._written(step)
        except (OSError, SafetensorError) as error:
            self._error = self._disk_failure(step, error)
        except Exception as error:  # raised in the training thread
            self._error = error

    def _disk_failure(self, step: int, error: Exception) -> AlexnetError | None:
        """Return the error to stop at, if it is time to."""
        if not self._desk.is_dir():
            return AlexnetError(f"{self._desk.parent}: taken over by another attempt or job")
        reason = " ".join(str(error).split())
        log.error("no checkpoint of step %d: %s", step, reason)
        self._failed(step, reason)
        self._failures.append(AlexnetError(f"no checkpoint of step {step}: {reason}"))
        return self._failures[-1] if len(self._failures) >= self._max_failures else None


def _refuse_bad_numbers(step: int, state: State) -> None:
    for name, array in state.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise BadNumbersError(f"step {step}: {name} is not finite; no checkpoint of that")


def _delete(path: Path, desk: Path) -> None:
    gone = desk / f"gone-{path.name}"
    shutil.rmtree(gone, ignore_errors=True)
    path.rename(gone)
    shutil.rmtree(gone)


def _name(step: int) -> str:
    return f"step-{step:08d}"


def _finished(folder: Path) -> list[Path]:
    return sorted(path for path in _children(folder) if re.fullmatch(r"step-\d{8}", path.name))


def _children(folder: Path) -> Iterator[Path]:
    return folder.iterdir() if folder.is_dir() else iter(())


def _write_json(path: Path, tree: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(tree, indent=1, sort_keys=True))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
