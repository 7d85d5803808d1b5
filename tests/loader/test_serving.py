"""What the loader says of its streams to whom, where connections come and go."""

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pytest

from fourstage.loader.clients import Client, Clients
from fourstage.loader.entrances import Entrances
from fourstage.loader.serving import FORGET_AFTER, Serving
from fourstage.settings import LoaderSettings, MetricsSettings
from fourstage.store import open_store
from fourstage.store.prepare import prepare
from fourstage.telemetry import Telemetry
from fourstage.views import View
from fourstage.wire.door import Door
from fourstage.wire.messages import Beat, Failed, Gone, Hello, Message, Open, Progress, Usage
from tests.fuzz.samples import made
from tests.pipeline.harness import SIZE, eventually, write_photographs

STREAM = b"s" * 16
SETTINGS = LoaderSettings(memory=1 << 20)


@dataclass
class Network:
    """Where everything is said; ``away``: the connection is down, and what is said is lost."""

    away: bool = False
    said: list[Message] = field(default_factory=list)

    def send(self, _peer: bytes, message: Message, _payload: Any = ()) -> bool:
        if not self.away:
            self.said.append(message)
        return not self.away

    def take(self) -> list[Message]:
        said, self.said = self.said, []
        return said


class NoSides:
    """A door that nobody has come through."""

    def connection(self, _uuid: bytes) -> None:
        return None


@dataclass
class Scene:
    """A loader's serving with one trainer and one augmenter."""

    serving: Serving
    network: Network
    trainer: Client
    augmenter: Client

    def open(self, stream: bytes = STREAM) -> None:
        self.serving.on_open(
            self.trainer,
            made(Open, stream=stream, split="train", batch_size=2, fingerprint="", identity=b"", worker=b"", world=1,
                 rank=0, start=0, epochs=1, end=0, window=4, transport="inline", view=View("full", SIZE)),
        )  # fmt: skip

    def turn(self) -> None:
        self.serving.turn(time.monotonic())


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    write_photographs(tmp_path / "photographs", "train", 2)
    prepare(tmp_path / "photographs" / "train", tmp_path / "store", size=SIZE, workers=1)
    clients, network = Clients(), Network()
    serving = Serving(
        open_store(tmp_path / "store"), SETTINGS, peer=b"l" * 16, clients=clients,
        socket=cast(Entrances, network), door=cast("Door[bytes]", NoSides()),
        telemetry=Telemetry("loader", MetricsSettings(), "0"),
    )  # fmt: skip
    now = time.monotonic()
    trainer, _ = clients.greet(b"1", made(Hello, role="trainer", peer=b"t" * 16), now, place="trainer")
    augmenter, _ = clients.greet(b"2", made(Hello, role="augmenter", peer=b"a" * 16), now, place="augmenter")
    serving.join(augmenter, now)
    yield Scene(serving, network, trainer, augmenter)
    serving.close()


def test_a_failure_that_the_trainer_was_away_for_is_said_again_when_it_is_back(scene: Scene, tmp_path: Path) -> None:
    """It was said once: a trainer that was reconnecting then waited for ever, for a batch that nobody would make."""
    scene.open()
    (shard,) = (tmp_path / "store").glob("*.tar")
    os.truncate(shard, 10)
    scene.network.away = True

    def failed() -> bool:
        scene.turn()
        return scene.serving.streams[STREAM].failure is not None

    eventually(failed, "the failure of a read")
    scene.network.away = False
    scene.network.take()
    scene.open()
    (again,) = [message for message in scene.network.take() if isinstance(message, Failed)]
    scene.serving.on_progress(scene.trainer, Progress(STREAM, 0, ()), time.monotonic())
    assert scene.network.take() == [again]
    assert shard.name in again.reason


def test_a_worker_that_serves_a_stream_which_is_no_more_is_told_so_but_not_by_a_loader_that_is_new(
    scene: Scene,
) -> None:
    """A GONE that was lost left it its slots, its connection and its threads for ever."""
    scene.open()
    beat = Beat(seen=0, held=(), slots=((STREAM, 2, 2), (b"x" * 16, 2, 2)), usage=Usage())
    now = time.monotonic()
    scene.network.take()
    scene.serving.on_beat(scene.augmenter, beat, now)
    assert scene.network.take() == [], "its trainer may still open it again"
    scene.serving.on_beat(scene.augmenter, beat, now + FORGET_AFTER * SETTINGS.silence_seconds)
    assert scene.network.take() == [Gone(b"x" * 16)]


def test_all_streams_of_one_trainer_together_take_a_bounded_part_of_the_memory(scene: Scene) -> None:
    """Each had as much as the first: 64 of them had 128 GiB read into memory."""
    for number in range(70):
        scene.open(number.to_bytes(16, "big"))
    arenas = [stream.arena for stream in scene.serving.streams.values()]
    assert len(arenas) == 64
    assert sum(arena.slots * arena.slot_bytes for arena in arenas) < 5 * SETTINGS.memory
    assert all(arena.slots for arena in arenas)
