"""Kills a writer of checkpoints at each of its calls in turn, and restores what it has left.

Usage: LD_PRELOAD=calls.so writer.py FOLDER. Prints JSON: runs, and what went wrong.

A run forks a writer that has checkpoints 1 and 2 before it and writes 3. It dies at its n-th call,
for n = 1, 2, ... and at last when it has got through. What is then restored must be a checkpoint as
it was written: 3 if the writer had said so, or else 2 or 3. The next writer must be able to go on.
"""

import ctypes
import json
import mmap
import os
import shutil
import signal
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt

from alexnet.background_writer import BackgroundWriter
from alexnet.checkpoint import state_sha256
from alexnet.folder_archive import FolderArchive

LAYER = ctypes.CDLL(None)
KINDS = {"before": 0, "after": 1, "power": 2}
SCENES = {"plain": 3, "prunes": 1, "replaces": 3, "repeats": 3}  # checkpoints kept
FACTS = {"model": {"classes": [str(i) for i in range(2000)]}}
MOST_CALLS = 500


def state(step: int) -> dict[str, npt.NDArray[np.float32]]:
    """A state that tells its step, in several tensors."""
    rng = np.random.default_rng(step)
    return {f"tensor/{i}": rng.normal(size=(50, 100 * i)).astype(np.float32) for i in range(4)}


def begin(folder: Path, scene: str) -> None:
    """Leave checkpoints 1 and 2, and perhaps a 3, damaged or whole, that is written once more."""
    shutil.rmtree(folder, ignore_errors=True)
    desk = FolderArchive(folder).take_over("1-first")
    for step in (1, 2):
        desk.write(step, state(step), FACTS)
    if scene == "repeats":
        desk.write(3, state(3), FACTS)
    if scene == "replaces":
        damaged = desk.write(3, state(9), FACTS) / "state.safetensors"
        damaged.write_bytes(damaged.read_bytes()[:-1])


def fork_writer(folder: Path, keep: int, n: int, kind: int) -> bytes:
    """Write 3 in a process that dies at its n-th call; return "w" if it said that 3 is written.

    And "we" if there was no n-th call and it died in the end.
    """
    said = mmap.mmap(-1, 2)
    process = os.fork()

    def written(step: int) -> None:
        said.write(b"w")

    if not process:
        LAYER.chaos_arm(n, kind)
        writer = BackgroundWriter(FolderArchive(folder).take_over("2-second"), keep, written)
        writer.submit(3, state(3), FACTS)
        writer.finish()
        said.write(b"e")
        LAYER.chaos_end()
    _, status = os.waitpid(process, 0)
    if not os.WIFSIGNALED(status) or os.WTERMSIG(status) != signal.SIGKILL:
        raise RuntimeError(f"the writer failed by itself: {status}")
    return said[:].rstrip(b"\0")


def problem(folder: Path, was_told: bool) -> str | None:
    """Return what is wrong with what was left behind."""
    found = FolderArchive(folder).newest()
    if found is None:
        return "nothing to restore"
    if found.step not in ((3,) if was_told else (2, 3)):
        return f"restored step {found.step}"
    if state_sha256(found.state) != state_sha256(state(found.step)):
        return f"WRONG STATE of step {found.step}"
    FolderArchive(folder).take_over("3-third").write(4, state(4), FACTS)
    again = FolderArchive(folder).newest()
    if again is None or again.step != 4:
        return "the next writer could not go on"
    left = [path.name for path in folder.iterdir() if path.name.startswith((".gone", ".step"))]
    return f"left for ever: {left}" if left else None


def main() -> None:
    """Go through all scenes, kinds and calls."""
    folder = Path(sys.argv[1])
    runs, problems = 0, []
    for scene, keep in SCENES.items():
        for kind, number in KINDS.items():
            for n in range(1, MOST_CALLS):
                begin(folder, scene)
                said = fork_writer(folder, keep, n, number)
                runs += 1
                if wrong := problem(folder, b"w" in said):
                    problems.append(f"{scene}, {kind} call {n}: {wrong}")
                if b"e" in said:
                    break
    print(json.dumps({"runs": runs, "problems": problems}))


if __name__ == "__main__":
    main()
