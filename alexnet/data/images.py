"""Encoded images to RGB pixels, off Python's lock: JPEG by libjpeg-turbo, the rest by Pillow.

A header is read before its image is decoded, so that a small file cannot ask for gigabytes.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO

import numpy as np
import numpy.typing as npt
import simplejpeg
from PIL import Image, ImageOps, UnidentifiedImageError

from alexnet.errors import DataError

Pixels = npt.NDArray[np.uint8]
Encoded = bytes | memoryview

MAX_PIXELS = 64_000_000
MAX_BYTES = 256 << 20
EXIF_ORIENTATION = 0x0112
FORMATS = ("JPEG", "PPM", "PNG", "WEBP", "BMP", "GIF", "TIFF")  # of Pillow's many
PPM = re.compile(rb"P6\n(\d{1,6}) (\d{1,6})\n255\n")  # raw pixels, in the plainest container


def decode(encoded: Encoded, at_least: int = 0) -> Pixels:
    """Return the RGB pixels, uint8 [height, width, 3], of a JPEG, PPM, PNG, WebP, BMP or GIF.

    A JPEG may come smaller than it is, straight from its frequencies, but with neither side below
    `at_least` pixels.

    Raises:
        DataError: no image, damaged, or more than `MAX_PIXELS`.
    """
    if len(encoded) > MAX_BYTES:
        raise DataError(f"{len(encoded)} bytes, at most {MAX_BYTES} allowed")
    if encoded[:2] == b"\xff\xd8":
        return _decode_jpeg(encoded, at_least)
    if match := PPM.match(encoded):
        return _view_ppm(encoded, match)
    return _pixels_of(encoded)


def encode_raw(pixels: Pixels) -> bytes:
    """Return pixels as they are, in a form that `decode` and others read without computing."""
    height, width, _ = pixels.shape
    return b"P6\n%d %d\n255\n" % (width, height) + pixels.tobytes()


def encode_jpeg(pixels: Pixels, quality: int) -> bytes:
    """Return a baseline 4:2:0 JPEG."""
    return bytes(
        simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), quality, colorsubsampling="420")
    )


def normalise(encoded: bytes) -> tuple[bytes, Pixels]:
    """Return bytes that every decoder agrees on, and the RGB pixels, uint8 [height, width, 3].

    An upright 8-bit RGB or gray JPEG or PNG with nothing to complain of passes through as it is.
    Anything else (rotated by EXIF, CMYK, palette, alpha, 16 bit, GIF, WebP, BMP) is written anew,
    alpha over white.

    Raises:
        DataError: no image, damaged, or larger than `MAX_PIXELS`.
    """
    if not encoded:
        raise DataError("an empty file")
    _check_png_sums(encoded)
    with _damage_told():
        image = _open(encoded)
        upright = image.getexif().get(EXIF_ORIENTATION, 1) == 1
        kind = "JPEG" if image.format == "MPO" else image.format  # a JPEG with others behind it
        if kind in ("JPEG", "PNG") and image.mode in ("RGB", "L") and upright:
            try:
                return encoded, decode(encoded)
            except DataError:
                pass  # a JPEG that Pillow reads but libjpeg warns of: written anew
        rgb = _to_rgb(ImageOps.exif_transpose(image))
        rgb.info.clear()  # no EXIF, no profile: pixels only
        buffer = BytesIO()
        if kind in ("JPEG", "WEBP"):
            rgb.save(buffer, "JPEG", quality=95, subsampling=0)
        else:
            rgb.save(buffer, "PNG")
    return buffer.getvalue(), decode(buffer.getvalue())


def check_pixels(width: int, height: int) -> None:
    """Raise DataError for an image that would take too much memory."""
    if width * height > MAX_PIXELS:
        raise DataError(f"{width} x {height} pixels, at most {MAX_PIXELS} allowed")


def _decode_jpeg(encoded: Encoded, at_least: int) -> Pixels:
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(encoded)
        check_pixels(width, height)
        if colours in ("CMYK", "YCCK"):
            return _pixels_of(encoded)
        return np.asarray(simplejpeg.decode_jpeg(encoded, "RGB", False, False, at_least, at_least))
    except ValueError as error:
        raise DataError(" ".join(str(error).split())) from None


def _view_ppm(encoded: Encoded, match: re.Match[bytes]) -> Pixels:
    width, height = int(match[1]), int(match[2])
    check_pixels(width, height)
    if len(encoded) != match.end() + width * height * 3:
        raise DataError(f"{len(encoded)} bytes do not hold {width} x {height} pixels")
    return np.frombuffer(encoded, np.uint8, offset=match.end()).reshape(height, width, 3)


def _pixels_of(encoded: Encoded) -> Pixels:
    with _damage_told():
        return np.asarray(_to_rgb(_open(encoded)))


def _open(encoded: Encoded) -> Image.Image:
    image: Image.Image = Image.open(BytesIO(encoded), formats=FORMATS)
    check_pixels(image.width, image.height)
    image.load()
    return image


def _check_png_sums(encoded: bytes) -> None:
    """A PNG has checksums of its own, which decoding skips."""
    with _damage_told():
        Image.open(BytesIO(encoded), formats=FORMATS).verify()


@contextmanager
def _damage_told() -> Iterator[None]:
    try:
        yield
    except (DataError, MemoryError):
        raise
    except UnidentifiedImageError:
        raise DataError("not an image") from None
    except Exception as error:  # Pillow's readers let through whatever a damaged field brings
        raise DataError(" ".join(str(error).split()) or "damaged") from None


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith(("I", "F")):  # 16 and 32 bit gray: to 8 bits, not clipped
        pixels = np.asarray(image, np.float64)
        image = Image.fromarray((pixels * (255 / max(65535.0, pixels.max()))).astype(np.uint8))
    if "A" in image.mode or "transparency" in image.info:
        over = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", over.size, "white"), over)
    return image.convert("RGB")
