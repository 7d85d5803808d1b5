"""What failed handshakes mean, in words: at the end that dials and at the end that binds.

A peer that is refused tries again for ever, so each end says a thing once, or once in a while.
"""

from collections import Counter
from collections.abc import Hashable, Iterable

from fourstage.wire.handshakes import Outcome

_QUIET_SECONDS = 30.0
_SUBJECTS = 1024
_ONE_SET = "use folders that one and the same fourstage keys init has made"
_DIALLED = {
    (Outcome.REFUSED, True): f"it does not let this process's key in; {_ONE_SET}",
    (Outcome.REFUSED, False): "it lets nobody in without a key; set keys (FOURSTAGE_KEYS)",
    (Outcome.MISMATCH, True): "it has no keys and this process has; set keys for both or for neither",
    (Outcome.MISMATCH, False): "it wants a key and this process has none; set keys (FOURSTAGE_KEYS)",
    (Outcome.HUNG_UP, True): f"it hangs up: it has other keys than here, or none, or is cut off; {_ONE_SET}",
    (Outcome.HUNG_UP, False): "it hangs up: it wants a key (set keys, FOURSTAGE_KEYS), or is cut off",
}
_BOUND = {
    (
        Outcome.MISMATCH,
        True,
    ): "the peer has no keys; set keys there to a folder of the fourstage keys init that made these",
    (Outcome.MISMATCH, False): "the peer has keys and this process has none; set keys for both or for neither",
    (Outcome.WRONG_SERVER, True): f"the peer expects another key here, or repeats another one's bytes; {_ONE_SET}",
}
_GARBLED = "it does not speak ZeroMQ's protocol as fourstage does"
_REASONS = {
    Outcome.MISMATCH: "no key",
    Outcome.WRONG_SERVER: "wrong server",
    Outcome.GARBLED: "protocol",
    Outcome.FOREIGN: "protocol",
}
"""As the metric calls them. Of an unknown key the gate tells more: whose it is and where from."""


class Trouble:
    """Why a peer that is dialled does not answer."""

    def __init__(self, *, has_keys: bool) -> None:
        self._has_keys = has_keys
        self._hung_up = False
        self.reason = ""
        """Empty where the handshakes tell nothing, or have succeeded."""

    def hear(self, outcomes: Iterable[Outcome]) -> bool:
        """Take in how handshakes ended; whether there is a new reason."""
        before = self.reason
        for outcome in outcomes:
            if outcome is Outcome.OPENED:
                self._hung_up, self.reason = False, ""
            elif outcome is not Outcome.HUNG_UP or (self._hung_up and not self.reason):
                self.reason = _DIALLED.get((outcome, self._has_keys), _GARBLED)
            else:
                # Once alone it was a peer that ended amid the handshake; after a reason it says nothing new.
                self._hung_up = True
        return self.reason not in ("", before)


class Quiet:
    """What may be said now: of each subject a line once in a while."""

    def __init__(self) -> None:
        self._said: dict[Hashable, float] = {}

    def may_say(self, subject: Hashable, now: float) -> bool:
        """Whether nothing was said of it for half a minute; if so, it counts as said."""
        if now - self._said.get(subject, float("-inf")) < _QUIET_SECONDS:
            return False
        if len(self._said) >= _SUBJECTS:
            self._said.clear()
        self._said[subject] = now
        return True


class Refusals:
    """Who was refused at a socket that binds."""

    def __init__(self, *, has_keys: bool) -> None:
        self._has_keys = has_keys
        self._quiet = Quiet()
        self._counts: Counter[str] = Counter()

    def hear(self, outcomes: Iterable[Outcome], now: float) -> list[str]:
        """Take in how handshakes ended; what is to be said of them now."""
        reasons = []
        for outcome in outcomes:
            # A port scan, a health check and the end of a process hang up as well.
            if outcome not in _REASONS:
                continue
            self._counts[_REASONS[outcome]] += 1
            if self._quiet.may_say(_REASONS[outcome], now):
                reasons.append(_BOUND.get((outcome, self._has_keys), _GARBLED))
        return reasons

    def take(self) -> dict[str, int]:
        """How many there were since the last call, by reason."""
        counts, self._counts = self._counts, Counter()
        return counts
