"""Whom a socket lets in, as the folder of public keys says now: keys come and go while the service runs."""

import logging
import time
from collections.abc import Mapping
from types import MappingProxyType

from fourstage.wire.security import Entrance, Security, Snapshot, public_keys, snapshot

log = logging.getLogger(__name__)

LOOK_SECONDS = 1.0
"""Between two looks at the folder."""


class Admitted:
    """The keys of one entrance. One thread looks at the folder; any may ask who is in, at any time."""

    def __init__(self, security: Security, entrance: Entrance) -> None:
        self.entrance = entrance
        self._folder = security.peers
        self._seen: Snapshot | None = None
        self._look_at = 0.0
        self._names: Mapping[str, str] = _by_user(security.clients)
        """Replaced whole, never changed: who asks in another thread sees the old or the new one."""
        self._users = self._of_entrance()

    def __contains__(self, user: str) -> bool:
        return user in self._users

    def name(self, user: str) -> str:
        """The name of a key's file, also of another role's; empty where nobody knows it."""
        return self._names.get(user, "")

    def changes(self) -> frozenset[str]:
        """Look at the folder if it is time to; the users who may no longer come in."""
        now = time.monotonic()
        if now < self._look_at:
            return frozenset()
        self._look_at = now + LOOK_SECONDS
        try:
            if (seen := snapshot(self._folder)) == self._seen:
                return frozenset()
            names = _by_user(public_keys(self._folder))
        except OSError as error:
            log.warning("the keys in %s are as they were: %s", self._folder, error.strerror)
            return frozenset()
        before, users = self._names, self._users
        self._seen, self._names = seen, names
        self._users = self._of_entrance()
        for user in self._users - users:
            log.info("the key of %s is let in from now on", self._names[user])
        for user in users - self._users:
            log.warning("the key of %s is let in no more", before[user])
        return users - self._users

    def _of_entrance(self) -> frozenset[str]:
        return frozenset(user for user, name in self._names.items() if self.entrance.lets_in(name))


def _by_user(keys: Mapping[bytes, str]) -> Mapping[str, str]:
    return MappingProxyType({key.decode("ascii"): name for key, name in keys.items()})
