"""On what a launch runs: versions and machines, as far as the driver can tell."""

import os
import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil

PACKAGES = ("alexnet", "tensorflow", "keras", "horovod", "ray", "pyarrow", "numpy")
GPU_KIND = "accelerator_type:"  # in the names of Ray's resources
CPUINFO = Path("/proc/cpuinfo")


def environment(resources: Mapping[str, float]) -> dict[str, Any]:
    """Return facts, by name, of the driver's machine and of a cluster with Ray's `resources`."""
    kinds = [name.removeprefix(GPU_KIND) for name in resources if name.startswith(GPU_KIND)]
    return {
        "system": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "cluster_nodes": sum(name.startswith("node:") for name in resources if "__" not in name),
        "cluster_cpus": int(resources.get("CPU", 0)),
        "cluster_gpus": int(resources.get("GPU", 0)),
        "gpu_kinds": sorted(kinds),
        "python": platform.python_version(),
        **{name: _version(name) for name in PACKAGES},
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _processor() -> str:
    lines = CPUINFO.read_text().splitlines() if CPUINFO.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
