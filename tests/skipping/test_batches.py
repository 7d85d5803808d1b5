"""A batch without some of its rows: closed up in the same way wherever it is looked at."""

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fourstage.augmenter.decode import make_decoder
from fourstage.augmenter.draws import Draws
from fourstage.augmenter.transform import UNTRIED, CorruptRowError, scratch_for, transform, transform_decodable
from fourstage.errors import PeerError
from fourstage.trainer.council import Vote, decide
from fourstage.trainer.inbox import Draws as Travelling
from fourstage.trainer.inbox import FeedBatch, Inbox
from fourstage.trainer.receipt import DIGEST_BYTES, SKIPPED, sample_digests, short_digests, skipped_rows, with_gaps
from fourstage.wire.codec import encode_body
from fourstage.wire.messages import Batch
from tests.trainer.relayed import BATCH, CROP, SIZE, indices_of, mean, opened, pair, request, samples_of

ROWS = st.sets(st.integers(0, BATCH - 1)).map(sorted)
IMAGE = 24


def draws_of(rows: int, size: int, crop: int, seed: int = 1) -> Draws:
    random = np.random.default_rng(seed)
    return Draws(
        random.integers(0, size - crop + 1, (rows, 2), np.int32),
        random.integers(0, 2, rows).astype(np.bool_),
        random.random((rows, 3), np.float32),
    )


def jpeg(seed: int) -> memoryview:
    pixels = np.random.default_rng(seed).integers(0, 256, (IMAGE, IMAGE, 3), np.uint8)
    return memoryview(cv2.imencode(".jpg", pixels)[1].tobytes())


@settings(deadline=None)
@given(st.integers(0, 9), st.data())
def test_what_is_made_is_the_crops_of_the_others_one_behind_another(rows: int, data: st.DataObject) -> None:
    corrupt, skip = (data.draw(st.sets(st.integers(0, max(0, rows - 1)))) if rows else set() for _ in range(2))
    images = [jpeg(row)[: -40 if row in corrupt else None] for row in range(rows)]
    draws, decode, scratch = draws_of(rows, IMAGE, 16), make_decoder("simplejpeg"), scratch_for(IMAGE)
    out = np.full((rows, 16, 16, 3), 7, np.uint8)
    left_out = transform_decodable(images, draws, decode, scratch=scratch, out=out, skip=skip)
    assert list(left_out) == sorted(corrupt | skip)
    assert {row for row, why in left_out.items() if why == UNTRIED} == skip
    there = [row for row in range(rows) if row not in left_out]
    for place, row in enumerate(there):
        alone = np.empty((1, 16, 16, 3), np.uint8)
        transform([images[row]], draws.rows(slice(row, row + 1)), decode, scratch=scratch, out=alone)
        np.testing.assert_array_equal(out[place], alone[0])
    assert (out[len(there) :] == 7).all()


def test_where_nothing_may_be_left_out_the_first_corrupt_row_is_named() -> None:
    images = [jpeg(0), jpeg(1)[:-40], jpeg(2)[:-40]]
    out = np.empty((3, 16, 16, 3), np.uint8)
    with pytest.raises(CorruptRowError) as raised:
        transform(images, draws_of(3, IMAGE, 16), make_decoder("auto"), scratch=scratch_for(IMAGE), out=out)
    assert raised.value.row == 1


def inbox(on_corrupt: str = "skip") -> Inbox:
    made = Inbox(request(on_corrupt=on_corrupt, transport="inline"), lambda: None)
    made.open(opened(), mean())
    return made


def pixels_of(rows: int) -> NDArray[np.uint8]:
    return np.random.default_rng(9).integers(0, 256, (rows, CROP, CROP, 3), np.uint8)


def deliver(into: Inbox, skipped: tuple[int, ...], *, pixels: int | None = None) -> FeedBatch:
    """Batch 0 arrives inline. pixels: images that come with it."""
    draws = draws_of(BATCH, SIZE, CROP)
    message = Batch(
        stream=bytes(16), seq=0, session=1, number=1, slot=-1, rows=BATCH, identity=b"pixels", code=bytes(16),
        skipped=skipped,
    )  # fmt: skip
    payload = [
        encode_body(samples_of(indices_of(0))),
        Travelling(draws.offsets, draws.reflections, draws.shifts).pack(),
        pixels_of(BATCH - len(skipped) if pixels is None else pixels).tobytes(),
    ]
    batch = into.unpack(message, [memoryview(part) for part in payload], None, worker=b"w" * 16)
    into.put(batch)
    return batch


@given(ROWS)
def test_a_batch_that_arrives_is_closed_up_and_says_what_it_lacks(skipped: list[int]) -> None:
    batch, whole = deliver(inbox(), tuple(skipped)), deliver(inbox(), ())
    there = [row for row in range(BATCH) if row not in skipped]
    assert batch.place == whole.place
    assert batch.keys == tuple(whole.keys[row] for row in there)
    for name in ("indices", "labels", "offsets", "reflections", "shifts"):
        np.testing.assert_array_equal(getattr(batch, name), getattr(whole, name)[there])
    assert len(batch.pixels) == len(there)
    assert [(sample.row, sample.key, sample.index) for sample in batch.skipped] == [
        (row, whole.keys[row], int(whole.indices[row])) for row in skipped
    ]


@pytest.mark.parametrize("skipped", [(1, 0), (2, 2), (BATCH,)])
def test_rows_that_cannot_be_skipped_are_refused(skipped: tuple[int, ...]) -> None:
    with pytest.raises(PeerError, match="expected in ascending order"):
        deliver(inbox(), skipped)


def test_a_stream_that_skips_nothing_takes_no_batch_without_a_row() -> None:
    with pytest.raises(PeerError, match="of a stream that skips none"):
        deliver(inbox("fail"), (1,))


def test_pixels_of_a_row_that_is_said_to_be_skipped_are_refused() -> None:
    with pytest.raises(PeerError, match="without the"):
        deliver(inbox(), (1,), pixels=BATCH)


@settings(deadline=None, max_examples=15)
@given(ROWS)
def test_the_second_column_sees_the_same_closed_up_batch(
    tmp_path_factory: pytest.TempPathFactory, skipped: list[int]
) -> None:
    with pair(tmp_path_factory.mktemp("relay"), spec=request(on_corrupt="skip", transport="inline")) as ends:
        deliver(ends.inbox, tuple(skipped))
        mine, theirs = ends.take()
        assert (mine.keys, mine.skipped, mine.place) == (theirs.keys, theirs.skipped, theirs.place)
        for name in ("indices", "labels", "offsets", "reflections", "shifts", "pixels"):
            np.testing.assert_array_equal(getattr(mine, name), getattr(theirs, name))
        assert sample_digests(mine, b"") == sample_digests(theirs, b"")


@given(ROWS)
def test_the_digests_of_a_batch_say_which_rows_were_skipped(skipped: list[int]) -> None:
    batch, whole = deliver(inbox(), tuple(skipped)), sample_digests(deliver(inbox(), ()), b"")
    found = with_gaps(sample_digests(batch, b""), skipped)
    expected = bytearray(whole)
    for row in skipped:
        expected[row * DIGEST_BYTES : (row + 1) * DIGEST_BYTES] = bytes(DIGEST_BYTES)
    assert found == expected
    assert skipped_rows(found) == tuple(skipped)
    words = np.frombuffer(short_digests(found), "<u4")
    assert np.flatnonzero(words == SKIPPED).tolist() == skipped
    assert (words > 0).all()


def test_zeros_across_two_digests_are_no_skipped_row() -> None:
    half = bytes(DIGEST_BYTES // 2)
    assert skipped_rows(b"\1" * 8 + half + half + b"\1" * 8) == ()
    low = np.array([[0, 1, 1, 1], [1, 0, 0, 0], [0, 0, 0, 0]], "<u4").tobytes()
    assert np.frombuffer(short_digests(low), "<u4").tolist() == [2, 2, SKIPPED]


@given(st.lists(st.tuples(st.integers(0, 5), st.data()), min_size=1, max_size=4))
def test_each_share_knows_where_its_rows_lie_among_those_that_are_there(
    shares: list[tuple[int, st.DataObject]],
) -> None:
    gone = [data.draw(st.lists(st.booleans(), min_size=rows, max_size=rows)) for rows, data in shares]
    votes = [Vote(True, samples=b"".join(bytes(16) if out else b"\7" * 16 for out in share)) for share in gone]
    decision = decide(votes, 1)
    first = there = 0
    for share in gone:
        assert decision.closed_up(first) == there
        first, there = first + len(share), there + share.count(False)
    assert first - len(decision.skipped) == there
