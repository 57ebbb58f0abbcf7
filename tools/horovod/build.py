"""Build Horovod from its hash-pinned source, once per machine, and install the wheel.

No wheel of Horovod exists for this TensorFlow and its source no longer compiles against it, so the
source is fetched, edited (edits.py) and built here. The wheel is kept outside of the tree under a
key of all that shapes it (recipe.py): with the wheel at hand, an install takes seconds.
"""

import argparse
import fcntl
import os
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path

from edits import Edit
from recipe import BuildError, Recipe, build_environment, plan

LOCK = Path(__file__).parents[2] / "requirements" / "horovod.lock"
FAILURE = re.compile(r": (fatal )?error: |CMake Error|^ERROR: ")  # compiler's, CMake's, pip's


def apply_edits(source: Path, edits: Sequence[Edit]) -> None:
    """Edit the unpacked source; BuildError where an old text does not stand exactly once."""
    for edit in edits:
        file = source / edit.path
        text = file.read_text() if file.exists() else ""
        if (found := text.count(edit.old)) != 1:
            start = edit.old.strip().splitlines()[0]
            raise BuildError(f"{edit.path}: text to edit found {found} times, not once: {start!r}")
        file.write_text(text.replace(edit.old, edit.new))


def cache_root(environ: Mapping[str, str]) -> Path:
    """Return the folder of wheels: outside of the tree, so that all checkouts share them."""
    if own := environ.get("ALEXNET_CACHE"):
        return Path(own, "horovod")
    return Path(environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "alexnet", "horovod")


def excerpt(lines: Sequence[str]) -> Sequence[str]:
    """Return the 20 lines of a failed build's log around its first error, else the last 20.

    The end alone tells little: after a failed compilation setuptools cleans up, at length.
    """
    for number, line in enumerate(lines):
        if FAILURE.search(line):
            return lines[max(0, number - 5) :][:20]
    return lines[-20:]


def pip(log: Path, *arguments: str | Path, environ: Mapping[str, str] | None = None) -> None:
    """Run this environment's pip into a log; BuildError with the telling lines where it fails."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments]
    with log.open("a") as file:
        done = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, env=environ)
    if done.returncode != 0:
        lines = "\n".join(excerpt(log.read_text(errors="replace").splitlines()))
        raise BuildError(f"pip {arguments[0]} failed:\n{lines}\nThe whole log: {log}")


def build(recipe: Recipe, folder: Path, environ: Mapping[str, str]) -> None:
    """Fetch, edit and compile; `folder`, with wheel and log, appears whole or not at all."""
    work = folder.with_suffix(".part")
    out = work / "out"
    out.mkdir(parents=True)
    log = out / "build.log"
    name, tensorflow = recipe.source.split()[0], recipe.versions["tensorflow"]
    print(f"building {name} for TensorFlow {tensorflow} ({recipe.flavour}), about 3 minutes,")
    print(f"once per machine (log: {log})", flush=True)
    pinned = ("--no-deps", "--no-binary", "horovod", "--no-build-isolation", "--require-hashes")
    pip(log, "download", *pinned, "-r", LOCK, "-d", work)
    (archive,) = work.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        tar.extractall(work)  # no filter: Python 3.11.2 has none, and what it holds is pinned
    source = work / archive.name.removesuffix(".tar.gz")
    apply_edits(source, recipe.edits)
    alone = ("--no-deps", "--no-build-isolation", "-v", "-w", out)
    pip(log, "wheel", *alone, source, environ=build_environment(recipe, source, environ))
    out.rename(folder)


def installed(recipe: Recipe) -> bool:
    """Tell whether this very wheel is installed: pip notes the path that a wheel came from."""
    try:
        origin = metadata.distribution("horovod").read_text("direct_url.json")
    except metadata.PackageNotFoundError:
        return False
    return f"/{recipe.key}/" in (origin or "")


def ensure(flavour: str, environ: Mapping[str, str]) -> None:
    """Leave Horovod installed, doing no more than that takes."""
    recipe = plan(flavour, LOCK, environ)
    if installed(recipe):
        return
    root = cache_root(environ)
    root.mkdir(parents=True, exist_ok=True)
    folder = root / recipe.key
    # A second one to come waits here, then finds the wheel, or even finds it installed.
    with (root / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            for left in root.glob("*.part"):  # by builds that failed or were killed
                shutil.rmtree(left)
            build(recipe, folder, environ)
            shutil.rmtree(folder.with_suffix(".part"))
        if not installed(recipe):
            (wheel,) = folder.glob("*.whl")
            here = ("--no-deps", "--no-index", "--force-reinstall")
            pip(root / "install.log", "install", *here, wheel)
            print(f"installed {wheel.name}")


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--flavour", choices=("auto", "cpu", "gpu"), default="auto")
    try:
        ensure(parser.parse_args().flavour, os.environ)
    except BuildError as error:
        print(f"horovod: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
