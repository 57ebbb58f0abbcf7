"""A checkpoint proves itself: it is restored only if all of it is there and verifies.

It has three parts: `state.safetensors` (all variables), `checkpoint.json` (what is needed to build
the model again) and `manifest.json`, with the SHA-256 of both, which is written last.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load, load_file, save, save_file

from alexnet.data.storage import Location
from alexnet.errors import AlexnetError, ConfigError, DataError

STATE, FACTS, MANIFEST = "state.safetensors", "checkpoint.json", "manifest.json"
ABSENT = (FileNotFoundError, NotADirectoryError, IsADirectoryError)
DAMAGED = (*ABSENT, ValueError, KeyError, TypeError, SafetensorError)
State = Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A restored checkpoint."""

    path: Path | Location
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


@dataclass(frozen=True, kw_only=True)
class Written:
    """A checkpoint that is there, verified or not."""

    step: int
    at: float  # seconds since 1970, by the clock of the disk or the store


def state_sha256(state: State) -> str:
    """Return a hash over names, types, shapes and values."""
    digest = hashlib.sha256()
    for name in sorted(state):
        array = np.asarray(state[name], order="C")
        digest.update(f"{name} {array.dtype} {array.shape}\n".encode())
        digest.update(array.reshape(-1).view(np.uint8).data)  # no copy
    return digest.hexdigest()


def write_files(folder: Path, state: State, facts: Mapping[str, Any]) -> None:
    """Write the parts into `folder`, which must be empty."""
    save_file(_in_order(state), folder / STATE)
    (folder / FACTS).write_bytes(_json(facts))
    hashes = {name: _sha256(folder / name) for name in (STATE, FACTS)}
    (folder / MANIFEST).write_bytes(_json(hashes))


def upload(folder: Location, state: State, facts: Mapping[str, Any]) -> None:
    """Write the parts below `folder`, the manifest last."""
    parts = {STATE: save(dict(_in_order(state))), FACTS: _json(facts)}
    parts[MANIFEST] = _json(
        {name: hashlib.sha256(data).hexdigest() for name, data in parts.items()}
    )
    for name, data in parts.items():
        (folder / name).write(data)


def read(path: Path | Location) -> Checkpoint:
    """Verify and load the checkpoint at `path`.

    Raises:
        DataError: something is missing or does not have its recorded hash.
        AlexnetError: the disk or the store does not answer, which says nothing about it.
    """
    try:
        if isinstance(path, Path):
            _verify(path)
            state, facts = load_file(path / STATE), json.loads((path / FACTS).read_bytes())
        else:
            parts = download(path)
            state, facts = load(parts[STATE]), json.loads(parts[FACTS])
        return Checkpoint(path=path, step=facts["step"], facts=facts, state=state)
    except DAMAGED as error:
        raise DataError(f"{path}: not a checkpoint: {error}") from None
    except OSError as error:
        raise AlexnetError(f"{path}: cannot be read: {' '.join(str(error).split())}") from None


def download(folder: Location) -> dict[str, bytes]:
    """Return the parts below `folder`, read once, as they have been hashed."""
    hashes = json.loads((folder / MANIFEST).read())
    parts = {name: (folder / name).read() for name in (STATE, FACTS)}
    for name, data in parts.items():
        _compare(folder / name, hashlib.sha256(data).hexdigest(), hashes[name])
    return parts


def verifies(path: Path | Location) -> bool:
    """Return whether the checkpoint at `path` has the hashes that it records.

    Raises:
        OSError: the disk or the store does not answer.
    """
    try:
        _verify(path)
    except (*DAMAGED, DataError):
        return False
    return True


def _verify(path: Path | Location) -> None:
    hashes = json.loads(_bytes(path / MANIFEST))
    for name in (STATE, FACTS):
        _compare(path / name, _sha256(path / name), hashes[name])


def _compare(path: Path | Location, found: str, recorded: str) -> None:
    if found != recorded:
        raise DataError(f"{path}: damaged: its SHA-256 is not the recorded one")


def _in_order(state: State) -> dict[str, npt.NDArray[Any]]:
    return {name: np.asarray(array, order="C") for name, array in state.items()}


def _json(tree: Mapping[str, Any]) -> bytes:
    return json.dumps(tree, indent=1, sort_keys=True).encode()


def _bytes(path: Path | Location) -> bytes:
    return path.read_bytes() if isinstance(path, Path) else path.read()


def _sha256(path: Path | Location) -> str:
    if isinstance(path, Location):
        return path.digest()[1]
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
