"""Leave in this environment what a run needs, and nothing else.

The locks hold what tests and builds need, too: so the versions in the image are those that were
tested. What `pyproject.toml` names as dependencies stays, with all that these need in turn. Other
packages go, pip last; and of those that stay, files that no run reads.

Usage: python slim.py PYPROJECT [EXTRA]...
"""

import shutil
import subprocess
import sys
import sysconfig
import tomllib
from collections.abc import Iterable, Sequence
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

UNREAD = {
    "tensorflow/include": "headers, which Horovod has been compiled with",
    "clang": "libclang, which TensorFlow asks for and never loads",
    "ray/jars": "workers in Java",
    "pyarrow/include": "headers",
    "nvidia/*/include": "headers",
    "**/*.a": "libraries to link with",
    "**/tests": "tests of packages",
}
# Names of functions that only a debugger asks for. Not those of wheels whose libraries have been
# renamed (*.libs): their layout does not survive it.
STRIPPED = (
    "tensorflow/libtensorflow_*.so.2",
    "tensorflow/python/**/*.so",
    "ray/_raylet.so",
    "ray/core/src/ray/raylet/raylet",
    "ray/core/src/ray/gcs/gcs_server",
)


def needed(roots: Iterable[Requirement]) -> set[str]:
    """Return the names of all installed packages that `roots` ask for, at first or second hand.

    Raises:
        PackageNotFoundError: one of them is not installed.
    """
    waiting, seen = list(roots), set()
    while waiting:
        root = waiting.pop()
        name = canonicalize_name(root.name)
        if (name, *sorted(root.extras)) in seen:
            continue
        seen.add((name, *sorted(root.extras)))
        below = map(Requirement, metadata.requires(name) or ())
        waiting += [each for each in below if applies(each, root.extras)]
    return {name for name, *_ in seen}


def applies(requirement: Requirement, extras: Iterable[str]) -> bool:
    """Tell whether a package asks for this here, given the extras that were asked of it."""
    marker = requirement.marker
    return marker is None or any(marker.evaluate({"extra": extra}) for extra in ("", *extras))


def remove_unread(site: Path) -> None:
    """Delete what no run reads."""
    for pattern in UNREAD:
        for path in sorted(site.glob(pattern)):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)


def strip(site: Path) -> None:
    """Delete symbols from programs and libraries that are large by them."""
    for pattern in STRIPPED:
        for path in sorted(site.glob(pattern)):
            subprocess.run(["strip", "--strip-unneeded", path], check=True)


def largest(site: Path, count: int) -> list[tuple[int, str]]:
    """Return what takes the room: bytes and names of the largest entries."""
    sizes = [
        (sum(file.lstat().st_size for file in [entry, *entry.rglob("*")]), entry.name)
        for entry in site.iterdir()
    ]
    return sorted(sizes, reverse=True)[:count]


def main(pyproject: Path, extras: Sequence[str]) -> None:
    """Command line."""
    project = tomllib.loads(pyproject.read_text())["project"]
    asked = [*project["dependencies"], "horovod"]
    asked += [line for extra in extras for line in project["optional-dependencies"][extra]]
    keep = needed(map(Requirement, asked))
    present = {canonicalize_name(each.name) for each in metadata.distributions()}
    pip = [sys.executable, "-m", "pip", "uninstall", "-q", "-y"]
    subprocess.run([*pip, *sorted(present - keep - {"pip"}), "pip"], check=True)

    site = Path(sysconfig.get_path("platlib"))
    remove_unread(site)
    strip(site)
    for size, name in largest(site, 15):
        print(f"{size / 1e6:8.0f} MB  {name}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
