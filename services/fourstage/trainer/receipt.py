"""The proof that every sample was used once: a chain of digests over the batches that were trained on.

digest(n) = H(digest(n - 1), digest of batch n). The chain's state is a few words, so it lies in every checkpoint
and goes on from there. A line per epoch is written; two runs saw the same batches if their last digests are equal.
"""

import hashlib
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import xxhash
from numpy.typing import NDArray

from fourstage.errors import CheckpointError
from fourstage.trainer.inbox import FeedBatch

DIGEST_BYTES = 16


def pixel_digests(pixels: NDArray[np.uint8]) -> bytes:
    """XXH3-128 of each image of a batch, big-endian, one behind another."""
    return b"".join(xxhash.xxh3_128_digest(image) for image in pixels)


def batch_digest(batch: FeedBatch, pixels: bytes) -> bytes:
    """16 bytes: sequence number, samples, keys and draws of a batch, and its pixel digests where they are kept."""
    digest = hashlib.blake2b(digest_size=DIGEST_BYTES)
    digest.update(batch.seq.to_bytes(8, "little") + len(batch.keys).to_bytes(8, "little"))
    digest.update("\0".join(batch.keys).encode())
    digest.update(batch.indices.astype("<i8").tobytes())
    digest.update(batch.labels.astype("<i4").tobytes())
    digest.update(batch.offsets.astype("<i4").tobytes())
    digest.update(batch.reflections.astype(np.uint8).tobytes())
    digest.update(batch.shifts.astype("<f4").tobytes())
    digest.update(pixels)
    return digest.digest()


@dataclass(slots=True)
class Receipt:
    """The chain, and the counts of the epoch under way."""

    covers: Literal["keys", "pixels"]
    digest: bytes = bytes(DIGEST_BYTES)
    epoch: int = 0
    samples: int = 0
    delivered: int = 0
    """Samples of the whole run."""
    lines: list[dict[str, Any]] = field(default_factory=list)
    """Epochs that are complete and not yet written."""

    def add(self, batch: FeedBatch, digest: bytes, *, last_of_epoch: bool) -> None:
        """A batch was trained on. digest: ``batch_digest``, taken while its pixels were there."""
        self.digest = hashlib.blake2b(self.digest + digest, digest_size=DIGEST_BYTES).digest()
        self.samples += len(batch.keys)
        self.delivered += len(batch.keys)
        if last_of_epoch:
            self.lines.append(
                {
                    "epoch": self.epoch,
                    "samples": self.samples,
                    "digest": self.digest.hex(),
                    "covers": self.covers,
                }
            )
            self.epoch += 1
            self.samples = 0

    def state(self) -> dict[str, str | int]:
        """What a checkpoint keeps."""
        return {
            "covers": self.covers,
            "digest": self.digest.hex(),
            "epoch": self.epoch,
            "samples": self.samples,
            "delivered": self.delivered,
        }

    @classmethod
    def from_state(cls, state: dict[str, Any], covers: Literal["keys", "pixels"]) -> "Receipt":
        """Go on from a checkpoint. Raises CheckpointError for another kind of receipt."""
        if state.get("covers") != covers:
            raise CheckpointError(
                f"the checkpoint's receipt covers {state.get('covers')!r}, this run wants {covers!r}",
                hint="resume with the same --receipt",
            )
        try:
            digest = bytes.fromhex(str(state["digest"]))
            return cls(covers, digest, int(state["epoch"]), int(state["samples"]), int(state["delivered"]))
        except (KeyError, ValueError, TypeError) as error:
            raise CheckpointError(f"the checkpoint's receipt is damaged: {error!r}") from error
