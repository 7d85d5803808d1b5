"""How soon a peer finds its loader, and finds it again."""

import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from fourstage.errors import RefusedError
from fourstage.wire.greetings import Greetings
from fourstage.wire.link import LoaderLink
from fourstage.wire.messages import Hello, Refused, Welcome
from fourstage.wire.sockets import Bound, Peer, Waiter
from tests.faults.proxy import Proxy
from tests.pipeline.harness import eventually

SILENCE = 5.0


@pytest.fixture
def loader() -> Iterator[Bound]:
    with Bound("tcp://127.0.0.1:0") as bound:
        yield bound


@pytest.fixture
def network(loader: Bound) -> Iterator[Proxy]:
    port = urlsplit(loader.address).port
    assert port is not None
    with Proxy(port) as proxy:
        yield proxy


@pytest.fixture
def link(network: Proxy) -> Iterator[LoaderLink]:
    waiter = Waiter()
    opened = LoaderLink(f"tcp://127.0.0.1:{network.port}", role="augmenter", name="a", waiter=waiter)
    yield opened
    opened.close()
    waiter.close()


def welcome(session: int) -> Welcome:
    return Welcome(
        peer=b"l" * 16, session=session, build="", side="/nowhere", heartbeat_seconds=0.5, silence_seconds=SILENCE
    )


def hello(link: LoaderLink, loader: Bound, now: float) -> tuple[Peer, int]:
    """The next HELLO, said at that moment or before: who said it, and its session."""

    def probe() -> tuple[Peer, int] | None:
        link.turn(now)
        arrival = loader.receive()
        return (arrival.peer, arrival.message.session) if arrival and isinstance(arrival.message, Hello) else None

    found = eventually(probe, "HELLO", 10.0)
    assert found is not None
    return found


def hears_welcome(link: LoaderLink, now: float) -> bool:
    return any(isinstance(message, Welcome) for message, _ in link.turn(now))


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


def test_an_answer_that_took_more_than_half_a_second_was_never_accepted(link: LoaderLink, loader: Bound) -> None:
    """Each HELLO had voided the answer to the one before."""
    way = 0.7
    answers: list[tuple[float, Peer, int]] = []

    def welcomed() -> bool:
        now = time.monotonic()
        if (arrival := loader.receive()) is not None and isinstance(arrival.message, Hello):
            answers.append((now + way, arrival.peer, arrival.message.session))
        while answers and answers[0][0] <= now:
            _, peer, session = answers.pop(0)
            loader.send(peer, welcome(session))
        return hears_welcome(link, now)

    eventually(welcomed, "WELCOME", 5.0)


def test_the_wait_for_an_answer_doubles_up_to_some_seconds_and_begins_anew_with_one() -> None:
    greetings = Greetings()
    assert greetings.is_due(0.0)
    now = 0.0
    for wait in (0.5, 1.0, 2.0, 4.0, 8.0, 8.0):
        greetings.said(now)
        assert not greetings.is_due(now + wait)
        assert greetings.is_due(now + wait + 0.01)
        assert greetings.is_hopeless(now + wait + 0.01) == (wait == 8.0)
        now += wait + 0.01
    greetings.begin_anew()
    assert greetings.is_due(now)
    greetings.said(now)
    assert greetings.is_due(now + 0.51)


def test_a_refusal_between_the_answers_of_a_loader_that_was_frozen_ended_the_worker(
    link: LoaderLink, loader: Bound
) -> None:
    def has_said(session: int, now: float) -> bool:
        link.turn(now)
        return link.session == session

    for session, now in ((1, 0.0), (2, 0.6), (3, 1.7)):
        eventually(lambda session=session, now=now: has_said(session, now), "HELLO")  # type: ignore[misc]
    for session in (1, 2, 3):
        arrival = eventually(loader.receive, "HELLO")
        assert arrival is not None
        assert isinstance(arrival.message, Hello)
        assert arrival.message.session == session
        loader.send(arrival.peer, welcome(session))
        loader.send(arrival.peer, Refused("this worker makes other pixels than the stream wants"))
    eventually(lambda: hears_welcome(link, 1.8), "WELCOME", 5.0)


def test_a_refusal_without_any_welcome_before_it_is_final(link: LoaderLink, loader: Bound) -> None:
    peer, session = hello(link, loader, 0.0)
    loader.send(peer, welcome(session))
    eventually(lambda: hears_welcome(link, 0.1), "WELCOME", 5.0)
    peer, _ = hello(link, loader, 0.2 + SILENCE)
    loader.send(peer, Refused("another protocol"))
    with pytest.raises(RefusedError, match="another protocol"):
        eventually(lambda: link.turn(0.3 + SILENCE), "a refusal", 5.0)


def test_a_connection_that_had_died_without_a_word_was_waited_for_although_a_new_one_passed(
    link: LoaderLink, loader: Bound, network: Proxy
) -> None:
    before, session = hello(link, loader, 0.0)
    loader.send(before, welcome(session))
    eventually(lambda: hears_welcome(link, 0.1), "WELCOME", 5.0)
    network.forget()
    after, session = hello(link, loader, 0.2 + SILENCE)
    assert after != before
    loader.send(after, welcome(session))
    eventually(lambda: hears_welcome(link, 0.3 + SILENCE), "WELCOME", 5.0)
    assert link.lost_since is None


def test_a_connection_that_dies_before_it_is_answered_is_given_up_as_well(
    link: LoaderLink, loader: Bound, network: Proxy
) -> None:
    before, _ = hello(link, loader, 0.0)
    network.forget()
    now = 0.0
    for wait in (0.5, 1.0, 2.0, 4.0, 8.0):
        now += wait + 0.1
        link.turn(now)
    after, session = hello(link, loader, now)
    assert after != before
    loader.send(after, welcome(session))
    eventually(lambda: hears_welcome(link, now), "WELCOME", 5.0)
