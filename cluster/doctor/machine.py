"""Checks of the machine: GPUs, shared memory, limits on processes, temporary files."""

import os
import resource
import shutil
import subprocess
import tempfile
from pathlib import Path

import psutil

from alexnet.memory import room
from cluster.doctor.finding import Finding, ok, problem, warning
from cluster.doctor.subject import Subject

TOKEN = Path("~/.ray/auth_token")
SHARED = Path("/dev/shm")
STORE_SHARE, STORE_MOST = 0.3, 10e9  # Ray's objects: of memory, and bytes beyond which it adapts
FILES = 8192  # what Ray recommends
FILES_LEAST = 4096  # below it Ray warns
RAY_THREADS, RANK_THREADS = 400, 150  # two cores and two ranks: 183 and 37
FULL = 0.95  # of a disk: Ray then warns and keeps no objects
GIB = 1 << 30


def gpus(subject: Subject) -> Finding:
    """Whether TensorFlow sees the GPUs that the driver does."""
    try:
        listed = subject.gpus
    except FileNotFoundError:
        if seen := subject.libraries.told.get("gpus"):
            remedy = "of a container: NVIDIA_DRIVER_CAPABILITIES=compute,utility"
            return warning(f"{seen}, but no nvidia-smi to tell how much memory is free", remedy)
        return ok("none; CPU")
    except (OSError, subprocess.SubprocessError) as error:
        said = getattr(error, "stdout", None) or str(error)
        found = f"nvidia-smi: {' '.join(said.split())[:200]}"
        return problem(found, "nvidia-smi must list them: reboot, or install the driver anew")
    visible = len(subject.visible_gpus)
    seen = subject.libraries.told.get("gpus", visible)
    found = f"{len(listed)}: {', '.join(dict.fromkeys(listed))}" if listed else "none; CPU"
    if seen < visible:
        return problem(
            f"{found}; TensorFlow sees {seen} of {visible}: ranks would train on CPUs",
            "a driver from 525 on, then rm .venv/.ready; make setup",
        )
    return ok(found if visible == len(listed) else f"{found}; {visible} by CUDA_VISIBLE_DEVICES")


def shared_memory(subject: Subject) -> Finding:
    """Whether Ray's objects have room in shared memory."""
    wanted = min(STORE_SHARE * room(1, ()).host, STORE_MOST)
    free = shutil.disk_usage(SHARED).free
    found = f"{free / GIB:.2f} GiB free, Ray's objects take {wanted / GIB:.2f}"
    if free >= wanted:
        return ok(found)
    size = f"{-(-wanted // GIB) + 1:.0f}g"
    return warning(
        f"{found}: they go to a disk",
        f"mount -o remount,size={size} {SHARED}; of a container: --shm-size={size}; of a pod: "
        "an emptyDir with medium: Memory, as in k8s/",
    )


def open_files(subject: Subject) -> Finding:
    """Whether Ray may open as many files as it recommends. It raises the limit where it may."""
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if most == resource.RLIM_INFINITY or most >= FILES_LEAST:
        return ok("no limit" if most == resource.RLIM_INFINITY else f"{most} at most")
    remedy = f"ulimit -n {FILES} (needs /etc/security/limits.conf, or root); of a container: "
    return warning(
        f"{most} at most, Ray recommends {FILES}", f"{remedy}--ulimit nofile={FILES}:{FILES}"
    )


def processes(subject: Subject) -> Finding:
    """Whether Ray and the ranks may start their threads, each of which counts as a process."""
    most = resource.getrlimit(resource.RLIMIT_NPROC)[0]
    if most == resource.RLIM_INFINITY:
        return ok("no limit")
    running, ranks = threads(), 2 * subject.ranks_here  # with standbys
    wanted = running + RAY_THREADS + RANK_THREADS * ranks
    found = f"{most} threads at most, {running} running"
    if most >= wanted:
        return ok(found)
    return warning(
        f"{found}; a job takes {wanted - running} more",
        f"ulimit -u {wanted}; of a container: --ulimit nproc={wanted}:{wanted}",
    )


def threads() -> int:
    """Return how many threads this user has."""
    own = os.getuid()
    every = psutil.process_iter(["uids", "num_threads"])
    return sum(each.info["num_threads"] or 0 for each in every if own in (each.info["uids"] or ()))


def temporary_files(subject: Subject) -> Finding:
    """Whether Ray can write its logs, sockets and token, and has room for them."""
    folder = Path(os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp") / "ray"
    if trouble := writing_trouble(folder):
        return problem(trouble, f"remove or chown {folder}, or RAY_TMPDIR=/another/folder")
    if _makes_token(subject) and (trouble := writing_trouble(TOKEN.expanduser().parent)):
        return problem(f"no place for a token: {trouble}", "HOME=/a/folder, or RAY_AUTH_TOKEN=...")
    usage = shutil.disk_usage(existing(folder))
    used = 1 - usage.free / usage.total
    found = f"{folder}, its disk {used:.0%} full"
    if used < FULL:
        return ok(found)
    return warning(found, f"make room, or RAY_TMPDIR=/another/folder; Ray warns from {FULL:.0%} on")


def _makes_token(subject: Subject) -> bool:
    """Whether Ray, started here, would write a token of its own."""
    is_told = os.environ.keys() & {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"}
    return not (subject.ray_address or is_told or TOKEN.expanduser().exists())


def existing(path: Path) -> Path:
    """Return `path` or, if it does not exist, the nearest folder above it that does."""
    while not path.exists() and path != path.parent:
        path = path.parent
    return path


def writing_trouble(folder: Path) -> str | None:
    """Return why no file could be written in `folder`, or where it would be made; None: it can."""
    place = existing(folder)
    try:
        with tempfile.TemporaryFile(dir=place) as file:
            file.write(b"x" * 4096)
            file.flush()
    except OSError as error:
        return f"{place}: {error.strerror}"
    return None
