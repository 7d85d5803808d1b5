"""The golden values of the protocol. ``python -m tests.wire.make_vectors`` writes proto/vectors.json anew."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, is_dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
from numpy.typing import NDArray

from fourstage import philox
from fourstage.augmenter.decode import make_decoder
from fourstage.augmenter.draws import crop_positions, draw, normal_quantiles
from fourstage.augmenter.transform import identity, transform
from fourstage.order import BatchPlan, Place, Remainder, permutation
from fourstage.trainer.inbox import FeedBatch
from fourstage.trainer.receipt import Receipt, batch_digest, pixel_digests, sample_digests, with_gaps
from fourstage.views import View
from fourstage.wire.codec import encode, encode_body
from fourstage.wire.codes import lease_code
from fourstage.wire.messages import (
    Batch,
    Beat,
    Bye,
    Close,
    Failed,
    Gone,
    Hello,
    Holds,
    Lease,
    Message,
    Open,
    Opened,
    Ping,
    Pong,
    Progress,
    Refused,
    Samples,
    Stages,
    Stream,
    Times,
    Tried,
    Usage,
    Welcome,
    Who,
)

PATH = Path(__file__).parents[2] / "proto" / "vectors.json"
STREAM, PEER, DIGEST, SECRET = (bytes(range(first, first + 16)) for first in (0, 16, 32, 48))
KEY = b"Yne@$w-vo<fVvi]a<NY6T1ed:M$fCG*[IaLV{hID"
"""A public key, from the manual of zmq_curve(7)."""
VIEW = View("random", 224, colour_std=0.1)
VIEW_2012 = View(
    "random",
    224,
    colour_std=0.1,
    colour_scale="deviations",
    colour_epochs=67,
    crop_positions="inclusive",
    crop_chunk=32,
)
TIMES = Times(read_from=10.5, read_to=10.75, leased=11.0)
USAGE = Usage(batches=3, busy=1.5, wait_upstream=0.25, wait_downstream=0.0)
COLOURS = np.array([[96.0, -32.0, 8.0], [64.0, 16.0, -24.0], [80.0, 24.0, 16.0]])

IDENTITY_VIEWS = (
    View("random", 48, colour_std=0.1),
    View("random", 48, colour_std=0.1, colour_epochs=3, crop_positions="inclusive", crop_chunk=4),
    View("centre", 48),
    View("full", 64),
)

PHILOX: list[tuple[tuple[int, int], tuple[int, int, int, int]]] = [
    ((0, 0), (0, 0, 0, 0)),
    ((2**64 - 1,) * 2, (2**64 - 1,) * 4),
    (
        (0x452821E638D01377, 0xBE5466CF34E90C6C),
        (0x243F6A8885A308D3, 0x13198A2E03707344, 0xA4093822299F31D0, 0x082EFA98EC4E6C89),
    ),
]
"""Keys and counters of Random123's published known answers (kat_vectors)."""

PLACES: list[tuple[int, int, Remainder, int, int, int]] = [
    (10, 4, "keep", 0, 1, 2),
    (10, 4, "drop", 0, 1, 2),
    (10, 4, "keep", 2, 3, 2),
    (10, 4, "keep", 0, 3, 2),
    (10, 4, "keep", 1, 3, 7),
    (10, 4, "drop", 1, 2, 3),
    (3, 8, "keep", 4, 5, 1),
    (1_281_167, 128, "keep", 1, 2, 10_009),
]
"""Samples, batch size, remainder, rank, world, sequence number."""

_SAMPLES = Samples(
    indices=np.array([7, 993], "<i8").tobytes(), labels=np.array([0, 1], "<i4").tobytes(), keys=("cat/7", "dog/ñ")
)
SAMPLES = encode_body(_SAMPLES)
CODE = lease_code(SECRET, stream=STREAM, seq=12, worker=PEER, identity=DIGEST, samples=SAMPLES)
MESSAGES: list[Message] = [
    Hello(protocol=2, role="augmenter", peer=PEER, session=1, name="augmenter-0", build="0.1.0", identity=DIGEST),
    Welcome(peer=PEER, session=1, build="0.1.0", side="/run/loader", heartbeat_seconds=0.5, silence_seconds=5.0),
    Refused(reason="protocol 3; this side speaks 2"),
    Who(),
    Bye(),
    Ping(sent=12.5),
    Pong(sent=12.5, clock=4000.25),
    Open(
        stream=STREAM, split="train", view=VIEW, batch_size=128, remainder="keep", shuffle=True, seed=2012, rank=0,
        world=1, start=10, epochs=90, end=0, window=0, fingerprint="f00d", identity=b"", transport="arena",
        receiver="tcp://trainer:5556", side="/run/trainer", worker=PEER,
        on_corrupt="skip", secret=SECRET, receiver_key=KEY,
    ),
    Progress(stream=STREAM, consumed=10, arrived=(11, 13), refused=(PEER,)),
    Close(stream=STREAM),
    Opened(
        stream=STREAM, samples=1000, batches_per_epoch=8, end=720, largest_rows=128, size=256, fingerprint="f00d",
        classes=("cat", "dog"), splits=("train", "val"),
    ),
    Failed(stream=STREAM, seq=12, row=7, reason="Premature end of JPEG file"),
    Stages(
        load=USAGE, transform=USAGE, augmenters=2, leased=4, loaded=2, window=10, redispatched=0,
        waiting="no augmenter is connected",
    ),
    Stream(
        stream=STREAM, split="train", view=VIEW, size=256, seed=2012, largest_rows=128,
        colours=tuple(COLOURS.reshape(-1).tolist()), transport="arena", slots=64, slot_bytes=4096,
        receiver="tcp://trainer:5556", side="/run/trainer", on_corrupt="skip", receiver_key=KEY,
    ),
    Lease(
        stream=STREAM, seq=12, session=1, number=5, head=True, epoch=1, first=512, rows=2, slot=3,
        sizes=np.array([24_000, 23_000], "<u4").tobytes(), code=CODE,
        times=TIMES,
        skip=(1,), trial=(0, 1),
    ),
    Gone(stream=STREAM),
    _SAMPLES,
    Beat(seen=5, held=((STREAM, 12, CODE), (STREAM, 14, DIGEST)), slots=((STREAM, 1, 3),), usage=USAGE),
    Tried(stream=STREAM, seq=12, trial=(0, 1)),
    Batch(
        stream=STREAM, seq=12, session=1, number=4, slot=0, rows=2, identity=DIGEST,
        code=CODE, times=TIMES, skipped=(1,),
    ),
    Holds(stream=STREAM, session=1, seen=4, seqs=(12,)),
]  # fmt: skip


def _welcome(**wrong: object) -> list[str]:
    """A WELCOME with one wrong field."""
    header, body = encode(MESSAGES[1])
    return [header.hex(), msgpack.packb(msgpack.unpackb(body) | wrong).hex()]


GOOD = [frame.hex() for frame in encode(Close(stream=STREAM))]
MALFORMED: list[tuple[str, list[str]]] = [
    ("frames", [GOOD[0]]),
    ("frames", GOOD * 3),
    ("header", ["345302", GOOD[1]]),
    ("header", ["48545450", GOOD[1]]),
    ("protocol 1", ["34530112", GOOD[1]]),
    ("type 255", ["345302ff", GOOD[1]]),
    ("msgpack", [GOOD[0], ""]),
    ("msgpack", [GOOD[0], GOOD[1] + "00"]),
    ("map", [GOOD[0], "93010203"]),
    ("map", [GOOD[0], "8101c0"]),
    ("stream", [GOOD[0], "80"]),
    ("stream", [GOOD[0], "81a673747265616dc40102"]),
    ("extra", [GOOD[0], "82" + GOOD[1][2:] + "a56578747261c0"]),
    ("msgpack", [GOOD[0], "91" * 2000 + "c0"]),
    ("msgpack", [GOOD[0], "81a673747265616dddffffffff"]),
    ("msgpack", [GOOD[0], "81a673747265616dd40100"]),
    ("msgpack", [GOOD[0], "81a673747265616da1ff"]),
    ("stream", [GOOD[0], "81a673747265616d" + msgpack.packb(STREAM.hex()).hex()]),
    ("stream", [GOOD[0], "81a673747265616d" + msgpack.packb(STREAM + b"x").hex()]),
    ("stream", [GOOD[0], "81a673747265616d" + msgpack.packb([STREAM]).hex()]),
    ("heartbeat_seconds", _welcome(heartbeat_seconds=float("nan"))),
    ("heartbeat_seconds", _welcome(heartbeat_seconds=-1.0)),
    ("heartbeat_seconds", _welcome(heartbeat_seconds=0.0)),
    ("silence_seconds", _welcome(silence_seconds=True)),
    ("session", _welcome(session=2**53 + 1)),
    ("session", _welcome(session=1.0)),
    ("session", _welcome(session=-1)),
    ("side", _welcome(side=b"/run/loader")),
    ("side", _welcome(side="x" * 1025)),
]
"""What the fault names, and the frames."""


def vectors() -> dict[str, Any]:
    """The whole file."""
    return {
        "messages": [
            {"type": type(message).__name__, "fields": plain(message), "frames": [f.hex() for f in encode(message)]}
            for message in MESSAGES
        ],
        "malformed": [{"fault": fault, "frames": frames} for fault, frames in MALFORMED],
        "side": [
            {"peer": PEER.hex(), "stream": stream.hex(), "slots": slots, "slot_bytes": size, "packet": packet.hex()}
            for stream, slots, size in ((b"", 0, 0), (STREAM, 3, 19_267_584))
            for packet in [msgpack.packb((PEER, stream, slots, size))]
        ],
        "philox4x64_10": [
            {"key": _hex64(key), "counter": _hex64(counter), "words": _hex64(philox_words(key, counter))}
            for key, counter in PHILOX
        ],
        "words": [
            {"seed": seed, "epoch": epoch, "domain": domain, "block": block, "words": _hex64(words.tolist())}
            for seed, epoch, domain, first in ((0, 0, 0, 0), (2012, 3, 0, 5), (2**63 - 1, 90, 1, 2**40))
            for block, words in enumerate(philox.words(seed, epoch, domain, first, 2), first)
        ],
        "order": [
            {"seed": seed, "epoch": epoch, "samples": samples, "indices": permutation(seed, epoch, samples).tolist()}
            for seed, epoch, samples in ((0, 0, 1), (7, 0, 10), (7, 1, 10))
        ]
        + [
            {
                "seed": 2012, "epoch": 1, "samples": 1_281_167,
                "blake2b_128_of_int64": digest(permutation(2012, 1, 1_281_167).astype("<i8").tobytes()),
            }
        ],
        "places": [
            {
                "samples": samples, "batch_size": size, "remainder": remainder, "rank": rank, "world": world,
                "seq": seq,
                "place": asdict(BatchPlan(samples, size, remainder, rank, world).place(seq)),
            }
            for samples, size, remainder, rank, world, seq in PLACES
        ],
        "normal_quantiles_over_2_to_20": (normal_quantiles() * 2.0**20).astype(np.int64).tolist(),
        "draws": [
            {
                "view": plain(view), "size": 256, "seed": 2012, "epoch": 3, "first": 5, "colours": COLOURS.tolist(),
                "positions": crop_positions(256, view.crop, view.crop_positions), "offsets": made.offsets.tolist(),
                "reflections": made.reflections.tolist(),
                "shifts_float32": [[float(x) for x in shift] for shift in made.shifts],
                "packed": (
                    made.offsets.astype("<i4").tobytes()
                    + made.reflections.astype(np.uint8).tobytes()
                    + made.shifts.astype("<f4").tobytes()
                ).hex(),
            }
            for view in (
                VIEW, VIEW_2012, View("random", 224, colour_std=0.1, colour_epochs=3, crop_chunk=4),
                View("random", 224), View("centre", 224), View("full", 256),
            )
            for made in [draw(view, size=256, seed=2012, epoch=3, first=5, rows=4, colours=COLOURS)]
        ],
        "identity": {
            "golden_sha256": hashlib.sha256(golden()).hexdigest(),
            "golden_jpeg": golden().hex(),
            "decoded_blake2b_128": digest(decoded().tobytes()),
            "pixels_blake2b_128": [digest(pixels(view).tobytes()) for view in IDENTITY_VIEWS],
            "identity": identity(make_decoder("simplejpeg")).hex(),
        },
        "receipt": receipt(),
    }  # fmt: skip


def golden() -> bytes:
    """The golden image's bytes."""
    return (resources.files("fourstage.augmenter") / "golden.jpg").read_bytes()


def decoded() -> NDArray[np.uint8]:
    """The golden image's pixels."""
    image = np.empty((64, 64, 3), np.uint8)
    make_decoder("simplejpeg")(memoryview(golden()), image)
    return image


def pixels(view: View) -> NDArray[np.uint8]:
    """The eight crops of the golden image that are part of the identity."""
    draws = draw(view, size=64, seed=2012, epoch=3, first=5, rows=8, colours=COLOURS)
    out = np.empty((8, view.crop, view.crop, 3), np.uint8)
    scratch = np.empty((64, 64, 3), np.uint8)
    transform([memoryview(golden())] * 8, draws, make_decoder("simplejpeg"), scratch=scratch, out=out)
    return out


def philox_words(key: tuple[int, ...], counter: tuple[int, ...]) -> list[int]:
    """Philox4x64-10 of one counter; NumPy's generator adds one to its counter before each block."""
    before = (sum(word << 64 * place for place, word in enumerate(counter)) - 1) % 2**256
    parts = np.array([before >> 64 * place & (2**64 - 1) for place in range(4)], np.uint64)
    words: list[int] = np.random.Philox(key=np.array(key, np.uint64), counter=parts).random_raw(4).tolist()
    return words


def receipt() -> list[dict[str, Any]]:
    """A stream of three batches, the second one smaller, rows of the third one skipped, and the chains over them."""
    chains = {"keys": Receipt("keys"), "pixels": Receipt("pixels")}
    entries = []
    for seq, rows, skipped in ((0, 3, ()), (1, 2, ()), (2, 4, (0, 2))):
        place = Place(epoch=0, first=3 * seq, rows=rows)
        made = draw(VIEW, size=256, seed=2012, epoch=0, first=place.first, rows=rows, colours=COLOURS)
        batch = FeedBatch(
            seq=seq, place=place, keys=tuple(f"dog/ñ{row}" for row in range(rows)),
            indices=np.arange(rows, dtype=np.int64) + 7, labels=np.arange(rows, dtype=np.int32),
            offsets=made.offsets, reflections=made.reflections, shifts=made.shifts,
            pixels=np.arange(rows * 12, dtype=np.uint8).reshape(rows, 2, 2, 3), identity=DIGEST, source=PEER,
            _release=lambda _: None,
        )  # fmt: skip
        samples = Samples(batch.indices.tobytes(), batch.labels.tobytes(), batch.keys)
        batch.leave_out(skipped)
        batch.pixels = batch.pixels[: len(batch.keys)]
        images = pixel_digests(batch.pixels)
        rows_of = {
            covers: with_gaps(sample_digests(batch, pixels), skipped)
            for covers, pixels in (("keys", b""), ("pixels", images))
        }
        digests = {covers: batch_digest(seq, of_rows) for covers, of_rows in rows_of.items()}
        for covers, chain in chains.items():
            chain.add(digests[covers], len(batch.keys), last_of_epoch=seq == 2)
        entries.append(
            {
                "seq": seq, "samples": encode_body(samples).hex(), "offsets": made.offsets.tolist(),
                "reflections": made.reflections.tolist(), "shifts_float32": made.shifts.tolist(),
                "skipped": list(skipped), "pixels": batch.pixels.tobytes().hex(), "xxh3_128_of_images": images.hex(),
                "sample_digests": {covers: value.hex() for covers, value in rows_of.items()},
                "batch_digest": {covers: value.hex() for covers, value in digests.items()},
                "chain": {covers: chain.digest.hex() for covers, chain in chains.items()},
            }
        )  # fmt: skip
    return entries


def plain(value: Any) -> Any:
    """JSON of a message: bytes as hexadecimal text."""
    if is_dataclass(value) and not isinstance(value, type):
        return {name: plain(getattr(value, name)) for name in value.__dataclass_fields__}
    if isinstance(value, bytes):
        return value.hex()
    return [plain(item) for item in value] if isinstance(value, tuple) else value


def _hex64(words: Sequence[int]) -> list[str]:
    return [f"{word:016x}" for word in words]


def digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def text() -> str:
    """The file, one entry a line where it is long."""
    parts = [f" {json.dumps(name)}: {_lines(value)}" for name, value in vectors().items()]
    return "{\n" + ",\n".join(parts) + "\n}\n"


def _lines(value: Any) -> str:
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return "[\n" + ",\n".join("  " + json.dumps(entry) for entry in value) + "\n ]"
    return json.dumps(value)


if __name__ == "__main__":
    PATH.write_text(text(), "utf-8")
