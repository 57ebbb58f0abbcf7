"""Checks of Python, its packages, and the two libraries that are compiled."""

import platform
from importlib.metadata import PackageNotFoundError, metadata, requires, version

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from cluster.doctor.finding import Finding, ok, problem, warning
from cluster.doctor.subject import Subject

PACKAGE = "alexnet"
SET_UP = "rm .venv/.ready; make setup"
BUILD_HOROVOD = ".venv/bin/python tools/horovod/build.py, in the checkout"


def python(subject: Subject) -> Finding:
    """Whether this package is made for this interpreter."""
    try:
        wanted = metadata(PACKAGE)["Requires-Python"]
    except PackageNotFoundError:
        return warning("this package is not installed, only found here", "make setup")
    if not SpecifierSet(wanted).contains(platform.python_version()):
        found = f"{platform.python_version()}; {PACKAGE} needs {wanted}"
        return problem(found, "rm -rf .venv; make setup PYTHON=/path/to/python3.12")
    return ok(platform.python_version())


def packages(subject: Subject) -> Finding:
    """Whether what this package needs is there, in the right versions."""
    try:
        needed = [Requirement(line) for line in requires(PACKAGE) or []]
    except PackageNotFoundError:
        return warning("not known: this package is not installed", "make setup")
    needed = [each for each in needed if not each.marker or each.marker.evaluate({"extra": ""})]
    bad = [f"{each.name} is {has}, not {_wanted(each)}" for each in needed if (has := _unfit(each))]
    if bad:
        return problem("; ".join(bad), f"{SET_UP} (or pip install what is named, as it is named)")
    chief = [each for each in needed if each.name in ("tensorflow", "ray", "pyarrow")]
    return ok(", ".join(f"{each.name} {version(each.name)}" for each in chief))


def _wanted(requirement: Requirement) -> str:
    return str(requirement.specifier) or "there"


def _unfit(requirement: Requirement) -> str | None:
    """Return the installed version, or that there is none, if it is not what is wanted."""
    try:
        has = version(requirement.name)
    except PackageNotFoundError:
        return "missing"
    return None if requirement.specifier.contains(has, prereleases=True) else has


def tensorflow(subject: Subject) -> Finding:
    """Whether TensorFlow can be imported."""
    told = subject.libraries.told
    if "tensorflow" not in told:
        return problem(f"import tensorflow: {subject.libraries.trouble}", SET_UP)
    return ok(told["tensorflow"])


def horovod(subject: Subject) -> Finding:
    """Whether Horovod's binary is of this TensorFlow, and through what it exchanges."""
    try:
        installed = version("horovod")
    except PackageNotFoundError:
        return problem("not installed", BUILD_HOROVOD)
    told = subject.libraries.told
    if "tensorflow" not in told:
        return problem(f"{installed}; cannot be tried without TensorFlow", SET_UP)
    if "transports" not in told:
        return problem(f"{installed}: {subject.libraries.trouble}", BUILD_HOROVOD)
    found = f"{installed}, over {', '.join(told['transports']) or 'nothing'}"
    if "gloo" not in told["transports"]:
        return problem(f"{found}: ranks meet through gloo", BUILD_HOROVOD)
    if told["gpus"] > 1 and "NCCL" not in told["transports"]:
        cuda = "CUDA_HOME=/usr/local/cuda .venv/bin/python tools/horovod/build.py --flavour gpu"
        return warning(f"{found}: gradients of GPUs go through their hosts", cuda)
    return ok(found)
