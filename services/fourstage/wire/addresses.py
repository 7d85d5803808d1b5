"""Where processes meet: which address is whose, and which may be used without keys.

A loader listens at two addresses, one for augmenters and one for trainers. Whoever dials is told the first; the second
lies beside it.
"""

import ipaddress
import re
from pathlib import Path

from fourstage.errors import FourstageError, SettingsError
from fourstage.wire.security import Role

AUTO = "auto"
"""Trainers' address: the one beside the augmenters'."""
_TCP = re.compile(r"tcp://(?P<host>\[[^\s\[\];/@]+\]|[^\s\[\]:;/@]+):(?P<port>\d{1,5}|\*)")
"""A host and a port and nothing else: what libzmq takes besides (a source address before a semicolon) could name
another host than the one that is looked at here."""
_LAST_PORT = 65_535


def is_local(address: str) -> bool:
    """Whether an address leads to this machine alone: a Unix socket, or TCP on loopback.

    Raises SettingsError for anything but ``tcp://HOST:PORT`` and ``ipc://PATH``.
    """
    if address.startswith("ipc://"):
        return True
    host = _host_and_port(address)[0].strip("[]")
    if host == "localhost":
        return True
    try:
        number = ipaddress.ip_address(host)
    except ValueError:
        return False
    mapped = number.ipv4_mapped if isinstance(number, ipaddress.IPv6Address) else None
    return (mapped or number).is_loopback


def check_reach(address: str, *, role: Role, has_keys: bool, what: str = "the address") -> None:
    """Raises SettingsError for an address beyond this machine where there are no keys.

    role: the process's. what: the setting that the address comes from
    """
    if not is_local(address) and not has_keys:
        raise SettingsError(
            f"{what} = {address!r} is for other machines, and this {role} has no keys: anybody could take part",
            hint=f"fourstage keys init DIR makes keys; then set FOURSTAGE_KEYS=DIR/{role} here",
        )


def beside(address: str) -> str:
    """The trainers' address that belongs to an augmenters' one: the next port, or the same path with ``.trainers``."""
    if address.startswith("ipc://"):
        return f"{address}.trainers"
    host, port = _host_and_port(address)
    if not port.isdigit() or not 0 < int(port) < _LAST_PORT:
        raise SettingsError(f"no port comes after that of {address!r}", hint="set loader.trainers to tcp://HOST:PORT")
    return f"tcp://{host}:{int(port) + 1}"


def is_any_port(address: str) -> bool:
    """Whether the kernel is to choose the port."""
    return address.startswith("tcp://") and address.endswith((":0", ":*"))


def at_port(address: str, port: int) -> str:
    """The same host at another port."""
    return f"tcp://{_host_and_port(address)[0]}:{port}"


def resolve(address: str, role: Role = "augmenter", trainers: str = AUTO) -> str:
    """Where a role connects to its loader; ``file:PATH`` is read, and read again on every reconnect.

    address, trainers: the settings ``loader.address`` and ``loader.trainers``. A file's first line is the address for
    augmenters, its second, where there is one, the trainers'.

    Raises FourstageError while the file is not there yet, SettingsError for an address that has no neighbour.
    """
    if role == "trainer" and trainers != AUTO:
        return trainers
    if not address.startswith("file:"):
        return beside(address) if role == "trainer" else address
    path = Path(address.removeprefix("file:"))
    try:
        lines = path.read_text("utf-8").split()
    except OSError as error:
        raise FourstageError(f"no loader has written its address to {path}") from error
    if not lines:
        raise FourstageError(f"{path} holds no address")
    if role != "trainer":
        return lines[0]
    return lines[1] if len(lines) > 1 else beside(lines[0])


def _host_and_port(address: str) -> tuple[str, str]:
    found = _TCP.fullmatch(address)
    if found is None:
        raise SettingsError(f"{address!r} is no address", hint="tcp://HOST:PORT or ipc://PATH")
    return found["host"], found["port"]
