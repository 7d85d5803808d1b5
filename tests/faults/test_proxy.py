"""The network that fails, itself: a campaign whose faults do nothing would prove nothing."""

import select
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from tests.faults.proxy import Proxy
from tests.pipeline.harness import eventually


@pytest.fixture
def echo() -> Iterator[int]:
    """The port of a server that says everything back."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve(connection: socket.socket) -> None:
        with connection:
            try:
                while data := connection.recv(4096):
                    connection.sendall(data)
            except OSError:
                return

    def accept() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=serve, args=(connection,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    yield listener.getsockname()[1]
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()


@pytest.fixture
def proxy(echo: int) -> Iterator[Proxy]:
    with Proxy(echo) as opened:
        yield opened


def dial(proxy: Proxy) -> socket.socket:
    return socket.create_connection(("127.0.0.1", proxy.port), 5.0)


def answer(connection: socket.socket, message: bytes) -> bytes:
    """What comes back, as far as it comes."""
    connection.sendall(message)
    heard = b""
    while len(heard) < len(message):
        try:
            data = connection.recv(4096)
        except OSError:
            break
        if not data:
            break
        heard += data
    return heard


def hears(proxy: Proxy) -> bool:
    try:
        with dial(proxy) as connection:
            return answer(connection, b"hello") == b"hello"
    except OSError:
        return False


def test_everything_passes_where_nothing_is_wrong(proxy: Proxy) -> None:
    with dial(proxy) as connection:
        assert answer(connection, bytes(range(256)) * 100) == bytes(range(256)) * 100


def test_a_connection_over_which_nobody_says_anything_stays(proxy: Proxy) -> None:
    with dial(proxy) as connection:
        assert answer(connection, b"before") == b"before"
        assert not select.select([connection], [], [], 1.5)[0], "nothing comes, and no end"
        assert answer(connection, b"after") == b"after"


def test_a_cut_network_takes_nobody_until_it_heals(proxy: Proxy) -> None:
    with dial(proxy) as connection:
        assert answer(connection, b"hello") == b"hello"
        proxy.cut()
        with pytest.raises(OSError):  # noqa: PT012 - the first may still be taken by the kernel
            for _ in range(100):
                connection.sendall(b"hello")
                if not connection.recv(100):
                    raise ConnectionResetError
    assert not hears(proxy)
    proxy.heal()
    assert hears(proxy)


def test_a_black_hole_holds_what_is_said_and_lets_it_go(proxy: Proxy) -> None:
    with dial(proxy) as connection:
        assert answer(connection, b"before") == b"before"
        proxy.swallow()
        connection.sendall(b"within")
        connection.settimeout(0.2)
        with pytest.raises(TimeoutError):
            connection.recv(100)
        proxy.heal()
        connection.settimeout(5.0)
        assert connection.recv(100) == b"within"


def test_a_connection_that_is_forgotten_stays_and_a_new_one_passes(proxy: Proxy) -> None:
    with dial(proxy) as connection:
        assert answer(connection, b"before") == b"before"
        proxy.forget()
        connection.sendall(b"after")
        assert hears(proxy)
        assert not select.select([connection], [], [], 0.1)[0], "nothing comes, and no end"


def test_a_message_is_cut_in_the_middle_and_its_connection_with_it(proxy: Proxy) -> None:
    with dial(proxy) as connection:
        proxy.truncate()
        assert len(answer(connection, bytes(1000))) < 1000
    assert proxy.truncated
    assert hears(proxy)


def test_a_slow_network_takes_its_time(proxy: Proxy) -> None:
    proxy.rate = 10_000.0
    with dial(proxy) as connection:
        began = time.monotonic()
        assert len(answer(connection, bytes(2000))) == 2000
        assert time.monotonic() - began >= 2 * 2000 / 10_000.0


def test_a_storm_hangs_up_on_everybody_and_dials(proxy: Proxy, echo: int) -> None:
    with dial(proxy) as connection:
        assert answer(connection, bytes(100)) == bytes(100)
        proxy.storm(5)
        eventually(lambda: ended(connection), "the reset")
    assert hears(proxy)
    assert proxy.target == echo


def ended(connection: socket.socket) -> bool:
    try:
        return connection.recv(100) == b""
    except OSError:
        return True
