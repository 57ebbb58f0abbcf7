"""`prepare`, killed at any moment and run again, ends in the bytes of an unbroken run."""

import multiprocessing
import time
from pathlib import Path

import numpy as np
import pytest

from alexnet.data.prepare import PrepareOptions, prepare
from alexnet.data.shards import ShardSet
from alexnet.errors import DataError
from tests.conftest import ImageTree

OPTIONS = PrepareOptions(size=64, shard_rows=40, workers=2)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*")}


@pytest.fixture
def photos(image_tree: ImageTree) -> Path:
    """400 images of two classes, a few of them unreadable."""
    root = image_tree(
        *(f"{name}/{i}.png" for name in ("cats", "dogs") for i in range(200)), side=72
    )
    for i in range(0, 200, 20):
        (root / f"dogs/{i}.png").write_bytes(b"no image")
    return root


@pytest.mark.parametrize("times", [4, pytest.param(20, marks=pytest.mark.slow)])
def test_prepare_killed_at_random_moments_ends_in_the_same_bytes(
    photos: Path, tmp_path: Path, times: int
) -> None:
    prepare(str(photos), tmp_path / "whole", OPTIONS)
    seconds = min(timed(photos, tmp_path / f"timed-{at}") for at in range(3))
    rng, kills, unfinished, finished = np.random.default_rng(6), 0, 0, 0
    while kills < times or not finished:
        out = tmp_path / f"broken-{finished}"
        code = run_for(photos, out, float(rng.uniform(0.3, 1) * seconds))
        assert code in (0, -9)
        kills += code == -9
        if code == 0 or contents(out) == contents(tmp_path / "whole"):
            assert contents(out) == contents(tmp_path / "whole")
            finished += 1
        elif not (out / "manifest.json").exists():
            unfinished += 1
            with pytest.raises(DataError, match="no such dataset"):
                ShardSet.open(out)
    assert unfinished >= times // 4


def timed(source: Path, out: Path) -> float:
    """The seconds of an undisturbed run; that of the first one has the imports in it."""
    start = time.monotonic()
    assert run_for(source, out, None) == 0
    return time.monotonic() - start


def run_for(source: Path, out: Path, seconds: float | None) -> int | None:
    """Prepare in a process that is killed after so many seconds; return its exit code."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["alexnet.data.prepare"])
    process = context.Process(target=prepare, args=(str(source), str(out), OPTIONS))
    process.start()
    process.join(seconds)
    process.kill()
    process.join()
    return process.exitcode


def test_going_on_does_not_decode_again_what_is_done(photos: Path, tmp_path: Path) -> None:
    out, seen = tmp_path / "set", list[int]()
    options = PrepareOptions(size=64, shard_rows=40)

    def stop_in_the_middle(done: int, total: int) -> None:
        if done >= total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(str(photos), out, options, stop_in_the_middle)
    written = {path: path.stat().st_mtime_ns for path in out.glob("*.parquet")}
    assert len(written) >= 3
    prepare(str(photos), out, options, lambda done, total: seen.append(done))
    assert {path: path.stat().st_mtime_ns for path in written} == written
    assert len(seen) > len(written)


def test_another_source_or_other_options_begin_anew(photos: Path, tmp_path: Path) -> None:
    def stop_at_once(done: int, total: int) -> None:
        raise KeyboardInterrupt

    for options, add in (
        (PrepareOptions(size=64, shard_rows=40), ""),
        (PrepareOptions(size=32, shard_rows=40), ""),
        (PrepareOptions(size=64, shard_rows=40, store="raw"), ""),
        (PrepareOptions(size=64, shard_rows=40), "cats/one-more.png"),
    ):
        if add:
            (photos / add).write_bytes((photos / "cats/1.png").read_bytes())
        out = tmp_path / "set"
        with pytest.raises(KeyboardInterrupt):
            prepare(str(photos), out, PrepareOptions(shard_rows=100), stop_at_once)
        prepare(str(photos), out, options)
        prepare(str(photos), tmp_path / "fresh", options)
        assert contents(out) == contents(tmp_path / "fresh")
        for folder in (out, tmp_path / "fresh"):
            for path in folder.iterdir():
                path.unlink()


def test_images_mended_after_a_refusal_are_looked_at_again(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "set"
    with pytest.raises(DataError, match="of 400 images cannot be decoded"):
        prepare(str(photos), out, PrepareOptions(max_rejected=0.001, shard_rows=40))
    good = (photos / "dogs/1.png").read_bytes()
    for i in range(0, 200, 20):
        (photos / f"dogs/{i}.png").write_bytes(good)
    assert prepare(str(photos), out, PrepareOptions(shard_rows=40)).rejected == 0
