"""Checkpoints that prove themselves: written whole or not at all, restored only if they verify.

A checkpoint is a folder `step-00000400` with `state.safetensors` (all variables), `checkpoint.json`
(what is needed to build the model again) and `manifest.json` (SHA-256 of both). It is written under
a hidden name, synced, and renamed into place, so that a folder with that name is a whole checkpoint
unless the disk damaged it later; that is what the hashes are for.
"""

import hashlib
import json
import logging
import os
import re
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from alexnet.errors import ConfigError, DataError

STATE, FACTS, MANIFEST = "state.safetensors", "checkpoint.json", "manifest.json"
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


def state_sha256(state: State) -> str:
    """Return a hash over names, types, shapes and values."""
    digest = hashlib.sha256()
    for name in sorted(state):
        array = np.asarray(state[name], order="C")
        digest.update(f"{name} {array.dtype} {array.shape}\n".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def write(folder: Path, step: int, state: State, facts: Mapping[str, Any]) -> Path:
    """Write a checkpoint below `folder` and return its path once it is safe on the disk."""
    final = folder / _name(step)
    partial = folder / f".{final.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    save_file(
        {name: np.asarray(array, order="C") for name, array in state.items()}, partial / STATE
    )
    _write_json(partial / FACTS, {**facts, "step": step})
    _write_json(partial / MANIFEST, {name: _sha256(partial / name) for name in (STATE, FACTS)})
    for name in (STATE, FACTS, MANIFEST):
        _sync(partial / name)
    _sync(partial)
    if final.exists():  # of an earlier attempt: the same step, or damaged
        shutil.rmtree(final)
    partial.rename(final)
    _sync(folder)
    return final


def read(path: Path) -> Checkpoint:
    """Verify and load the checkpoint folder `path`.

    Raises:
        DataError: something is missing or does not have its recorded hash.
    """
    try:
        hashes = json.loads((path / MANIFEST).read_bytes())
        for name in (STATE, FACTS):
            if hashes[name] != _sha256(path / name):
                raise DataError(f"{path / name}: damaged: its SHA-256 is not the recorded one")
        facts = json.loads((path / FACTS).read_bytes())
        return Checkpoint(path=path, step=facts["step"], facts=facts, state=load_file(path / STATE))
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise DataError(f"{path}: not a checkpoint: {error}") from None


def newest(folder: Path) -> Checkpoint | None:
    """Return the newest checkpoint below `folder` that verifies; walk back over damaged ones."""
    for path in reversed(_finished(folder)):
        try:
            return read(path)
        except DataError as error:
            log.warning("%s; trying the one before", error)
    return None


def prune(folder: Path, keep: int) -> None:
    """Delete all but the `keep` newest checkpoints."""
    for path in _finished(folder)[:-keep]:
        shutil.rmtree(path)


def abandon(folder: Path, after: int) -> None:
    """Delete checkpoints of more steps: damaged, or the run would not have been restored before."""
    for path in _finished(folder):
        if path.name > _name(after):
            shutil.rmtree(path)


class BackgroundWriter:
    """Writes checkpoints behind the training, at most one at a time.

    An error of the writer thread is raised in the caller: at the next `submit`, or in `wait`.
    """

    def __init__(self, folder: Path, keep: int, written: Callable[[int], None]) -> None:
        """Write below `folder`, keep the newest `keep`, and tell `written` each finished step."""
        self._folder = folder
        self._keep = keep
        self._written = written
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None

    def submit(self, step: int, state: State, facts: Mapping[str, Any]) -> None:
        """Start writing; waits for the one before if that still runs."""
        self.wait()
        self._thread = threading.Thread(
            target=self._write, args=(step, state, facts), name="checkpoint"
        )
        self._thread.start()

    def wait(self) -> None:
        """Return once nothing is being written."""
        if self._thread:
            self._thread.join()
            self._thread = None
        if self._error:
            error, self._error = self._error, None
            raise error

    def _write(self, step: int, state: State, facts: Mapping[str, Any]) -> None:
        try:
            write(self._folder, step, state, facts)
            abandon(self._folder, step)
            prune(self._folder, self._keep)
            self._written(step)
        except Exception as error:  # raised in the training thread
            self._error = error


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
