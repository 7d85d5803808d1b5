"""How many samples a run may be trained without (pure).

Charged in the order of the stream by whoever trains, so it is the same for any number of workers and ranks and through
any crash: its state lies in every checkpoint.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, Self

from fourstage.errors import CheckpointError, CorruptSampleError
from fourstage.order import Place
from fourstage.trainer.inbox import Skipped

_SHOWN = 5


class Limits(Protocol):
    """The settings that bound it; ``Settings`` has them."""

    @property
    def corrupt_count(self) -> int: ...
    @property
    def corrupt_share(self) -> float: ...
    @property
    def corrupt_consecutive(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Budget:
    """What was charged so far. Every batch makes a new one, so an older one is where a loop can go back to."""

    count: int
    """Different samples that may be left out."""
    of_epoch: int
    """Samples of one epoch that may be."""
    consecutive: int
    """Samples one behind another that may be."""
    known: frozenset[int] = frozenset()
    """Indices of those that were."""
    epoch: int = 0
    in_epoch: int = 0
    """Left out in this epoch."""
    behind: int = 0
    """Left out one behind another up to the last planned row."""

    @classmethod
    def of(cls, limits: Limits, samples: int) -> Self:
        """Nothing charged yet. samples: of one epoch; of however few, one may be left out."""
        return cls(limits.corrupt_count, max(1, int(limits.corrupt_share * samples)), limits.corrupt_consecutive)

    @property
    def most(self) -> int:
        """Different samples of a split that can be left out before it is used up."""
        return min(self.count, self.of_epoch)

    def charged(self, place: Place, skipped: Sequence[Skipped]) -> Self:
        """After the next batch. place: as planned; skipped: in the order of their rows.

        Raises CorruptSampleError that names the limit and the last sample where there are too many.
        """
        if not skipped and not self.behind and place.epoch == self.epoch:
            return self
        in_epoch = self.in_epoch if place.epoch == self.epoch else 0
        known, behind, expected = self.known, self.behind, 0
        for sample in skipped:
            behind = behind + 1 if sample.row == expected else 1
            expected = sample.row + 1
            in_epoch += 1
            known |= {sample.index}
            self._check(len(known), in_epoch, behind, place.epoch, sample.key)
        if expected < place.rows:
            behind = 0
        return replace(self, known=known, epoch=place.epoch, in_epoch=in_epoch, behind=behind)

    def _check(self, different: int, in_epoch: int, behind: int, epoch: int, key: str) -> None:
        for setting, limit, spent, what in (
            ("corrupt_count", self.count, different, "different samples"),
            ("corrupt_share", self.of_epoch, in_epoch, f"samples of epoch {epoch}"),
            ("corrupt_consecutive", self.consecutive, behind, "samples one behind another"),
        ):
            if spent > limit:
                raise CorruptSampleError(
                    f"{spent} {what} cannot be decoded, the last one {key!r}: {setting} allows {limit}",
                    hint=f"fourstage verify --decode names all: prepare the store without them, or raise {setting}",
                )

    def state(self) -> dict[str, Any]:
        """Plain values for a checkpoint; the limits are the settings'."""
        return {
            "known": sorted(self.known), "epoch": self.epoch, "in_epoch": self.in_epoch, "behind": self.behind,
        }  # fmt: skip

    def restored(self, state: Mapping[str, Any]) -> Self:
        """These limits with what an older one was charged; ``{}`` stands for nothing. Raises CheckpointError."""
        known = state.get("known", [])
        numbers = {name: state.get(name, 0) for name in ("epoch", "in_epoch", "behind")}
        if not isinstance(known, list) or not all(
            type(value) is int and value >= 0 for value in (*known, *numbers.values())
        ):
            raise CheckpointError(f"the budget of samples left out is {dict(state)!r:.200}, which is none")
        return replace(self, known=frozenset(known), **numbers)


def nothing_left(seq: int, skipped: Sequence[Skipped]) -> CorruptSampleError:
    """What ends a run: a batch without a sample makes no step."""
    keys = ", ".join(repr(sample.key) for sample in skipped[:_SHOWN])
    more = f" and {len(skipped) - _SHOWN} more" if len(skipped) > _SHOWN else ""
    return CorruptSampleError(
        f"no sample of batch {seq} can be decoded ({keys}{more}), so there is nothing to train on",
        hint="prepare the store without them, or raise batch_size",
    )
