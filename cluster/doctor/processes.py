"""Python processes for what may abort or hang: TensorFlow, Horovod, a driver of Ray."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

SECONDS = 180.0  # TensorFlow's import alone takes eight, and a busy machine longer


@dataclass(frozen=True, kw_only=True)
class Ended:
    """What became of a process."""

    told: Mapping[str, Any]  # what it printed, a JSON object a line
    trouble: str  # how it ended, in one line; empty: well


def run(programs: Sequence[str], environments: Sequence[Mapping[str, str]]) -> list[Ended]:
    """Run programs of `cluster.doctor.programs` at the same time, each with variables of its own.

    None of them is left when this returns.
    """
    deadline = time.monotonic() + SECONDS
    with ExitStack() as stack:
        processes = []
        for program, variables in zip(programs, environments, strict=True):
            process = subprocess.Popen(
                [sys.executable, "-m", "cluster.doctor.programs", program],
                env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2", **variables},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                errors="replace",
            )
            stack.callback(process.wait)
            stack.callback(process.kill)
            processes.append(process)
        return [_end(process, deadline) for process in processes]


def _end(process: "subprocess.Popen[str]", deadline: float) -> Ended:
    try:
        output, errors = process.communicate(timeout=max(0, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        return Ended(told={}, trouble=f"no answer within {SECONDS:.0f} s")
    told: dict[str, Any] = {}
    for line in output.splitlines():
        if line.startswith("{"):
            told |= json.loads(line)
    return Ended(told=told, trouble=_trouble(process.returncode, errors))


def _trouble(code: int, errors: str) -> str:
    if code == 0:
        return ""
    lines = [line.strip() for line in errors.splitlines() if re.search(r"\w", line)]
    said = lines[-1][:300] if lines else "without a word"
    return said if code > 0 else f"ended by {signal.Signals(-code).name}: {said}"
