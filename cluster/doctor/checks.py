"""All checks, and how one is made: what it raises is a finding, too."""

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from cluster.config import JobConfig
from cluster.doctor import job, machine, network, software
from cluster.doctor.averaging import averaging
from cluster.doctor.finding import Finding, problem
from cluster.doctor.processes import SECONDS
from cluster.doctor.subject import Subject

Look = Callable[[Subject], Finding]


@dataclass(frozen=True)
class Check:
    """A question, and who answers it."""

    name: str
    look: Look
    of_job: bool = False  # only with a config
    limit: float = 60.0  # seconds


SLOW = SECONDS + 20  # processes end before that
CHECKS = (
    Check("Python", software.python),
    Check("packages", software.packages),
    Check("TensorFlow", software.tensorflow, limit=SLOW),
    Check("Horovod", software.horovod, limit=SLOW),
    Check("GPUs", machine.gpus, limit=SLOW),
    Check("/dev/shm", machine.shared_memory),
    Check("open files", machine.open_files),
    Check("threads", machine.processes),
    Check("Ray's files", machine.temporary_files),
    Check("hostname", network.hostname),
    Check("Ray", network.ray_cluster, limit=SLOW),
    Check("metrics ports", network.metrics_ports),
    Check("workers", job.workers, of_job=True),
    Check("dataset", job.dataset, of_job=True),
    Check("memory", job.memory, of_job=True),
    Check("run directory", job.run_directory, of_job=True),
    Check("checkpoint store", job.checkpoint_store, of_job=True),
    Check("disk", job.disk, of_job=True),
    Check("averaging", averaging, limit=SLOW),
)


def examine(config: JobConfig | None) -> Iterator[tuple[str, Finding]]:
    """Make one check after the other, those of a job if there is one; yield name and finding."""
    subject = Subject(config.with_absolute_paths() if config else None)
    for check in CHECKS:
        if config or not check.of_job:
            yield check.name, bounded(check.look, subject, check.limit)


def bounded(look: Look, subject: Subject, limit: float) -> Finding:
    """Return what a check finds; a disk or a store that never answers is left behind."""
    found: list[Finding] = []
    thread = threading.Thread(target=lambda: found.append(_safe(look, subject)), daemon=True)
    thread.start()
    thread.join(limit)
    if not found:
        remedy = "a mount or a store hangs: `ls` the paths of CONFIG"
        return problem(f"no answer within {limit:.0f} s", remedy)
    return found[0]


def _safe(look: Look, subject: Subject) -> Finding:
    try:
        return look(subject)
    except Exception as error:
        said = f"{type(error).__name__}: {' '.join(str(error).split())}"
        return problem(said[:300], "the check itself has failed: report this line")
