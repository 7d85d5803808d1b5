"""The books of leases against a world that loses messages, workers and the loader itself."""

import random
from collections.abc import Callable
from typing import TypeAlias

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from fourstage.loader.book import READ_AHEAD
from fourstage.loader.leases import LOST_BEFORE_REFUSED, Grant, Leases
from fourstage.loader.suspects import PROOFS
from tests.loader.world import IDENTITY, TIMING, Worker, World

S = b"stream"
SLOTS = 4
Steps: TypeAlias = tuple[Callable[[], object], ...]
Pick = st.integers(0, 7)
Few = st.integers(0, 3)
FAULTS = ("die", "freeze", "thaw", "fill", "drain", "refuse")


class LeasesMachine(RuleBasedStateMachine):
    """Anything may happen in any order: ``World`` checks every grant, ``teardown`` that nothing is stuck."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World()

    def worker(self, pick: int) -> Worker:
        workers = [*self.world.workers.values()]
        return workers[pick % len(workers)]

    def stream(self, pick: int) -> bytes:
        return [*self.world.trainers][pick % len(self.world.trainers)]

    @initialize(batches=st.integers(6, 40), slots=st.lists(st.integers(1, 5), min_size=1, max_size=3), rounds=Few)
    def begin(self, batches: int, slots: list[int], rounds: int) -> None:
        self.world.open(start=0, batches=batches, window=0)
        for number in slots:
            self.world.hire(slots=number)
        self.go_on(rounds)

    @rule(rounds=Few)
    def go_on(self, rounds: int) -> None:
        for _ in range(rounds):
            self.world.round()

    @rule(seconds=st.sampled_from((0.1, 0.6, 1.2, 6.0)))
    def time_passes(self, seconds: float) -> None:
        self.world.tick(seconds)

    @rule()
    def loader_acts(self) -> None:
        self.world.load()
        self.world.plan()

    @rule(pick=Pick, beats=Few, sent=Few, received=Few, made=Few)
    def worker_acts(self, pick: int, beats: int, sent: int, received: int, made: int) -> None:
        worker = self.worker(pick)
        for _ in range(received):
            self.world.hear_loader(worker)
        for _ in range(made):
            self.world.work(worker)
        for _ in range(beats):
            self.world.beat(worker)
        for _ in range(sent):
            self.world.hear_worker(worker)

    @precondition(lambda self: self.world.trainers)
    @rule(pick=Pick, which=Pick, batches=Few, used=Few, report=st.sampled_from((None, -1, -1, -2, -3)))
    def trainer_acts(self, pick: int, which: int, batches: int, used: int, report: int | None) -> None:
        stream = self.stream(pick)
        for _ in range(batches):
            self.world.hear_batch(self.worker(which), stream)
        for _ in range(used):
            self.world.consume(stream)
        self.world.hear_holds(self.worker(which), stream)
        self.world.report(stream)
        if report is not None:
            self.world.hear_report(stream, report)

    @precondition(lambda self: len(self.world.trainers) < 3)
    @rule(start=Few, batches=st.integers(1, 12), window=st.sampled_from((0, 0, 1, 5)))
    def open(self, start: int, batches: int, window: int) -> None:
        self.world.open(start=start, batches=batches, window=window)

    @precondition(lambda self: len(self.world.trainers) > 1)
    @rule(pick=Pick)
    def close(self, pick: int) -> None:
        self.world.close(self.stream(pick))

    @precondition(lambda self: len(self.world.workers) < 8)
    @rule(slots=st.integers(1, 5), identity=st.sampled_from((IDENTITY, IDENTITY, IDENTITY, b"others")))
    def hire(self, slots: int, identity: bytes) -> None:
        self.world.hire(slots=slots, identity=identity)

    @rule(pick=Pick, fault=st.sampled_from(FAULTS))
    def worker_fails(self, pick: int, fault: str) -> None:
        worker = self.worker(pick)
        match fault:
            case "die":
                self.world.fault_kill(worker)
            case "freeze" | "thaw":
                self.world.fault_freeze(worker, frozen=fault == "freeze")
            case "fill" | "drain":
                self.world.fault_fill(worker, full=fault == "fill")
            case "refuse":
                self.world.hear_loader(worker, refused=True)

    @rule(pick=Pick)
    def death_is_noticed(self, pick: int) -> None:
        self.world.notice_death(self.worker(pick))

    @rule(pick=Pick, noticed=st.booleans())
    def connection_to_the_loader_breaks(self, pick: int, noticed: bool) -> None:
        self.world.fault_lose_loader(self.worker(pick), noticed=noticed)

    @precondition(lambda self: self.world.trainers)
    @rule(pick=Pick, which=Pick)
    def connection_to_a_trainer_breaks(self, pick: int, which: int) -> None:
        self.world.fault_lose_trainer(self.worker(which), self.stream(pick))

    @rule(delivered=st.booleans(), reopened=st.booleans())
    def loader_restarts(self, delivered: bool, reopened: bool) -> None:
        self.world.fault_restart_loader(delivered=delivered)
        for stream in self.world.trainers if reopened else ():
            self.world.reopen(stream)

    def teardown(self) -> None:
        self.world.settle()


def walk(seed: int, steps: int) -> None:
    """A long walk through the same machine in which faults are rare: it gets deeper than hypothesis, which shrinks."""
    dice = random.Random(seed)
    machine = LeasesMachine()
    machine.begin(dice.randint(6, 40), [dice.randint(1, 5) for _ in range(dice.randint(1, 3))], dice.randint(0, 3))

    def few() -> int:
        return dice.randint(0, 3)

    def pick() -> int:
        return dice.randint(0, 7)

    usual: Steps = (
        lambda: machine.time_passes(dice.choice((0.1, 0.1, 0.1, 0.6, 0.6, 1.2, 6.0))),
        lambda: machine.loader_acts(),
        lambda: machine.worker_acts(pick(), few(), few(), few(), few()),
        lambda: machine.worker_acts(pick(), few(), few(), few(), few()),
        lambda: machine.worker_acts(pick(), few(), few(), few(), few()),
        lambda: machine.trainer_acts(pick(), pick(), few(), few(), dice.choice((None, -1, -1, -2, -3))),
        lambda: machine.trainer_acts(pick(), pick(), few(), few(), dice.choice((None, -1, -1, -2, -3))),
    )
    unusual: Steps = (
        lambda: machine.go_on(1),
        lambda: machine.hire(dice.randint(1, 5), IDENTITY) if len(machine.world.workers) < 8 else None,
        lambda: machine.worker_fails(pick(), dice.choice(FAULTS)),
        lambda: machine.worker_fails(pick(), dice.choice(("thaw", "drain"))),
        lambda: machine.death_is_noticed(pick()),
        lambda: machine.connection_to_the_loader_breaks(pick(), dice.random() < 0.5),
        lambda: machine.connection_to_a_trainer_breaks(pick(), pick()),
    )
    rare: Steps = (
        lambda: machine.open(few(), dice.randint(1, 12), dice.choice((0, 0, 1, 5))),
        lambda: machine.close(0) if len(machine.world.trainers) > 1 else None,
        lambda: machine.loader_restarts(dice.random() < 0.5, dice.random() < 0.5),
    )
    for _ in range(dice.randint(5, steps)):
        dice.choice(dice.choices((usual, unusual, rare), (30, 5, 1))[0])()
    machine.teardown()


@pytest.mark.parametrize("seed", range(4))
def test_long_walks_through_rare_faults_end_well(seed: int) -> None:
    for number in range(300):
        walk(1000 * seed + number, steps=200)


TestAnythingMayHappen = LeasesMachine.TestCase
TestAnythingMayHappen.settings = settings(max_examples=100, stateful_step_count=50, deadline=None, derandomize=True)


# One thing at a time


class Books(Leases):
    """Books of one stream, all of it loaded, with the calls in the words of these tests."""

    def missing(self) -> list[tuple[bytes, int]]:
        """What is to be loaded, the emptiest stream's first."""
        return [(stream, seq) for stream in self.emptiest() for seq in self.wanted(stream)]

    def __init__(self, *, batches: int = 20, window: int = 0, identity: bytes = b"", rows: int = 4) -> None:
        super().__init__(TIMING)
        self.open(S, start=0, end=batches, window=window, identity=identity, rows=lambda _: rows)

    def employ(self, name: str, free: int, *, identity: bytes = IDENTITY, now: float = 0.0) -> None:
        self.join(name, identity, now)
        self.say(name, free=free, now=now)

    def say(self, name: str, *, seen: int = 0, held: tuple[int, ...] = (), free: int = 0, now: float = 0.0) -> None:
        self.beat(name, seen=seen, held=[(S, seq) for seq in held], slots=[(S, free, SLOTS)], now=now)

    def give(self, now: float = 0.0) -> list[tuple[str, int]]:
        """Load and give everything that can be given: worker and sequence number."""
        for stream, seq in self.missing():
            self.loaded(stream, seq)
        return [(str(grant.worker), grant.seq) for grant in self.plan(now)]


def test_a_worker_keeps_one_free_slot_for_the_batch_that_training_waits_for() -> None:
    books = Books()
    books.employ("a", free=3)
    assert books.give() == [("a", 0), ("a", 1)]
    books.say("a", seen=2, held=(1,), free=1)  # Batch 0 was lost, 1 lies finished.
    books.progress(S, 0, (), now=TIMING.missing + 0.1)
    books.tick(TIMING.missing + 0.1)
    assert books.give(1.2) == [("a", 0)]
    books.say("a", seen=3, held=(0, 1), free=0, now=1.2)
    assert books.give(1.2) == []


def test_a_worker_with_a_single_slot_makes_one_head_after_the_other() -> None:
    books = Books(batches=3)
    books.employ("a", free=1)
    given = []
    for seq in range(3):
        given += books.give()
        books.say("a", seen=seq + 1, held=(seq,), free=0)
        assert books.give() == []
        books.progress(S, seq + 1, (), now=0.0)
        books.say("a", seen=seq + 1, free=1)
    assert given == [("a", 0), ("a", 1), ("a", 2)]


def test_the_batches_of_a_silent_worker_go_to_others_and_it_gets_no_more() -> None:
    books = Books()
    books.employ("a", free=3)
    assert books.give() == [("a", 0), ("a", 1)]
    assert books.tick(4.9) == []
    assert books.tick(5.1) == ["a"]
    assert books.give(5.1) == []
    books.employ("b", free=4, now=5.1)
    assert books.give(5.1) == [("b", 0), ("b", 1), ("b", 2)]
    assert books.tick(5.2) == [], "a silence is reported once"
    books.say("a", seen=2, held=(0, 1), free=1, now=6.0)
    books.say("b", seen=3, held=(0, 1, 2), free=1, now=6.0)
    books.progress(S, 0, (0,), now=6.0)
    assert books.give(6.0) == [], "both hold batch 1, whichever copy comes first is used"


def test_a_slow_head_is_given_to_a_second_worker_and_no_other_batch_is() -> None:
    books = Books()
    books.employ("a", free=3)
    assert books.give() == [("a", 0), ("a", 1)]
    books.say("a", seen=2, held=(0, 1), free=1)
    for name in ("b", "c"):
        books.employ(name, free=1)
    assert books.give(TIMING.hedge) == []
    assert books.give(TIMING.hedge + 0.1) == [("b", 0)]
    assert books.give(3 * TIMING.hedge) == []
    books.progress(S, 0, (0,), now=3 * TIMING.hedge)
    assert books.give(3 * TIMING.hedge) == [("c", 1)], "now this is the head"
    assert books.redispatched(S) == 2


def test_a_head_whose_holders_never_deliver_goes_to_one_worker_after_the_other() -> None:
    """Two that reached the loader and not the trainer kept it for ever: the run stood still, with others idle."""
    books = Books(batches=1)
    for name in ("a", "b", "c", "d"):
        books.employ(name, free=1)
    given: dict[str, float] = {}
    for tenth in range(100):
        now = tenth / 10
        given |= {name: now for name, _ in books.give(now)}
        for name in given:
            books.say(name, seen=1, held=(0,), now=now)
    assert list(given) == ["a", "b", "c", "d"]
    assert [round(at) for at in given.values()] == [0, 1, 3, 6]


def test_a_trial_whose_holder_never_ends_it_goes_to_another_worker() -> None:
    books = Books(batches=1, rows=8)
    for number in range(3):
        books.employ(f"chance {number}", free=3)
        books.give()
        books.leave(f"chance {number}", died=True)
    for name in ("a", "b"):
        books.employ(name, free=3)
    assert books.give() == [("a", 0)]
    assert books.give(TIMING.hedge + 0.1) == [("b", 0)]
    assert books.leave("a", died=True) == []
    assert books.leave("b", died=True) == [], "of a trial that is over: its rows are not the present ones"
    books.employ("c", free=3)
    assert [grant.trial for grant in books.plan(0.0)] == [(0, 2)]


def test_a_worker_that_fell_silent_over_a_batch_before_it_died_accuses_it() -> None:
    """A decoder that hangs is ended by a watchdog, long after its leases went to others, which hung as well."""
    books = Books(batches=1)
    for number in range(3):
        books.employ(f"worker {number}", free=3, now=10.0 * number)
        assert books.give(10.0 * number) == [(f"worker {number}", 0)]
        assert books.tick(10.0 * number + 6.0) == [f"worker {number}"]
    for number in range(3):
        assert books.suspected(S) is None
        books.leave(f"worker {number}", died=True)
    assert books.suspected(S) == 0


def test_a_worker_that_was_silent_and_speaks_again_accuses_nothing_that_it_no_longer_has() -> None:
    books = Books(batches=1)
    for number in range(3):
        books.employ(f"worker {number}", free=3, now=10.0 * number)
        books.give(10.0 * number)
        books.tick(10.0 * number + 6.0)
        books.say(f"worker {number}", seen=1, now=10.0 * number + 7.0)
        books.leave(f"worker {number}", died=True)
    assert books.suspected(S) is None


@pytest.mark.parametrize(("workers", "rounds"), [(2, 24), (4, 30), (8, 40)])
def test_workers_whose_trainer_is_cut_off_from_the_loader_have_lost_nothing(workers: int, rounds: int) -> None:
    """Batches that it had and could not name counted as lost: after ten seconds every worker was refused, for good."""
    world = World()
    stream = world.open(start=0, batches=400, window=0)
    for _ in range(workers):
        world.hire(slots=3)
    for _ in range(6):
        world.round()
    for _ in range(rounds):
        world.round(told=False)
    again = world.leases.redispatched(stream)
    assert again <= workers, "nothing but the head, which is the trainer's next batch for all that is known"
    assert world.leases.careless() == []
    world.settle()
    assert world.leases.redispatched(stream) == again


def test_a_worker_that_loses_a_lease_now_and_then_is_not_refused() -> None:
    books = Books(batches=10_000, window=8)
    books.employ("a", free=3)
    given = 0
    for number in range(2 * LOST_BEFORE_REFUSED):
        now = 2.0 * number
        seqs = [seq for _, seq in books.give(now)]
        given += len(seqs)
        books.say("a", seen=given, free=3, now=now)
        # The first has arrived, the other is nowhere.
        books.progress(S, seqs[0] + 1, (), now=now + 1.5)
        books.tick(now + 1.5)
        assert books.careless() == []
    assert books.redispatched(S) > LOST_BEFORE_REFUSED


def test_slow_is_measured_by_what_leases_usually_take() -> None:
    books = Books()
    books.employ("a", free=3)
    books.employ("b", free=1)
    assert books.give() == [("a", 0), ("a", 1)]
    books.say("a", seen=2, held=(0, 1), free=1, now=29.0)
    books.progress(S, 1, (), now=30.0)
    assert books.give(3 * 0.2 * 30.0 - 0.1) == []
    assert books.give(3 * 0.2 * 30.0 + 0.1) == [("b", 1)]


def test_a_slow_head_without_a_second_worker_does_not_hold_up_the_others() -> None:
    books = Books()
    books.employ("a", free=2)
    assert books.give() == [("a", 0)]
    books.say("a", seen=1, held=(0,), free=3, now=9.0)
    assert books.give(9.0) == [("a", 1), ("a", 2)], "and its holder is not asked for it again"


def test_a_lease_that_its_holder_does_not_name_is_given_again_but_not_while_it_may_be_under_way() -> None:
    books = Books(batches=1)
    books.employ("a", free=2)
    books.employ("b", free=1)
    assert books.give() == [("a", 0)]
    books.say("a", seen=0, free=2, now=0.5)
    books.tick(4.0)
    assert books.give(0.9) == [], "it was not seen yet"
    books.say("a", seen=1, free=2, now=4.0)
    books.say("b", free=1, now=4.0)
    books.progress(S, 0, (), now=4.0 + TIMING.missing)
    books.tick(4.0 + TIMING.missing)
    books.say("a", seen=1, held=(0,), free=1, now=5.1)
    books.progress(S, 0, (), now=9.0)
    books.tick(9.0)
    assert books.counts(S) == (1, 0), "it was named in time"
    books.say("a", seen=1, free=2, now=9.0)
    books.say("b", free=0, now=9.0)
    books.tick(9.1 + TIMING.missing)
    assert books.give(10.2) == [], "the receiver may have it and be cut off"
    books.progress(S, 0, (), now=9.1 + TIMING.missing)
    books.tick(9.1 + TIMING.missing)
    assert books.give(10.2) == [("a", 0)]


def test_a_stream_takes_only_the_pixels_it_asks_for() -> None:
    books = Books(identity=b"wanted")
    books.employ("a", free=5, identity=b"others")
    books.employ("b", free=2, identity=b"wanted")
    assert books.give() == [("b", 0)]
    assert (books.serves("a", S), books.serves("b", S)) == (False, True)


def test_a_stream_that_asks_for_none_is_pinned_to_the_pixels_of_its_first_worker() -> None:
    books = Books()
    books.employ("a", free=2, identity=b"one")
    assert books.give() == [("a", 0)]
    books.employ("b", free=5, identity=b"two")
    assert books.give() == []
    assert books.identity(S) == b"one"


def search(books: Books, guilty: int | None, *, workers: int = 100) -> tuple[list[int], int]:
    """Let workers die over batch 0 wherever they decode row ``guilty``; the rows named and the deaths until then."""
    for number in range(workers):
        name = f"worker {number}"
        books.employ(name, free=3)
        while True:
            books.loaded(S, 0)
            given = {grant.seq: grant for grant in books.plan(0.0)}
            if (grant := given.get(0)) is None:
                return [], number
            tried = range(*grant.trial) if grant.trial != (0, 0) else range(1 << 16)
            if guilty is None or guilty not in tried or guilty in grant.skip:
                if grant.trial == (0, 0):
                    return [], number
                books.tried(name, S, 0, grant.trial)
                books.say(name, seen=grant.number, free=3)
                continue
            if named := books.leave(name, died=True):
                assert all((stream, seq) == (S, 0) for stream, seq, _ in named)
                return [row for _, _, row in named], number + 1
            break
    raise AssertionError("no end")


@pytest.mark.parametrize("rows", [1, 2, 3, 8, 128])
def test_a_batch_that_has_killed_three_workers_is_split_until_the_guilty_row_is_named(rows: int) -> None:
    for guilty in {0, rows // 2, rows - 1}:
        named, deaths = search(Books(rows=rows, batches=1), guilty)
        assert named == [guilty]
        assert deaths <= 3 + rows.bit_length() + PROOFS


def test_a_batch_over_which_three_workers_died_by_chance_is_made_after_all() -> None:
    books = Books(batches=1)
    for number in range(3):
        books.employ(f"chance {number}", free=3)
        assert books.give() == [(f"chance {number}", 0)]
        assert books.leave(f"chance {number}", died=True) == []
    assert books.suspected(S) == 0
    assert search(books, None) == ([], 0)
    assert books.suspected(S) is None


def test_a_batch_is_made_without_the_rows_that_are_to_be_skipped_and_can_accuse_another_one() -> None:
    books = Books(batches=1, rows=8)
    assert search(books, 5)[0] == [5]
    books.skip(S, 0, 5)
    assert search(books, 2)[0] == [2]
    books.skip(S, 0, 2)
    books.employ("last", free=3)
    (grant,) = books.plan(0.0)
    assert (grant.trial, grant.skip) == ((0, 0), (2, 5))


def test_a_suspected_batch_does_not_keep_the_others_from_being_made() -> None:
    books = Books(batches=30)
    for number in range(3):
        books.employ(f"worker {number}", free=3)
        books.give()
        books.leave(f"worker {number}", died=True)
    books.employ("a", free=3)
    books.employ("b", free=3)
    grants = list(books.plan(0.0))
    assert [grant.seq for grant in grants if grant.trial != (0, 0)] == [0]
    assert sorted(grant.seq for grant in grants) == [0, 1, 2, 3]


def test_a_guilty_batch_is_suspected_although_its_holders_had_older_leases_waiting() -> None:
    """A head is made before leases that were given earlier: blaming the oldest lease blamed the innocent."""
    books = Books(batches=30)
    books.employ("a", free=3)
    books.employ("b", free=3)
    books.employ("c", free=3)
    assert sorted(seq for _, seq in books.give()) == [0, 1, 2, 3, 4, 5]
    holder = "a"
    for _ in range(3):
        books.leave(holder, died=True)
        holder = next((name for name, seq in books.give() if seq == 0), "nobody")
    assert books.suspected(S) == 0


def test_a_worker_that_leaves_in_order_accuses_nobody() -> None:
    books = Books()
    for number in range(5):
        books.employ(f"worker {number}", free=2)
        assert books.give() == [(f"worker {number}", 0)]
        assert books.leave(f"worker {number}", died=False) == []


def test_the_emptiest_stream_is_served_first() -> None:
    books = Leases(TIMING)
    for stream in (b"full", b"empty"):
        books.open(stream, start=0, end=9, window=4, rows=lambda _: 4)
        for seq in range(4):
            books.loaded(stream, seq)
    books.progress(b"full", 0, (0, 1), now=0.0)
    books.join("a", IDENTITY, 0.0)
    books.beat("a", seen=0, held=(), slots=[(b"full", 4, 3), (b"empty", 4, 3)], now=0.0)
    given = [(grant.stream, grant.seq) for grant in books.plan(0.0)]
    assert given[:3] == [(b"empty", 0), (b"empty", 1), (b"full", 2)]
    assert all(list(books.wanted(stream)) == [] for stream in (b"full", b"empty"))


def test_several_streams_do_not_all_give_their_batches_to_the_same_worker() -> None:
    streams = [b"%d" % number for number in range(4)]
    books = Leases(TIMING)
    for stream in streams:
        books.open(stream, start=0, end=9, window=4, rows=lambda _: 4)
        books.loaded(stream, 0)
    for name in "abcd":
        books.join(name, IDENTITY, 0.0)
        books.beat(name, seen=0, held=(), slots=[(stream, 3, 3) for stream in streams], now=0.0)
    assert sorted(str(grant.worker) for grant in books.plan(0.0)) == ["a", "b", "c", "d"]


def test_of_workers_with_as_much_to_do_the_one_that_keeps_a_slot_free_is_chosen() -> None:
    books = Books()
    books.employ("a", free=1)
    books.employ("b", free=2)
    assert books.give()[0] == ("b", 0)


def test_an_automatic_window_holds_all_slots_and_one_batch_for_every_stage() -> None:
    books = Books(batches=50)
    assert books.window(S) == 4
    books.employ("a", free=4)
    books.employ("b", free=4)
    assert books.window(S) == SLOTS + SLOTS + READ_AHEAD
    assert [seq for _, seq in books.missing()] == list(range(12))
    books.progress(S, 1, (), now=0.0)
    assert books.leave("b", died=True) == []
    assert books.window(S) == SLOTS + READ_AHEAD
    assert [seq for _, seq in books.missing()] == list(range(1, 13)), "what is being read is not dropped"
    assert Books(window=3).window(S) == 3


def test_what_the_receiver_holds_is_not_given_again_by_a_new_loader_whose_window_is_still_small() -> None:
    """What had arrived beyond the first small window was forgotten, and given away once the workers were back."""
    books = Books()
    books.progress(S, 0, range(1, 12), now=0.0)
    for name in ("a", "b", "c"):
        books.employ(name, free=SLOTS)
    assert sorted(seq for _, seq in books.give()) == [0, 12, 13, 14, 15]


def test_a_heartbeat_from_before_the_last_hello_does_not_hide_new_leases() -> None:
    """Its count of leases seen belongs to an older numbering; believed, it gave away the spare slot twice."""
    books = Books()
    books.employ("a", free=3)
    assert len(books.give()) == 2
    books.join("a", IDENTITY, 0.0)
    books.say("a", seen=2, free=3)
    assert books.give() == []
    books.say("a", seen=0, free=3)
    assert len(books.give()) == 2
    books.say("a", seen=57, free=3)
    assert books.give() == []


def test_a_lease_that_cannot_be_sent_leaves_nothing_behind() -> None:
    """All leases were counted as given before the first was sent; those after one that failed were never sent."""
    books = Books(batches=2)
    for name in ("a", "b"):
        books.employ(name, free=2)
    for _, seq in books.missing():
        books.loaded(S, seq)
    sent: list[Grant] = []
    for grant in books.plan(0.0):
        if grant.worker == "a":
            books.revoke(grant)
            break
        sent.append(grant)
    assert books.counts(S) == (len(sent), 2 - len(sent))
    assert books.give() == [("b", 0)], "the unreachable worker gets nothing, the others go on"
    assert books.redispatched(S) == 0
    books.say("a", free=2)
    assert books.give() == [("a", 1)]
    assert books.leave("a", died=True) == []
    books.say("b", seen=1, held=(0,), free=2)
    for grant in books.plan(0.0):
        books.revoke(grant)
    assert books.redispatched(S) == 0, "it would have been batch 1's second lease"


def test_a_receiver_that_claims_too_much_stops_nothing() -> None:
    books = Leases(TIMING)
    books.open(S, start=0, end=2**53, window=0, rows=lambda _: 4)
    assert books.progress(S, 2**53, (2**53, 0), now=0.0) == [0, 1, 2, 3]
    assert list(books.wanted(S)) == []
    assert books.progress(b"unknown", 5, (6,), now=0.0) == []


def test_a_refused_worker_loses_its_leases_and_gets_no_more_of_that_stream() -> None:
    books = Books()
    books.employ("liar", free=3)
    assert books.give() == [("liar", 0), ("liar", 1)]
    books.employ("b", free=3)
    assert books.refuse(S, "liar")
    assert not books.refuse(S, "liar"), "it is no news"
    assert not books.serves("liar", S)
    assert books.give() == [("b", 0), ("b", 1)]
    books.say("liar", seen=2, free=9)
    books.join("liar", IDENTITY, 1.0)
    books.say("liar", free=9)
    assert books.give(100.0) == []
    assert not books.refuse(S, "nobody that is here"), "ever new names would fill the books"


def test_a_closed_stream_and_an_unknown_worker_are_not_an_error() -> None:
    books = Books()
    books.employ("a", free=3)
    assert len(books.give()) == 2
    books.close(S)
    books.revoke(Grant("a", S, seq=0, number=1, head=True, again=False))
    books.loaded(S, 0)
    books.say("a", seen=2, held=(0, 1), free=1)
    books.say("nobody", held=(0,), free=1)
    assert books.leave("nobody", died=True) == []
    assert books.give() == []
    assert not books.holds("a", S, 0)


def test_a_stream_of_one_worker_is_given_to_nobody_else() -> None:
    leases = Leases(TIMING)
    for name in ("own", "other"):
        leases.join(name, IDENTITY, 0.0)
        leases.beat(name, seen=0, held=(), slots=[(S, 3, 3)], now=0.0)
    leases.open(S, start=0, end=8, window=8, only="own", rows=lambda _: 4)
    for seq in range(8):
        leases.loaded(S, seq)
    given = list(leases.plan(0.0))
    assert [(grant.worker, grant.seq) for grant in given] == [("own", 0), ("own", 1)]
    # Not even the head that its holder has had for long.
    assert not list(leases.plan(1000.0))
    assert not leases.serves("other", S)
    leases.leave("own", died=True)
    assert not list(leases.plan(1000.0))
    leases.join("own", IDENTITY, 1000.0)
    leases.beat("own", seen=0, held=(), slots=[(S, 1, 3)], now=1000.0)
    assert [(grant.worker, grant.seq, grant.head) for grant in leases.plan(1000.0)] == [("own", 0, True)]
