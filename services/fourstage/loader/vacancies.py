"""Workers by the number of free slots that they have: the one with most is found without a walk over all of them."""

from collections.abc import Iterator

from fourstage.loader.book import Worker


class Vacancies:
    """Free slots of one stream; workers that have none are not kept."""

    def __init__(self) -> None:
        self._free: dict[Worker, int] = {}
        self._by_free: dict[int, dict[Worker, None]] = {}

    def put(self, worker: Worker, free: int) -> None:
        """A worker has that many now."""
        before = self._free.get(worker, 0)
        if free == before:
            return
        if before:
            workers = self._by_free[before]
            del workers[worker]
            if not workers:
                del self._by_free[before]
        if free > 0:
            self._free[worker] = free
            self._by_free.setdefault(free, {})[worker] = None
        else:
            self._free.pop(worker, None)

    def most_first(self, least: int) -> Iterator[Worker]:
        """Workers with at least that many, those with most first; of equals who has waited longest."""
        for free in sorted(self._by_free, reverse=True):
            if free < least:
                return
            yield from self._by_free[free]
