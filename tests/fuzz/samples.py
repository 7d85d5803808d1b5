"""Valid messages and the small world that they speak of."""

import dataclasses
import functools
import json
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any, TypeAlias

import numpy as np

from fourstage.augmenter.draws import draw
from fourstage.store import Store, open_store
from fourstage.store.prepare import prepare
from fourstage.trainer.inbox import Draws, StreamInfo
from fourstage.views import View
from fourstage.wire.codec import decode_body, encode_body
from fourstage.wire.codes import lease_code
from fourstage.wire.messages import TYPES, Open, Samples
from tests.pipeline.harness import CROP, SIZE, write_photographs

_VECTORS = Path(__file__).parents[2] / "proto" / "vectors.json"
VIEW = View("random", CROP, colour_std=0.1)
IDENTITY = b"i" * 16
"""Of the pixels that the workers here make."""
PER_CLASS = 12

Sayings: TypeAlias = list[tuple[Callable[[Random, Any], Any], int]]
"""What somebody may say, as functions of chance and of who says it, and how often."""


@functools.cache
def vectors() -> tuple[tuple[type, bytes], ...]:
    """Every message of proto/vectors.json: its type, and the map that it is."""
    kinds = {kind.__name__: kind for kind in TYPES.values()}
    entries: list[dict[str, Any]] = json.loads(_VECTORS.read_text("utf-8"))["messages"]
    return tuple((kinds[entry["type"]], bytes.fromhex(entry["frames"][-1])) for entry in entries)


@functools.cache
def examples() -> tuple[Any, ...]:
    """Every message of proto/vectors.json."""
    return tuple(decode_body(kind, body) for kind, body in vectors())


def small_store(folder: Path) -> Store:
    """36 images of three classes, 40x40."""
    write_photographs(folder / "photographs", "train", PER_CLASS)
    prepare(folder / "photographs" / "train", folder / "store", size=SIZE, workers=1)
    return open_store(folder / "store")


def payload_of(store: Store, info: StreamInfo, spec: Open, seq: int) -> list[bytes]:
    """The samples and draws of a batch, as an augmenter sends them."""
    place, indices = info.plan.place(seq), info.order.indices(seq)
    split = store.split(spec.split)
    samples = Samples(
        indices.astype("<i8").tobytes(), split.labels(indices).astype("<i4").tobytes(), tuple(split.keys(indices))
    )
    drawn = draw(
        spec.view, size=store.size, seed=spec.seed, epoch=place.epoch, first=place.first, rows=place.rows,
        colours=np.eye(3),
    )  # fmt: skip
    return [encode_body(samples), Draws(drawn.offsets, drawn.reflections, drawn.shifts).pack()]


def code_of(spec: Open, seq: int, worker: bytes, samples: bytes) -> bytes:
    """What proves that a worker of ``IDENTITY`` was given a batch."""
    return lease_code(spec.secret, stream=spec.stream, seq=seq, worker=worker, identity=IDENTITY, samples=samples)


def made(kind: type, **fields: Any) -> Any:
    """A message of that type as vectors.json has it, but for these fields: whatever is added to a type, is there."""
    return dataclasses.replace(_example(kind), **fields)


@functools.cache
def _example(kind: type) -> Any:
    return next(message for message in examples() if type(message) is kind)


def drawn(dice: Random, sayings: Sayings) -> Callable[[Random, Any], Any]:
    """One of them, by their weights."""
    return dice.choices([saying for saying, _ in sayings], [weight for _, weight in sayings])[0]


def images(store: Store) -> list[bytes]:
    """The JPEG files of a store's training split."""
    split = store.split("train")
    found = []
    for record in split.records.tolist():
        with split.shards[record[0]].open("rb") as shard:
            shard.seek(record[2])
            found.append(shard.read(record[1]))
    return found
