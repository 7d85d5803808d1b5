"""From measured figures to conclusions: how many augmenters a rate needs, and what gives out first.

An image costs an augmenter more the more of them are at work (shared caches, hyperthreads, quotas): between one core
and all of them the cost is taken to rise in a straight line. Augmenters beyond the cores are those of other hosts like
this one.
"""

import math
from dataclasses import dataclass
from itertools import chain
from typing import Literal

NETWORK_BYTES = 10e9 / 8
"""A second, over 10 Gbit Ethernet."""
MESSAGE_BYTES = 312
"""Of an image on the network besides JPEG bytes and pixels (docs/operations.md, Sizing)."""
TYPICAL_RATES = (1_000.0, 3_000.0, 10_000.0)
"""Images per second: a small GPU, a large one, several."""
BUSY = 0.05
"""Where others use more than this share of the cores, the figures are too low."""
RESIDENT = 0.1
"""Where more than this share of the pages stayed in memory, a cold reading was not cold."""

LimitName = Literal["cores", "disk", "page cache", "memory", "loopback", "network"]


@dataclass(frozen=True, slots=True)
class Spread:
    """The median of several short windows, and the lowest and highest of them."""

    median: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Work:
    """What was asked for: the recipe's and the store's side."""

    batch_size: int
    crop: int
    stored_size: int
    """Width and height of the stored images."""
    images: int
    """Of the training split."""
    jpeg_bytes: float
    """Of a stored image, on average."""
    arena_bytes: int
    """Of one augmenter's slots, all streams together."""
    slots: int
    """Of one stream, the spare one included."""
    threads: int
    """That read from the store."""
    inline: bool
    """Whether pixels go through sockets on one host, too."""

    @property
    def pixel_bytes(self) -> int:
        """Of one crop."""
        return 3 * self.crop * self.crop


@dataclass(frozen=True, slots=True)
class Reading:
    """Reading random batches: images per second, and the CPU time that each takes."""

    rate: Spread
    cpu_seconds: float
    resident: float = 0.0
    """Share of the pages that were in memory before, where they should not have been."""


@dataclass(frozen=True, slots=True)
class Measured:
    """Every figure. Seconds are per image, rates images per second, copies bytes per second."""

    work: Work
    cores: int
    """Usable, by affinity and quota."""
    image_seconds: Spread
    """Decode, crop, reflect, on one core."""
    image_cpu_seconds: float
    """The same as CPU time, which waiting for a core that others hold does not add to."""
    decode_seconds: Spread
    """The decoder alone, on one core."""
    together: Spread
    """Images per second of all cores at once."""
    cold: Reading
    warm: Reading
    first_touch: Spread
    copy: Spread
    loopback: Spread
    available_bytes: int
    """Memory that is free or would be freed."""
    others: float
    """Cores that others used during the measurement of the transform."""
    machine_cores: int
    """Of the affinity mask; ``others`` is a part of these."""

    @property
    def decode_share(self) -> float:
        """Of an image's time, at most 1."""
        return min(1.0, self.decode_seconds.median / self.image_seconds.median)

    @property
    def scaling(self) -> float:
        """What all cores make, as a share of so many times one core; more than 1 is noise."""
        return self.together.median * self.image_seconds.median / self.cores

    @property
    def busy(self) -> bool:
        """Whether others used so much of the machine that the figures are too low."""
        return self.others > BUSY * self.machine_cores

    @property
    def uneven(self) -> bool:
        """Whether all cores made more than so many times one: something held the one up."""
        return self.scaling > 1.0 + 2.0 * BUSY

    @property
    def cold_is_cold(self) -> bool:
        """Whether the cold figure says anything of the disk."""
        return self.cold.resident <= RESIDENT

    @property
    def augmenters_in_memory(self) -> int:
        """Augmenters whose arenas there is memory for."""
        return self.available_bytes // self.work.arena_bytes

    @property
    def network_bytes(self) -> float:
        """Of an image between loader, augmenter and trainer that share no memory."""
        return self.work.jpeg_bytes + self.work.pixel_bytes + MESSAGE_BYTES

    @property
    def fits_in_memory(self) -> bool:
        """Whether the page cache can keep the whole split."""
        return self.work.images * self.work.jpeg_bytes <= self.available_bytes

    def seconds_with(self, augmenters: int) -> float:
        """What an image costs each of so many augmenters."""
        one = self.image_seconds.median
        # All cores make no less than one of them, whatever the noise: more augmenters would else make less.
        all_cores = min(self.cores / self.together.median, self.cores * one)
        if augmenters >= self.cores:
            return all_cores
        return one + (all_cores - one) * (augmenters - 1) / (self.cores - 1)

    def capacity(self, augmenters: int) -> float:
        """Images per second of so many augmenters, each with a core."""
        return augmenters / self.seconds_with(augmenters) if augmenters else 0.0


@dataclass(frozen=True, slots=True)
class Limit:
    """Something that carries so many images per second and no more."""

    name: LimitName
    rate: float
    counts: bool
    """Whether a run on this machine alone meets it; else it is told for information."""


@dataclass(frozen=True, slots=True)
class Need:
    """What a rate takes."""

    rate: float
    augmenters: int
    cores_at_work: float
    enough_cores: bool
    carried: dict[LimitName, bool]
    """Whether each limit is at that rate or above."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Conclusions."""

    limits: tuple[Limit, ...]
    """The lowest rate first."""
    needs: tuple[Need, ...]

    @property
    def first(self) -> Limit:
        """What gives out first on this machine."""
        return self.counting[0]

    @property
    def counting(self) -> tuple[Limit, ...]:
        """The limits that a run on this machine alone meets, the lowest first."""
        return tuple(limit for limit in self.limits if limit.counts)


def conclude(measured: Measured, rate: float | None = None) -> Plan:
    """What follows for ``rate`` images per second; without it for some typical rates and what this machine carries."""
    limits = tuple(sorted(_limits(measured), key=lambda limit: limit.rate))
    carried = min(limit.rate for limit in limits if limit.counts)
    rates = [rate] if rate is not None else sorted({*TYPICAL_RATES, carried} - {0.0})
    return Plan(limits, tuple(_need(measured, limits, wanted) for wanted in rates))


def wanted_augmenters(measured: Measured, rate: float) -> int:
    """The fewest augmenters that make ``rate`` images per second; more than the cores where these do not do.

    The rule of ``verdict.wanted_augmenters``, which for a run that goes on lets the trainer wait a little.
    """
    enough = (count for count in range(1, measured.cores + 1) if measured.capacity(count) >= rate)
    beyond = max(measured.cores + 1, math.ceil(rate * measured.seconds_with(measured.cores)))
    return next(chain(enough, [beyond]))


def _limits(measured: Measured) -> list[Limit]:
    work = measured.work
    # The loader reads on the same cores. What the trainer needs of them is not known here.
    of_cores = measured.cores / (measured.seconds_with(measured.cores) + measured.warm.cpu_seconds)
    with_arenas = measured.capacity(measured.augmenters_in_memory)
    return [
        Limit("cores", of_cores, True),
        # A split that stays in memory comes from the disk in the first epoch alone.
        Limit("disk", measured.cold.rate.median, measured.cold_is_cold and not measured.fits_in_memory),
        Limit("page cache", measured.warm.rate.median, True),
        Limit("memory", with_arenas, True),
        Limit("loopback", measured.loopback.median, work.inline),
        Limit("network", NETWORK_BYTES / measured.network_bytes, work.inline),
    ]


def _need(measured: Measured, limits: tuple[Limit, ...], rate: float) -> Need:
    augmenters = wanted_augmenters(measured, rate)
    return Need(
        rate=rate,
        augmenters=augmenters,
        cores_at_work=rate * measured.seconds_with(augmenters),
        enough_cores=augmenters <= measured.cores,
        carried={limit.name: rate <= limit.rate for limit in limits},
    )
