"""Start a program as real Horovod ranks on this machine, without Ray."""

import os
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from cluster.rendezvous import Rendezvous, assign_ranks

LOOPBACK = "127.0.0.1"
PROGRAMS = Path(__file__).parent / "programs"


def run_ranks(
    world_size: int, program: str, arguments: Sequence[str], timeout: float = 300
) -> list[str]:
    """Run tests/programs/`program` on `world_size` ranks; return what each printed.

    Raises:
        RuntimeError: a rank failed; with the ranks' error output.
    """
    slots = assign_ranks({LOOPBACK: world_size})
    command = [sys.executable, str(PROGRAMS / program), *arguments]
    with ExitStack() as stack:
        rendezvous = stack.enter_context(Rendezvous(LOOPBACK, slots))
        processes = []
        for slot in slots:
            environment = {
                **os.environ,
                **rendezvous.environment(slot, "lo", timeout=60),
                "PYTHONPATH": str(Path(__file__).parents[1]),
                "TF_CPP_MIN_LOG_LEVEL": "2",
                "CUDA_VISIBLE_DEVICES": "",
            }
            process = subprocess.Popen(
                command,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            stack.callback(process.kill)
            processes.append(process)
        ended = [process.communicate(timeout=timeout) for process in processes]
    if any(process.returncode for process in processes):
        errors = [f"rank {rank}:\n{error[-2000:]}" for rank, (_, error) in enumerate(ended)]
        raise RuntimeError("\n".join(errors))
    return [output for output, _ in ended]
