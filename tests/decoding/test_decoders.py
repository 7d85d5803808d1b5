"""What decodes in the trainer: the same crops on either device, corrupt images by name.

No GPU is needed: nvImageCodec's place is taken by the host's decoder, or by its own decoder for CPUs.
"""

import dataclasses
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import simplejpeg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from fourstage.augmenter.decode import make_decoder
from fourstage.augmenter.transform import identity
from fourstage.decoding import DeviceDecoding, gpu
from fourstage.decoding.gpu import GpuDecoder, gpu_identity
from fourstage.decoding.host import HostDecoder, encoded_of
from fourstage.errors import CheckpointError, CorruptSampleError, SettingsError
from fourstage.order import Place
from fourstage.process import StopFlag
from fourstage.resolve import load_settings
from fourstage.settings import MetricsSettings
from fourstage.telemetry import Telemetry
from fourstage.trainer.encoded import Encoded, decode
from fourstage.trainer.inbox import FeedBatch
from fourstage.trainer.intake import Intake
from fourstage.trainer.layout import layout
from fourstage.trainer.requests import train_request

SIZE, CROP = 24, 16
Bytes = NDArray[np.uint8]


def photograph(number: int, size: int = SIZE) -> bytes:
    pixels = np.random.default_rng(number).integers(0, 256, (size, size, 3), np.uint8)
    return bytes(simplejpeg.encode_jpeg(cv2.GaussianBlur(pixels, (0, 0), 2.0), 90))


def encoded_batch(jpegs: Sequence[bytes], seed: int = 0) -> FeedBatch:
    draw, rows = np.random.default_rng(seed), len(jpegs)
    data = np.frombuffer(b"".join(jpegs), np.uint8)
    return FeedBatch(
        seq=0,
        place=Place(0, 0, rows),
        keys=tuple(f"key-{row}" for row in range(rows)),
        indices=np.arange(rows),
        labels=np.zeros(rows, np.int32),
        offsets=draw.integers(0, SIZE - CROP + 1, (rows, 2)).astype(np.int32),
        reflections=draw.random(rows) < 0.5,
        shifts=np.zeros((rows, 3), np.float32),
        pixels=np.empty((0, 0, 0, 3), np.uint8),
        identity=bytes(16),
        source=b"worker",
        _release=lambda _: None,
        encoded=Encoded(data, np.array([len(jpeg) for jpeg in jpegs], np.uint32), SIZE),
    )


def on_the_host(images: Sequence[Bytes]) -> list[Tensor | None]:
    """In nvImageCodec's place."""
    decoded: list[Tensor | None] = []
    for image in images:
        try:
            decoded.append(torch.from_numpy(simplejpeg.decode_jpeg(image.tobytes(), "RGB", False, False)))
        except ValueError:
            decoded.append(None)
    return decoded


def pixels_of(decoder: GpuDecoder | HostDecoder, batch: FeedBatch) -> Bytes:
    out = torch.full((len(batch.keys), CROP, CROP, 3), 7, dtype=torch.uint8)
    decoder(batch, out)
    return out.numpy()


@settings(max_examples=30, deadline=None, derandomize=True)
@given(rows=st.integers(0, 5), seed=st.integers(0, 1000))
def test_crops_and_reflections_are_the_same_on_either_device(rows: int, seed: int) -> None:
    jpegs = [photograph(seed + row) for row in range(rows)]
    batch = encoded_batch(jpegs, seed)
    host = pixels_of(HostDecoder(make_decoder("auto")), batch)
    np.testing.assert_array_equal(pixels_of(GpuDecoder(on_the_host), batch), host)
    for row, jpeg in enumerate(jpegs):
        top, left = batch.offsets[row]
        window = simplejpeg.decode_jpeg(jpeg, "RGB", False, False)[top : top + CROP, left : left + CROP]
        np.testing.assert_array_equal(host[row], window[:, ::-1] if batch.reflections[row] else window)


@pytest.mark.parametrize("decoder", [GpuDecoder(on_the_host), HostDecoder(make_decoder("auto"))], ids=["gpu", "host"])
@pytest.mark.parametrize(
    "damaged", [photograph(1)[:-40], b"no JPEG\xff\xd9", photograph(1, SIZE + 8)], ids=["early", "foreign", "size"]
)
def test_a_corrupt_image_is_named_by_its_key(decoder: GpuDecoder | HostDecoder, damaged: bytes) -> None:
    batch = encoded_batch([photograph(0), damaged, photograph(2)])
    with pytest.raises(CorruptSampleError, match=r"^sample 'key-1' cannot be decoded: ."):
        decode(decoder, batch, torch.empty((3, CROP, CROP, 3), dtype=torch.uint8), "fail")


@settings(max_examples=30, deadline=None, derandomize=True)
@given(rows=st.integers(0, 5), data=st.data())
def test_what_cannot_be_decoded_is_left_out_in_the_same_way_on_either_device(rows: int, data: st.DataObject) -> None:
    corrupt, skip = (data.draw(st.sets(st.integers(0, max(0, rows - 1)))) if rows else set() for _ in range(2))
    whole = encoded_batch([photograph(row) for row in range(rows)])
    expected = pixels_of(HostDecoder(make_decoder("auto")), whole)
    there = [row for row in range(rows) if row not in corrupt | skip]
    for decoder in (HostDecoder(make_decoder("auto")), GpuDecoder(on_the_host)):
        batch = encoded_batch([photograph(row)[: -40 if row in corrupt else None] for row in range(rows)])
        batch.encoded = dataclasses.replace(encoded_of(batch), skip=tuple(sorted(skip)))
        out = torch.full((9, CROP, CROP, 3), 7, dtype=torch.uint8)
        decode(decoder, batch, out, "skip")
        np.testing.assert_array_equal(out[: len(there)].numpy(), expected[there])
        assert (out[len(there) :] == 7).all()
        assert batch.keys == tuple(whole.keys[row] for row in there)
        assert [sample.row for sample in batch.skipped] == sorted(corrupt | skip)


def test_a_gpu_never_has_the_identity_of_an_augmenter_even_where_the_golden_image_comes_out_alike() -> None:
    assert gpu_identity(on_the_host) == gpu_identity(on_the_host)
    assert len(gpu_identity(on_the_host)) == 16
    assert gpu_identity(on_the_host) != identity(make_decoder("auto"))
    darker = gpu_identity(lambda images: [None if image is None else image // 2 for image in on_the_host(images)])
    assert darker != gpu_identity(on_the_host)


def decoding(device: str, **changes: Any) -> DeviceDecoding:
    resolved = load_settings("cifar-augmented", flags={"decode": "device", **changes}, environment={})
    telemetry = Telemetry("trainer", MetricsSettings(), "1")
    return DeviceDecoding(resolved, torch.device(device), name="trainer", telemetry=telemetry)


def test_on_a_cpu_the_identity_is_the_augmenters() -> None:
    assert decoding("cpu").identity == identity(make_decoder("auto"))


@pytest.mark.parametrize(
    ("setting", "value", "words"),
    [
        ("receipt", "pixels", "receipt = 'pixels'"),
        ("augmenter.decoder", "turbojpeg", "augmenter.decoder = 'turbojpeg'"),
    ],
)
def test_what_a_gpu_cannot_do_is_refused(setting: str, value: str, words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        decoding("cuda:0", **{setting: value})


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_nvimagecodec_or_a_gpu_the_fix_is_named() -> None:
    with pytest.raises(SettingsError, match="decode = 'augmenter'"):
        decoding("cuda:0")


def test_what_is_called_of_nvimagecodec_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    codec = pytest.importorskip("nvidia.nvimgcodec")
    whole = codec.Decoder

    def for_cpus(device_id: int, backends: list[Any], options: str) -> Any:
        assert device_id == 0
        assert [backend.backend_kind for backend in backends] == [codec.BackendKind.HYBRID_CPU_GPU]
        cpu = [codec.Backend(codec.BackendKind.CPU_ONLY)]
        return whole(codec.NVIMGCODEC_DEVICE_CPU_ONLY, max_num_cpu_threads=1, backends=cpu, options=options)

    class Stream:
        cuda_stream = 0

    monkeypatch.setattr(codec, "Decoder", for_cpus)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: Stream())
    monkeypatch.setattr(gpu, "from_dlpack", lambda image: torch.from_numpy(np.asarray(image)))
    decode = gpu.nvimagecodec(torch.device("cuda:0"))
    jpegs = [photograph(0), photograph(1)]
    first, second, broken = decode([np.frombuffer(jpeg, np.uint8) for jpeg in (*jpegs, b"no JPEG")])
    assert broken is None
    for jpeg, image in zip(jpegs, (first, second), strict=True):
        assert image is not None
        np.testing.assert_array_equal(image.numpy(), simplejpeg.decode_jpeg(jpeg, "RGB", False, False))
    assert decode([]) == []


def test_a_run_that_began_with_other_pixels_is_not_gone_on_with(tmp_path: Path) -> None:
    resolved = load_settings("drain", overrides=["decode=device", f"loader.address=file:{tmp_path / 'none'}"])
    telemetry, place = Telemetry("trainer", MetricsSettings(), "1"), layout(resolved, {})
    own = DeviceDecoding(resolved, torch.device("cpu"), name="trainer", telemetry=telemetry)
    intake = Intake(
        resolved, place, name="trainer", sockets=tmp_path, telemetry=telemetry, stop=StopFlag(), decoding=own
    )
    wanted = train_request(resolved, place, start=0, fingerprint="", identity=b"another decoder!")
    with closing(intake), pytest.raises(CheckpointError, match=f"{wanted.identity.hex()}.*{own.identity.hex()}"):
        intake.open(wanted, lambda text: [text])
