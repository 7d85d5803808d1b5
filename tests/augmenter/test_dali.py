"""The decoder ``dali``: crops, pixels and refusals of the default decoder, by another library, many images at once."""

import io
import subprocess
import sys
from collections.abc import Sequence
from importlib import resources

import numpy as np
import pytest
import simplejpeg
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from fourstage.augmenter.decode import BatchDecoder, Decoder, make_decoder
from fourstage.augmenter.draws import draw
from fourstage.augmenter.transform import CorruptRowError, identity, transform
from fourstage.errors import CorruptSampleError
from fourstage.views import View

pytest.importorskip("nvidia.dali", reason="the extra dali is not installed")

Pixels = NDArray[np.uint8]
SIZE, CROP, ROWS = 64, 48, 40
"""More rows than one run of DALI's pipeline takes."""
RANDOM = np.random.default_rng(5)


@pytest.fixture(scope="module")
def dali() -> BatchDecoder:
    decoder = make_decoder("dali")
    assert isinstance(decoder, BatchDecoder)
    return decoder


def photograph(side: int = SIZE) -> Image.Image:
    """Coarse colours with fine noise: neither inverse transform nor upsampling finds it easy."""
    coarse = Image.fromarray(RANDOM.integers(0, 256, (side // 8, side // 8, 3), np.uint8)).resize((side, side))
    noise = RANDOM.integers(-24, 25, (side, side, 3))
    return Image.fromarray(np.clip(np.asarray(coarse) + noise, 0, 255).astype(np.uint8))


def encoded(image: Image.Image, kind: str = "JPEG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def upside_down() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 3
    return exif


GOOD = [encoded(photograph(), quality=90) for _ in range(ROWS)]
GOLDEN = (resources.files("fourstage.augmenter") / "golden.jpg").read_bytes()


def made(images: Sequence[bytes], decode: Decoder, view: View | None = None, first: int = 3) -> Pixels:
    """What ``transform`` makes of these images at consecutive positions of an epoch."""
    view = view or View("random", CROP)
    draws = draw(view, size=SIZE, seed=9, epoch=1, first=first, rows=len(images), colours=np.eye(3))
    out = np.zeros((len(images), view.crop, view.crop, 3), np.uint8)
    transform(
        [memoryview(jpeg) for jpeg in images], draws, decode, scratch=np.empty((SIZE, SIZE, 3), np.uint8), out=out
    )
    return out


def refusal(images: Sequence[bytes], decode: Decoder) -> tuple[int, str]:
    with pytest.raises(CorruptRowError) as caught:
        made(images, decode)
    return caught.value.row, str(caught.value)


@pytest.mark.parametrize("view", [View("random", CROP), View("centre", CROP), View("full", SIZE)], ids=lambda v: v.kind)
def test_the_same_crops_reflections_and_pixels_as_by_default(dali: BatchDecoder, view: View) -> None:
    assert np.array_equal(made(GOOD, dali, view), made(GOOD, make_decoder("auto"), view))


@pytest.mark.parametrize(
    "jpeg",
    [
        pytest.param(encoded(photograph(), quality=90, subsampling="4:4:4"), id="4:4:4"),
        pytest.param(encoded(photograph(), quality=90, subsampling="4:2:2"), id="4:2:2"),
        pytest.param(encoded(photograph(), quality=30, subsampling="4:2:0"), id="4:2:0, quality 30"),
        pytest.param(encoded(photograph(), quality=90, progressive=True), id="progressive"),
        pytest.param(encoded(photograph(), quality=90, restart_marker_blocks=2), id="restart markers"),
        pytest.param(encoded(photograph(), quality=90, keep_rgb=True), id="RGB"),
        pytest.param(encoded(photograph().convert("L"), quality=90), id="grey"),
        pytest.param(encoded(photograph(), quality=90, exif=upside_down()), id="turned by EXIF"),
    ],
)
def test_equal_pixels_whatever_the_kind_of_jpeg(dali: BatchDecoder, jpeg: bytes) -> None:
    view = View("full", SIZE)
    assert np.array_equal(made([jpeg], dali, view), made([jpeg], make_decoder("auto"), view))


def test_one_image_by_itself_as_by_any_decoder(dali: BatchDecoder) -> None:
    pixels, expected = np.zeros((2, SIZE, SIZE, 3), np.uint8)
    dali(memoryview(GOOD[0]), pixels)
    make_decoder("auto")(memoryview(GOOD[0]), expected)
    assert np.array_equal(pixels, expected)


def test_its_identity_is_its_own_and_the_same_in_every_process(dali: BatchDecoder) -> None:
    assert identity(dali) == identity(make_decoder("dali"))
    assert identity(dali) != identity(make_decoder("simplejpeg"))


DAMAGED = {
    "cut in half": GOOD[7][: len(GOOD[7]) // 2],
    "without its last byte": GOOD[7][:-1],
    "ends early, by an end marker": GOOD[7][: len(GOOD[7]) // 2] + b"\xff\xd9",
    "more data than pixels": GOOD[7][:-2] + bytes(range(1, 99)) + GOOD[7][-2:],
    "no JPEG": b"nothing of the kind",
    "empty": b"",
    "a PNG": encoded(photograph(), "PNG"),
    "smaller": encoded(photograph(56)),
    "larger": encoded(photograph(72)),
    "one pixel": encoded(photograph(64).resize((1, 1))),
}


@pytest.mark.parametrize("row", [0, 15, 16, ROWS - 1])
@pytest.mark.parametrize("what", DAMAGED)
def test_a_bad_image_is_refused_by_its_row_in_the_default_decoders_words(
    dali: BatchDecoder, what: str, row: int
) -> None:
    images = [*GOOD[:row], DAMAGED[what], *GOOD[row + 1 :]]
    assert refusal(images, dali) == refusal(images, make_decoder("auto"))
    assert refusal(images, dali)[0] == row


def test_the_first_of_several_bad_images_is_named(dali: BatchDecoder) -> None:
    assert refusal([*GOOD[:20], DAMAGED["empty"], GOOD[0], DAMAGED["a PNG"]], dali)[0] == 20


def test_a_truncated_image_falls_back_alone(dali: BatchDecoder) -> None:
    images = [*GOOD[:4], DAMAGED["cut in half"], *GOOD[5:]]
    assert each(dali, images) == each(make_decoder("auto"), images)
    assert np.array_equal(made(GOOD, dali), made(GOOD, make_decoder("auto")))


ONLY_DALI_REFUSES = GOLDEN.replace(b"\xff\xdb", b"\xff\x01\xff\xdb", 1)
"""With a marker that stands alone and means nothing: the library takes it, DALI's parser of headers does not."""


def test_an_image_that_dali_alone_refuses_fails_no_other_one(dali: BatchDecoder) -> None:
    make_decoder("auto")(memoryview(ONLY_DALI_REFUSES), np.empty((SIZE, SIZE, 3), np.uint8))
    images = [*GOOD[:4], ONLY_DALI_REFUSES, *GOOD[5:9], ONLY_DALI_REFUSES, *GOOD[10:]]
    row, reason = refusal(images, dali)
    assert row == 4
    assert reason.startswith("DALI does not take it: ")
    assert len(reason) < 200
    outcomes, expected = each(dali, images), each(make_decoder("auto"), images)
    assert [row for row, (here, there) in enumerate(zip(outcomes, expected, strict=True)) if here != there] == [4, 9]
    assert np.array_equal(made(GOOD, dali), made(GOOD, make_decoder("auto")))


def each(decode: Decoder, images: Sequence[bytes]) -> list[bytes | str]:
    """Every image's pixels, or the reason against it; nobody stops at the first bad one."""
    views = [memoryview(jpeg) for jpeg in images]
    if isinstance(decode, BatchDecoder):
        decode = decode.for_images(views, SIZE)
    outcomes: list[bytes | str] = []
    for jpeg in views:
        pixels = np.zeros((SIZE, SIZE, 3), np.uint8)
        try:
            decode(jpeg, pixels)
        except CorruptSampleError as error:
            outcomes.append(str(error))
        else:
            outcomes.append(pixels.tobytes())
    return outcomes


@given(
    number=st.integers(0, 7),
    cut=st.one_of(st.none(), st.tuples(st.floats(0, 1), st.integers(1, 400))),
    changed=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=4),
)
@settings(max_examples=300, deadline=None)
def test_damage_is_found_wherever_the_default_decoder_finds_it(
    dali: BatchDecoder, number: int, cut: tuple[float, int] | None, changed: list[tuple[float, int]]
) -> None:
    jpeg = bytearray(GOOD[number])
    scan = jpeg.index(b"\xff\xda") + 14
    for place, value in changed:
        jpeg[scan + int(place * (len(jpeg) - scan - 1))] = value
    if cut is not None:
        begin = scan + int(cut[0] * (len(jpeg) - scan))
        del jpeg[begin : begin + cut[1]]
    assert each(dali, [bytes(jpeg)]) == each(make_decoder("auto"), [bytes(jpeg)])


def test_dali_is_imported_by_none_that_does_not_choose_it() -> None:
    words = (
        "import sys\n"
        "import fourstage.augmenter.service\n"
        "from fourstage.augmenter.decode import make_decoder\n"
        "make_decoder('auto')\n"
        "sys.exit('nvidia.dali' in sys.modules)\n"
    )
    assert subprocess.run([sys.executable, "-c", words], check=False, timeout=60).returncode == 0


def test_the_quick_look_is_at_the_data_of_every_pixel() -> None:
    """What the judge rests on: at an eighth of the size the library still reads all data, and says the same of them."""
    jpeg = GOOD[0]
    for end in range(jpeg.index(b"\xff\xda") + 14, len(jpeg) - 2, 7):
        with pytest.raises(ValueError) as quick:
            simplejpeg.decode_jpeg(
                jpeg[:end] + b"\xff\xd9", "GRAY", True, True, min_height=1, min_width=1, min_factor=8
            )
        with pytest.raises(ValueError) as whole:
            simplejpeg.decode_jpeg(jpeg[:end] + b"\xff\xd9", "RGB")
        assert str(quick.value) == str(whole.value)
