"""Sets in the form in which their authors publish them, made here in that form."""

import os
import pickle
import struct
import tarfile
from collections import Counter
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image
from scipy.io import savemat

from alexnet.data.images import Pixels, decode
from alexnet.data.known import (
    IMAGENET_KIT,
    IMAGENET_MEANING,
    IMAGENET_TRAIN,
    IMAGENET_TRUTH,
    IMAGENET_VALIDATION,
)
from alexnet.data.prepare import prepare
from alexnet.data.sources import TRAIN, VALIDATION, open_source
from alexnet.errors import DataError

Found = list[tuple[str, str, bytes]]  # split, class, encoded image
Files = dict[str, bytes]


def found_in(name: Path | str) -> Found:
    with open_source(str(name), 0.1) as source:
        return [(item.split, item.class_name, source.read(item)) for item in source.items]


def classes_of(name: Path | str) -> list[str]:
    with open_source(str(name), 0.1) as source:
        return source.classes


def refusal(name: Path | str) -> str:
    with pytest.raises(DataError) as caught:
        found_in(name)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


def write(folder: Path, files: Files) -> Path:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def tar(files: Files, mode: str = "w:") -> bytes:
    buffer = BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:  # type: ignore[call-overload]
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, BytesIO(data))
    return buffer.getvalue()


# CIFAR


def python2_pickle(tree: Any) -> bytes:
    """As Python 2 wrote it in 2009: text is bytes, NumPy has its old module names."""

    def dump(value: Any) -> bytes:
        if isinstance(value, str | bytes):
            data = value.encode() if isinstance(value, str) else value
            return b"T" + struct.pack("<i", len(data)) + data
        if isinstance(value, int):
            return b"J" + struct.pack("<i", value)
        if isinstance(value, tuple):
            return b"(" + b"".join(map(dump, value)) + b"t"
        if isinstance(value, list):
            return b"(" + b"".join(map(dump, value)) + b"l"
        if isinstance(value, dict):
            pairs = (dump(each) for pair in value.items() for each in pair)
            return b"(" + b"".join(pairs) + b"d"
        assert value.dtype == np.uint8
        empty = b"(cnumpy\nndarray\n" + dump((0,)) + dump("b") + b"tR"
        kind = b"cnumpy\ndtype\n" + dump(("u1", 0, 1)) + b"R"
        kind += b"(" + dump(3) + dump("|") + b"NNN" + dump(-1) + dump(-1) + dump(0) + b"tb"
        state = dump(1) + dump(value.shape) + kind + b"I00\n" + dump(value.tobytes())
        return b"cnumpy.core.multiarray\n_reconstruct\n" + empty + b"(" + state + b"tb"

    return b"\x80\x02" + dump(tree) + b"."


def python3_pickle(tree: Any) -> bytes:
    return pickle.dumps(tree, protocol=2)


PICKLERS = pytest.mark.parametrize("pickler", [python2_pickle, python3_pickle])
Pickler = Callable[[Any], bytes]
TEN = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
HUNDRED = [f"thing {number:02d}" for number in reversed(range(100))]  # not in order


def planes(images: Pixels) -> npt.NDArray[np.uint8]:
    """Rows of 3072 bytes: the red plane, the green, the blue."""
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2).reshape(len(images), 3072))


def random_images(count: int, seed: int) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, (count, 32, 32, 3), np.uint8)


def cifar10(pickler: Pickler, each: int = 7) -> tuple[Files, list[tuple[str, str, Pixels]]]:
    files = {
        "batches.meta": pickler({"num_cases_per_batch": each, "label_names": TEN, "num_vis": 3072})
    }
    wanted = []
    for seed, name in enumerate([f"data_batch_{n}" for n in range(1, 6)] + ["test_batch"]):
        images, labels = random_images(each, seed), [(seed * 3 + i) % 10 for i in range(each)]
        names = [f"{i}.png" for i in range(each)]
        tree = {"batch_label": name, "labels": labels, "data": planes(images), "filenames": names}
        files[name] = pickler(tree)
        split = VALIDATION if name == "test_batch" else TRAIN
        wanted += [(split, TEN[y], x) for x, y in zip(images, labels, strict=True)]
    return files, wanted


def cifar100(pickler: Pickler, each: int = 20) -> tuple[Files, list[tuple[str, str, Pixels]]]:
    coarse = [f"group {number}" for number in range(20)]
    files = {"meta": pickler({"fine_label_names": HUNDRED, "coarse_label_names": coarse})}
    wanted = []
    for seed, (name, split) in enumerate((("train", TRAIN), ("test", VALIDATION))):
        images, labels = random_images(each, seed), [(i * 7 + seed) % 100 for i in range(each)]
        files[name] = pickler(
            {"data": planes(images), "fine_labels": labels, "coarse_labels": [0] * each}
        )
        wanted += [(split, HUNDRED[y], x) for x, y in zip(images, labels, strict=True)]
    return files, wanted


def check(name: Path, wanted: list[tuple[str, str, Pixels]], classes: list[str]) -> None:
    found = found_in(name)
    assert [(split, label) for split, label, _ in found] == [(s, c) for s, c, _ in wanted]
    for (_, _, encoded), (_, _, pixels) in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(decode(encoded), pixels)
    assert classes_of(name) == classes


@PICKLERS
@pytest.mark.parametrize("packed", [False, True])
def test_cifar_10(tmp_path: Path, pickler: Pickler, packed: bool) -> None:
    files, wanted = cifar10(pickler)
    files = {f"cifar-10-batches-py/{name}": data for name, data in files.items()}
    if packed:
        name = tmp_path / "cifar-10-python.tar.gz"
        name.write_bytes(tar(files, "w:gz"))
    else:
        name = write(tmp_path / "cifar", files)
    check(name, wanted, TEN)


@PICKLERS
@pytest.mark.parametrize("packed", [False, True])
def test_cifar_100(tmp_path: Path, pickler: Pickler, packed: bool) -> None:
    """Labels are the fine ones, and keep their numbers."""
    files, wanted = cifar100(pickler)
    if packed:
        name = tmp_path / "cifar-100-python.tar.gz"
        name.write_bytes(tar({f"cifar-100-python/{n}": d for n, d in files.items()}, "w:gz"))
    else:
        name = write(tmp_path / "cifar", files)
    check(name, wanted, HUNDRED)


def test_cifar_is_prepared_with_its_labels(tmp_path: Path) -> None:
    files, wanted = cifar100(python2_pickle)
    dataset = prepare(str(write(tmp_path / "cifar", files)), tmp_path / "set")
    assert list(dataset.classes) == HUNDRED
    chunk = dataset.splits["validation"].read_chunk(0)
    rows = {
        (bytes(image or b""), label)
        for image, label in zip(chunk.images, chunk.labels, strict=True)
    }
    assert {(decode(image).tobytes(), HUNDRED[label]) for image, label in rows} == {
        (pixels.tobytes(), label) for split, label, pixels in wanted if split == VALIDATION
    }


class Runs:
    """A pickle of this runs a command when it is loaded."""

    def __init__(self, command: str) -> None:
        self._command = command

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (self._command,)


@pytest.mark.parametrize("name", ["batches.meta", "data_batch_4", "test_batch"])
@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_a_malicious_pickle_is_refused_and_not_run(
    tmp_path: Path, name: str, protocol: int
) -> None:
    files, _ = cifar10(python3_pickle)
    evidence = tmp_path / "evidence"
    tree = {"labels": [0] * 7, "label_names": TEN, "data": Runs(f"touch {evidence}")}
    files[name] = pickle.dumps(tree, protocol)
    pickle.loads(files[name])
    assert evidence.exists()  # that is what it would do
    evidence.unlink()
    said = refusal(write(tmp_path / "cifar", files))
    assert f"{name} cannot be read: it asks for posix.system" in said
    assert not evidence.exists()


BATCH = {"data": planes(random_images(7, 0)), "labels": [0] * 7}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"data_batch_3": None}, "data_batch_3 is missing"),
        ({"batches.meta": None}, "batches.meta is missing"),
        ({"data_batch_2": b"not a pickle"}, "data_batch_2 cannot be read"),
        ({"data_batch_2": python3_pickle(BATCH)[:-900]}, "data_batch_2 cannot be read"),
        ({"data_batch_2": python3_pickle([1, 2])}, "data_batch_2 cannot be read"),
        ({"data_batch_2": python3_pickle({"data": [1]})}, "data_batch_2 is no CIFAR batch"),
        ({"test_batch": python3_pickle({**BATCH, "labels": [0] * 6})}, "7 images, labels of"),
        ({"test_batch": python3_pickle({**BATCH, "labels": [10] * 7})}, "label 10 is none of"),
        ({"test_batch": python3_pickle({**BATCH, "labels": [-1] * 7})}, "label -1 is none of"),
        ({"test_batch": python3_pickle({**BATCH, "labels": "text"})}, "no CIFAR batch"),
        ({"test_batch": python3_pickle({**BATCH, "data": [[300] * 3072] * 7})}, "no CIFAR"),
        ({"batches.meta": python3_pickle({"names": TEN})}, "batches.meta names no classes"),
        ({"batches.meta": python3_pickle({"label_names": 7})}, "batches.meta names no classes"),
    ],
)
def test_a_damaged_cifar_is_told(
    tmp_path: Path, changes: dict[str, bytes | None], words: str
) -> None:
    files, _ = cifar10(python3_pickle)
    kept = {name: data for name, data in (files | changes).items() if data is not None}
    assert words in refusal(write(tmp_path / "cifar", kept))


# ImageNet

WNIDS = ["n03000000", "n01000000", "n02000000"]  # by ILSVRC2012_ID, from 1; not in order
TRUTH = [2, 1, 3, 3, 2, 1, 2]  # of the validation images, from 1


def picture(seed: int) -> bytes:
    buffer = BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (9, 12, 3), np.uint8)
    Image.fromarray(pixels).save(buffer, "JPEG")
    return buffer.getvalue()


def meaning(wnids: list[str]) -> bytes:
    """As in the development kit: inner nodes of WordNet follow the classes."""
    rows = [*enumerate(wnids, 1), (1001, "n00000001"), (1002, "n00000002")]
    kind = [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O"), ("num_children", "O")]
    synsets = np.array([[(float(n), wnid, "a, b", 0.0)] for n, wnid in rows], kind)
    buffer = BytesIO()
    savemat(buffer, {"synsets": synsets})
    return buffer.getvalue()


def kit(wnids: list[str] = WNIDS, truth: str | None = None) -> Files:
    return {
        f"ILSVRC2012_devkit_t12/data/{IMAGENET_MEANING}": meaning(wnids),
        f"ILSVRC2012_devkit_t12/data/{IMAGENET_TRUTH}": (
            "".join(f"{number}\n" for number in TRUTH) if truth is None else truth
        ).encode(),
    }


def train_pictures(wnid: str) -> Files:
    return {f"{wnid}_{i}.JPEG": picture(int(wnid[1:3]) * 100 + i) for i in range(4)}


VALIDATION_PICTURES = {
    f"ILSVRC2012_val_{i:08d}.JPEG": picture(i) for i in reversed(range(1, len(TRUTH) + 1))
}


def imagenet() -> Files:
    return {
        IMAGENET_TRAIN: tar({f"{wnid}.tar": tar(train_pictures(wnid)) for wnid in WNIDS}),
        IMAGENET_VALIDATION: tar(VALIDATION_PICTURES),
        IMAGENET_KIT: tar(kit(), "w:gz"),
    }


def wanted_of_imagenet() -> Found:
    train = [(TRAIN, w, image) for w in WNIDS for image in train_pictures(w).values()]
    held_out = [
        (VALIDATION, WNIDS[TRUTH[number - 1] - 1], picture(number))
        for number in range(1, len(TRUTH) + 1)
    ]
    return train + held_out


@pytest.mark.parametrize("unpacked", [False, True])
def test_imagenet_as_it_ships(tmp_path: Path, unpacked: bool) -> None:
    files = imagenet()
    if unpacked:
        del files[IMAGENET_KIT]
        files |= kit()
    root = write(tmp_path / "imagenet", files)
    assert sorted(found_in(root)) == sorted(wanted_of_imagenet())
    assert classes_of(root) == sorted(WNIDS)


def test_imagenet_is_prepared_with_its_labels(tmp_path: Path) -> None:
    root = write(tmp_path / "imagenet", imagenet())
    dataset = prepare(str(root), tmp_path / "set")
    assert dataset.classes == tuple(sorted(WNIDS))
    assert dataset.rejected == 0
    found = [
        (name, dataset.classes[label], bytes(image or b""))
        for name, split in dataset.splits.items()
        for chunk in map(split.read_chunk, range(len(split.chunk_rows)))
        for image, label in zip(chunk.images, chunk.labels.tolist(), strict=True)
    ]
    assert sorted(found) == sorted(wanted_of_imagenet())


ODD = tar({**VALIDATION_PICTURES, "ILSVRC2012_val_x.JPEG": b""})
LATE = tar({**VALIDATION_PICTURES, f"ILSVRC2012_val_{len(TRUTH) + 1:08d}.JPEG": b""})
WITHOUT_ONE = tar({f"{wnid}.tar": tar(train_pictures(wnid)) for wnid in WNIDS[1:]})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({IMAGENET_TRAIN: None}, f"ImageNet's {IMAGENET_TRAIN} is missing"),
        ({IMAGENET_VALIDATION: None}, f"ImageNet's {IMAGENET_VALIDATION} is missing"),
        ({IMAGENET_KIT: None}, f"{IMAGENET_TRUTH} is missing; it comes in {IMAGENET_KIT}"),
        ({IMAGENET_KIT: tar({"x": b""}, "w:gz")}, f"ImageNet's {IMAGENET_TRUTH} is missing"),
        ({IMAGENET_KIT: b"nonsense"}, "neither a folder nor a tar"),
        ({IMAGENET_KIT: tar(kit(), "w:gz")[:99]}, "damaged archive"),
        ({IMAGENET_KIT: tar(kit(truth="1\n2\n"), "w:gz")}, "none of the 2 in"),
        ({IMAGENET_KIT: tar(kit(truth="one\n"), "w:gz")}, f"{IMAGENET_TRUTH} cannot be read"),
        ({IMAGENET_KIT: tar(kit(truth="9\n"), "w:gz")}, f"{IMAGENET_TRUTH} cannot be read"),
        ({IMAGENET_TRAIN: b"nonsense"}, "damaged archive"),
        ({IMAGENET_TRAIN: tar({"n1.tar": b"nonsense" * 99})}, "damaged archive"),
        ({IMAGENET_TRAIN: WITHOUT_ONE}, "'n03000000' is in validation but not in training"),
        ({IMAGENET_VALIDATION: ODD}, "ILSVRC2012_val_x.JPEG is none of the 7"),
        ({IMAGENET_VALIDATION: LATE}, "ILSVRC2012_val_00000008.JPEG is none of the 7"),
    ],
)
def test_what_is_missing_of_imagenet_is_told(
    tmp_path: Path, changes: dict[str, bytes | None], words: str
) -> None:
    files = {name: data for name, data in (imagenet() | changes).items() if data is not None}
    said = refusal(write(tmp_path / "imagenet", files))
    assert words in said
    assert str(tmp_path) in said


def test_imagenet_s_archives_within_an_archive_are_refused(tmp_path: Path) -> None:
    (tmp_path / "all.tar").write_bytes(tar(imagenet()))
    assert "must lie in a local folder" in refusal(tmp_path / "all.tar")


# synthetic


def test_synthetic_images_are_the_same_twice() -> None:
    one, other = (found_in("synthetic:60:3:24") for _ in range(2))
    assert one == other
    assert len({encoded for _, _, encoded in one}) == 60
    assert Counter(label for _, label, _ in one) == dict.fromkeys(
        ("class-0000", "class-0001", "class-0002"), 20
    )
    assert Counter((split, label) for split, label, _ in one)[VALIDATION, "class-0001"] == 2
    assert {decode(encoded).shape for _, _, encoded in one} == {(24, 32, 3)}


def test_more_synthetic_images_leave_the_first_as_they_were() -> None:
    few, many = found_in("synthetic:30:3:24"), found_in("synthetic:90:3:24")
    assert many[:30] == few


def test_synthetic_classes_can_be_told_by_their_colour() -> None:
    by_class: dict[str, list[Any]] = {}
    for _, label, encoded in found_in("synthetic:40:2:16"):
        by_class.setdefault(label, []).append(decode(encoded).mean(axis=(0, 1)))
    one, other = (np.array(means) for means in by_class.values())
    between = np.linalg.norm(one.mean(0) - other.mean(0))
    assert between > 2 * max(one.std(), other.std()) or between > 20


def test_a_synthetic_image_is_as_large_as_a_photograph() -> None:
    with open_source("synthetic:10:1:320", 0.1) as source:
        encoded = source.read(source.items[0])
    assert decode(encoded).shape == (320, 426, 3)
    assert 20_000 < len(encoded) < 200_000


@pytest.mark.parametrize(
    "name",
    [
        "synthetic:",
        "synthetic:many",
        "synthetic:9:1",
        "synthetic:99:10",
        "synthetic:-100",
        "synthetic:100:0",
        "synthetic:100:1:7",
        "synthetic:100:1:5000",
        "synthetic:100:1:32:4",
        "synthetic:1e3",
        "synthetic:100::",
        f"synthetic:{10**12}",
    ],
)
def test_a_bad_synthetic_name_is_told(name: str) -> None:
    assert f"{name}: expected synthetic:IMAGES[:CLASSES[:SIDE]]" in refusal(name)
