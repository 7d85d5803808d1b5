"""The proof that every sample was used once: a chain of digests over the batches that were trained on.

digest(n) = H(digest(n - 1), digest of batch n). The chain's state is a few words, so it lies in every checkpoint
and goes on from there. A line per epoch is written; two runs saw the same batches if their last digests are equal.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
import xxhash
from numpy.typing import NDArray

from fourstage.errors import CheckpointError

DIGEST_BYTES = 16
_MOST = 2**53
"""Samples: as many as a number of a message may be."""
SKIPPED = 1
"""In ``samples.u32``: the sample was left out."""


def pixel_digests(pixels: NDArray[np.uint8]) -> bytes:
    """XXH3-128 of each image of a batch, big-endian, one behind another."""
    return b"".join(xxhash.xxh3_128_digest(image) for image in pixels)


_RECORD = np.dtype(
    [("index", "<i8"), ("label", "<i4"), ("offsets", "<i4", 2), ("reflection", "u1"), ("shift", "<f4", 3)]
)


class Rows(Protocol):
    """What the digests of a batch's rows cover, besides their pixels; ``FeedBatch`` has the forms."""

    @property
    def keys(self) -> Sequence[str]: ...
    @property
    def indices(self) -> NDArray[np.int64]: ...
    @property
    def labels(self) -> NDArray[np.int32]: ...
    @property
    def offsets(self) -> NDArray[np.int32]: ...
    @property
    def reflections(self) -> NDArray[np.bool_]: ...
    @property
    def shifts(self) -> NDArray[np.float32]: ...


def sample_digests(batch: Rows, pixels: bytes) -> bytes:
    """16 bytes for each row of a batch, one behind another: its key, index, label and draws.

    pixels: the rows' ``pixel_digests`` where the receipt covers pixels, else empty. One digest per sample, so that
    a batch's is the same however its rows are shared among trainers.
    """
    records = np.empty(len(batch.keys), _RECORD)
    records["index"], records["label"] = batch.indices, batch.labels
    records["offsets"], records["reflection"], records["shift"] = batch.offsets, batch.reflections, batch.shifts
    raw, size = records.tobytes(), _RECORD.itemsize
    parts = [raw[at : at + size] for at in range(0, len(raw), size)]
    if pixels:
        width = len(pixels) // len(parts)
        parts = [part + pixels[row * width : (row + 1) * width] for row, part in enumerate(parts)]
    blake2b = hashlib.blake2b
    return b"".join(
        [
            blake2b(key.encode() + part, digest_size=DIGEST_BYTES).digest()
            for key, part in zip(batch.keys, parts, strict=True)
        ]
    )


def with_gaps(samples: bytes, skipped: Sequence[int]) -> bytes:
    """The digests of all planned rows: zeros in the place of those that were skipped.

    samples: of the rows that are there; skipped: rows as planned, ascending
    """
    if not skipped:
        return samples
    rows = [samples[at : at + DIGEST_BYTES] for at in range(0, len(samples), DIGEST_BYTES)]
    for row in skipped:
        rows.insert(row, bytes(DIGEST_BYTES))
    return b"".join(rows)


def skipped_rows(samples: bytes) -> tuple[int, ...]:
    """The planned rows that were skipped, from the digests of all of them."""
    if bytes(DIGEST_BYTES) not in samples:
        return ()
    words: NDArray[np.uint64] = np.frombuffer(samples, "<u8").reshape(-1, DIGEST_BYTES // 8)
    return tuple(np.flatnonzero(~words.any(1)).tolist())


def short_digests(samples: bytes) -> bytes:
    """The low 32 bits of each planned row's digest, little-endian uint32, for ``samples.u32``: ``SKIPPED`` where a
    sample was, and never 0, which is none."""
    words: NDArray[np.uint32] = np.frombuffer(samples, "<u4").reshape(-1, DIGEST_BYTES // 4)
    low = np.maximum(words[:, 0], SKIPPED + 1)
    low[list(skipped_rows(samples))] = SKIPPED
    return bytes(low.astype("<u4"))


def batch_digest(seq: int, samples: bytes) -> bytes:
    """16 bytes of batch ``seq``, whose planned rows in order have the digests ``samples``, zeros where skipped."""
    return hashlib.blake2b(seq.to_bytes(8, "little") + samples, digest_size=DIGEST_BYTES).digest()


@dataclass(slots=True)
class Receipt:
    """The chain, and the counts of the epoch under way."""

    covers: Literal["keys", "pixels"]
    digest: bytes = bytes(DIGEST_BYTES)
    epoch: int = 0
    samples: int = 0
    delivered: int = 0
    """Samples of the whole run that were trained on."""
    corrupt: list[str] = field(default_factory=list)
    """Keys of this epoch's samples that were skipped."""
    skipped: int = 0
    """Of the whole run, in every epoch again."""
    lines: list[dict[str, Any]] = field(default_factory=list)
    """Epochs that are complete and not yet written."""

    def add(self, digest: bytes, rows: int, corrupt: Sequence[str] = (), *, last_of_epoch: bool) -> None:
        """A batch was trained on. digest: its ``batch_digest``; rows: that were there, of all trainers together;
        corrupt: keys of those that were not."""
        self.digest = hashlib.blake2b(self.digest + digest, digest_size=DIGEST_BYTES).digest()
        self.samples += rows
        self.delivered += rows
        self.corrupt += corrupt
        self.skipped += len(corrupt)
        if last_of_epoch:
            self.lines.append(
                {
                    "epoch": self.epoch,
                    "samples": self.samples,
                    "digest": self.digest.hex(),
                    "covers": self.covers,
                    "corrupt": self.corrupt,
                }
            )
            self.epoch += 1
            self.samples = 0
            self.corrupt = []

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {
            "covers": self.covers,
            "digest": self.digest.hex(),
            "epoch": self.epoch,
            "samples": self.samples,
            "delivered": self.delivered,
            "corrupt": list(self.corrupt),
            "skipped": self.skipped,
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
            epoch, samples, delivered = (int(state[name]) for name in ("epoch", "samples", "delivered"))
            skipped = int(state.get("skipped", 0))
            if len(digest) != DIGEST_BYTES or not all(0 <= n <= _MOST for n in (epoch, samples, delivered, skipped)):
                raise ValueError(f"{len(digest)} bytes of digest, {delivered} samples delivered")
            corrupt = [str(key) for key in state.get("corrupt", ())]
            return cls(covers, digest, epoch, samples, delivered, corrupt, skipped)
        except (KeyError, ValueError, TypeError) as error:
            raise CheckpointError(f"the checkpoint's receipt is damaged: {error!r}") from error
