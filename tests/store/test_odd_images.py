"""The oddities of real archives: each is converted or left out with its reason, and none ends the prepare."""

import io
import os
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

from fourstage.errors import StoreError
from fourstage.store import open_store
from fourstage.store.images import MAX_PIXELS, Converter, central_patch
from fourstage.store.prepare import prepare
from tests.store.pictures import encoded, left_out, pixels, write_folder

SIZE = 32
PHOTO = pixels(3, 96, 64)


def converted(data: bytes) -> NDArray[np.int64]:
    """The pixels of the stored JPEG."""
    jpeg = Converter(SIZE, 95, MAX_PIXELS).convert(data)
    return simplejpeg.decode_jpeg(jpeg, "RGB").astype(np.int64)  # type: ignore[no-any-return]


def assert_like(data: bytes, expected: NDArray[np.uint8], tolerance: float = 4.0) -> None:
    """The stored pixels are those of ``expected``, but for the losses of JPEG."""
    reference = central_patch(np.ascontiguousarray(expected), SIZE).astype(np.int64)
    assert np.abs(converted(data) - reference).mean() < tolerance


def bomb() -> bytes:
    """A PNG of a few hundred bytes whose header asks for 100,000 x 100,000 pixels."""
    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(bytes(1000))), (b"IEND", b""))
    body = b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + body


def jpeg_bomb() -> bytes:
    """A JPEG whose header says 65,500 x 65,500."""
    data = bytearray(encoded(PHOTO))
    frame = data.index(b"\xff\xc0")
    data[frame + 5 : frame + 9] = struct.pack(">HH", 65_500, 65_500)
    return bytes(data)


def test_a_mixed_folder_ends_with_what_can_be_taken(tmp_path: Path) -> None:
    photo = encoded(PHOTO)
    source = write_folder(
        tmp_path / "source",
        {
            "odd/good.JPEG": photo,
            "odd/truncated.JPEG": photo[:-40],
            "odd/stub.JPEG": photo[:30],
            "odd/empty.JPEG": b"",
            "odd/text.JPEG": b"<html>404</html>" * 50,
            "odd/bomb.png": bomb(),
            "odd/bomb.JPEG": jpeg_bomb(),
            "odd/.DS_Store": b"\0",
            "odd/\u5199\u771f\n.JPEG": photo,
            "alone/one.JPEG": photo,
            "hopeless/empty.JPEG": b"",
            "README": b"about",
        },
    )
    (source / "nobody").mkdir()
    (source / "odd" / "loop").symlink_to(source, target_is_directory=True)
    (source / "odd" / "self.JPEG").symlink_to("self.JPEG")
    (source / "odd" / "linked.JPEG").symlink_to("good.JPEG")
    os.mkfifo(source / "odd" / "pipe.JPEG")

    report = prepare(source, tmp_path / "store", size=SIZE, workers=1)

    split = open_store(tmp_path / "store").split("train")
    assert split.keys(np.arange(len(split))) == [
        "alone/one",
        "odd/%E5%86%99%E7%9C%9F%0A",
        "odd/good",
        "odd/linked",
    ]
    reasons = left_out(tmp_path / "store")
    assert report.left_out == len(reasons)
    expected = {
        "odd/truncated.JPEG": "Premature end",
        "odd/stub.JPEG": "cannot be decoded",
        "odd/empty.JPEG": "empty file",
        "odd/text.JPEG": "not an image",
        "odd/bomb.png": "decompression bomb",
        "odd/bomb.JPEG": "65500x65500",
        "odd/.DS_Store": "hidden",
        "hopeless/empty.JPEG": "empty file",
        "hopeless": "without any image",
        "README": "not in a class folder",
        "nobody": "without files",
        "odd/loop": "link to a folder",
        "odd/self.JPEG": "cannot be opened",
        "odd/pipe.JPEG": "not a regular file",
    }
    assert set(reasons) == set(expected)
    for name, reason in expected.items():
        assert reason in reasons[name], name


def test_max_pixels_is_a_setting(tmp_path: Path) -> None:
    source = write_folder(
        tmp_path / "source",
        {"a/large.jpg": encoded(pixels(0, 50, 50)), "a/small.jpg": encoded(pixels(1, 49, 50))},
    )
    prepare(source, tmp_path / "store", size=SIZE, workers=1, max_pixels=2499)
    assert list(left_out(tmp_path / "store")) == ["a/large.jpg"]


def test_a_source_without_one_good_image_is_an_error(tmp_path: Path) -> None:
    source = write_folder(tmp_path / "source", {"a/x.jpg": b"nothing"})
    with pytest.raises(StoreError, match=r"'a/x\.jpg'"):
        prepare(source, tmp_path / "store", workers=1)
    assert not (tmp_path / "store").exists()


def test_cmyk_keeps_its_colours() -> None:
    assert_like(encoded(Image.fromarray(PHOTO).convert("CMYK"), quality=95), PHOTO)


def test_grey_becomes_three_equal_channels() -> None:
    grey = Image.fromarray(PHOTO).convert("L")
    stored = converted(encoded(grey))
    assert np.abs(stored - stored[:, :, :1]).max() <= 1
    assert_like(encoded(grey), np.asarray(grey.convert("RGB")))


def test_sixteen_bits_are_scaled_not_clipped() -> None:
    ramp = np.linspace(0, 65535, 64 * 64).reshape(64, 64).astype(np.uint16)
    expected = np.repeat((ramp // 257).astype(np.uint8)[:, :, None], 3, axis=2)
    assert_like(encoded(Image.fromarray(ramp), "PNG"), expected)


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "BMP", "PPM", "TIFF"])
def test_other_formats_are_told_by_their_bytes_not_their_names(kind: str, tmp_path: Path) -> None:
    data = encoded(PHOTO, kind)
    source = write_folder(tmp_path / "source", {"a/really.JPEG": data})
    assert prepare(source, tmp_path / "store", size=SIZE, workers=1).images == 1
    assert_like(data, PHOTO)


def test_a_palette_is_resolved_and_transparency_is_white() -> None:
    palette = Image.fromarray(PHOTO).quantize(64)
    assert_like(encoded(palette, "PNG"), np.asarray(palette.convert("RGB")), tolerance=8.0)
    faded = Image.fromarray(np.dstack([PHOTO, np.zeros((64, 96), np.uint8)]), "RGBA")
    assert converted(encoded(faded, "PNG")).min() >= 253


def test_exif_orientation_is_not_applied_and_not_kept() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(PHOTO, exif=exif.tobytes())
    assert_like(data, PHOTO)
    stored = Converter(SIZE, 95, MAX_PIXELS).convert(data)
    assert Image.open(io.BytesIO(stored)).getexif() == {}


@pytest.mark.parametrize(("width", "height"), [(200, 100), (100, 200), (32, 32), (16, 24), (1, 3000)])
def test_the_central_square_fills_the_stored_image(width: int, height: int) -> None:
    side = min(width, height)
    image = np.zeros((height, width, 3), np.uint8)
    top, left = (height - side) // 2, (width - side) // 2
    image[top : top + side, left : left + side] = (250, 120, 10)
    stored = converted(encoded(image, "PNG"))
    assert stored.shape == (SIZE, SIZE, 3)
    assert np.abs(stored - (250, 120, 10)).max() <= 6


def test_shrinking_averages_areas() -> None:
    stripes = np.zeros((320, 320, 3), np.uint8)
    stripes[:, ::2] = 255
    assert np.abs(central_patch(stripes, SIZE).astype(int) - 127.5).max() <= 1.5


@pytest.mark.parametrize("side", [33, 40, 47, 63, 64, 65])
def test_shrinking_a_little_is_averaging_too(side: int) -> None:
    image = pixels(11, side, side)
    exact = cv2.resize(image, (SIZE, SIZE), interpolation=cv2.INTER_AREA).astype(int)
    assert np.abs(central_patch(image, SIZE).astype(int) - exact).mean() < 1.0


def test_an_image_of_the_stored_size_keeps_its_pixels() -> None:
    image = pixels(12, SIZE, SIZE)
    np.testing.assert_array_equal(central_patch(image, SIZE), image)
