"""Pixels to the network's square: the seed project's changes, and the paper's."""

import math
from io import BytesIO
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from alexnet.config import AugmentConfig, DataConfig
from alexnet.data.augment import Fitter, principal_components, resized, shorter_side
from alexnet.data.images import Pixels, encode_jpeg, encode_raw
from alexnet.errors import DataError

SIZE, PATCH = 67, 80
NO_COVARIANCE = np.zeros((3, 3)).tolist()
COVARIANCE = [[4000.0, 3600.0, 3300.0], [3600.0, 3900.0, 3500.0], [3300.0, 3500.0, 4300.0]]


def ramp(height: int = SIZE, width: int = SIZE) -> Pixels:
    """As red as its column number, and as green as its row number."""
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([x, y, 0 * x], axis=-1).astype(np.uint8)


def noise(height: int = SIZE, width: int = SIZE) -> Pixels:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


def png(pixels: Pixels) -> bytes:
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def fitter(covariance: Any = NO_COVARIANCE, **config: Any) -> Fitter:
    return Fitter(DataConfig(image_size=SIZE, **config), covariance)


def trained(fit: Fitter, image: bytes, count: int = 48) -> list[Pixels]:
    """What an image becomes in `count` drawings."""
    images = []
    for row in range(count):
        out = np.empty((SIZE, SIZE, 3), np.uint8)
        fit.train(image, np.random.Generator(np.random.Philox(key=[7, row])), out)
        images.append(out)
    return images


def changed(image: Pixels, count: int = 48, covariance: Any = NO_COVARIANCE, **augment: Any) -> Any:
    """What an image, stretched to the square, becomes in `count` drawings."""
    fit = fitter(covariance, augment=AugmentConfig(**augment))
    return trained(fit, png(image), count)


def evaluated(fit: Fitter, image: bytes, views: int = 1) -> Pixels:
    out = np.empty((views, SIZE, SIZE, 3), np.uint8)
    fit.evaluate(image, out)
    return out


def test_an_image_of_the_right_size_keeps_its_pixels() -> None:
    (view,) = evaluated(fitter(), png(noise()))
    np.testing.assert_array_equal(view, noise())


@pytest.mark.parametrize(("height", "width"), [(30, 120), (134, 67), (500, 20), (40, 2000)])
@pytest.mark.parametrize("encode", [png, encode_raw, lambda pixels: encode_jpeg(pixels, 98)])
def test_other_sizes_are_stretched_to_the_square(height: int, width: int, encode: Any) -> None:
    y, x = np.mgrid[0:height, 0:width]
    pixels = np.stack([x * (200 / width), y * (200 / height), 0 * x], axis=-1).astype(np.uint8)
    (view,) = evaluated(fitter(), encode(pixels)).astype(float)
    wanted = (np.arange(SIZE) + 0.5) * (200 / SIZE)
    inner = slice(3, -3)
    np.testing.assert_allclose(view[:, inner, 0] - wanted[inner], 0, atol=12)
    np.testing.assert_allclose(view[inner, :, 1] - wanted[inner, None], 0, atol=12)


SIDES = st.integers(1, 400)


@given(SIDES, SIDES, SIDES, SIDES)
def test_resizing_keeps_a_flat_colour_and_the_brightness(
    height: int, width: int, to_height: int, to_width: int
) -> None:
    flat = np.full((height, width, 3), (10, 200, 90), np.uint8)
    assert (resized(flat, to_height, to_width) == (10, 200, 90)).all()
    assert resized(flat, to_height, to_width).shape == (to_height, to_width, 3)


@pytest.mark.parametrize("factor", [2, 3, 5])
def test_much_smaller_is_the_mean_of_areas(factor: int) -> None:
    large = noise(SIZE * factor, SIZE * factor)
    means = large.reshape(SIZE, factor, SIZE, factor, 3).mean(axis=(1, 3))
    assert np.abs(resized(large, SIZE, SIZE) - means).max() <= 0.51


@given(SIDES, SIDES, st.integers(1, 300))
def test_the_shorter_side_is_resized_and_the_shape_stays(
    height: int, width: int, side: int
) -> None:
    new_height, new_width, _ = shorter_side(np.zeros((height, width, 3), np.uint8), side).shape
    assert min(new_height, new_width) == side
    assert new_height == pytest.approx(height * side / min(height, width), abs=0.51)
    assert new_width == pytest.approx(width * side / min(height, width), abs=0.51)


@pytest.mark.parametrize("shape", [(1, 40_000, 3), (40_000, 1, 3)])
def test_a_line_is_not_made_a_strip_of_gigabytes(shape: tuple[int, int, int]) -> None:
    line = np.full(shape, 77, np.uint8)
    with pytest.raises(DataError, match="at most 64000000"):
        shorter_side(line, 256)
    (view,) = evaluated(fitter(fit="crop", resize=256), png(line))  # its centre pixel
    assert (view == 77).all()
    (view,) = evaluated(fitter(), png(line))
    assert (view == 77).all()


def test_nothing_configured_is_nothing_done() -> None:
    for image in changed(noise(), count=4):
        np.testing.assert_array_equal(image, noise())


@pytest.mark.parametrize(
    ("horizontal", "vertical", "mirrors"),
    [
        (True, False, [(1, 1), (-1, 1)]),
        (False, True, [(1, 1), (1, -1)]),
        (True, True, [(1, 1), (-1, 1), (1, -1), (-1, -1)]),
    ],
)
def test_flips_are_exact_and_evenly_drawn(
    horizontal: bool, vertical: bool, mirrors: list[tuple[int, int]]
) -> None:
    images = changed(noise(), 100, horizontal_flip=horizontal, vertical_flip=vertical)
    counts = [sum(np.array_equal(i, noise()[::y, ::x]) for i in images) for x, y in mirrors]
    assert sum(counts) == 100
    assert min(counts) >= 0.6 * 100 / len(mirrors)


def test_a_shift_moves_both_axes_within_its_bound() -> None:
    shifts = []
    for image in changed(ramp(), shift=0.1):
        moved = image.astype(float) - ramp()
        inner = moved[8:-8, 8:-8]
        assert np.ptp(inner[..., 0]) <= 1  # all pixels alike
        assert np.ptp(inner[..., 1]) <= 1
        shifts.append(inner.mean(axis=(0, 1))[:2])
        assert image[..., 0].max() <= SIZE - 1  # edges repeat: no black border, no wrap
        assert np.all(np.diff(image[..., 0].astype(int), axis=1) >= 0)
        assert np.all(np.diff(image[..., 1].astype(int), axis=0) >= 0)
    assert np.abs(shifts).max() <= 0.1 * SIZE + 1
    assert np.ptp(shifts, axis=0).min() > 0.1 * SIZE  # spread over -6.7 to 6.7 on each axis
    assert abs(np.corrcoef(np.transpose(shifts))[0, 1]) < 0.5  # the axes are drawn apart


def test_a_zoom_scales_around_the_middle() -> None:
    scales = []
    middle = (SIZE - 1) // 2
    for image in changed(ramp(), zoom=0.2):
        assert np.abs(image[middle, middle, :2].astype(int) - middle).max() <= 1
        inner = slice(15, -15)
        columns = np.arange(SIZE)[inner]
        scales.append(
            [
                np.polyfit(columns, image[middle, inner, 0].astype(float), 1)[0],
                np.polyfit(columns, image[inner, middle, 1].astype(float), 1)[0],
            ]
        )
    assert np.min(scales) >= 0.8 - 0.05
    assert np.max(scales) <= 1.2 + 0.05
    assert np.ptp(scales, axis=0).min() > 0.25
    assert abs(np.corrcoef(np.transpose(scales))[0, 1]) < 0.5  # the axes are drawn apart


def test_changes_keep_the_brightness() -> None:
    smooth = (np.full((SIZE, SIZE, 3), 100) + ramp()).astype(np.uint8)
    images = changed(smooth, 200, shift=0.05, zoom=0.05)
    assert np.mean(images) == pytest.approx(smooth.mean(), abs=0.2)


EVERYTHING = {
    "shift": 0.1,
    "zoom": 0.1,
    "horizontal_flip": True,
    "vertical_flip": True,
    "colour": 0.1,
}


@pytest.mark.parametrize("fit", ["stretch", "crop"])
def test_a_seed_repeats(fit: str) -> None:
    config = {"fit": fit, "resize": PATCH, "augment": AugmentConfig(**EVERYTHING)}
    one, other = (
        trained(fitter(COVARIANCE, **config), png(noise(90, 120)), count=8) for _ in range(2)
    )
    np.testing.assert_array_equal(one, other)
    assert len({image.tobytes() for image in one}) == 8


def test_a_change_does_not_move_what_another_draws() -> None:
    """Switching colours on leaves every crop and every flip where it was."""
    plain = changed(ramp(), count=20, horizontal_flip=True, shift=0.1)
    flat = changed(ramp(), count=20, horizontal_flip=True, shift=0.1, zoom=0.0, colour=0.5)
    np.testing.assert_array_equal(plain, flat)  # with no covariance, colours don't move


def test_an_image_is_changed_into_its_own_place_only() -> None:
    images = np.full((3, SIZE, SIZE, 3), 9, np.uint8)
    fit = fitter(COVARIANCE, fit="crop", resize=PATCH, augment=AugmentConfig(**EVERYTHING))
    fit.train(png(noise(90, 120)), np.random.default_rng(0), images[1])
    assert (images[[0, 2]] == 9).all()
    assert (images[1] != 9).any()


# The paper, section 4.1.


def where(view: Pixels) -> tuple[int, int]:
    """Top and left of a crop of `ramp`, which must be a straight piece of it."""
    top, left = int(view[0, 0, 1]), int(view[0, 0, 0])
    np.testing.assert_array_equal(view, ramp(200, 200)[top : top + SIZE, left : left + SIZE])
    return top, left


def crops(**config: Any) -> Fitter:
    return fitter(fit="crop", resize=PATCH, **config)


LAST = PATCH - SIZE  # of the places where a crop may begin


@pytest.mark.parametrize(
    ("shape", "first"),
    [((80, 80), (0, 0)), ((80, 120), (0, 20)), ((140, 80), (30, 0)), ((80, 81), (0, 0))],
)
def test_ten_views_are_corners_and_centre_of_the_centre_patch_and_their_mirrors(
    shape: tuple[int, int], first: tuple[int, int]
) -> None:
    views = evaluated(crops(evaluation_crops=10), png(ramp(*shape)), views=10)
    top, left = first
    middle = LAST // 2
    assert [where(view) for view in views[:5]] == [
        (top, left),
        (top, left + LAST),
        (top + LAST, left),
        (top + LAST, left + LAST),
        (top + middle, left + middle),
    ]
    np.testing.assert_array_equal(views[5:], views[:5, :, ::-1])


def test_one_view_is_the_centre() -> None:
    (view,) = evaluated(crops(), png(ramp(80, 120)))
    assert where(view) == (LAST // 2, 20 + LAST // 2)


@pytest.mark.parametrize(("height", "width"), [(160, 240), (400, 160), (40, 60), (171, 333)])
@pytest.mark.parametrize("encode", [png, lambda pixels: encode_jpeg(pixels, 98)])
def test_the_patch_is_the_centre_with_its_shorter_side_resized(
    height: int, width: int, encode: Any
) -> None:
    """The picture's coordinates are seen in the crop, in pixels of the patch."""
    short = min(height, width)
    y, x = np.mgrid[0:height, 0:width]
    down = (y + 0.5 - (height - short) / 2) / short * 200
    right = (x + 0.5 - (width - short) / 2) / short * 200
    pixels = np.stack([right, down, 0 * x], axis=-1).clip(0, 255).astype(np.uint8)
    (view,) = evaluated(crops(), encode(pixels)).astype(float)
    wanted = (np.arange(SIZE) + LAST // 2 + 0.5) / PATCH * 200
    np.testing.assert_allclose(view[..., 0] - wanted, 0, atol=6)
    np.testing.assert_allclose(view[..., 1] - wanted[:, None], 0, atol=6)


def test_a_training_crop_is_anywhere_within_the_patch() -> None:
    places = [where(view) for view in trained(crops(), png(ramp(80, 120)), 400)]
    tops, lefts = np.transpose(places)
    assert set(tops) == set(range(LAST + 1))
    assert set(lefts) == set(range(20, 20 + LAST + 1))
    assert abs(np.corrcoef(tops, lefts)[0, 1]) < 0.2
    assert tops.mean() == pytest.approx(LAST / 2, abs=0.7)


def test_every_place_of_a_crop_is_as_likely() -> None:
    tops = [where(view)[0] for view in trained(crops(), png(ramp(80, 80)), 2800)]
    counts = np.bincount(tops, minlength=LAST + 1)
    assert counts.min() > 0.7 * 2800 / (LAST + 1)
    assert counts.max() < 1.3 * 2800 / (LAST + 1)


def test_a_crop_is_mirrored_one_time_in_two() -> None:
    fit = crops(augment=AugmentConfig(horizontal_flip=True))
    mirrored = 0
    for view in trained(fit, png(ramp(80, 80)), 200):
        flipped = view[0, 0, 0] > view[0, -1, 0]
        where(view[:, ::-1] if flipped else view)
        mirrored += bool(flipped)
    assert 70 < mirrored < 130


def test_evaluation_does_not_draw() -> None:
    plain = crops(evaluation_crops=10)
    augmented = fitter(
        COVARIANCE,
        fit="crop",
        resize=PATCH,
        evaluation_crops=10,
        augment=AugmentConfig(**EVERYTHING),
    )
    image = png(noise(100, 90))
    np.testing.assert_array_equal(evaluated(plain, image, 10), evaluated(augmented, image, 10))


def colour_shifts(covariance: Any, strength: float, count: int) -> npt.NDArray[np.float64]:
    """How far each drawing moves the colours of a gray image, [count, 3], in levels."""
    gray = np.full((SIZE, SIZE, 3), 128, np.uint8)
    images = np.stack(changed(gray, count, covariance, colour=strength)).astype(float)
    flat = images.reshape(count, -1, 3)
    assert (np.ptp(flat, axis=1) == 0).all()  # all pixels alike
    return np.asarray(flat[:, 0] - 128)


def test_colours_move_by_one_shift_for_all_pixels_and_stay_within_0_to_255() -> None:
    plain, moved = noise(), changed(noise(), 40, COVARIANCE, colour=0.5)
    seen = set()
    for image in moved:
        difference = image.astype(int) - plain
        for channel in range(3):
            free = (image[..., channel] > 0) & (image[..., channel] < 255)
            (shift,) = set(difference[..., channel][free].tolist())
            wanted = (plain[..., channel].astype(int) + shift).clip(0, 255)
            np.testing.assert_array_equal(image[..., channel], wanted)
            seen.add(shift)
    assert min(seen) < 0 < max(seen)


def test_colours_move_along_their_principal_components() -> None:
    """sum_i alpha_i lambda_i p_i: its covariance is sum_i (sigma lambda_i)^2 p_i p_i^T."""
    sigma = 1.0
    shifts = colour_shifts(COVARIANCE, sigma, 3000)
    values, vectors = np.linalg.eigh(np.array(COVARIANCE) / 255**2)
    wanted = 255**2 * (vectors * (sigma * values) ** 2) @ vectors.T
    np.testing.assert_allclose(shifts.mean(0), 0, atol=0.06 * np.sqrt(np.diag(wanted)).max())
    np.testing.assert_allclose(np.cov(shifts.T, bias=True), wanted, rtol=0.12, atol=0.5)


def test_gray_training_images_move_all_colours_alike() -> None:
    shifts = colour_shifts(np.full((3, 3), 3000.0).tolist(), 1.0, 50)
    assert (shifts == shifts[:, :1]).all()
    assert np.ptp(shifts) > 10


@given(st.lists(st.floats(0, 255), min_size=30, max_size=30))
def test_components_are_eigenvectors_times_eigenvalues(colours: list[float]) -> None:
    covariance = np.cov(np.array(colours).reshape(10, 3).T, bias=True)
    components = principal_components(covariance.tolist())
    lengths = np.linalg.norm(components, axis=0) / 255
    np.testing.assert_allclose(
        np.sort(lengths), np.sort(np.abs(np.linalg.eigvalsh(covariance / 255**2))), atol=1e-9
    )
    for component, length in zip(components.T, lengths, strict=True):
        if length > 1e-6:
            np.testing.assert_allclose(
                covariance / 255**2 @ component, length * component, atol=1e-6
            )


def test_the_colours_of_the_paper_move_little() -> None:
    """0.1 standard deviations of the variance: for photographs a few levels."""
    shifts = colour_shifts(COVARIANCE, 0.1, 300)
    largest = math.sqrt(3 * 3600**2) / 255 * 0.1
    assert 0.3 * largest < shifts.std() < 2 * largest
    assert np.abs(shifts).max() < 25
