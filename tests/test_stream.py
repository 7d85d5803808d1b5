"""BatchStream over one running service: what comes, in which order, and how a loop finds its place again."""

import json
import os
import shutil
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fourstage import BatchStream
from fourstage.errors import CheckpointError, CorruptSampleError, FourstageError, PeerLostError, SettingsError
from fourstage.order import permutation
from fourstage.store.prepare import prepare
from fourstage.stream import StreamBatch
from fourstage.trainer.copy import slot_tensor
from tests.decoding.stores import with_a_truncated_image
from tests.pipeline.harness import CROP, SIZE, eventually, services, write_photographs
from tests.ports import free_address
from tests.streams import BATCH, BATCHES, PER_CLASS, SAMPLES, SEED, Expected, assert_same, make, without


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("p")
    write_photographs(folder, "train", PER_CLASS)
    prepare(folder / "train", folder / "store", size=SIZE, workers=1)
    return folder / "store"


@pytest.fixture(scope="module")
def expected(store: Path) -> Expected:
    return Expected.of(store)


@pytest.fixture(scope="module")
def service(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The TCP address of a loader with two augmenters."""
    address = free_address()
    with services(store, tmp_path_factory.mktemp("s"), 2, [f"loader.address={address}"]):
        yield address


@pytest.fixture
def stream(service: str) -> Iterator[BatchStream]:
    with make(service) as opened:
        yield opened


def take(stream: BatchStream, count: int) -> list[StreamBatch]:
    """The first batches of a new iteration, which is then left."""
    return list(islice(stream, count))


# What comes


def test_each_epoch_has_every_sample_once_in_an_order_of_its_own(stream: BatchStream, expected: Expected) -> None:
    epochs = [list(stream), list(stream)]
    for number, batches in enumerate(epochs):
        assert_same(batches, expected.epoch(number))
        keys = [key for batch in batches for key in batch["keys"]]
        assert sorted(keys) == sorted(expected.images)
        assert torch.cat([batch["positions"] for batch in batches]).tolist() == list(range(SAMPLES))
    assert epochs[0][0]["keys"] != epochs[1][0]["keys"]


def test_it_says_what_it_is(stream: BatchStream, service: str) -> None:
    assert (len(stream), stream.samples, stream.classes) == (BATCHES, SAMPLES, ("blot", "dash", "plus"))
    assert (stream.epoch, stream.address) == (0, service)


def test_a_callers_tensors_are_its_own(stream: BatchStream, expected: Expected) -> None:
    iterator = iter(stream)
    first = next(iterator)
    first["images"].zero_()
    later = list(iterator)
    assert not first["images"].any()
    assert_same(later, expected.epoch(0)[1:])


def test_borrowed_images_are_views_on_slots_that_are_used_again(service: str, expected: Expected) -> None:
    with make(service, borrow=True) as stream:
        addresses = set()
        for epoch in range(4):
            for batch, own in zip(stream, expected.epoch(epoch), strict=True):
                assert_same([batch], [own])
                addresses.add(batch["images"].data_ptr())
    assert len(addresses) < 4 * BATCHES


def test_finished_batches_are_floats_less_the_mean_with_their_colour_shift(service: str, expected: Expected) -> None:
    mean = expected.store.statistics.mean.astype(np.float32)
    with make(service, finish=True, device="cpu") as stream:
        batch = next(iter(stream))
    raw, draws = expected.batch(0), expected.draws(0, BATCH)
    assert batch["images"].shape == (BATCH, 3, CROP, CROP)
    assert batch["images"].is_contiguous(memory_format=torch.channels_last)
    assert draws.shifts.any()
    for row, (top, left) in enumerate(draws.offsets):
        own = mean[top : top + CROP, left : left + CROP]
        own = own[:, ::-1] if draws.reflections[row] else own
        wanted = (raw["images"][row].numpy().astype(np.float32) - own) + draws.shifts[row]
        assert np.array_equal(batch["images"][row].permute(1, 2, 0).numpy(), wanted)


@pytest.mark.parametrize(("view", "size"), [("full", SIZE), ("centre", CROP)])
def test_other_views_come_in_the_splits_own_order(service: str, expected: Expected, view: str, size: int) -> None:
    edge = (SIZE - size) // 2
    with make(service, view=view) as stream:
        batches = list(stream)
    keys = [key for batch in batches for key in batch["keys"]]
    assert keys == sorted(expected.images)
    wanted = np.stack([expected.images[key][edge : edge + size, edge : edge + size] for key in keys])
    assert np.array_equal(torch.cat([batch["images"] for batch in batches]).numpy(), wanted)


def test_a_dropped_remainder_leaves_the_smaller_batch_out(service: str, expected: Expected) -> None:
    with make(service, remainder="drop") as stream:
        assert len(stream) == BATCHES - 1
        assert_same(list(stream), expected.epoch(0)[:-1])


@pytest.mark.parametrize("finish", [False, True])
def test_shares_of_a_batch_partition_it_and_may_be_empty(service: str, expected: Expected, finish: bool) -> None:
    world = 7
    shares = []
    for rank in range(world):
        with make(service, rank=rank, world=world, finish=finish) as stream:
            shares.append(list(stream))
    for whole, parts in zip(expected.epoch(0), zip(*shares, strict=True), strict=True):
        assert [key for part in parts for key in part["keys"]] == whole["keys"]
        assert torch.cat([part["labels"] for part in parts]).equal(whole["labels"])
        assert finish or torch.cat([part["images"] for part in parts]).equal(whole["images"])
    assert shares[0][-1]["images"].shape == ((0, 3, CROP, CROP) if finish else (0, CROP, CROP, 3))


def test_a_slots_tensor_needs_neither_rows_nor_write_access_and_warns_of_nothing() -> None:
    pixels = np.frombuffer(bytes(range(48)), np.uint8).reshape(1, 4, 4, 3)
    assert not pixels.flags.writeable
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert slot_tensor(pixels).flatten().tolist() == list(range(48))
        assert slot_tensor(np.empty((0, 4, 4, 3), np.uint8)).shape == (0, 4, 4, 3)


# The place in it


def test_an_iteration_after_a_break_begins_the_next_epoch(stream: BatchStream, expected: Expected) -> None:
    take(stream, 2)
    assert stream.epoch == 0
    assert_same(take(stream, 1), expected.epoch(1)[:1])
    assert_same(list(stream), expected.epoch(2))
    assert stream.epoch == 3


def test_a_break_at_the_last_batch_loses_nothing(stream: BatchStream, expected: Expected) -> None:
    assert_same(take(stream, BATCHES), expected.epoch(0))
    assert_same(take(stream, 1), expected.epoch(1)[:1])


def test_an_iterator_that_gave_nothing_takes_nothing_away(stream: BatchStream, expected: Expected) -> None:
    iter(stream)
    assert_same(take(stream, 1), expected.epoch(0)[:1])


def test_an_older_iterator_is_refused_and_one_that_is_over_stays_over(stream: BatchStream) -> None:
    older = iter(stream)
    newer = iter(stream)
    with pytest.raises(FourstageError, match="replaced by a newer one"):
        next(older)
    assert len(list(newer)) == BATCHES
    assert list(newer) == []


@pytest.mark.parametrize("used", [0, 2, BATCHES - 1, BATCHES, BATCHES + 3])
def test_a_state_brings_another_stream_to_the_same_place(service: str, expected: Expected, used: int) -> None:
    with make(service) as stream:
        for _ in range(used // BATCHES):
            list(stream)
        iterator = iter(stream)
        for _ in range(used % BATCHES):
            next(iterator)
        state = json.loads(json.dumps(stream.state_dict()))
    assert (state["epoch"], state["batch"]) == divmod(used, BATCHES)
    with make(service) as other:
        other.load_state_dict(state)
        assert other.epoch == used // BATCHES
        assert_same(list(other), expected.epoch(used // BATCHES)[used % BATCHES :])
        assert_same(list(other), expected.epoch(used // BATCHES + 1))


def test_a_state_counts_the_batch_in_hand_as_used_unless_it_is_to_come_again(
    stream: BatchStream, expected: Expected
) -> None:
    iterator = iter(stream)
    next(iterator)
    next(iterator)
    assert (stream.state_dict()["batch"], stream.state_dict(again=True)["batch"]) == (2, 1)
    stream.load_state_dict(stream.state_dict(again=True))
    assert (stream.state_dict()["batch"], stream.state_dict(again=True)["batch"]) == (1, 1)
    assert_same(list(iterator), expected.epoch(0)[1:])
    assert stream.state_dict(again=True)["epoch"] == 1


def test_a_state_loaded_amid_an_iteration_moves_it(stream: BatchStream, expected: Expected) -> None:
    state = stream.state_dict() | {"epoch": 4, "batch": 3}
    iterator = iter(stream)
    next(iterator)
    stream.load_state_dict(state)
    assert_same(list(iterator), expected.epoch(4)[3:])
    stream.load_state_dict(state)
    assert_same(list(stream), expected.epoch(4)[3:])
    assert_same(take(stream, 1), expected.epoch(5)[:1])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"fingerprint": "0" * 64}, "fingerprint = '000"),
        ({"batch_size": 16}, r"saved with batch_size = 16, this stream has batch_size = 8"),
        ({"seed": 6, "world": 2}, r"saved with seed = 6, world = 2, this stream has seed = 5, world = 1"),
        ({"crop": 24}, "crop = 24"),
        ({"identity": "00" * 16}, "pixels of identity 0000"),
        ({"identity": 7}, "identity is 7"),
        ({"version": 0}, "version 0"),
        ({"epoch": "2"}, "not numbers"),
        ({"batch": BATCHES}, f"batch {BATCHES} of {BATCHES}"),
    ],
)
def test_a_state_of_another_stream_is_refused(
    another: tuple[BatchStream, dict[str, Any]], change: dict[str, Any], words: str
) -> None:
    stream, state = another
    with pytest.raises(CheckpointError, match=words):
        stream.load_state_dict(state | change)


@pytest.fixture(scope="module")
def another(service: str) -> Iterator[tuple[BatchStream, dict[str, Any]]]:
    """A stream that has given a batch, and its state."""
    with make(service) as stream:
        take(stream, 1)
        yield stream, stream.state_dict()


def test_a_batch_that_an_interrupt_swallowed_comes_again(
    stream: BatchStream, expected: Expected, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(_: object) -> StreamBatch:
        raise KeyboardInterrupt

    iterator = iter(stream)
    next(iterator)
    with monkeypatch.context() as patch:
        patch.setattr(stream, "_unpack", interrupted)
        with pytest.raises(KeyboardInterrupt):
            next(iterator)
    assert_same(list(iterator), expected.epoch(0)[1:])


# What cannot work


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"workers": 2}, "workers = 2 with the running service"),
        ({"settings": {"augmenter.slots": 4}}, r"settings\['augmenter.slots'\] has no effect"),
        ({"settings": {"train.momentum": 0.5}}, r"settings\['train.momentum'\] has no effect"),
        ({"settings": {"augmenter.crop": "big"}}, "augmenter.crop = 'big'"),
        ({"borrow": True, "finish": True}, "leave out device and finish"),
        ({"rank": 2, "world": 2}, "rank = 2 of world = 2"),
        ({"rank": 1}, "rank = 1 and world = None; give both"),
        ({"batch_size": SAMPLES + 1, "remainder": "drop"}, "makes no batch of 45 samples"),
        ({"settings": {"augmenter.crop": SIZE + 1}}, "larger than the store's images"),
        ({"split": "valid"}, "has no split 'valid', only train"),
    ],
)
def test_what_cannot_work_is_refused(service: str, arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(FourstageError, match=words):
        make(service, **arguments)


def test_a_stream_that_starts_processes_is_not_told_the_loaders_address(store: Path) -> None:
    with pytest.raises(SettingsError, match=r"loader\.address"):
        make(store, settings={"loader.address": "tcp://127.0.0.1:5555"})


def test_a_loader_that_is_away_is_named_in_time() -> None:
    address = free_address()
    began = time.monotonic()
    with pytest.raises(PeerLostError, match=rf"no loader answers at {address} .*; start one with fourstage loader"):
        make(address, timeout=1.0)
    assert time.monotonic() - began < 5.0


def test_a_service_without_augmenters_is_named_in_time(store: Path, tmp_path: Path) -> None:
    with services(store, tmp_path, 0) as running:
        eventually((tmp_path / "loader.address").exists, "a loader")
        with make(running.address, timeout=2.0) as stream:
            iterator = iter(stream)
            with pytest.raises(PeerLostError, match="no augmenter is connected; start one with fourstage augmenter"):
                next(iterator)


def test_a_closed_stream_says_so(service: str) -> None:
    stream = make(service)
    iterator = iter(stream)
    next(iterator)
    stream.close()
    stream.close()
    with pytest.raises(FourstageError, match="closed"):
        next(iterator)
    assert stream.state_dict()["batch"] == 1


def test_a_forked_process_is_refused_and_takes_nothing_away(stream: BatchStream, expected: Expected) -> None:
    iterator = iter(stream)
    first = next(iterator)
    with warnings.catch_warnings():
        # Newer Pythons warn of forks amid threads, which is what this is about.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        try:
            next(iterator)
        except FourstageError as error:
            stream.close()
            os._exit(7 if "fork" in str(error) else 1)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    assert_same([first, *iterator], expected.epoch(0))


def test_importing_fourstage_is_light_and_a_missing_torch_is_named() -> None:
    script = """
import sys, fourstage
assert not {"torch", "zmq", "numpy", "pydantic"} & set(sys.modules), sorted(sys.modules)
import fourstage.cli
assert "torch" not in sys.modules, "loader and augmenters start without torch"
assert {"BatchStream", "open_store"} <= set(fourstage.__all__)
sys.modules["torch"] = None
try:
    fourstage.BatchStream
except ImportError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.stdout == 'BatchStream needs torch: pip install "fourstage[train]"\n', done.stderr


@pytest.fixture(scope="module")
def damaged(store: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, set[str]]:
    """The store with images that cannot be decoded, and their keys: a whole batch of the first epoch, and one more."""
    path = tmp_path_factory.mktemp("d") / "store"
    shutil.copytree(store, path)
    corrupt = permutation(SEED, 0, SAMPLES)[[3, *range(2 * BATCH, 3 * BATCH)]].tolist()
    return path, {with_a_truncated_image(path, index) for index in corrupt}


SKIP = {"on_corrupt": "skip", "corrupt_share": 0.5}


def test_what_cannot_be_decoded_is_left_out_and_the_others_keep_their_draws(
    damaged: tuple[Path, set[str]], expected: Expected
) -> None:
    path, keys = damaged
    received, named = [], []
    with make(path, workers=2, settings=SKIP) as stream:
        for _ in range(2):
            for batch in stream:
                received.append(batch)
                named.append(stream.skipped)
        assert stream.skipped == ()
    whole = expected.epoch(0) + expected.epoch(1)
    assert_same(received, [without(batch, keys) for batch in whole])
    assert named == [tuple(key for key in batch["keys"] if key in keys) for batch in whole]
    assert len(received[2]["images"]) == len(received[2]["positions"]) == 0


def test_a_loop_that_goes_on_from_a_state_has_the_budget_that_it_had(damaged: tuple[Path, set[str]]) -> None:
    with make(damaged[0], workers=1, settings={**SKIP, "corrupt_count": 9}) as stream:
        batches = iter(stream)
        next(batches)
        first = stream.state_dict()
        assert stream.state_dict(again=True)["budget"]["known"] == []
        list(batches)
        every = stream.state_dict()
    assert len(first["budget"]["known"]) == 1
    assert len(every["budget"]["known"]) == 9
    with make(damaged[0], workers=1, settings={**SKIP, "corrupt_count": 8}) as stream:
        stream.load_state_dict(json.loads(json.dumps(first)))
        with pytest.raises(CorruptSampleError, match=r"9 different samples .*: corrupt_count allows 8"):
            list(stream)
        stream.load_state_dict(every)
        with pytest.raises(CorruptSampleError, match=r"9 different samples .*: corrupt_count allows 8"):
            list(stream)


def test_unless_told_otherwise_a_corrupt_sample_ends_the_loop_by_its_name(damaged: tuple[Path, set[str]]) -> None:
    with make(damaged[0], workers=1) as stream, pytest.raises(CorruptSampleError, match="cannot be decoded"):
        list(stream)


def test_limits_of_what_is_never_left_out_are_refused(store: Path) -> None:
    with pytest.raises(SettingsError, match="corrupt_count = 3 with on_corrupt"):
        make(store, settings={"corrupt_count": 3})
