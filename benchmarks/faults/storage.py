"""Faults of disks and stores: bytes that change, files cut short, no room, answers that fail."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from pyarrow import fs

from benchmarks.faults.launches import compiled
from benchmarks.faults.matrix import (
    Figures,
    Skipped,
    fault,
    goes_on,
    half_way,
    mends_itself,
    runs_again,
)
from benchmarks.faults.processes import Missed
from benchmarks.faults.runs import EVERY, ROOT, Site
from tests.s3 import FlakyS3, flaky_s3

STATE = "state.safetensors"
FILES = (STATE, "checkpoint.json", "manifest.json")
LEAST_RUNS = 200
VOLUME_BYTES = 1200 << 20
LEFT_BYTES = 1 << 20
FAILING = 0.2


@fault("kill-writer", bound=300)
def kill_writer(site: Site) -> Figures:
    """kill -9 of the writer at each call by which it changes files, and power cuts there."""
    program = ROOT / "benchmarks/faults/writer.py"
    environment = {**site.environment, "LD_PRELOAD": str(compiled("calls"))}
    environment["PYTHONPATH"] = str(ROOT)
    command = [sys.executable, str(program), str(site.folder / "checkpoints")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise Missed(done.stderr.splitlines()[-1])
    found = json.loads(done.stdout)
    if found["problems"]:
        raise Missed(f"{len(found['problems'])} bad restores: {found['problems'][0]}")
    if found["runs"] < LEAST_RUNS:
        raise Missed(f"{found['runs']} runs, not {LEAST_RUNS}")
    return Figures(result=f"{found['runs']} runs, 0 bad restores")


@fault("flip-checkpoint", bound=400, replayed=EVERY)
def flip_checkpoint(site: Site) -> Figures:
    """A byte changes in a file of the newest checkpoint, each file in turn."""
    return _damaged(site, flip)


@fault("truncate-checkpoint", bound=400, replayed=EVERY)
def truncate_checkpoint(site: Site) -> Figures:
    """A file of the newest checkpoint loses its second half, each file in turn."""
    return _damaged(site, lambda path: os.truncate(path, path.stat().st_size // 2))


def _damaged(site: Site, damage: Callable[[Path], None]) -> Figures:
    launch, _ = half_way(site)
    launch.driver.terminate()
    launch.expect(75)
    stopped = site.run.rename(site.folder / "stopped")
    for name in FILES:
        shutil.rmtree(site.run, ignore_errors=True)
        shutil.copytree(stopped, site.run)
        damage(site.checkpoints()[-1] / name)
        figures = runs_again(site, launch)
        if not figures.replayed:
            raise Missed(f"{name}: the damaged checkpoint was restored")
    figures.result = "walked back in each of 3 files; same model"
    return figures


def flip(path: Path, at: int | None = None) -> None:
    """Change one bit of the file's middle byte, or of the one at `at`."""
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2 if at is None else at)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))


@fault("flip-shard")
def flip_shard(site: Site) -> Figures:
    """A byte changes in every row group of a training shard: named, and right once mended."""
    whole, site.data = Path(site.data), site.folder / "data"
    shutil.copytree(whole, site.data)
    shard = sorted(site.data.glob("train-*.parquet"))[0]
    metadata = pq.read_metadata(shard)
    for group in range(metadata.num_row_groups):
        column = metadata.row_group(group).column(0)
        flip(shard, column.data_page_offset + column.total_compressed_size // 2)
    launch = site.launch()
    launch.expect(3)
    stopped = round(time.monotonic() - launch.started, 2)
    if shard.name not in str(launch):
        raise Missed(f"the shard is not named: {launch}")
    shutil.copy(whole / shard.name, shard)
    figures = runs_again(site, launch)
    figures.stopped, figures.result = stopped, "clear stop with 3; same model once mended"
    return figures


@fault("disk-full", bound=240)
def disk_full(site: Site) -> Figures:
    """The checkpoint volume fills up and has room again later: training goes on, and counts."""
    folder = site.run / "checkpoints"
    folder.mkdir(parents=True)
    with _small_volume(folder):
        launch = site.launch("checkpoint.every=2", "checkpoint.keep=1")
        launch.await_line("  checkpoint")
        _fill(folder)
        hit = time.monotonic()
        detected = launch.await_line("no checkpoint:", after=hit)
        _make_room(folder)
        figures = goes_on(site, launch)
    figures.detected = round(detected - hit, 2)
    failures = site.summary["checkpoint_failures"]
    if not failures or "No space left" not in launch.output:
        raise Missed(f"{failures} failures counted; the reason was not told")
    figures.result = f"{failures} checkpoints failed, told and counted; same model"
    return figures


@fault("disk-stays-full", bound=240)
def disk_stays_full(site: Site) -> Figures:
    """The checkpoint volume stays full: a clear stop after `max_failures`, and no torn file."""
    folder = site.run / "checkpoints"
    folder.mkdir(parents=True)
    with _small_volume(folder):
        launch = site.launch("checkpoint.every=2", "checkpoint.keep=1")
        launch.await_line("  checkpoint")
        _fill(folder)
        hit = time.monotonic()
        launch.expect(1)
        stopped = round(time.monotonic() - hit, 2)
        if not re.search(r"no checkpoint of step \d+: .*No space left", str(launch)):
            raise Missed(f"no clear reason: {launch}")
        _make_room(folder)
        figures = runs_again(site, launch)
    figures.stopped, figures.result = stopped, "clear stop; same model once there was room"
    return figures


@contextmanager
def _small_volume(folder: Path) -> Iterator[None]:
    mount = ["mount", "-t", "tmpfs", "-o", f"size={VOLUME_BYTES}", "chaos", str(folder)]
    try:
        subprocess.run(mount, check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        reason = getattr(error, "stderr", "") or str(error)
        raise Skipped(f"no volume can be mounted here: {reason.strip()}") from None
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def _fill(folder: Path) -> None:
    """Leave hardly any room."""
    free = shutil.disk_usage(folder).free
    with (folder / ".ballast").open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, max(1, free - LEFT_BYTES))


def _make_room(folder: Path) -> None:
    (folder / ".ballast").unlink()


@fault("flaky-s3", bound=300)
def flaky_s3_data(site: Site) -> Figures:
    """The images come from an S3 endpoint of which every fifth answer fails or is cut off."""
    with _flaky_s3(site) as store:
        filesystem, path = fs.FileSystem.from_uri(store.uri("digits"))
        fs.copy_files(str(site.data), path, destination_filesystem=filesystem)
        store.failing, site.data = FAILING, store.uri("digits")
        figures = goes_on(site, site.launch(f"data.cache_dir={site.folder / 'cache'}"))
        figures.result = f"same model; {store.failures} of {store.requests} answers failed"
    return figures


@fault("flaky-s3-checkpoints", bound=300, replayed=EVERY)
def flaky_s3_checkpoints(site: Site) -> Figures:
    """Checkpoints go to such an endpoint, and kill -9 of a rank in mid-step."""
    with _flaky_s3(site) as store:
        store.failing = FAILING
        launch, ranks = half_way(site, f"checkpoint.path={store.uri('checkpoints')}")
        hit = time.monotonic()
        ranks[1].kill()
        figures = mends_itself(site, launch, hit, ranks, lost=1)
        figures.result += f"; {store.failures} of {store.requests} answers failed"
    return figures


@contextmanager
def _flaky_s3(site: Site) -> Iterator[FlakyS3]:
    with pytest.MonkeyPatch.context() as patch, flaky_s3(patch) as store:
        keys = {k: v for k, v in os.environ.items() if k.startswith("AWS_")}
        site.environment |= {**keys, "NO_PROXY": "127.0.0.1"}
        yield store
        if not store.failures:
            raise Missed("no answer failed")
