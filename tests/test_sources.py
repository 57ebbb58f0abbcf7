import gzip
import os
import tarfile
import time
import zipfile
import zlib
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from random import Random

import pytest

from alexnet.data.sources import TRAIN, VALIDATION, Item, open_source
from alexnet.errors import EXIT_DATA, DataError
from tests.conftest import ImageTree

SPLIT_TREE = (
    "train/갈색 곰/1.png",
    "train/갈색 곰/2.jpg",
    "train/polar bear/3.PNG",
    "val/갈색 곰/4.png",
    "val/polar bear/5.jpeg",
)


def listed(name: Path | str, validation_share: float = 0.1) -> tuple[Item, ...]:
    with open_source(str(name), validation_share) as source:
        return source.items


def refusal(name: Path | str, validation_share: float = 0.1) -> str:
    with pytest.raises(DataError) as caught:
        listed(name, validation_share)
    assert caught.value.exit_code == EXIT_DATA == 3
    assert "\n" not in str(caught.value)
    assert str(name) in str(caught.value)
    return str(caught.value)


def pack(folder: Path, mode: str, under: str = ".") -> Path:
    """Pack what is in `folder` as a tar, where it stands below `under`."""
    path = folder.parent / f"{folder.name}.tar{mode.replace(':', '.').removeprefix('w')}"
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        archive.add(folder, under)
    return path


def zipped(folder: Path, compression: int = zipfile.ZIP_DEFLATED) -> Path:
    path = folder.parent / f"{folder.name}.zip"
    with zipfile.ZipFile(path, "w", compression) as archive:
        for file in sorted(folder.rglob("*")):
            archive.write(file, file.relative_to(folder))
    return path


def by_split(items: tuple[Item, ...]) -> dict[str, set[str]]:
    return {
        split: {item.key for item in items if item.split == split} for split in (TRAIN, VALIDATION)
    }


@pytest.mark.parametrize("train", ["train", "training", "training_set", "Train"])
@pytest.mark.parametrize("held_out", ["val", "valid", "validation", "test", "test_set"])
def test_split_folders_are_found_by_any_usual_name(
    image_tree: ImageTree, train: str, held_out: str
) -> None:
    root = image_tree(f"{train}/a/1.png", f"{train}/b/2.png", f"{held_out}/a/3.png")
    assert by_split(listed(root)) == {
        TRAIN: {f"{train}/a/1.png", f"{train}/b/2.png"},
        VALIDATION: {f"{held_out}/a/3.png"},
    }


@pytest.mark.parametrize("deeper", ["", "training_set/training_set/", "animals/pictures/"])
def test_folders_around_the_splits_do_not_matter(image_tree: ImageTree, deeper: str) -> None:
    """Kaggle's archive of cats and dogs unpacks to training_set/training_set/cats."""
    root = image_tree(
        f"{deeper}train/cats/1.png", f"{deeper}train/dogs/2.png", f"{deeper}test_set/cats/3.png"
    )
    items = listed(root)
    assert [(item.split, item.class_name) for item in items] == [
        (VALIDATION, "cats"),
        (TRAIN, "cats"),
        (TRAIN, "dogs"),
    ]


def test_kaggle_s_own_nesting(image_tree: ImageTree) -> None:
    root = image_tree(
        "training_set/training_set/cats/cat.1.jpg",
        "training_set/training_set/dogs/dog.1.jpg",
        "test_set/test_set/dogs/dog.4001.jpg",
    )
    assert [(item.split, item.class_name) for item in listed(root)] == [
        (VALIDATION, "dogs"),
        (TRAIN, "cats"),
        (TRAIN, "dogs"),
    ]


def test_classes_are_sorted_names_with_spaces_and_other_letters(image_tree: ImageTree) -> None:
    with open_source(str(image_tree(*SPLIT_TREE)), 0.1) as source:
        assert source.classes == ["polar bear", "갈색 곰"]
        assert {item.key for item in source.items} == set(SPLIT_TREE)


@pytest.mark.parametrize("mode", ["w:", "w:gz", "w:bz2", "w:xz"])
def test_a_tar_is_the_folder_that_it_was_made_of(image_tree: ImageTree, mode: str) -> None:
    root = image_tree(*SPLIT_TREE)
    with open_source(str(root), 0.1) as folder, open_source(str(pack(root, mode)), 0.1) as tar:
        assert tar.items == folder.items
        for item in folder.items:
            assert tar.read(item) == folder.read(item) == (root / item.key).read_bytes()


@pytest.mark.parametrize(
    "compression",
    [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA],
)
def test_a_zip_is_the_folder_that_it_was_made_of(image_tree: ImageTree, compression: int) -> None:
    root = image_tree(*SPLIT_TREE)
    path = zipped(root, compression)
    with open_source(str(root), 0.1) as folder, open_source(str(path), 0.1) as archive:
        assert archive.items == folder.items
        for item in folder.items:
            assert archive.read(item) == folder.read(item) == (root / item.key).read_bytes()


@pytest.mark.parametrize("kind", ["folder", "tar", "zip"])
def test_a_source_is_read_from_many_threads(image_tree: ImageTree, kind: str) -> None:
    root = image_tree(*(f"{name}/{i}.png" for name in ("a", "b") for i in range(60)), side=32)
    name = {"folder": root, "tar": pack(root, "w:gz"), "zip": zipped(root)}[kind]
    with open_source(str(name), 0.2) as source, ThreadPoolExecutor(8) as pool:
        read = list(pool.map(source.read, source.items * 3))
        assert read == [(root / item.key).read_bytes() for item in source.items] * 3


@pytest.mark.parametrize("top", ["BZ", "BZh91AY"])
def test_a_plain_tar_may_begin_with_any_name(image_tree: ImageTree, top: str) -> None:
    """With one, too, that begins as a compressed file does."""
    names = [f"{top}/train/cats/1.png", f"{top}/val/cats/2.png"]
    root = image_tree(*names)
    path = root.parent / "named.tar"
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:
        for name in names:
            archive.add(root / name, name)
    assert {item.key for item in listed(path)} == set(names)


def test_without_split_folders_a_share_is_held_out_for_good(image_tree: ImageTree) -> None:
    names = [f"{name}/{i}.png" for name in ("a", "b") for i in range(200)]
    root = image_tree(*names)
    before = by_split(listed(root, 0.25))
    assert len(before[VALIDATION]) == pytest.approx(100, abs=30)
    assert before[TRAIN] | before[VALIDATION] == set(names)

    after = by_split(listed(image_tree("a/new.png", "b/newer.png"), 0.25))
    assert after[TRAIN] >= before[TRAIN]
    assert after[VALIDATION] >= before[VALIDATION]


def test_a_lone_train_folder_gives_up_a_share_too(image_tree: ImageTree) -> None:
    root = image_tree(*(f"train/{name}/{i}.png" for name in ("a", "b") for i in range(100)))
    assert len(by_split(listed(root, 0.5))[VALIDATION]) == pytest.approx(100, abs=40)


def test_what_is_hidden_or_no_image_is_passed_over(image_tree: ImageTree) -> None:
    root = image_tree(*(f"a/{i}.png" for i in range(40)), "a/.thumb.png", ".cache/b/1.png")
    for path in ("README.txt", "a/list.csv", "__MACOSX/a/._1.png", ".git/HEAD"):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text("text")
    assert {item.key for item in listed(root)} == {f"a/{i}.png" for i in range(40)}


@pytest.mark.parametrize("packed", [False, True])
def test_an_empty_class_folder_is_a_mistake(image_tree: ImageTree, packed: bool) -> None:
    root = image_tree(*SPLIT_TREE)
    (root / "train/red panda").mkdir()
    name = pack(root, "w:gz") if packed else root
    assert "'train/red panda' has no images" in refusal(name)


def test_what_is_no_dataset(image_tree: ImageTree, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text").write_text("not an archive")
    assert "no such dataset" in refusal(tmp_path / "nothing-here")
    assert "digits, cifar10" in refusal(tmp_path / "nothing-here")
    assert "no images" in refusal(tmp_path / "empty")
    assert "neither a folder nor a tar" in refusal(tmp_path / "text")
    assert "no images" in refusal(image_tree("1.png", "2.png", root="flat"))


def test_splits_that_do_not_fit(image_tree: ImageTree) -> None:
    assert "'c' is in validation but not in training" in refusal(
        image_tree("train/a/1.png", "train/b/1.png", "val/c/1.png", root="strange")
    )
    assert "b/1.png is in neither" in refusal(
        image_tree("train/a/1.png", "val/a/1.png", "b/1.png", root="outside")
    )
    assert "no training images" in refusal(image_tree("val/a/1.png", root="no-training"))
    assert "no validation images" in refusal(image_tree("a/1.png", "b/2.png", root="few"), 0.0)


@pytest.mark.parametrize("member", ["../a/1.png", "a/../../1.png", "/a/1.png"])
def test_a_tar_that_points_out_of_itself_is_refused(tmp_path: Path, member: str) -> None:
    path = tmp_path / "evil.tar"
    with tarfile.open(path, "w") as archive:
        for name in ("a/0.png", member):
            info = tarfile.TarInfo(name)
            info.size = 4
            archive.addfile(info, BytesIO(b"data"))
    assert f"member {member!r} points out" in refusal(path)


@pytest.mark.parametrize("member", ["../a/1.png", "a/../../1.png", "/a/1.png"])
def test_a_zip_that_points_out_of_itself_is_refused(tmp_path: Path, member: str) -> None:
    path = tmp_path / "evil.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/0.png", b"data")
        archive.writestr(member, b"data")
    assert f"member {member!r} points out" in refusal(path)


def test_links_in_a_tar_are_not_followed(image_tree: ImageTree, tmp_path: Path) -> None:
    root = image_tree(*SPLIT_TREE)
    (tmp_path / "secret.png").write_bytes(b"secret")
    (root / "train/polar bear/link.png").symlink_to(tmp_path / "secret.png")
    assert {item.key for item in listed(pack(root, "w:"))} == set(SPLIT_TREE)


@pytest.mark.parametrize("mode", ["w:", "w:gz", "w:bz2", "w:xz"])
def test_a_cut_tar_is_damaged(image_tree: ImageTree, mode: str) -> None:
    path = pack(image_tree(*SPLIT_TREE, side=64), mode)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert "tar" in refusal(path)


def test_a_cut_tar_packed_whole_is_damaged(image_tree: ImageTree, tmp_path: Path) -> None:
    plain = pack(image_tree(*SPLIT_TREE, side=64), "w:").read_bytes()
    path = tmp_path / "cut.tar.gz"
    path.write_bytes(gzip.compress(plain[: len(plain) // 2]))
    assert "damaged" in refusal(path)


def test_a_damaged_header_does_not_end_a_tar_in_silence(image_tree: ImageTree) -> None:
    path = pack(image_tree(*SPLIT_TREE), "w:")
    whole = path.read_bytes()
    with tarfile.open(path) as archive:
        headers = [member.offset for member in archive.getmembers()]
    for at in headers[1:]:
        path.write_bytes(whole[: at + 3] + b"?" + whole[at + 4 :])  # in the name
        assert "damaged" in refusal(path)


def test_a_flipped_byte_in_a_compressed_tar_is_found(image_tree: ImageTree) -> None:
    path = pack(image_tree(*SPLIT_TREE), "w:gz")
    whole, plain = path.read_bytes(), gzip.decompress(path.read_bytes())
    for at in range(len(whole) // 2, len(whole) - 8, 5):  # up to the check sum
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x55]) + whole[at + 1 :])
        try:
            assert gzip.decompress(path.read_bytes()) == plain  # one of two ways to say the same
        except (zlib.error, OSError, EOFError):
            assert "tar" in refusal(path)


def test_damage_anywhere_in_an_archive_is_a_data_error(image_tree: ImageTree) -> None:
    """Listing it is refused in one line, or what is read of it is, or it reads as it was."""
    root = image_tree(*SPLIT_TREE)
    random, refused = Random(3), Counter[str]()
    archives = [pack(root, mode) for mode in ("w:", "w:gz", "w:bz2", "w:xz")]
    for compression in (zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2):
        archives.append(zipped(root, compression).rename(root.parent / f"{compression}.zip"))
    for path in archives:
        whole = path.read_bytes()
        for _ in range(150):
            damaged = bytearray(whole)
            for _ in range(random.choice([1, 1, 5])):
                damaged[random.randrange(len(whole))] = random.randrange(256)
            path.write_bytes(damaged[: random.choice([len(whole), random.randrange(len(whole))])])
            try:
                with open_source(str(path), 0.1) as source:
                    for item in source.items:
                        assert isinstance(source.read(item), bytes)
            except (DataError, OSError) as error:
                assert len(str(error).splitlines()) == 1
                refused[path.name] += 1
    assert min(refused.values()) > 50
    assert len(refused) == len(archives)


def test_an_encrypted_zip_is_told(image_tree: ImageTree) -> None:
    path = zipped(image_tree(*SPLIT_TREE))
    data = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            data[member.header_offset + 6] |= 1  # the flag in the local header
    at = data.index(b"PK\1\2")
    while at >= 0:
        data[at + 8] |= 1  # and in the directory
        at = data.find(b"PK\1\2", at + 1)
    path.write_bytes(data)
    with open_source(str(path), 0.1) as source, pytest.raises(DataError, match="encrypted"):
        source.read(source.items[0])


def test_loops_of_links_are_not_walked(image_tree: ImageTree) -> None:
    root = image_tree("train/a/1.png", "train/a/2.png", "val/a/3.png")
    (root / "train/a/up").symlink_to("..")
    (root / "train/a/itself.png").symlink_to("itself.png")  # listed, and fails when it is read
    (root / "further").symlink_to("/")  # leads to the folder that it is in
    names = {"train/a/1.png", "train/a/2.png", "val/a/3.png", "train/a/itself.png"}
    assert {item.key for item in listed(root)} == names


def test_folders_that_lead_to_each_other_are_walked_once_each(image_tree: ImageTree) -> None:
    names = [f"{name}/{i}.png" for name in "abcdef" for i in range(2)]
    root = image_tree(*names)
    for one in "abc":
        for other in "abc".replace(one, ""):
            (root / one / f"to-{other}").symlink_to(root / other)
    begin = time.monotonic()
    items = listed(root, 0.5)
    assert time.monotonic() - begin < 5
    assert len(items) == 12 + 3 * (2 + 2) * 2  # each of three, then each other, then the third


@pytest.mark.parametrize("name", ["a\nb/1.png", "a/1\r2.png", "val\u2028/1.png"])
def test_a_name_of_several_lines_is_told_in_one(image_tree: ImageTree, name: str) -> None:
    assert "has a line break" in refusal(image_tree(name, "c/1.png"))


def test_a_name_that_is_not_utf8_is_told(image_tree: ImageTree) -> None:
    root = image_tree(*SPLIT_TREE)
    (root / os.fsdecode(b"train/polar bear/\xff.png")).write_bytes(b"")
    assert "UTF-8" in refusal(root)


def test_a_class_folder_may_be_a_link(image_tree: ImageTree) -> None:
    elsewhere = image_tree("1.png", root="elsewhere")
    root = image_tree(*SPLIT_TREE)
    (root / "train/koala").symlink_to(elsewhere)
    assert "koala" in {item.class_name for item in listed(root)}


def test_images_straight_in_the_split_folders_are_refused(image_tree: ImageTree) -> None:
    """Kaggle's other cats and dogs: train/cat.0.jpg and test/1.jpg, labels in the file names."""
    names = [f"train/cat.{i}.png" for i in range(20)] + [f"test/{i}.png" for i in range(20)]
    assert "right in the folder of a split" in refusal(image_tree(*names), 0.5)


def test_the_digits() -> None:
    with open_source("digits", 0.1) as source:
        again = listed("digits", 0.7)  # their held-out fifth depends on nothing
        assert again == source.items
        assert source.classes == [str(digit) for digit in range(10)]
        assert Counter(i.split for i in again) == {TRAIN: 1438, VALIDATION: 359}
        held_out = [item.key for item in again if item.split == VALIDATION]
        assert held_out == [f"digits/{index:04d}.png" for index in range(4, 1797, 5)]
        assert source.read(again[0]).startswith(b"\x89PNG")
        assert source.read(again[0]) != source.read(again[1])
