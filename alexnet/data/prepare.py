"""`prepare`: any source to a shard set. Every image is really decoded, once.

Rows are laid out by a hash of their key: the same input gives the same bytes, and every chunk mixes
the classes. What cannot be decoded is listed in `rejected.csv` and left out.

Beside each shard lies a note (`.NAME.done.json`) until the manifest is written: with these, a
preparation that was killed goes on where it was, and ends in the same bytes.
"""

import csv
import fcntl
import hashlib
import io
import json
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import reduce
from pathlib import Path
from typing import Literal

import PIL

from alexnet.data.augment import shorter_side
from alexnet.data.images import Pixels, decode, encode_jpeg, encode_raw, normalise
from alexnet.data.manifest import NO_MOMENTS, Moments, add, manifest_of, moments_of
from alexnet.data.parquet import Columns
from alexnet.data.shards import (
    MANIFEST,
    SCHEMA_VERSION,
    Row,
    Shard,
    ShardSet,
    load_shard,
    write_shard,
)
from alexnet.data.sources import TRAIN, VALIDATION, Item, Source, open_source
from alexnet.data.storage import Location, explained
from alexnet.errors import DataError

REJECTED = "rejected.csv"
PLAN = ".plan.json"
LOCK = ".lock"
COLUMNS = Columns(image="image.bytes", label="label")
RESIZED_QUALITY = 90  # of JPEGs written at another size
Progress = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class PrepareOptions:
    """How a set is written."""

    validation_share: float = 0.1  # of the images, where the source names no validation split
    size: int | None = None  # pixels of the shorter side; None: as they are
    store: Literal["jpeg", "raw"] = "jpeg"  # raw: pixels, square if there is a size
    shard_rows: int = 4096
    max_rejected: float = 0.1  # share of undecodable images at which the set is refused
    workers: int = 0  # threads; 0: one a core


@dataclass(frozen=True, kw_only=True)
class _Decoded:
    row: Row
    moments: Moments


@dataclass(frozen=True, kw_only=True)
class _Rejected:
    key: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class _Done:
    """A shard that is written, and what the manifest and `rejected.csv` need of it."""

    shard: Shard
    moments: Moments
    rejected: list[_Rejected]


@dataclass(frozen=True, kw_only=True)
class _Block:
    """The items of one shard to be."""

    split: str
    file: str
    items: list[Item]


def prepare(
    source_name: str,
    out: str | Path,
    options: PrepareOptions = PrepareOptions(),
    progress: Progress = lambda done, total: None,
) -> ShardSet:
    """Write `source_name` to `out`, a folder or a URI, as shards with a manifest; return the set.

    Raises:
        DataError: `out` holds a set already or is being written, the source is unusable, too much
            of it is rejected, or the disk is full.
    """
    target = Location.of(out)
    with explained(str(out)):
        if target.is_local and (target.local / PLAN).exists() and (target / MANIFEST).exists():
            return _tidied(target.local)
        if (target / MANIFEST).exists():
            raise DataError(f"{out}: holds a prepared set already; remove it first or name another")
    with _quiet_pillow(), open_source(source_name, options.validation_share) as source:
        if target.is_local:
            _prepare_here(source_name, source, target.local, options, progress)
        else:
            with tempfile.TemporaryDirectory() as folder, explained(str(out)):
                _prepare_here(source_name, source, Path(folder), options, progress)
                _upload(Path(folder), target)
    return ShardSet.open(out)


@contextmanager
def _quiet_pillow() -> Iterator[None]:
    """What Pillow warns of is either refused here or of no matter (EXIF fields)."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        yield


def _upload(folder: Path, target: Location) -> None:
    """Copy a finished set, its manifest last."""
    for path in sorted(folder.iterdir(), key=lambda path: (path.name == MANIFEST, path.name)):
        (target / path.name).upload(path)


def _prepare_here(
    name: str, source: Source, out: Path, options: PrepareOptions, progress: Progress
) -> None:
    with explained(str(out)):
        out.mkdir(parents=True, exist_ok=True)
        with _only_writer(out):
            blocks = list(_blocks(source, options.shard_rows))
            _begin_or_go_on(out, blocks, source.classes, options)
            written = _write_shards(name, source, out, options, blocks, progress)
            _finish(name, source.classes, out, blocks, written)


@contextmanager
def _only_writer(out: Path) -> Iterator[None]:
    """Hold the folder's lock, which goes with this process, however it ends."""
    with (out / LOCK).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DataError(f"{out}: is being written by another preparation") from None
        if (out / MANIFEST).exists():
            raise DataError(f"{out}: another preparation has just finished it")
        yield


def _blocks(source: Source, shard_rows: int) -> Iterator[_Block]:
    for split in (TRAIN, VALIDATION):
        items = sorted((item for item in source.items if item.split == split), key=_place)
        count = -(-len(items) // shard_rows)
        for number in range(count):
            some = items[number * shard_rows : (number + 1) * shard_rows]
            file = f"{split}-{number:05d}-of-{count:05d}.parquet"
            yield _Block(split=split, file=file, items=some)


def _place(item: Item) -> bytes:
    """Where an item stands in its split: shuffled, but the same for ever."""
    return hashlib.sha256(item.key.encode()).digest()


def _begin_or_go_on(
    out: Path, blocks: list[_Block], classes: list[str], options: PrepareOptions
) -> None:
    """Keep the shards that an unfinished preparation of the same left; remove those of another."""
    plan = {
        "schema_version": SCHEMA_VERSION,
        "pillow": PIL.__version__,
        "size": options.size,
        "store": options.store,
        "classes": classes,
        "blocks": {
            block.file: hashlib.sha256(
                "\0".join(
                    f"{item.key}\0{item.class_name}\0{item.size}" for item in block.items
                ).encode()
            ).hexdigest()
            for block in blocks
        },
    }
    text = json.dumps(plan)
    path = out / PLAN
    if path.exists() and path.read_text() == text:
        return
    for leftover in (*out.glob("*-of-*.parquet"), *out.glob(".*.json"), *out.glob(".*.partial")):
        leftover.unlink()
    _write_whole(path, text)


def _write_shards(
    name: str,
    source: Source,
    out: Path,
    options: PrepareOptions,
    blocks: list[_Block],
    progress: Progress,
) -> dict[str, _Done]:
    label_of = {class_name: label for label, class_name in enumerate(source.classes)}
    done: dict[str, _Done] = {}
    images = 0
    with ThreadPoolExecutor(options.workers or os.cpu_count()) as pool:
        for block in blocks:
            done[block.file] = _read_note(out, block.file) or _write_block(
                source, block, label_of, out, options, pool
            )
            rejected = [rejected for each in done.values() for rejected in each.rejected]
            _refuse_if_too_many(name, out, rejected, len(source.items), options.max_rejected)
            progress(images := images + len(block.items), len(source.items))
    return done


def _write_block(
    source: Source,
    block: _Block,
    label_of: dict[str, int],
    out: Path,
    options: PrepareOptions,
    pool: ThreadPoolExecutor,
) -> _Done:
    results = list(pool.map(lambda item: _decode(source, item, label_of, options), block.items))
    good = [result for result in results if isinstance(result, _Decoded)]
    done = _Done(
        shard=write_shard(out / block.file, [each.row for each in good], source.classes),
        moments=reduce(add, (each.moments for each in good), NO_MOMENTS),
        rejected=[result for result in results if isinstance(result, _Rejected)],
    )
    _write_whole(_note(out, block.file), json.dumps(asdict(done)))
    return done


def _decode(
    source: Source, item: Item, label_of: dict[str, int], options: PrepareOptions
) -> _Decoded | _Rejected:
    try:
        encoded, pixels = normalise(source.read(item))
        encoded, pixels = _stored(encoded, pixels, options)
    except (DataError, OSError) as error:
        return _Rejected(key=item.key, reason=str(error))
    row = Row(image=encoded, path=item.key, label=label_of[item.class_name])
    return _Decoded(row=row, moments=moments_of(pixels))


def _stored(encoded: bytes, pixels: Pixels, options: PrepareOptions) -> tuple[bytes, Pixels]:
    """Return what goes into the shard, and its pixels as they will be read."""
    size = options.size
    if size and min(pixels.shape[:2]) != size:
        pixels = shorter_side(pixels, size)
        encoded = b""
    if options.store == "raw":
        if size:
            top, left = ((side - size) // 2 for side in pixels.shape[:2])
            pixels = pixels[top : top + size, left : left + size]
        return encode_raw(pixels), pixels
    if not encoded:
        encoded = encode_jpeg(pixels, RESIZED_QUALITY)
        pixels = decode(encoded)
    return encoded, pixels


def _note(out: Path, file: str) -> Path:
    return out / f".{file}.done.json"


def _read_note(out: Path, file: str) -> _Done | None:
    """What is known of a shard that an earlier, killed preparation has written."""
    try:
        tree = json.loads(_note(out, file).read_text())
    except FileNotFoundError:
        return None
    if not (out / file).exists():
        return None
    count, total, products = tree["moments"]
    return _Done(
        shard=load_shard(tree["shard"]),
        moments=(count, tuple(total), tuple(map(tuple, products))),
        rejected=[_Rejected(**rejected) for rejected in tree["rejected"]],
    )


def _refuse_if_too_many(
    name: str, out: Path, rejected: list[_Rejected], total: int, max_rejected: float
) -> None:
    if len(rejected) > max_rejected * total:
        _write_rejected(out, rejected)
        (out / PLAN).unlink()  # whoever mends the images starts over
        raise DataError(
            f"{name}: {len(rejected)} of {total} images cannot be decoded, more than the "
            f"{max_rejected:.0%} allowed (listed in {out / REJECTED}); the last one: "
            f"{rejected[-1].key}: {rejected[-1].reason}"
        )


def _finish(
    name: str, classes: list[str], out: Path, blocks: list[_Block], done: dict[str, _Done]
) -> None:
    rejected = [rejected for each in done.values() for rejected in each.rejected]
    _write_rejected(out, rejected)
    splits: dict[str, list[_Done]] = {TRAIN: [], VALIDATION: []}
    for block in blocks:
        splits[block.split].append(done[block.file])
    moments = reduce(add, (each.moments for each in splits[TRAIN]), NO_MOMENTS)
    for split, dones in splits.items():
        if not any(each.moments[0] for each in dones):
            raise DataError(f"{name}: none of the {split} images can be decoded")
    shards = {split: [each.shard for each in dones] for split, dones in splits.items()}
    _write_whole(
        out / MANIFEST, manifest_of(classes, COLUMNS, shards, moments, rejected=len(rejected))
    )
    _tidied(out)


def _tidied(out: Path) -> ShardSet:
    """Remove the notes beside a finished set, which a kill may have left there; the plan last."""
    for leftover in (*out.glob(".*.done.json"), *out.glob(".*.partial"), out / LOCK, out / PLAN):
        leftover.unlink(missing_ok=True)
    return ShardSet.open(out)


def _write_rejected(out: Path, rejected: list[_Rejected]) -> None:
    text = io.StringIO(newline="")
    table = csv.writer(text)
    table.writerow(["path", "reason"])
    table.writerows([item.key, item.reason] for item in rejected)
    _write_whole(out / REJECTED, text.getvalue())


def _write_whole(path: Path, text: str) -> None:
    """Write a file that is either not there or whole, also after a power cut."""
    partial = path.with_name(f".{path.name.lstrip('.')}.partial")
    try:
        with partial.open("w", newline="") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        partial.rename(path)
    finally:
        partial.unlink(missing_ok=True)
