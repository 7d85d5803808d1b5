"""Who has which key: the folder of one process, read.

TCP connections are ZeroMQ CURVE connections where there are keys. Whoever binds is the server: it lets in the public
keys that it knows. Whoever dials knows the server's. Files are pyzmq's certificates; ``keys`` makes them:

    loader/     loader.key_secret     peers/trainer.key  peers/augmenter.key
    trainer/    trainer.key_secret    loader.key         peers/augmenter.key
    augmenter/  augmenter.key_secret  loader.key         trainer.key

``ROLE-NAME.key`` is one more peer of that role.
"""

import logging
import os
import stat
import struct
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeAlias

import zmq
from zmq.utils import z85

from fourstage.errors import SettingsError

log = logging.getLogger(__name__)

Role: TypeAlias = Literal["loader", "trainer", "augmenter"]
ROLES: tuple[Role, ...] = ("loader", "trainer", "augmenter")
DIALS: Mapping[Role, tuple[Role, ...]] = {"loader": (), "trainer": ("loader",), "augmenter": ("loader", "trainer")}
"""Whom a role connects to: it knows their public keys."""
ADMITS: Mapping[Role, tuple[Role, ...]] = {
    server: tuple(role for role in ROLES if server in DIALS[role]) for server in ROLES
}
"""Whom a role lets in."""
PEERS = "peers"
UNFINISHED = ".unfinished"
"""In a folder while its keys are being made."""
_MAKE = "fourstage keys init DIR makes the keys"
Snapshot: TypeAlias = tuple[tuple[str, int, int, int], ...]
"""Names, times, numbers and sizes of files."""


@dataclass(frozen=True, slots=True)
class KeyPair:
    """A public and a secret key, 40 characters of Z85 each."""

    public: bytes
    secret: bytes = field(repr=False)


def role_of(name: str) -> str:
    """The role of the peer whose key's file has that name: ``augmenter-7`` is an augmenter."""
    return name.partition("-")[0]


@dataclass(frozen=True, slots=True)
class Entrance:
    """A socket that binds: its ZAP domain, whose it is, and whom alone it lets in."""

    domain: str
    server: Role
    client: Role

    def lets_in(self, name: str) -> bool:
        """Whether this is the place for the peer of that name."""
        return role_of(name) == self.client


FOR_AUGMENTERS = Entrance("fourstage.loader.augmenters", "loader", "augmenter")
FOR_TRAINERS = Entrance("fourstage.loader.trainers", "loader", "trainer")
FOR_BATCHES = Entrance("fourstage.trainer", "trainer", "augmenter")


@dataclass(frozen=True, slots=True)
class Security:
    """The keys of one process."""

    role: Role
    own: KeyPair
    folder: Path
    servers: Mapping[bytes, str]
    """Names of those that it dials, by public key: ``loader``, ``trainer``, ``trainer-…`` where there are several."""
    clients: Mapping[bytes, str]
    """Names of those that it lets in."""

    @property
    def peers(self) -> Path:
        """The folder of ``clients``, as it may have changed."""
        return self.folder / PEERS

    def server(self, role: Role, key: bytes = b"") -> bytes:
        """The public key of the one to dial. key: which it says that it has; empty where it does not say.

        Raises SettingsError for one that this process does not know; what was not there at the start is looked for
        again.
        """
        known = self.servers
        if key and key not in known:
            known = {**known, **_named(self.folder.glob("*.key"), (role,))}
        keys = [public for public, name in known.items() if role_of(name) == role]
        if key in keys or (not key and len(keys) == 1):
            return key or keys[0]
        which = f"the {role} with the key {key.decode('ascii', 'replace')}" if key else f"which of {len(keys)} {role}s"
        hint = f"put its {role}-NAME.key into {self.folder}"
        raise SettingsError(f"this {self.role} does not know {which}", hint=hint)


def load(folder: str, role: Role, *, warn: bool = True) -> Security | None:
    """The keys that the setting ``keys`` names; None where it is empty.

    warn: False for whoever only wants to know whether they are right

    Raises SettingsError where the folder is not whole, cannot be read, or is another role's. A secret that others
    than this user may read is only warned of: whoever mounts secrets into containers cannot always set their mode.
    """
    if not folder:
        return None
    path = Path(folder)
    with _readable(path):
        if not path.is_dir():
            raise SettingsError(f"keys = {folder!r}: there is no such folder", hint=f"{_MAKE}; take DIR/{role}")
        if (path / UNFINISHED).exists():
            raise SettingsError(f"keys = {folder!r}: its keys are half-made", hint="run fourstage keys init again")
    security = read(path, role)
    secret = secret_file(path, role)
    if warn and stat.S_IMODE(secret.stat().st_mode) & 0o077:
        log.warning("%s can be read by other users: chmod 600 %s, where its mode can be set", secret, secret)
    return security


def own_keys(folder: Path, role: Role) -> KeyPair:
    """The key pair in a role's folder. Raises SettingsError."""
    with _readable(folder):
        _check_role(folder, role)
        return _key_pair(secret_file(folder, role))


def read(folder: Path, role: Role) -> Security:
    """The keys in a role's folder. Raises SettingsError."""
    if not zmq.has("curve"):
        raise SettingsError("this ZeroMQ has no CURVE", hint="install pyzmq from its wheel")
    with _readable(folder):
        _check_role(folder, role)
        own = _key_pair(secret_file(folder, role))
        for server in DIALS[role]:
            if not [name for name in _names(folder) if role_of(name) == server]:
                raise SettingsError(f"{folder / server}.key is missing", hint="copy the whole folder, or make new keys")
        servers = _named(folder.glob("*.key"), DIALS[role])
        clients = _named((folder / PEERS).glob("*.key"), ADMITS[role]) if ADMITS[role] else {}
        for path in sorted((folder / PEERS).glob("*.key")) if ADMITS[role] else ():
            if role_of(path.stem) not in ADMITS[role]:
                allowed = " or ".join(ADMITS[role])
                raise SettingsError(
                    f"{path}: a {role} lets no {path.stem!r} in", hint=f"call it {allowed}, or remove it"
                )
        if ADMITS[role] and not clients:
            raise SettingsError(f"{folder / PEERS} holds no *.key: nobody could come in", hint=_MAKE)
    return Security(role, own, folder, servers, clients)


def secret_file(folder: Path, role: Role) -> Path:
    """Where a role's folder has its secret key."""
    return folder / f"{role}.key_secret"


def snapshot(folder: Path) -> Snapshot:
    """What a folder of public keys looks like, to see whether it has changed; empty where there is none.

    Raises OSError where it cannot be looked at just now, for want of descriptors perhaps: nobody's key is gone then.
    """
    found = []
    for path in _key_files(folder):
        with suppress(FileNotFoundError):
            status = path.stat()
            found.append((path.name, status.st_mtime_ns, status.st_ino, status.st_size))
    return tuple(found)


def public_keys(folder: Path) -> dict[bytes, str]:
    """Names by public key, of a folder that may be changing: what is no key yet is left out, and named in the log.

    Raises OSError as ``snapshot``.
    """
    found: dict[bytes, str] = {}
    for path in _key_files(folder):
        try:
            found.setdefault(_public_key(path), path.stem)
        except (FileNotFoundError, PermissionError, SettingsError) as error:
            log.warning("a key is not let in: %s", error)
    return found


def _key_files(folder: Path) -> list[Path]:
    with suppress(FileNotFoundError), os.scandir(folder) as entries:
        return sorted(Path(entry.path) for entry in entries if entry.name.endswith(".key"))
    return []


def _named(paths: Iterable[Path], roles: tuple[Role, ...]) -> dict[bytes, str]:
    """Names by public key, of these roles. Raises SettingsError where one key has two names."""
    found: dict[bytes, str] = {}
    for path in sorted(paths):
        if role_of(path.stem) not in roles:
            continue
        if (key := _public_key(path)) in found:
            raise SettingsError(f"{path} holds the key of {found[key]}.key", hint="remove one of them")
        found[key] = path.stem
    return found


def _names(folder: Path) -> list[str]:
    return [path.stem for path in folder.glob("*.key")]


@contextmanager
def _readable(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        hint = "they must belong to the user of the process that reads them"
        raise SettingsError(f"cannot read the keys in {folder}: {error.strerror or error}", hint=hint) from error


def _check_role(folder: Path, role: Role) -> None:
    """The usual mistakes by name: the folder of all folders, and another role's."""
    if secret_file(folder, role).is_file():
        return
    if secret_file(folder / role, role).is_file():
        raise SettingsError(f"{folder} holds the folders of all roles", hint=f"this process takes {folder / role}")
    for other in ROLES:
        if secret_file(folder, other).is_file():
            raise SettingsError(
                f"{folder} is the folder of the {other}, and this is the {role}", hint=f"take the {role}'s"
            )
    raise SettingsError(f"{secret_file(folder, role)} is missing", hint=f"{_MAKE}; this process takes DIR/{role}")


def _key_pair(path: Path) -> KeyPair:
    public, secret = _certificate(path)
    try:
        if secret is not None and zmq.curve_public(secret) == public:
            return KeyPair(public, secret)
    except (ValueError, zmq.ZMQError):
        pass
    raise SettingsError(f"{path} holds no pair of a public and its secret key", hint="copy it anew, or make new keys")


def _public_key(path: Path) -> bytes:
    public, _ = _certificate(path)
    try:
        if len(z85.decode(public)) == 32:
            return public
    except (KeyError, ValueError, struct.error):
        pass
    raise SettingsError(f"{path} holds no public key", hint="copy it anew, or make new keys")


def _certificate(path: Path) -> tuple[bytes, bytes | None]:
    if not path.is_file():
        raise SettingsError(f"{path} is missing", hint="copy the whole folder, or make new keys")
    # Only now: the package brings asyncio along, and most processes have no keys.
    from zmq.auth.certs import load_certificate

    try:
        return load_certificate(path)
    except (ValueError, IndexError) as error:
        raise SettingsError(f"{path} holds no key", hint="copy it anew, or make new keys") from error
