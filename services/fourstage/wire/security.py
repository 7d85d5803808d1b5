"""Who has which key: the folder of one process, read.

TCP connections are ZeroMQ CURVE connections where there are keys. Whoever binds is the server: it lets in the public
keys that it knows. Whoever dials knows the server's. Files are pyzmq's certificates; ``keys`` makes them:

    loader/     loader.key_secret     peers/trainer.key  peers/augmenter.key
    trainer/    trainer.key_secret    loader.key         peers/augmenter.key
    augmenter/  augmenter.key_secret  loader.key         trainer.key
"""

import logging
import stat
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
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


@dataclass(frozen=True, slots=True)
class KeyPair:
    """A public and a secret key, 40 characters of Z85 each."""

    public: bytes
    secret: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Security:
    """The keys of one process."""

    role: Role
    own: KeyPair
    servers: Mapping[Role, bytes]
    """Public keys of those that it dials."""
    clients: Mapping[bytes, str]
    """Names of those that it lets in, by public key: ``augmenter``, or ``augmenter-…`` where there are several."""


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


def read(folder: Path, role: Role) -> Security:
    """The keys in a role's folder. Raises SettingsError."""
    if not zmq.has("curve"):
        raise SettingsError("this ZeroMQ has no CURVE", hint="install pyzmq from its wheel")
    with _readable(folder):
        _check_role(folder, role)
        own = _key_pair(secret_file(folder, role))
        servers = {server: _public_key(folder / f"{server}.key") for server in DIALS[role]}
        clients: dict[bytes, str] = {}
        for path in sorted((folder / PEERS).glob("*.key")) if ADMITS[role] else ():
            if path.stem.partition("-")[0] not in ADMITS[role]:
                allowed = " or ".join(ADMITS[role])
                raise SettingsError(
                    f"{path}: a {role} lets no {path.stem!r} in", hint=f"call it {allowed}, or remove it"
                )
            if (key := _public_key(path)) in clients:
                raise SettingsError(f"{path} holds the key of {clients[key]}.key", hint="remove one of them")
            clients[key] = path.stem
        if ADMITS[role] and not clients:
            raise SettingsError(f"{folder / PEERS} holds no *.key: nobody could come in", hint=_MAKE)
    return Security(role, own, servers, clients)


def secret_file(folder: Path, role: Role) -> Path:
    """Where a role's folder has its secret key."""
    return folder / f"{role}.key_secret"


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
