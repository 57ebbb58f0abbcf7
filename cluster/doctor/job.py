"""Checks of what a config names: ranks, memory, images, and where the run is written."""

import secrets
import shutil

from alexnet.data.shards import MANIFEST, ShardSet, Split
from alexnet.data.sources import TRAIN, VALIDATION
from alexnet.data.storage import Location
from alexnet.errors import AlexnetError, ConfigError, DataError
from alexnet.memory import room, state_bytes
from cluster.config import JobConfig
from cluster.doctor.finding import Finding, ok, problem, warning
from cluster.doctor.machine import existing, writing_trouble
from cluster.doctor.subject import Subject
from cluster.fit import in_words, need_of
from cluster.plan import amounts
from cluster.run_directory import RunDirectory

CLASSES = 1000  # of a set that is not there yet
MIB = 1 << 20


def workers(subject: Subject) -> Finding:
    """Whether there is room for the ranks that are asked for."""
    try:
        plan = subject.plan
    except ConfigError as error:
        return problem(str(error), "cluster.workers=auto, or a smaller train.micro_batch")
    if plan.fits(subject.resources):
        return ok(str(plan))
    where = "the cluster" if subject.ray_address else "this machine"
    found = f"{plan} asked for, {where} has {amounts(subject.resources)}"
    remedy = "cluster.workers=auto; cluster.cpus_per_worker=1, cluster.gpus_per_worker=auto"
    if subject.ray_address:
        timeout = subject.job.cluster.start_timeout
        return warning(f"{found}; a job waits {timeout:.0f} s for it to grow", remedy)
    return problem(found, remedy)


def memory(subject: Subject) -> Finding:
    """Whether a rank here has the memory for its micro-batches."""
    job = subject.job
    try:
        plan = subject.plan
        gpus = subject.visible_gpus[: plan.workers] if plan.gpus_per_worker else []
        has = room(subject.ranks_here, gpus)
        takes = need_of(job, subject.dataset, plan.workers, on_gpu=bool(gpus))
    except (ConfigError, DataError):
        return ok("not known before there are workers and a dataset")
    told = in_words(takes, has)
    if takes.fits(has):
        return ok(told)
    return warning(told, "alexnet train --fit-memory, or a smaller train.micro_batch")


def dataset(subject: Subject) -> Finding:
    """Whether the images are there, complete, and enough for a step."""
    job = subject.job
    place, source = Location.of(job.data.path), job.data.source
    if not (place / MANIFEST).exists():
        if source and not (place.is_local and writing_trouble(place.local)):
            return ok(f"{place}: none yet, will be prepared from {source}")
        trouble = writing_trouble(place.local) if source else f"{place}: no {MANIFEST}"
        remedy = f"alexnet prepare IMAGES {place} (Parquet files: alexnet index {place})"
        return problem(str(trouble), "data.path=/a/folder/to/write/to" if source else remedy)
    try:
        found = subject.dataset
    except DataError as error:
        return problem(str(error), f"alexnet prepare IMAGES {place}, into an empty folder")
    splits = [found.splits[name] for name in (TRAIN, VALIDATION) if name in found.splits]
    if len(splits) < 2:
        missing = ({TRAIN, VALIDATION} - found.splits.keys()).pop()
        return problem(f"{place}: no {missing} images", f"alexnet prepare IMAGES {place}, anew")
    for split in splits:
        if damage := _damage(split):
            return problem(damage, f"alexnet verify {place}; then copy, or prepare, it anew")
    return _enough(job, found)


def _damage(split: Split) -> str | None:
    """Return what is wrong with the files of a split, as far as a look at each can tell."""
    for shard in split.shards if split.folder.is_local else ():
        info = (split.folder / shard.file).info()
        if info.size != shard.bytes:
            has = "is missing" if info.size is None else f"has {info.size} of {shard.bytes} bytes"
            return f"{split.folder / shard.file} {has}"
    bad = split.read_chunk(0).bad if split.chunk_rows else {}
    return next((f"{split.name_of(0, row)}: {reason}" for row, reason in bad.items()), None)


def _enough(job: JobConfig, found: ShardSet) -> Finding:
    rows, size = found.splits[TRAIN].rows, job.train.micro_batch
    told = f"{rows} + {found.splits[VALIDATION].rows} images, {len(found.classes)} classes"
    if rows < job.train.global_batch:
        less = (
            f"train.global_batch={rows // size * size}" if rows >= size else "train.micro_batch=1"
        )
        return problem(f"{told}: fewer than a global batch", less)
    return ok(told)


def run_directory(subject: Subject) -> Finding:
    """Whether run_dir can be written to, and is no other folder."""
    path = subject.job.run_path
    remedy = "run_dir=/a/folder/to/write/to"
    try:
        before = RunDirectory(path).before
    except ConfigError as error:
        return problem(str(error), remedy)
    for folder in (path, path / "checkpoints"):
        if trouble := writing_trouble(folder):
            return problem(f"not writable: {trouble}", remedy)
    holds = f", holds a run of {before['steps']} steps" if before.get("steps") else ""
    return ok(f"{path}{holds}")


def checkpoint_store(subject: Subject) -> Finding:
    """Whether the object store takes, returns and deletes an object."""
    name = subject.job.checkpoint.path
    if name is None:
        return ok("none: checkpoints lie below run_dir")
    try:
        place = Location.of(name) / f"doctor-{secrets.token_hex(4)}"
        place.write(b"doctor")
        same = place.read() == b"doctor"
        place.delete()
    except (AlexnetError, OSError) as error:
        remedy = "its keys are AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY; checkpoint.path=null"
        return problem(f"{name}: {' '.join(str(error).split())}", remedy)
    if not same:
        return problem(f"{name}: returns other bytes than were written", "checkpoint.path=null")
    return ok(f"{name}: written, read and deleted")


def disk(subject: Subject) -> Finding:
    """Whether the disk of run_dir holds as many checkpoints as are kept, and the next one."""
    job = subject.job
    free = shutil.disk_usage(existing(job.run_path)).free
    if job.checkpoint.path:
        return ok(f"{free // MIB} MiB free; checkpoints go to {job.checkpoint.path}")
    try:
        classes = len(subject.dataset.classes)
    except DataError:
        classes = CLASSES
    each, wanted = state_bytes(job, classes), job.checkpoint.keep + 1
    written = sum(file.stat().st_size for file in (job.run_path / "checkpoints").glob("step-*/*"))
    found = f"{free // MIB} MiB free for {wanted} checkpoints of {each // MIB} MiB"
    if free + written >= wanted * each:
        return ok(found)
    fit = int((free + written) // each) - 1
    keep = f"checkpoint.keep={fit}, or " if fit > 0 else ""
    return problem(found, f"{keep}make room, or run_dir on a larger disk")
