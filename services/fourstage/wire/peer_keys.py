"""Keys of single peers: one more is added to those that ``keys`` has made, one that is lost is revoked.

The loader's folder is the register: its ``peers`` are all that there are. A running service looks at its own ``peers``
all the time, so every file there appears and goes whole.
"""

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import cast

from zmq.auth.certs import create_certificates

from fourstage.errors import SettingsError
from fourstage.wire.keys import begin, flush, writing
from fourstage.wire.security import ADMITS, DIALS, PEERS, UNFINISHED, Role, own_keys, role_of, secret_file

_NAME = re.compile(r"(augmenter|trainer)(-[A-Za-z0-9][A-Za-z0-9._-]{0,62})?")
_CERTIFICATE = 'metadata\ncurve\n    public-key = "{}"\n'


def add_peer(directory: Path, name: str) -> list[Path]:
    """Make the folder of one more peer, ``augmenter-NAME`` or ``trainer-NAME``, with a key of its own.

    Every folder here that has to do with it gets its public key: the files that are returned. A call that was killed
    is finished by the next. Raises SettingsError for a name that is none or is taken, and where there are no keys.
    """
    role = _role(name)
    folder, register = directory / name, directory / "loader" / PEERS
    loader = own_keys(directory / "loader", "loader")
    with writing(directory):
        taken = any(folder.glob("*.key*")) or (register / f"{name}.key").exists()
        if taken and not (folder / UNFINISHED).is_dir():
            raise SettingsError(
                f"{directory} has a peer {name} already",
                hint=f"another name, or fourstage keys revoke {directory} {name}",
            )
        begin([folder])
        public, secret = map(Path, create_certificates(folder / UNFINISHED, role))
        flush(secret)
        for known in sorted(register.glob("*.key")):
            if known.stem == name:
                continue
            if role_of(known.stem) in ADMITS[role]:
                _put(known.read_text(), folder / PEERS / known.name)
            elif role_of(known.stem) in DIALS[role]:
                _put(known.read_text(), folder / known.name)
        _put(_CERTIFICATE.format(loader.public.decode()), folder / "loader.key")
        told = [target / f"{name}.key" for target in _told(directory, role)]
        for target in told:
            _put(public.read_text(), target)
        secret.rename(secret_file(folder, role))
        flush(folder)
        shutil.rmtree(folder / UNFINISHED)
    return told


def revoke_peer(directory: Path, name: str) -> list[Path]:
    """Take a peer's public key out of every folder here, and its own folder away; the files that are gone.

    Raises SettingsError where there is no such peer.
    """
    role = _role(name)
    with writing(directory):
        found = [path for target in _told(directory, role) if (path := target / f"{name}.key").exists()]
        if not found and not (directory / name).is_dir():
            known = ", ".join(sorted(path.stem for path in (directory / "loader" / PEERS).glob("*.key"))) or "nobody"
            raise SettingsError(f"{directory} knows no peer {name!r}", hint=f"it knows {known}")
        for path in found:
            path.unlink()
            flush(path.parent)
        shutil.rmtree(directory / name, ignore_errors=True)
    return found


def _role(name: str) -> Role:
    if not _NAME.fullmatch(name):
        raise SettingsError(
            f"{name!r} is no name of a peer",
            hint="augmenter-NAME or trainer-NAME, of letters, digits, '.', '_' and '-'",
        )
    return cast(Role, role_of(name))


def _told(directory: Path, role: Role) -> Iterator[Path]:
    """Where the public keys of that role lie, the loader's folder first: there it is let in or not."""
    yield directory / "loader" / PEERS
    for other in DIALS[role]:
        if other != "loader":
            yield from (folder / PEERS for folder in _folders(directory, other))
    for other in ADMITS[role]:
        yield from _folders(directory, other)


def _folders(directory: Path, role: Role) -> list[Path]:
    """Of all peers of a role."""
    return sorted(path.parent for path in directory.glob(f"{role}*/{role}.key_secret"))


def _put(text: str, target: Path) -> None:
    """Write a file that is there whole or not at all."""
    target.parent.mkdir(exist_ok=True)
    fresh = target.with_name(f".{target.name}.new")
    fresh.write_text(text)
    flush(fresh)
    os.replace(fresh, target)  # noqa: PTH105  its audit event is that of a rename
    flush(target.parent)
