"""Pixels to the square that the network sees, and its random changes. NumPy and OpenCV only.

The seed project stretches every image to the square, shifts, zooms and flips it. The paper
(Krizhevsky et al. 2012, section 4.1) takes a random crop of a 256 x 256 patch, mirrors it and moves
its colours along their principal components. `AugmentConfig` can mix them.
"""

from collections.abc import Sequence

import cv2
import numpy as np
import numpy.typing as npt

from alexnet.config import AugmentConfig, DataConfig
from alexnet.data.images import Encoded, Pixels, check_pixels, decode

DRAWS = 11  # uniform numbers in [-1, 1) that one image takes, always all of them


class Fitter:
    """Turns encoded images into uint8 [size, size, 3] as the settings say."""

    def __init__(self, config: DataConfig, covariance: Sequence[Sequence[float]]) -> None:
        """`covariance` is that of the training set's colours, in 0..255 squared."""
        self._config = config
        self._size = config.image_size
        self._components = principal_components(covariance)

    def train(self, encoded: Encoded, rng: np.random.Generator, out: Pixels) -> None:
        """Write an image, changed at random, to `out`, uint8 [size, size, 3]."""
        augment, draw = self._config.augment, rng.uniform(-1.0, 1.0, DRAWS).tolist()
        if self._config.fit == "crop":
            patch = self._patch(encoded)
            places = len(patch) - self._size + 1
            top, left = (int((d + 1) / 2 * places) for d in draw[0:2])
            square = _crop(patch, self._size, top, left)
        else:
            square = self._stretched(encoded)
        if augment.shift or augment.zoom:
            square = _move(square, augment, np.array(draw[2:6]))
        _flip(
            square,
            augment.horizontal_flip and draw[6] < 0,
            augment.vertical_flip and draw[7] < 0,
            out,
        )
        if augment.colour:
            alphas = rng.normal(0.0, augment.colour, 3)
            shift = self._components @ alphas
            cv2.add(out, np.array([*shift, 0.0]), out)

    def evaluate(self, encoded: Encoded, out: Pixels) -> None:
        """Write an image's views to `out`, uint8 [crops, size, size, 3].

        One view is the whole image stretched, or the centre of the patch; ten are its corners and
        its centre, each also mirrored, as in the paper.
        """
        if self._config.fit == "stretch":
            out[0] = self._stretched(encoded)
            return
        patch = self._patch(encoded)
        if len(out) == 1:
            out[0] = _centre(patch, self._size)
            return
        end = len(patch) - self._size
        places = ((0, 0), (0, end), (end, 0), (end, end), (end // 2, end // 2))
        for view, (top, left) in enumerate(places):
            out[view] = _crop(patch, self._size, top, left)
            cv2.flip(out[view], 1, out[view + 5])

    def _stretched(self, encoded: Encoded) -> Pixels:
        return resized(decode(encoded, at_least=self._size), self._size, self._size)

    def _patch(self, encoded: Encoded) -> Pixels:
        """The centre square of the image, its shorter side resized to `resize`."""
        side = self._config.resize
        pixels = decode(encoded, at_least=side)
        return resized(_centre(pixels, min(pixels.shape[:2])), side, side)


def shorter_side(pixels: Pixels, side: int) -> Pixels:
    """Resize so that the shorter side has `side` pixels; the shape's ratio stays.

    Raises:
        DataError: it is so long that this makes more than `MAX_PIXELS`.
    """
    height, width, _ = pixels.shape
    if min(height, width) == side:
        return pixels
    scale = side / min(height, width)
    wanted = max(side, round(height * scale)), max(side, round(width * scale))
    check_pixels(*reversed(wanted))
    return resized(pixels, *wanted)


def resized(pixels: Pixels, height: int, width: int) -> Pixels:
    """Resize uint8 [h, w, 3] to [height, width, 3]: means of areas if that is much smaller."""
    if pixels.shape[:2] == (height, width):
        return pixels
    much_smaller = pixels.shape[0] >= 2 * height or pixels.shape[1] >= 2 * width
    method = cv2.INTER_AREA if much_smaller else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(pixels, (width, height), interpolation=method))


def principal_components(covariance: Sequence[Sequence[float]]) -> npt.NDArray[np.float64]:
    """Return [3, 3]: columns are the colours' principal components times their variance, in levels.

    The paper adds sum_i alpha_i lambda_i p_i with the eigenvalues lambda_i of the covariance. They
    are taken over intensities in 0..1 here, as is usual, and the sum is scaled back to 0..255.
    """
    values, vectors = np.linalg.eigh(np.asarray(covariance, np.float64) / 255**2)
    return np.asarray(vectors * values * 255)


def _crop(pixels: Pixels, size: int, top: int, left: int) -> Pixels:
    """A view of `size` x `size`."""
    return pixels[top : top + size, left : left + size]


def _centre(pixels: Pixels, size: int) -> Pixels:
    height, width, _ = pixels.shape
    return _crop(pixels, size, (height - size) // 2, (width - size) // 2)


def _move(square: Pixels, config: AugmentConfig, draw: npt.NDArray[np.float64]) -> Pixels:
    """Shift and zoom by one affine resampling; edges repeat. As Keras' ImageDataGenerator does,
    shift and zoom are drawn for each axis."""
    size = square.shape[0]
    scale, shift = 1.0 + config.zoom * draw[0:2], config.shift * size * draw[2:4]
    centre = (size - 1) / 2
    offset = centre + shift - scale * centre  # output pixel p reads scale * p + offset
    matrix = np.array([[scale[0], 0, offset[0]], [0, scale[1], offset[1]]])
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    moved = cv2.warpAffine(
        square, matrix, (size, size), flags=flags, borderMode=cv2.BORDER_REPLICATE
    )
    return np.asarray(moved)


def _flip(square: Pixels, mirror: bool, upside_down: bool, out: Pixels) -> None:
    if mirror or upside_down:
        code = {(True, True): -1, (True, False): 1, (False, True): 0}[mirror, upside_down]
        cv2.flip(square, code, out)
    else:
        out[...] = square
