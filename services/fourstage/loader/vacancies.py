"""Workers that can take a batch, by how much each has to do: the idlest is found without a walk over all of them."""

from collections.abc import Iterator

from fourstage.loader.book import Worker

_Place = tuple[int, bool]
"""Batches that a worker holds, of all streams, and whether it has but one slot left for this one."""


class Vacancies:
    """The workers with a free slot for one stream."""

    def __init__(self) -> None:
        self._free: dict[Worker, int] = {}
        self._places: dict[Worker, _Place] = {}
        self._workers: dict[_Place, dict[Worker, None]] = {}

    def put(self, worker: Worker, free: int, held: int) -> None:
        """A worker has that many free slots for this stream now, and holds that many batches of all streams."""
        if free > 0:
            self._free[worker] = free
        else:
            self._free.pop(worker, None)
        place = (held, free == 1) if free > 0 else None
        before = self._places.get(worker)
        if place == before:
            return
        if before is not None:
            workers = self._workers[before]
            del workers[worker]
            if not workers:
                del self._workers[before]
        if place is None:
            self._places.pop(worker, None)
        else:
            self._places[worker] = place
            self._workers.setdefault(place, {})[worker] = None

    def hold(self, worker: Worker, held: int) -> None:
        """A worker holds that many batches of all streams now."""
        if (free := self._free.get(worker)) is not None:
            self.put(worker, free, held)

    def idlest_first(self, least: int) -> Iterator[Worker]:
        """Workers with at least that many free slots, 1 or 2, those first that hold least, of these those with more
        than one slot; of equals who has been so for longest."""
        for place in sorted(self._workers):
            _, has_but_one = place
            if least == 1 or not has_but_one:
                yield from self._workers[place]
