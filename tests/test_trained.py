"""A trained model at work on files as people have them."""

import json
from pathlib import Path

import keras
import numpy as np
import pytest
from PIL import Image

from alexnet.data.shards import ShardSet
from alexnet.errors import ConfigError, DataError
from alexnet.trained import Trained, image_files

EXIF_ORIENTATION, ON_ITS_SIDE = 0x0112, 6


@pytest.fixture(scope="module")
def trained(untrained_run: Path) -> Trained:
    return Trained.load(str(untrained_run))


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    """Something with a top and a bottom."""
    rows = np.linspace(0, 255, 120).astype(np.uint8)[:, None, None]
    pixels = np.broadcast_to(rows, (120, 120, 3)) // np.array([1, 2, 3], np.uint8)
    path = tmp_path / "photo.png"
    Image.fromarray(pixels.astype(np.uint8)).save(path)
    return path


def chances(trained: Trained, path: Path) -> dict[str, float]:
    (found,) = trained.predict([path])
    assert found.problem is None
    return dict(sorted(found.probabilities.items()))


def test_a_model_is_what_was_trained(trained: Trained, digits: Path) -> None:
    assert trained.step == 7
    assert trained.classes == ShardSet.open(digits).classes
    scores = trained.evaluate()
    assert scores["images"] == sum(map(sum, scores["confusion"])) == 359
    assert scores["top1_by_class"].keys() == set(trained.classes)


def test_predictions_are_the_model_s_own(trained: Trained, photo: Path) -> None:
    (found,) = trained.predict([photo])
    assert list(found.probabilities.values()) == sorted(found.probabilities.values(), reverse=True)
    assert sum(found.probabilities.values()) == pytest.approx(1, abs=1e-5)
    small = Image.open(photo).resize((67, 67), Image.Resampling.BOX)
    logits = trained.model(np.asarray(small, np.float32)[None], training=False)
    expected = np.asarray(keras.ops.softmax(logits))[0]
    for at, name in enumerate(trained.classes):
        assert found.probabilities[name] == pytest.approx(expected[at], abs=0.01)


def test_a_rotated_phone_photo_is_turned_upright(trained: Trained, photo: Path) -> None:
    image = Image.open(photo)
    exif = image.getexif()
    exif[EXIF_ORIENTATION] = ON_ITS_SIDE
    lying = photo.with_name("lying.png")
    image.transpose(Image.Transpose.ROTATE_90).save(lying, exif=exif)
    assert chances(trained, lying) == pytest.approx(chances(trained, photo), abs=1e-5)
    plain = photo.with_name("plain.png")
    image.transpose(Image.Transpose.ROTATE_90).save(plain)
    assert chances(trained, plain) != pytest.approx(chances(trained, photo), abs=1e-5)


def test_a_grayscale_scan_is_as_its_rgb_copy(trained: Trained, photo: Path) -> None:
    gray, rgb = photo.with_name("gray.png"), photo.with_name("rgb.png")
    Image.open(photo).convert("L").save(gray)
    Image.open(gray).convert("RGB").save(rgb)
    assert chances(trained, gray) == pytest.approx(chances(trained, rgb), abs=1e-5)


def test_what_is_transparent_is_white(trained: Trained, photo: Path) -> None:
    alpha, white = photo.with_name("alpha.png"), photo.with_name("white.png")
    Image.new("RGBA", (90, 90), (200, 10, 10, 0)).save(alpha)
    Image.new("RGB", (90, 90), "white").save(white)
    assert chances(trained, alpha) == pytest.approx(chances(trained, white), abs=1e-5)


def test_a_text_file_is_told_and_the_others_are_done(trained: Trained, photo: Path) -> None:
    text, empty = photo.with_name("notes.txt"), photo.with_name("empty.jpg")
    text.write_text("no picture")
    empty.touch()
    found = list(trained.predict([photo, text, empty, photo]))
    assert [each.problem for each in found] == [None, "not an image", "an empty file", None]
    assert found[0] == found[3]
    assert found[1].probabilities == {}


def test_more_images_than_are_taken_at_once(trained: Trained, photo: Path) -> None:
    found = list(trained.predict([photo] * 70))
    assert len(found) == 70
    np.testing.assert_allclose(
        [list(each.probabilities.values()) for each in found],
        [list(found[0].probabilities.values())] * 70,
        atol=1e-5,
    )


def test_a_folder_gives_its_images_in_order(tmp_path: Path) -> None:
    for name in ("b/2.JPG", "b/1.png", "a.jpeg", "readme.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = image_files([str(tmp_path), str(tmp_path / "readme.md")])
    names = [str(path.relative_to(tmp_path)) for path in found]
    assert names == ["a.jpeg", "b/1.png", "b/2.JPG", "readme.md"]
    with pytest.raises(DataError, match="no such file"):
        image_files([str(tmp_path / "nothing")])
    (tmp_path / "bare").mkdir()
    with pytest.raises(DataError, match="no image in it"):
        image_files([str(tmp_path / "bare")])


def test_a_set_of_other_classes_is_refused(
    untrained_run: Path, digits: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    tree = json.loads((digits / "manifest.json").read_text())
    tree["classes"][0] = "nought"
    (other / "manifest.json").write_text(json.dumps(tree))
    with pytest.raises(
        ConfigError, match=r"its classes \(nought, 1, 2, 3 and 6 more\) are not the 10"
    ):
        Trained.load(str(untrained_run)).evaluate(str(other))


def test_no_checkpoint_is_told(tmp_path: Path, untrained_run: Path) -> None:
    with pytest.raises(DataError, match="not a checkpoint"):
        Trained.load(str(tmp_path))
    with pytest.raises(DataError, match="no such run, checkpoint or export"):
        Trained.load(str(tmp_path / "none"))
    with pytest.raises(DataError, match="no run with a best checkpoint"):
        Trained.load(str(untrained_run), best=True)
