"""The augmenters of a run on this machine, by name: those that stay, and those that were asked to leave."""

import signal

from fourstage.engine.processes import STOP_SECONDS, Processes


class Crew:
    """Starts augmenters and lets them go, without ever waiting for one; ``turn`` looks after them."""

    def __init__(self, processes: Processes) -> None:
        self._processes = processes
        self._staying: set[int] = set()
        self._leaving: dict[int, float] = {}
        """When each is killed, by the caller's clock."""

    @property
    def names(self) -> list[str]:
        """Those that there should be."""
        return [_name(number) for number in sorted(self._staying)]

    @property
    def leaving(self) -> list[str]:
        """Those that finish a batch and say goodbye."""
        return [_name(number) for number in sorted(self._leaving)]

    def resize(self, count: int, now: float) -> None:
        """Start augmenters under the lowest free numbers, or ask those with the highest to leave. now: seconds"""
        number = 0
        while len(self._staying) < count:
            if number not in self._staying and number not in self._leaving:
                self._processes.start(_name(number), ["augmenter", "--name", _name(number)])
                self._staying.add(number)
            number += 1
        for number in sorted(self._staying)[count:]:
            self._processes.signal(_name(number), signal.SIGTERM)
            self._staying.remove(number)
            self._leaving[number] = now + STOP_SECONDS

    def turn(self, now: float) -> None:
        """Start again who died, forget who has left, kill who takes too long for it.

        Raises FourstageError with the last words of one that dies again and again.
        """
        self._processes.revive(self.names)
        for number, deadline in list(self._leaving.items()):
            if self._processes.poll(_name(number)) is not None:
                self._processes.forget(_name(number))
                del self._leaving[number]
            elif now > deadline:
                self._processes.signal(_name(number), signal.SIGKILL)


def _name(number: int) -> str:
    return f"augmenter-{number}"
