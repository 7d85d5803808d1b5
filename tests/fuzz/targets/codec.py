"""Any bytes are a message or a PeerError."""

from pathlib import Path
from random import Random
from typing import ClassVar

from fourstage.errors import PeerError
from fourstage.wire.codec import decode, encode
from tests.fuzz.campaign import BrokenError, Cases
from tests.fuzz.mutation import damaged, mutated
from tests.fuzz.samples import examples


class CodecTarget:
    """``wire.codec`` alone."""

    name: ClassVar[str] = "codec"
    most: ClassVar[int] = 0

    def __init__(self, _folder: Path, _dice: Random) -> None:
        self._examples = examples()
        self._decoded = 0

    def play(self, cases: Cases) -> None:
        while (dice := cases.next()) is not None:
            message = dice.choice(self._examples)
            frames = mutated(dice, message) if dice.random() < 0.9 else [damaged(dice, f) for f in encode(message)]
            cases.show(frames)
            try:
                decoded = decode([memoryview(frame) for frame in frames])
            except PeerError as error:
                if len(str(error)) > 4096:
                    raise BrokenError(f"a fault is told in {len(str(error))} characters") from error
                continue
            self._decoded += 1
            again = decode(encode(decoded))
            if again != decoded:
                raise BrokenError(f"{decoded} was encoded and decoded to {again}")

    def worked(self) -> int:
        """Messages that were valid."""
        return self._decoded

    def root(self) -> object:
        return self

    def close(self) -> None: ...
