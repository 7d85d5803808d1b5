"""An augmenter that knows proto/README.md and nothing of fourstage: ``python -m tests.wire.foreign ADDRESS``.

It sends pixels inline, as from another host.
"""

import itertools
import secrets
import struct
import sys
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgpack
import simplejpeg
import zmq

from tests.wire.reference import VECTORS, blake, draw

HELLO, WELCOME, WHO, FAILED, STREAM, LEASE, GONE, BEAT, BATCH, HOLDS = 1, 2, 4, 20, 32, 33, 34, 36, 48, 49
PEER = secrets.token_bytes(16)
SESSIONS = itertools.count(1)
SLOTS = 3


class Link:
    """A connection with HELLO, WELCOME and WHO."""

    def __init__(self, address: str, identity: bytes) -> None:
        self.socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.DEALER)
        self.socket.setsockopt(zmq.IMMEDIATE, 1)
        self.socket.connect(address)
        self.identity = identity
        self.session = 0
        self.welcomed = False
        self.greeted = 0.0

    def say(self, kind: int, fields: dict[str, Any], *payload: bytes) -> bool:
        try:
            self.socket.send_multipart([b"4S\x02" + bytes([kind]), msgpack.packb(fields), *payload], zmq.NOBLOCK)
        except zmq.Again:
            return False
        return True

    def greet(self) -> None:
        """HELLO, again while nobody answers."""
        if self.welcomed or time.monotonic() - self.greeted < 0.5:
            return
        session = next(SESSIONS)
        hello = {"protocol": 2, "role": "augmenter", "peer": PEER, "session": session}
        if self.say(HELLO, hello | {"name": "foreign", "build": "0", "identity": self.identity}):
            self.session = session
            self.greeted = time.monotonic()

    def heard(self) -> Iterator[tuple[int, dict[str, Any], list[bytes]]]:
        """Every message that has come; a WELCOME only if it is news."""
        while self.socket.poll(0):
            header, body, *payload = self.socket.recv_multipart()
            kind, fields = header[3], msgpack.unpackb(body)
            if kind == WHO:
                self.welcomed, self.greeted = False, 0.0
            elif kind != WELCOME:
                yield kind, fields, payload
            elif fields["session"] == self.session and not self.welcomed:
                self.welcomed = True
                yield kind, fields, payload


@dataclass
class Serving:
    """One stream: its leases, and finished batches by sequence number."""

    spec: dict[str, Any]
    trainer: Link
    leased: list[tuple[dict[str, Any], list[bytes]]] = field(default_factory=list)
    finished: dict[int, list[bytes]] = field(default_factory=dict)
    numbers: dict[int, int] = field(default_factory=dict)
    """Under which number the trainer was told."""
    times: dict[int, dict[str, float]] = field(default_factory=dict)
    """As the leases said; this program tells nothing of its own."""
    codes: dict[int, bytes] = field(default_factory=dict)
    skipped: dict[int, list[int]] = field(default_factory=dict)
    sent: int = 0
    acknowledged: int = 0

    @property
    def free(self) -> int:
        return SLOTS - len(self.leased) - len(self.finished)

    def held(self) -> list[tuple[bytes, int, bytes]]:
        told = [seq for seq in self.finished if self.numbers.get(seq, self.acknowledged + 1) > self.acknowledged]
        codes = {lease["seq"]: lease["code"] for lease, _ in self.leased} | {seq: self.codes[seq] for seq in told}
        return [(self.spec["stream"], seq, code) for seq, code in codes.items()]

    def take(self, lease: dict[str, Any], payload: list[bytes]) -> None:
        here = [*self.finished, *(other["seq"] for other, _ in self.leased)]
        if self.free > 0 and lease["seq"] not in here:
            self.leased.insert(0 if lease["head"] else len(self.leased), (lease, payload))

    def tell(self) -> None:
        """BATCH for everything finished that this session has not heard of."""
        for seq, payload in self.finished.items():
            if not self.trainer.welcomed or seq in self.numbers:
                continue
            fields = {"stream": self.spec["stream"], "seq": seq, "session": self.trainer.session}
            fields |= {"number": self.sent + 1, "slot": -1, "rows": len(payload[1]) // 21, "code": self.codes[seq]}
            fields |= {"identity": self.trainer.identity, "times": self.times[seq], "skipped": self.skipped[seq]}
            if self.trainer.say(BATCH, fields, *payload):
                self.sent += 1
                self.numbers[seq] = self.sent

    def hear(self) -> bool:
        """The trainer's messages; whether a slot came free."""
        self.trainer.greet()
        before = self.free
        for kind, fields, _ in self.trainer.heard():
            if kind == WELCOME:
                self.numbers, self.sent, self.acknowledged = {}, 0, 0
            elif kind == HOLDS and fields["session"] == self.trainer.session:
                self.acknowledged = max(self.acknowledged, fields["seen"])
                for seq, number in list(self.numbers.items()):
                    if number <= fields["seen"] and seq not in fields["seqs"]:
                        del self.numbers[seq], self.finished[seq]
        self.tell()
        return self.free != before

    def make(self) -> None:
        """The batch that comes first, its row's draws and pixels one behind another."""
        lease, payload = self.leased.pop(0)
        sizes = struct.unpack(f"<{lease['rows']}I", lease["sizes"])
        matrix = [self.spec["colours"][row : row + 3] for row in (0, 3, 6)]
        rules = {"view": self.spec["view"], "size": self.spec["size"], "seed": self.spec["seed"]}
        rules |= {"epoch": lease["epoch"], "colours": matrix}
        ends = [sum(sizes[: row + 1]) for row in range(lease["rows"])]
        images = [payload[1][end - size : end] for size, end in zip(sizes, ends, strict=True)]
        draws, pixels, self.skipped[lease["seq"]] = make_rows(images, rules, lease["first"], lease["skip"])
        self.finished[lease["seq"]] = [payload[0], draws, pixels]
        self.times[lease["seq"]] = lease["times"]
        self.codes[lease["seq"]] = lease["code"]


def make_rows(
    images: list[bytes], rules: dict[str, Any], first: int, skip: Collection[int] = ()
) -> tuple[bytes, bytes, list[int]]:
    """The draws of all rows as BATCH carries them, the pixels of those that can be decoded, and the others' rows."""
    drawn = [draw(rules, first + row) for row in range(len(images))]
    crop = rules["view"]["crop"]
    pixels, skipped = b"", []
    for row, (image, ((top, left), reflected, _)) in enumerate(zip(images, drawn, strict=True)):
        try:
            if row in skip:
                raise ValueError
            window = simplejpeg.decode_jpeg(image, "RGB", False, False)[top : top + crop, left : left + crop]
        except ValueError:
            # Streams of these tests skip; where one does not, the trainer refuses the batch.
            skipped.append(row)
            continue
        pixels += (window[:, ::-1] if reflected else window).tobytes()
    offsets = b"".join(struct.pack("<2i", *place) for place, _, _ in drawn)
    shifts = b"".join(struct.pack("<3f", *shift) for _, _, shift in drawn)
    return offsets + bytes(reflected for _, reflected, _ in drawn) + shifts, pixels, skipped


def identity() -> bytes:
    """Which pixels this program makes."""
    parts = b""
    for view in (
        {"kind": "random", "crop": 48, "colour_epochs": 2**20, "crop_positions": "exclusive", "crop_chunk": 1},
        {"kind": "random", "crop": 48, "colour_epochs": 3, "crop_positions": "inclusive", "crop_chunk": 4},
        {"kind": "centre", "crop": 48},
        {"kind": "full", "crop": 64},
    ):
        rules = {"view": view | {"colour_std": 0.1}, "size": 64, "seed": 2012, "epoch": 3}
        rules |= {"colours": [[96, -32, 8], [64, 16, -24], [80, 24, 16]]}
        draws, pixels, _ = make_rows([bytes.fromhex(VECTORS["identity"]["golden_jpeg"])] * 8, rules, 5)
        parts += pixels + draws
    return bytes.fromhex(blake(parts))


def serve(address: str) -> None:
    """Until it is killed."""
    loader = Link(Path(address[5:]).read_text().split()[0] if address.startswith("file:") else address, identity())
    streams: dict[bytes, Serving] = {}
    seen, began, batches, next_beat, changed = 0, time.monotonic(), 0, 0.0, False
    while True:
        loader.greet()
        for kind, fields, payload in loader.heard():
            changed = True
            if kind == WELCOME:
                seen = 0
            elif kind == STREAM and fields["stream"] not in streams:
                streams[fields["stream"]] = Serving(fields, Link(fields["receiver"], loader.identity))
            elif kind == LEASE and fields["session"] == loader.session:
                seen = max(seen, fields["number"])
                if fields["stream"] in streams:
                    streams[fields["stream"]].take(fields, payload)
            elif kind == GONE and fields["stream"] in streams:
                streams.pop(fields["stream"]).trainer.socket.close(0)
        for serving in streams.values():
            changed |= serving.hear()
            if serving.leased:
                serving.make()
                serving.tell()
                batches, changed = batches + 1, True
        if loader.welcomed and (changed or time.monotonic() > next_beat):
            usage = {"batches": batches, "busy": time.monotonic() - began, "wait_upstream": 0, "wait_downstream": 0}
            held = [entry for serving in streams.values() for entry in serving.held()]
            slots = [(stream, serving.free, SLOTS) for stream, serving in streams.items()]
            changed = not loader.say(BEAT, {"seen": seen, "held": held, "slots": slots, "usage": usage})
            next_beat = time.monotonic() + 0.2
        loader.socket.poll(10)


if __name__ == "__main__":
    serve(sys.argv[1])
