import logging
import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from alexnet.config import AugmentConfig, DataConfig, dump, load
from alexnet.data import storage
from alexnet.data.batches import evaluation_batches, training_batches
from alexnet.data.index import verify
from alexnet.data.order import Order
from alexnet.data.prepare import PrepareOptions, prepare
from alexnet.data.shards import ShardSet
from alexnet.data.storage import ATTEMPTS, Location, RangeCache, absolute, persistently
from alexnet.errors import ConfigError, DataError
from cluster.config import JobConfig
from tests.conftest import ImageTree
from tests.s3 import KEYS, FlakyS3, flaky_s3

CONFIG = DataConfig(image_size=67, augment=AugmentConfig(shift=0.1, horizontal_flip=True))


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[FlakyS3]:
    with flaky_s3(monkeypatch) as server:
        yield server


def order_of(dataset: ShardSet) -> Order:
    rows = dataset.splits["train"].chunk_rows
    return Order(seed=3, chunk_rows=rows, virtual_workers=2, micro_batch=16, window=300)


def some_batches(dataset: ShardSet) -> list[bytes]:
    batches = training_batches(dataset, order_of(dataset), range(2), CONFIG, 0)
    return [images.tobytes() + labels.tobytes() for images, labels in islice(batches, 50)]


def held_out(dataset: ShardSet) -> list[bytes]:
    rows = range(dataset.splits["validation"].rows)
    batches = evaluation_batches(dataset, "validation", rows, CONFIG, 50)
    return [images.tobytes() + labels.tobytes() for images, labels in batches]


def test_a_set_from_an_s3_store_that_fails_a_fifth_of_requests_is_the_same_to_every_byte(
    s3: FlakyS3, tmp_path: Path, digits: Path, caplog: pytest.LogCaptureFixture
) -> None:
    s3.failing = 0.2
    with caplog.at_level(logging.DEBUG):
        far = prepare("digits", s3.uri("digits"), PrepareOptions(shard_rows=400))
        near = prepare("digits", tmp_path / "near", PrepareOptions(shard_rows=400))
        assert far.sha256 == near.sha256
        assert verify(s3.uri("digits")) == []

        cached = ShardSet.open(s3.uri("digits"), RangeCache(tmp_path / "cache", 1 << 30))
        assert some_batches(cached) == some_batches(near)
        assert held_out(cached) == held_out(near)
        before = s3.requests
        assert some_batches(cached) == some_batches(near)
        assert s3.requests == before  # all of it from the cache
    assert s3.failures > 0.1 * s3.requests
    assert not any(secret in caplog.text for secret in KEYS.values())


def test_a_folder_and_an_archive_can_be_far_away(
    s3: FlakyS3, tmp_path: Path, image_tree: ImageTree
) -> None:
    root = image_tree(*(f"{name}/{i}.png" for name in ("cats", "dogs") for i in range(20)))
    for path in root.rglob("*.png"):
        (Location.of(s3.uri("photos")) / path.relative_to(root).as_posix()).upload(path)
    s3.failing = 0.2
    far = prepare(s3.uri("photos"), tmp_path / "far")
    assert far.sha256 == prepare(str(root), tmp_path / "near").sha256


def test_what_is_not_there_is_not_asked_for_again_and_again(s3: FlakyS3) -> None:
    before = s3.requests
    with pytest.raises(DataError, match="no such dataset"):
        ShardSet.open(s3.uri("nothing"))
    assert s3.requests < before + 4


def test_a_store_that_never_answers_is_named_in_one_line(
    s3: FlakyS3, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "ATTEMPTS", 1)  # each has attempts of its own inside
    s3.failing = 1.0
    with pytest.raises(DataError) as caught:
        ShardSet.open(s3.uri("digits"))
    assert "digits" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_requests_are_repeated_with_growing_pauses() -> None:
    pauses: list[float] = []
    answers = iter([OSError("busy")] * 4)

    def request() -> str:
        for error in answers:
            raise error
        return "here"

    assert persistently(request, pauses.append) == "here"
    assert len(pauses) == 4
    assert 8 * 0.5 < pauses[3] / pauses[0] < 8 * 3
    assert sum(pauses) < 3


@pytest.mark.parametrize(
    ("error", "requests"),
    [
        (FileNotFoundError("gone"), 1),
        (OSError("AWS Error ACCESS_DENIED during HeadObject"), 1),
        (OSError("AWS Error NETWORK_CONNECTION"), ATTEMPTS),
    ],
)
def test_only_what_may_pass_is_tried_again(error: OSError, requests: int) -> None:
    made = 0

    def request() -> None:
        nonlocal made
        made += 1
        raise error

    with pytest.raises(OSError, match=str(error)):
        persistently(request, lambda seconds: None)
    assert made == requests


def test_the_cache_stays_within_its_bound_and_drops_what_was_not_used_for_longest(
    tmp_path: Path,
) -> None:
    cache = RangeCache(tmp_path / "cache", 3000)
    fetched: list[str] = []

    def get(key: str) -> bytes:
        def fetch() -> bytes:
            fetched.append(key)
            return key.encode() * 1000

        return cache.get(key, fetch)

    def age(seconds: float) -> None:
        for path in (tmp_path / "cache").iterdir():
            os.utime(path, (path.stat().st_atime, path.stat().st_mtime - seconds))

    for key in "abc":
        assert get(key) == key.encode() * 1000
        age(1)
    age(1)
    get("a")  # used again: now b is the oldest
    get("d")
    get("a")
    assert fetched == ["a", "b", "c", "d"]
    assert sorted(path.name for path in (tmp_path / "cache").iterdir()) == ["a", "c", "d"]
    assert len(cache.get("large", lambda: bytes(4000))) == 4000
    assert sum(path.stat().st_size for path in (tmp_path / "cache").iterdir()) <= 3000


def test_a_damaged_cache_is_mended(s3: FlakyS3, tmp_path: Path) -> None:
    prepare("digits", s3.uri("digits"))
    cache = tmp_path / "cache"
    dataset = ShardSet.open(s3.uri("digits"), RangeCache(cache, 1 << 30))
    whole = some_batches(dataset)
    rng = np.random.default_rng(0)
    for path in cache.iterdir():
        data = bytearray(path.read_bytes())
        data[rng.integers(len(data) // 2)] ^= 64
        path.write_bytes(bytes(data))
    assert some_batches(dataset) == whole


@pytest.mark.parametrize("name", ["s3://key:secret@bucket/a", "s3://key:se/cret@bucket/a?region=x"])
def test_credentials_in_a_path_are_refused_and_not_repeated(name: str) -> None:
    for use in (Location.of, lambda path: load(JobConfig, None, [f"data.path={path}"])):
        with pytest.raises(ConfigError, match="credentials do not belong") as caught:
            use(name)
        assert "cret" not in str(caught.value)
        assert "key" not in str(caught.value)


def test_a_config_holds_no_credentials_from_the_environment(s3: FlakyS3) -> None:
    config = load(JobConfig, None, [f"data.path={s3.uri('digits')}"])
    assert not any(secret in dump(config.with_absolute_paths()) for secret in KEYS.values())


def test_a_location_is_named_as_it_was_given(tmp_path: Path) -> None:
    assert str(Location.of("data/digits")) == str(Path("data/digits").absolute())
    assert str(Location.of(f"file://{tmp_path}") / "a") == f"{tmp_path}/a"
    uri = "s3://bucket/some/where?region=us-east-1"
    assert str(Location.of(uri)) == uri
    assert str(Location.of(uri) / "x.parquet") == (
        "s3://bucket/some/where/x.parquet?region=us-east-1"
    )
    assert absolute(uri) == uri
    assert absolute("data") == str(Path("data").absolute())
    with pytest.raises(ConfigError, match="magic://a: not a location"):
        Location.of("magic://a")
