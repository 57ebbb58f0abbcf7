"""Encoded images to pixels: what is accepted becomes the right pixels, the rest is refused."""

import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from io import BytesIO
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from alexnet.data.images import (
    MAX_BYTES,
    decode,
    encode_jpeg,
    encode_raw,
    normalise,
)
from alexnet.errors import DataError

Pixels = npt.NDArray[np.uint8]
Depth = npt.NDArray[np.unsignedinteger]

RISE = np.add.outer(np.arange(0, 80, 2), np.arange(0, 144, 3)).astype(np.uint8)  # 40 x 48
COLOUR = np.stack([RISE, 255 - RISE, np.full_like(RISE, 90)], axis=-1)
GRAY = np.stack([RISE] * 3, axis=-1)
# From EXIF 2.3, Orientation: where the stored image has the upright one's row 0 and column 0.
STORED_AS: dict[int, Callable[[Pixels], Pixels]] = {
    1: lambda upright: upright,
    2: np.fliplr,
    3: lambda upright: np.rot90(upright, 2),
    4: np.flipud,
    5: lambda upright: upright.swapaxes(0, 1),
    6: lambda upright: np.rot90(upright, 1),  # stored row 0 is the upright image's right side
    7: lambda upright: np.rot90(upright, 2).swapaxes(0, 1),
    8: lambda upright: np.rot90(upright, -1),  # stored row 0 is the upright image's left side
}


def encode(pixels: Depth | Image.Image, kind: str, **options: Any) -> bytes:
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    buffer = BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def jpeg(pixels: Pixels | Image.Image, **options: Any) -> bytes:
    return encode(pixels, "JPEG", quality=95, subsampling=0, **options)


def oriented(orientation: int, kind: str) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = np.ascontiguousarray(STORED_AS[orientation](COLOUR))
    return jpeg(stored, exif=exif) if kind == "JPEG" else encode(stored, kind, exif=exif)


def png(side: int, depth: int, rows: bytes) -> bytes:
    """A gray PNG of `side` x `side` pixels, whose data may be too short for it."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", side, side, depth, 0, 0, 0, 0)
    data = zlib.compress(rows)
    signature = b"\x89PNG\r\n\x1a\n"
    return signature + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def large_jpeg(height: int, width: int) -> bytes:
    """A small JPEG whose header says that it is large."""
    small = jpeg(COLOUR)
    at = small.index(b"\xff\xc0") + 5  # behind marker, length and depth
    return small[:at] + struct.pack(">HH", height, width) + small[at + 4 :]


def seen_by_opencv(encoded: bytes) -> npt.NDArray[np.int64]:
    """Another decoder, which would turn an image as its EXIF says."""
    pixels = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_COLOR_RGB)
    assert pixels is not None
    return pixels.astype(np.int64)


def palette() -> Image.Image:
    """RISE in 16 shades of a palette."""
    image = Image.fromarray(RISE // 16, "P")
    image.putpalette([shade for index in range(16) for shade in (index * 16, 7, 200)])
    return image


PALETTE = np.stack([RISE // 16 * 16, np.full_like(RISE, 7), np.full_like(RISE, 200)], axis=-1)
SHADE_3_WHITE = np.where((RISE // 16 == 3)[..., None], np.uint8(255), PALETTE)
DEEP = cv2.imencode(".png", COLOUR[..., ::-1].astype(np.uint16) * 257)[1].tobytes()
OTHER = Image.fromarray(255 - COLOUR)
ANIMATED = {"save_all": True, "append_images": [OTHER, OTHER]}
HALF = np.concatenate([COLOUR, np.full((40, 48, 1), 128, np.uint8)], axis=-1)
HALF_OVER_WHITE = np.round(COLOUR * (128 / 255) + 255 * (127 / 255)).astype(np.uint8)


@pytest.mark.parametrize(
    ("encoded", "pixels", "tolerance"),
    [
        pytest.param(encode(COLOUR, "PNG"), COLOUR, 0, id="png"),
        pytest.param(encode(RISE, "PNG"), GRAY, 0, id="gray-png"),
        pytest.param(jpeg(COLOUR), COLOUR, 6, id="jpeg"),
        pytest.param(jpeg(COLOUR, progressive=True), COLOUR, 6, id="progressive-jpeg"),
        pytest.param(jpeg(RISE), GRAY, 3, id="gray-jpeg"),
        pytest.param(jpeg(Image.fromarray(COLOUR).convert("CMYK")), COLOUR, 8, id="cmyk-jpeg"),
        pytest.param(encode(RISE.astype(np.uint16) * 257, "PNG"), GRAY, 0, id="16-bit-gray"),
        pytest.param(DEEP, COLOUR, 0, id="16-bit-rgb"),
        pytest.param(encode(palette(), "PNG"), PALETTE, 0, id="palette"),
        pytest.param(encode(palette(), "PNG", transparency=3), SHADE_3_WHITE, 0, id="transparent"),
        pytest.param(encode(HALF, "PNG"), HALF_OVER_WHITE, 1, id="rgba"),
        pytest.param(encode(palette(), "GIF"), PALETTE, 0, id="gif"),
        pytest.param(encode(palette(), "GIF", **ANIMATED), PALETTE, 0, id="animated-gif"),
        pytest.param(encode(COLOUR, "BMP"), COLOUR, 0, id="bmp"),
        pytest.param(encode(COLOUR, "TIFF"), COLOUR, 0, id="tiff"),
        pytest.param(encode(COLOUR, "WEBP", quality=95), COLOUR, 12, id="webp"),
        pytest.param(
            encode(COLOUR, "WEBP", lossless=True, **ANIMATED), COLOUR, 6, id="animated-webp"
        ),
        pytest.param(encode(COLOUR, "WEBP", lossless=True), COLOUR, 6, id="lossless-webp"),
        pytest.param(encode_raw(COLOUR), COLOUR, 0, id="ppm"),
        pytest.param(
            encode(Image.fromarray((RISE > 90).astype(np.uint8) * 255).convert("1"), "PNG"),
            np.where(GRAY > 90, np.uint8(255), np.uint8(0)),
            0,
            id="black-and-white",
        ),
        *(
            pytest.param(oriented(orientation, kind), COLOUR, tolerance, id=f"{kind}-{orientation}")
            for orientation in STORED_AS
            for kind, tolerance in (("JPEG", 8), ("PNG", 0))
        ),
    ],
)
def test_any_image_becomes_upright_rgb_that_others_decode_alike(
    encoded: bytes, pixels: Pixels, tolerance: int
) -> None:
    written, here = normalise(encoded)
    assert here.dtype == np.uint8
    assert here.shape == pixels.shape
    assert np.abs(here.astype(np.int64) - pixels).max() <= tolerance
    np.testing.assert_array_equal(decode(written), here)
    there = seen_by_opencv(written)
    assert there.shape == pixels.shape
    assert np.abs(there - pixels).max() <= tolerance


@pytest.mark.parametrize(
    "encoded",
    [
        encode(COLOUR, "PNG"),
        encode(RISE, "PNG"),
        jpeg(COLOUR),
        jpeg(RISE),
        oriented(1, "JPEG"),
        jpeg(COLOUR, progressive=True),
        encode(COLOUR, "MPO", quality=95, **ANIMATED),
    ],
    ids=["png", "gray-png", "jpeg", "gray-jpeg", "upright-jpeg", "progressive", "phone-s-jpeg"],
)
def test_what_needs_no_change_keeps_its_bytes(encoded: bytes) -> None:
    written, pixels = normalise(encoded)
    assert written == encoded
    np.testing.assert_array_equal(pixels, decode(encoded))


def test_what_is_written_anew_brings_nothing_but_pixels() -> None:
    profile = {"icc_profile": b"a profile" * 100, "comment": b"a comment" * 100}
    cmyk = Image.fromarray(COLOUR).convert("CMYK")
    written, _ = normalise(jpeg(cmyk, exif=Image.Exif(), **profile))
    assert b"a profile" not in written
    assert b"a comment" not in written


@pytest.mark.parametrize("bits", [2, 4])
def test_few_bits_of_gray(bits: int) -> None:
    written, here = normalise(png(8, bits, (b"\0" + b"\x1f" * bits) * 8))
    assert here.max() == 255
    np.testing.assert_array_equal(seen_by_opencv(written), here)


@pytest.mark.parametrize(
    ("encoded", "reason"),
    [
        (b"", "an empty file"),
        (b"text, not pixels", "not an image"),
        (b"<html></html>", "not an image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", "not an image"),
        (jpeg(COLOUR)[:-600], "[Tt]runcated"),
        (encode(COLOUR, "PNG")[:70], "truncated"),
        (large_jpeg(13_000, 13_000), "13000 x 13000 pixels, at most 64000000"),
        (large_jpeg(65_500, 65_500), "pixels"),
        (png(13_000, 8, bytes(100)), "13000 x 13000 pixels, at most 64000000"),
        (png(2**31 - 1, 8, bytes(100)), "pixels"),
        (png(8_001, 8, bytes(100)), "8001 x 8001 pixels"),
    ],
    ids=[
        "empty",
        "text",
        "html",
        "eps",
        "half-jpeg",
        "half-png",
        "large-jpeg",
        "largest-jpeg",
        "large",
        "monstrous",
        "just-too-large",
    ],
)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_what_is_no_usable_image_is_refused(encoded: bytes, reason: str) -> None:
    with pytest.raises(DataError, match=f"(?i){reason}") as caught:
        normalise(encoded)
    assert "\n" not in str(caught.value)
    with pytest.raises(DataError):
        decode(encoded)


@pytest.mark.parametrize("function", ["normalise", "decode"])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "PPM"])
def test_a_bomb_is_refused_from_its_header(function: str, kind: str) -> None:
    """In a process of its own, whose memory tells whether anything was decoded."""
    bombs = {
        "JPEG": large_jpeg(13_000, 13_000),
        "PNG": png(13_000, 8, bytes(100)),
        "PPM": b"P6\n13000 13000\n255\n" + bytes(100),
    }
    program = (
        "import resource, sys, time\n"
        f"from alexnet.data.images import {function} as function\n"
        "from alexnet.errors import DataError\n"
        "encoded = sys.stdin.buffer.read()\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()\n"
        "try:\n"
        "    sys.exit(f'accepted: {function(encoded)}')\n"
        "except DataError as error:\n"
        "    print(error)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before[0])\n"
        "print(time.monotonic() - before[1])\n"
    )
    command = [sys.executable, "-W", "ignore", "-c", program]
    done = subprocess.run(command, input=bombs[kind], capture_output=True, timeout=120)
    assert done.returncode == 0, done.stderr
    said, kibibytes, seconds = done.stdout.decode().splitlines()
    assert said == "13000 x 13000 pixels, at most 64000000 allowed"
    assert int(kibibytes) < 20_000  # decoded: 500 000
    assert float(seconds) < 0.5


def test_a_file_that_is_no_picture_s_size_is_refused() -> None:
    with pytest.raises(DataError, match=f"bytes, at most {MAX_BYTES} allowed"):
        decode(bytes(MAX_BYTES + 1))


def end_of_a_file_damaged() -> list[bytes]:
    """A PNG and a JPEG whose last bytes are cut off or changed, one after the other."""
    whole = encode(COLOUR, "PNG"), jpeg(COLOUR)
    cut = [encoded[:-length] for encoded in whole for length in range(1, 30)]
    changed = [
        encoded[:-at] + bytes([encoded[-at] ^ 0xFF]) + encoded[len(encoded) - at + 1 :]
        for encoded in whole
        for at in range(1, 30)
    ]
    return cut + changed


def test_a_damaged_image_is_refused_or_mended_but_never_left_to_the_training() -> None:
    accepted = 0
    for encoded in end_of_a_file_damaged():
        try:
            written, here = normalise(encoded)
        except DataError:
            continue
        accepted += 1
        np.testing.assert_array_equal(decode(written), here)
        assert here.shape == COLOUR.shape
    assert accepted


@pytest.mark.parametrize("options", [{}, {"progressive": True}], ids=["baseline", "progressive"])
def test_false_markers_inside_a_jpeg_are_refused_or_mended(options: dict[str, Any]) -> None:
    """Decoders bear with damage to different degrees; what is accepted, all of them read."""
    whole = jpeg(COLOUR, **options)
    kept = mended = refused = 0
    for at in range(len(whole) // 2, len(whole) - 2, 3):
        damaged = whole[:at] + b"\xff" + whole[at + 1 :]
        try:
            written, here = normalise(damaged)
        except DataError:
            refused += 1
            continue
        assert here.shape == COLOUR.shape
        np.testing.assert_array_equal(decode(written), here)
        assert decode(written, at_least=10).shape == (10, 12, 3)
        mended += written != damaged
        kept += written == damaged
    assert mended + refused > 50
    assert mended
    assert mended + refused > kept


FIELDS = Image.Exif()
FIELDS.update({0x0112: 6, 0x010E: "a description", 0x011A: 72.0, 0x8769: {0x9000: b"0230"}})
SEEDS = [
    jpeg(COLOUR, exif=FIELDS),
    jpeg(Image.fromarray(COLOUR).convert("CMYK")),
    encode(COLOUR, "PNG", exif=FIELDS),
    encode(palette(), "PNG", transparency=3),
    encode(palette(), "GIF", **ANIMATED),
    encode(COLOUR, "WEBP", exif=FIELDS),
    encode(COLOUR, "BMP"),
    encode_raw(COLOUR),
]


@pytest.mark.filterwarnings("ignore")
@given(st.sampled_from(SEEDS), st.lists(st.tuples(st.integers(0), st.integers(0, 255))), st.data())
def test_no_damage_is_anything_but_a_data_error(
    encoded: bytes, changes: list[tuple[int, int]], data: st.DataObject
) -> None:
    damaged = bytearray(encoded)
    for at, value in changes:
        damaged[at % len(damaged)] = value
    kept = bytes(damaged[: data.draw(st.integers(1, len(damaged)))])
    for function in (lambda some: decode(normalise(some)[0]), decode):
        try:
            assert function(kept).ndim == 3
        except DataError as error:
            assert len(str(error).splitlines()) == 1


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("encoded", SEEDS, ids=range(len(SEEDS)))
def test_no_changed_byte_of_a_header_is_anything_but_a_data_error(encoded: bytes) -> None:
    refused = 0
    for at in range(min(300, len(encoded))):
        for value in (0, 255, encoded[at] ^ 1):
            damaged = encoded[:at] + bytes([value]) + encoded[at + 1 :]
            for function in (normalise, decode):
                try:
                    function(damaged)
                except DataError:
                    refused += 1
    assert refused


SIDES = st.integers(1, 300)


@given(SIDES, SIDES, SIDES)
def test_a_jpeg_comes_smaller_but_never_too_small(height: int, width: int, at_least: int) -> None:
    y, x = np.mgrid[0:height, 0:width]
    pixels = np.stack([y * 255 // height, x * 255 // width, 0 * x], axis=-1).astype(np.uint8)
    encoded = encode_jpeg(pixels, quality=95)
    assert decode(encoded).shape == pixels.shape
    small = decode(encoded, at_least)
    assert min(small.shape[:2]) >= min(height, width, at_least)
    assert small.shape[0] * 8 >= height  # an eighth is the least there is
    assert all(side <= whole for side, whole in zip(small.shape, pixels.shape, strict=True))


def test_a_large_jpeg_is_decoded_at_a_part_of_its_size() -> None:
    y, x = np.mgrid[0:1024, 0:2048]
    pixels = np.stack([y // 4, x // 8, 0 * x], axis=-1).astype(np.uint8)
    small = decode(encode_jpeg(pixels, quality=95), at_least=256)
    assert small.shape == (256, 512, 3)
    means = pixels.reshape(256, 4, 512, 4, 3).mean(axis=(1, 3))
    assert np.abs(small - means).max() <= 6


@pytest.mark.parametrize("kind", ["PNG", "BMP", "WEBP", "PPM"])
def test_other_kinds_come_as_they_are(kind: str) -> None:
    large = np.asarray(Image.fromarray(COLOUR).resize((480, 400)))
    assert decode(encode(large, kind), at_least=100).shape == (400, 480, 3)


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0))
def test_raw_pixels_come_back_in_every_bit(height: int, width: int, seed: int) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    encoded = encode_raw(pixels)
    for form in (encoded, memoryview(encoded)):
        np.testing.assert_array_equal(decode(form), pixels)
    np.testing.assert_array_equal(seen_by_opencv(encoded), pixels)
    for wrong in (encoded[:-1], encoded + b"x"):
        with pytest.raises(DataError, match=f"do not hold {width} x {height} pixels"):
            decode(wrong)


def test_a_view_of_bytes_decodes_as_the_bytes_do() -> None:
    for encoded in SEEDS:
        np.testing.assert_array_equal(decode(memoryview(encoded)), decode(encoded))
