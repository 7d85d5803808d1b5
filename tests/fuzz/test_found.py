"""What the campaigns have found, one by one."""

import errno
import logging
import os
import tracemalloc
from pathlib import Path
from random import Random
from unittest.mock import patch

import msgpack
import numpy as np
import pytest

from fourstage.arena import Arena
from fourstage.errors import FourstageError, PeerError
from fourstage.loader.clients import total
from fourstage.loader.leases import LARGEST_WINDOW, Leases, Timing
from fourstage.loader.streams import largest_batch_bytes
from fourstage.logs import configure_logging
from fourstage.trainer.inbox import Draws, Inbox
from fourstage.wire.codec import decode_body
from fourstage.wire.messages import Batch, Failed, Gone, Hello, Lease, Opened, Pong, Progress, Stream, Usage, Welcome
from fourstage.wire.sources import JpegSources
from tests.fuzz import wires
from tests.fuzz.mutation import frames_of, header
from tests.fuzz.samples import made, small_store
from tests.fuzz.targets.augmenter import AugmenterTarget
from tests.fuzz.targets.feed import FeedTarget, an_open
from tests.fuzz.targets.loader import LoaderTarget
from tests.fuzz.targets.side import open_descriptors
from tests.pipeline.harness import SIZE

# The codec


def test_five_kilobytes_of_nested_arrays_announce_a_gigabyte_and_allocate_nothing() -> None:
    body = b"\x81\xa7arrived" + b"\xdd\x00\x10\x00\x00" * 1000
    tracemalloc.start()
    try:
        with pytest.raises(PeerError, match="not msgpack"):
            decode_body(Progress, body)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_a_message_of_a_million_empty_maps_is_refused_at_the_first_few() -> None:
    with pytest.raises(PeerError, match="maps"):
        decode_body(Progress, b"\x81\xa7arrived\xdd\x00\x0f\x42\x40" + b"\x80" * 1_000_000)


def test_a_field_that_comes_twice_is_a_fault() -> None:
    pair = msgpack.packb("stream") + msgpack.packb(bytes(16))
    with pytest.raises(PeerError, match="twice"):
        decode_body(Gone, b"\x82" + pair + pair)


# The loader


def test_a_rank_that_gets_no_row_of_any_batch_does_not_end_the_loader(tmp_path: Path) -> None:
    assert largest_batch_bytes(small_store(tmp_path).split("train"), 0) == 0


def test_counters_of_workers_whose_sum_no_message_can_say_do_not_end_the_loader() -> None:
    assert total([Usage(2**53, 1e12), Usage(2**53, 1e12)]) == Usage(2**53, 1e12)


def test_arrivals_beyond_any_window_do_not_fill_the_books() -> None:
    leases = Leases(Timing(silence=5.0, hedge=1.0, missing=1.0))
    leases.open(b"stream", start=0, end=2**53, window=4, rows=lambda _: 1)
    for begin in range(0, 10**6, 10**4):
        leases.progress(b"stream", 0, range(begin, begin + 10**4), now=0.0)
    assert len(leases._streams[b"stream"].batches) <= LARGEST_WINDOW


def test_ever_new_names_on_one_connection_are_one_client(tmp_path: Path) -> None:
    target = LoaderTarget(tmp_path, Random(0))
    for number in range(500):
        hello = made(Hello, role="augmenter", peer=number.to_bytes(16, "big"), session=1)
        target._wires[1].give([b"connection", *frames_of(hello)])
    target._stop.turns = iter(range(9))
    target._service.run()
    assert len(target._service._clients) == 1
    assert len(target._service._serving.leases._workers) == 1
    target.close()


def test_an_arena_for_which_there_is_no_descriptor_is_refused_in_words() -> None:
    with (
        patch.object(os, "memfd_create", side_effect=OSError(errno.EMFILE, "Too many open files")),
        pytest.raises(FourstageError, match="Too many open files"),
    ):
        Arena.create(1, 4096)


# The trainer


@pytest.mark.parametrize("shift", [np.nan, np.inf, -np.inf])
def test_colour_shifts_that_are_no_numbers_do_not_reach_training(shift: float) -> None:
    draws = Draws(np.zeros((2, 2), np.int32), np.zeros(2, np.bool_), np.zeros((2, 3), np.float32))
    Draws.unpack(memoryview(draws.pack()), 2)
    draws.shifts[1, 2] = shift
    with pytest.raises(PeerError, match="finite"):
        Draws.unpack(memoryview(draws.pack()), 2)


def test_a_stream_that_is_opened_with_no_samples_is_the_loaders_fault() -> None:
    with pytest.raises(PeerError, match="0 samples"):
        Inbox(an_open(), lambda: None).open(made(Opened, samples=0), np.zeros((SIZE, SIZE, 3), np.float32))


def test_a_stream_of_more_samples_than_its_batches_hold_costs_nothing() -> None:
    """One bit more in ``samples``: the order of 268 million was computed, for a minute and in two gigabytes."""
    opened = made(Opened, samples=36 + (1 << 28), batches_per_epoch=9, largest_rows=4)
    tracemalloc.start()
    try:
        with pytest.raises(PeerError, match="268435492 samples in 9 batches of up to 4: the order makes 67108873"):
            Inbox(an_open(), lambda: None).open(opened, np.zeros((SIZE, SIZE, 3), np.float32))
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_a_mean_image_of_another_size_does_not_end_the_trainer(tmp_path: Path) -> None:
    target = FeedTarget(tmp_path, Random(0))
    link = target._feed._link
    target._loader.give(frames_of(made(Welcome, session=link.session, side="/nowhere/at/all")))
    opened = made(Opened, stream=target._inboxes[0].spec.stream, size=SIZE)
    target._loader.give(frames_of(opened, [b"no image"]))
    target._feed._turn()
    assert target._faults._counter._value.get() == 1
    target.close()


def test_ten_thousand_reconnects_do_not_fill_the_feed(tmp_path: Path) -> None:
    target = FeedTarget(tmp_path, Random(0))
    for number in range(10_000):
        hello = made(Hello, role="augmenter", peer=number.to_bytes(16, "big"), session=1)
        target._wire.give([b"connection-%d" % number, *frames_of(hello)])
        if number % 100 == 0:
            target._feed._turn()
    assert len(target._feed._workers._known) <= 4096
    target.close()


def test_batches_of_a_stream_that_is_never_opened_are_not_kept_without_end(tmp_path: Path) -> None:
    target = FeedTarget(tmp_path, Random(0))
    target._feed._turn()
    hello = made(Hello, role="augmenter", peer=bytes(16), session=1)
    target._wire.give([b"connection", *frames_of(hello)])
    batch = made(Batch, stream=target._inboxes[0].spec.stream, session=1)
    for _ in range(1000):
        target._wire.give([b"connection", *frames_of(batch, [bytes(1 << 16)])])
    for _ in range(20):
        target._feed._turn()
    assert 0 < len(target._feed._workers._early) <= 256
    target.close()


# The augmenter


@pytest.mark.parametrize(("sizes", "payload"), [(b"abc", [b""]), (b"", []), (bytes(8), [b""])])
def test_a_lease_without_its_sizes_or_payload_does_not_end_an_augmenter(sizes: bytes, payload: list[bytes]) -> None:
    lease = made(Lease, rows=len(sizes) // 8, sizes=sizes, slot=-1)
    if len(sizes) == 8:
        lease = made(Lease, rows=1, sizes=sizes, slot=-1)
    with pytest.raises(PeerError, match="lease of"):
        JpegSources().jpeg(lease, [memoryview(part) for part in payload])


def _augmenter(folder: Path) -> AugmenterTarget:
    """One that its loader knows."""
    target = AugmenterTarget(folder, Random(0))
    link = target._service._link
    target._loader.give(frames_of(made(Welcome, session=link.session, side="/nowhere/at/all")))
    target._service._turn()
    return target


def _stream(target: AugmenterTarget, **fields: object) -> Stream:
    return target._says.stream(Random(3), **fields)


def test_a_stream_that_ends_and_begins_again_while_its_batch_is_made_does_not_end_an_augmenter(tmp_path: Path) -> None:
    target = _augmenter(tmp_path)
    stream = _stream(target)
    dice = Random(1)
    target._says.streams = [stream.stream]
    lease, payload = target._says.lease(dice, target._service._link.session, 0)
    target._loader.give(frames_of(stream))
    target._loader.give(frames_of(lease, payload))
    target._service._turn()
    outbox = target._service._outboxes[stream.stream]
    assert outbox.leased
    target._loader.give(frames_of(Gone(stream.stream)))
    target._loader.give(frames_of(stream))
    target._service._make(outbox, outbox.leased[0])
    assert target._service._outboxes[stream.stream] is not outbox
    target.close()


@pytest.mark.parametrize("pong", [Pong(sent=0.0, clock=1e12), Pong(sent=1e9, clock=0.0)])
def test_a_loader_whose_clock_shows_the_end_of_time_does_not_end_its_peers(pong: Pong, tmp_path: Path) -> None:
    target = _augmenter(tmp_path)
    target._loader.give(frames_of(pong))
    target._service._turn()
    assert target._service._link.clock_offset == 0.0
    assert target._faults._counter._value.get() == 1
    target.close()


def test_a_crop_larger_than_the_images_is_refused_when_the_stream_is_announced(tmp_path: Path) -> None:
    target = _augmenter(tmp_path)
    target._loader.give(frames_of(made(Stream, stream=bytes(16), size=8)))
    target._service._turn()
    assert not target._service._outboxes
    assert header(Failed) in [sent[0] for sent in target._loader.sent]
    target.close()


def test_a_stream_whose_receiver_is_no_address_leaves_no_arena_behind(tmp_path: Path) -> None:
    target = _augmenter(tmp_path)
    before = open_descriptors()
    for number in range(20):
        target._loader.give(
            frames_of(
                made(
                    Stream,
                    stream=number.to_bytes(16, "big"),
                    size=SIZE,
                    view=_stream(target).view,
                    largest_rows=3,
                    transport="inline",
                    receiver="nowhere",
                )
            )
        )
    target._service._turn()
    assert not target._service._outboxes
    assert open_descriptors() == before
    target.close()


def test_what_a_peer_calls_itself_begins_no_line_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    logger = logging.getLogger("fourstage")
    before = logger.handlers, logger.level, logger.propagate
    try:
        configure_logging("loader")
        logging.getLogger("fourstage.loader.service").info("%s joined", "a\n12:00:00.000 loader ERROR b\x1b[2J\x9b")
    finally:
        logger.handlers, logger.propagate = before[0], before[2]
        logger.setLevel(before[1])
    heard = capsys.readouterr().err
    assert heard.count("\n") == 1
    assert r"a\x0a12:00:00.000 loader ERROR b\x1b[2J\x9b joined" in heard


def test_wires_are_taken_up_again() -> None:
    """What the harness replaces is itself again afterwards."""
    import time

    import zmq

    before = zmq.Context, time.monotonic
    with wires.laid(Random(0)):
        assert (zmq.Context, time.monotonic) != before
    assert (zmq.Context, time.monotonic) == before
