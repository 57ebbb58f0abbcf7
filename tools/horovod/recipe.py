"""What the wheel is made of on this machine: versions, compilers, switches, edits."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path

from edits import EDITS, Edit

NCCL = "nvidia-nccl-cu12"
SWITCHES = {
    "HOROVOD_WITH_TENSORFLOW": "1",
    "HOROVOD_WITH_GLOO": "1",
    "HOROVOD_WITHOUT_PYTORCH": "1",
    "HOROVOD_WITHOUT_MXNET": "1",
    "HOROVOD_WITHOUT_MPI": "1",
    "HOROVOD_WITHOUT_NVTX": "1",
    # Messages name source files: as in Horovod's repository, not by their place in the cache.
    "CXXFLAGS": "-ffile-prefix-map={source}/=",
    "LDFLAGS": "-Wl,--strip-debug",  # a wheel of 1 MB instead of 51 MB
}
GPU_SWITCHES = SWITCHES | {
    "HOROVOD_GPU_OPERATIONS": "NCCL",
    "HOROVOD_NCCL_LINK": "SHARED",
    # Turing to Hopper; the last is embedded as PTX too, which later GPUs compile for themselves.
    "HOROVOD_BUILD_CUDA_CC_LIST": "75,80,86,89,90",
    # NCCL comes as a wheel and lies beside Horovod in site-packages.
    "LDFLAGS": "-Wl,--strip-debug -Wl,-rpath,$ORIGIN/../../nvidia/nccl/lib",
}


class BuildError(Exception):
    """A build that cannot go on; the message says why."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """All that shapes the wheel: equal recipes give interchangeable wheels."""

    source: str  # the lock's line: name, version, SHA-256
    flavour: str  # "cpu" exchanges by gloo, "gpu" by NCCL too
    edits: tuple[Edit, ...]
    switches: dict[str, str]  # environment variables that the build reads
    target: str  # "cp311-linux-x86_64"
    versions: dict[str, str]  # of the packages that it is compiled against
    compilers: tuple[str, ...]  # what they say of themselves

    @property
    def key(self) -> str:
        """The name of this recipe's folder in the cache."""
        text = json.dumps(asdict(self), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def plan(flavour: str, lock: Path, environ: Mapping[str, str]) -> Recipe:
    """Return the recipe for this machine; `flavour` "auto" takes NCCL where it can be used."""
    if flavour == "auto":
        able = driver_visible() and find_nvcc(environ) and version_of(NCCL)
        flavour = "gpu" if able else "cpu"
    packages = {"cpu": ("tensorflow",), "gpu": ("tensorflow", NCCL)}[flavour]
    versions = {name: version_of(name) for name in packages}
    if missing := [name for name, version in versions.items() if not version]:
        raise BuildError(f"not installed: {missing[0]} (install requirements/{flavour}.lock first)")
    compilers = [ask(environ.get("CXX", "c++"), "--version")]
    if flavour == "gpu":
        compilers.append(ask(find_nvcc(environ) or "nvcc", "--version"))
    # Named here, not left to CMake's probing, so that the key tells processors apart.
    arch = environ.get("HOROVOD_BUILD_ARCH_FLAGS", arch_flags(Path("/proc/cpuinfo").read_text()))
    series = ".".join(versions["tensorflow"].split(".")[:2])
    switches = {
        "HOROVOD_BUILD_ARCH_FLAGS": arch,
        # A marked version: `horovod==0.28.1+tf2.21.cpu` is never met by the plain source.
        "HOROVOD_LOCAL_VERSION": f"tf{series}.{flavour}",
    }
    return Recipe(
        source=lock.read_text().strip(),
        flavour=flavour,
        edits=EDITS[flavour],
        switches=switches | (GPU_SWITCHES if flavour == "gpu" else SWITCHES),
        target=f"cp{sys.version_info.major}{sys.version_info.minor}-{sysconfig.get_platform()}",
        versions=versions,
        compilers=tuple(compilers),
    )


def build_environment(recipe: Recipe, source: Path, environ: Mapping[str, str]) -> dict[str, str]:
    """Return the build's variables: the recipe's switches and this environment's own paths."""
    # No HOROVOD_ variable of the caller's passes by the recipe, and so by its key.
    environment = {k: v for k, v in environ.items() if not k.startswith("HOROVOD_")}
    scripts = sysconfig.get_path("scripts")  # holds the pinned cmake: before the system's
    environment["PATH"] = os.pathsep.join([scripts, environ.get("PATH", os.defpath)])
    environment["MAKEFLAGS"] = f"-j{len(os.sched_getaffinity(0))}"
    nvcc = find_nvcc(environ)
    if recipe.flavour == "gpu" and nvcc:
        nccl = Path(sysconfig.get_path("platlib"), "nvidia", "nccl")
        environment["HOROVOD_CUDA_HOME"] = str(nvcc.parents[1])
        environment["HOROVOD_NCCL_INCLUDE"] = str(nccl / "include")
        environment["HOROVOD_NCCL_LIB"] = str(nccl / "lib")
    switches = {k: v.replace("{source}", str(source)) for k, v in recipe.switches.items()}
    return environment | switches


def arch_flags(cpuinfo: str) -> str:
    """Return compiler flags for the vector extensions that Horovod uses and the CPU has."""
    match = re.search(r"^flags\s*:(.*)$", cpuinfo, re.MULTILINE)
    present = match[1].split() if match else []
    return " ".join(f"-m{name}" for name in ("f16c", "avx", "fma") if name in present)


def find_nvcc(environ: Mapping[str, str]) -> Path | None:
    """Return the CUDA compiler of CUDA_HOME, else of the usual folder, else of the PATH."""
    home = environ.get("CUDA_HOME", "/usr/local/cuda")
    search = [f"{home}/bin", "/usr/local/cuda/bin", environ.get("PATH", os.defpath)]
    nvcc = shutil.which("nvcc", path=os.pathsep.join(search))
    return Path(nvcc) if nvcc else None


def driver_visible() -> bool:
    """Tell whether this machine has an NVIDIA driver, and so GPUs to exchange between."""
    if Path("/proc/driver/nvidia/version").exists():
        return True
    smi = shutil.which("nvidia-smi")
    return smi is not None and subprocess.run([smi, "-L"], capture_output=True).returncode == 0


def version_of(package: str) -> str:
    """Return the installed version of a package, or "" where there is none."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def ask(*command: str | Path) -> str:
    """Return what a command prints; BuildError where it cannot be run."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError) as error:
        raise BuildError(f"the build needs {command[0]}: {error}") from error
