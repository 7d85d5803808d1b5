"""How soon a peer finds its loader."""

import time
from pathlib import Path

from fourstage.wire.link import LoaderLink
from fourstage.wire.messages import Hello
from fourstage.wire.sockets import Bound, Waiter


def greet(link: LoaderLink, waiter: Waiter, loader: Bound) -> None:
    """Turn until the loader has heard HELLO; nothing wakes the waiter but what it waits for, or its time."""
    while True:
        link.turn(time.monotonic())
        if loader.socket.poll(100):
            arrival = loader.receive()
            assert arrival is not None
            assert isinstance(arrival[1], Hello)
            return
        waiter.wait(min(5.0, link.patience * 100))


def test_a_peer_greets_as_soon_as_it_is_connected(tmp_path: Path) -> None:
    waiter = Waiter()
    with Bound(f"ipc://{tmp_path / 'loader'}") as loader:
        link = LoaderLink(loader.address, role="augmenter", name="a", waiter=waiter)
        began = time.monotonic()
        greet(link, waiter, loader)
        assert time.monotonic() - began < 2.0, "it slept until its time was over"
        assert link.patience == link.heartbeat
        link.close()
    waiter.close()


def test_an_address_that_is_still_to_be_written_is_found_without_waiting_for_a_heartbeat(tmp_path: Path) -> None:
    waiter = Waiter()
    file = tmp_path / "address"
    link = LoaderLink(f"file:{file}", role="augmenter", name="a", waiter=waiter)
    now = time.monotonic()
    assert link.turn(now) == []
    assert link.patience < 0.1
    with Bound(f"ipc://{tmp_path / 'loader'}") as loader:
        file.write_text(loader.address + "\n")
        assert link.turn(now + link.patience) == []
        greet(link, waiter, loader)
        link.close()
    waiter.close()
