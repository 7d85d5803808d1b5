"""A small world around the books of leases: workers, trainers and a network, without sockets and without a clock.

It does what the services do, message by message, and can do to them what happens to services: connections that are
lost with everything in them, workers that die or freeze, a loader that starts anew. Every grant is checked.
"""

from collections import deque
from dataclasses import dataclass, field

from fourstage.loader.leases import Grant, Leases, Timing

TIMING = Timing(silence=5.0, hedge=1.0, missing=1.0)
HEARTBEAT = 0.5
IDENTITY = b"pixels"
JPEG_SLOTS = 3
ROWS = 4


@dataclass(slots=True)
class Told:
    """A message of a worker to the loader: HELLO (``slots`` is None), BEAT, or TRIED (``tried`` is not None)."""

    session: int
    seen: int = 0
    held: tuple[tuple[bytes, int], ...] = ()
    slots: tuple[tuple[bytes, int, int], ...] | None = None
    tried: tuple[bytes, int, tuple[int, int]] | None = None


@dataclass(slots=True)
class Leased:
    """A lease on its way to a worker."""

    session: int
    grant: Grant


@dataclass(slots=True)
class Share:
    """A worker's slots of one stream and its connection to that stream's trainer."""

    slots: int
    leased: list[int] = field(default_factory=list)
    trials: dict[int, tuple[int, int]] = field(default_factory=dict)
    """Those of them that are trials."""
    finished: dict[int, int] = field(default_factory=dict)
    """Sequence number: number under which the trainer was told, 0 before that."""
    sent: int = 0
    acknowledged: int = 0
    to_trainer: deque[tuple[int, int]] = field(default_factory=deque)
    """Number and sequence number of each batch."""

    @property
    def free(self) -> int:
        return self.slots - len(self.leased) - len(self.finished)

    def tell(self, seq: int) -> None:
        self.sent += 1
        self.finished[seq] = self.sent
        self.to_trainer.append((self.sent, seq))


@dataclass(slots=True)
class Worker:
    name: str
    slots: int
    identity: bytes
    alive: bool = True
    frozen: bool = False
    connected: bool = True
    full: bool = False
    """Nothing more can be sent to it now."""
    session: int = 1
    seen: int = 0
    shares: dict[bytes, Share] = field(default_factory=dict)
    to_loader: deque[Told] = field(default_factory=deque)
    from_loader: deque[Leased | None] = field(default_factory=deque)
    """None: WHO."""


@dataclass(slots=True)
class Trainer:
    """The receiver of one stream."""

    start: int
    end: int
    window: int
    consumed: int
    arrived: set[int] = field(default_factory=set)
    used: list[int] = field(default_factory=list)
    holds: dict[str, set[int]] = field(default_factory=dict)
    """Batches that lie in each worker's slots."""
    seen: dict[str, int] = field(default_factory=dict)
    reports: list[tuple[int, tuple[int, ...]]] = field(default_factory=list)

    @property
    def done(self) -> bool:
        return self.consumed >= self.end


class World:
    """All of it. Methods that begin with ``fault_`` are what should not happen and does."""

    def __init__(self) -> None:
        self.now = 0.0
        self.leases = Leases(TIMING)
        self.sessions: dict[str, int] = {}
        """Workers that the loader knows, and the session of their last HELLO."""
        self.workers: dict[str, Worker] = {}
        self.trainers: dict[bytes, Trainer] = {}
        self.loaded: dict[bytes, set[int]] = {}
        """JPEG slots of the streams that the loader knows."""
        self.known: dict[bytes, set[int]] = {}
        """Batches that the loader was told have arrived."""
        self.grants = 0
        self.opened = 0

    # Streams

    def open(self, *, start: int, batches: int, window: int) -> bytes:
        self.opened += 1
        stream = f"stream {self.opened}".encode()
        self.trainers[stream] = Trainer(start, start + batches, window, start)
        self.reopen(stream)
        return stream

    def reopen(self, stream: bytes) -> None:
        """OPEN, also after the loader was restarted: everybody is told of the stream."""
        if stream in self.loaded or stream not in self.trainers:
            return
        trainer = self.trainers[stream]
        self.leases.open(
            stream, start=trainer.consumed, end=trainer.end, window=trainer.window, identity=IDENTITY,
            rows=lambda _: ROWS,
        )  # fmt: skip
        self.loaded[stream] = set()
        self.known[stream] = set()
        for worker in self.workers.values():
            self._announce(worker)

    def close(self, stream: bytes) -> None:
        """The trainer does not want the rest."""
        del self.trainers[stream]
        self.loaded.pop(stream, None)
        self.leases.close(stream)
        for worker in self.workers.values():
            worker.shares.pop(stream, None)

    def consume(self, stream: bytes) -> None:
        """Train on the next batch, if it is there, and give its slot back."""
        trainer = self.trainers[stream]
        if trainer.consumed in trainer.arrived:
            trainer.arrived.remove(trainer.consumed)
            for held in trainer.holds.values():
                held.discard(trainer.consumed)
            trainer.used.append(trainer.consumed)
            trainer.consumed += 1

    def report(self, stream: bytes) -> None:
        trainer = self.trainers[stream]
        trainer.reports.append((trainer.consumed, tuple(sorted(trainer.arrived))))

    def hear_report(self, stream: bytes, which: int = -1) -> None:
        """The loader reads a PROGRESS, the last one or one that was delayed."""
        trainer = self.trainers[stream]
        if not trainer.reports or stream not in self.loaded:
            return
        consumed, arrived = trainer.reports[which % len(trainer.reports)]
        fresh = self.leases.progress(stream, consumed, arrived, now=self.now)
        self.loaded[stream] -= set(fresh)
        self.known[stream] |= {*range(trainer.start, consumed), *arrived}

    # Workers and the loader

    def hire(self, *, slots: int, identity: bytes = IDENTITY) -> Worker:
        worker = Worker(f"worker {len(self.workers)}", slots, identity)
        self.workers[worker.name] = worker
        worker.to_loader.append(Told(worker.session))
        return worker

    def beat(self, worker: Worker) -> None:
        if not worker.alive or worker.frozen or not worker.connected:
            return
        held = [
            (stream, seq)
            for stream, share in worker.shares.items()
            for seq in (
                *share.leased,
                *(seq for seq, number in share.finished.items() if number == 0 or number > share.acknowledged),
            )
        ]
        slots = [(stream, share.free, share.slots) for stream, share in worker.shares.items()]
        worker.to_loader.append(Told(worker.session, worker.seen, tuple(held), tuple(slots)))

    def hear_worker(self, worker: Worker) -> None:
        """The loader reads one message of a worker."""
        if not worker.to_loader:
            return
        told = worker.to_loader.popleft()
        if told.tried is not None:
            self.leases.tried(worker.name, *told.tried)
        elif told.slots is None:
            self.leases.join(worker.name, worker.identity, self.now)
            self.sessions[worker.name] = told.session
            self._announce(worker)
            if worker.alive and told.session == worker.session:
                worker.connected = True
                worker.seen = 0
        elif worker.name not in self.sessions:
            worker.from_loader.append(None)
        else:
            self.leases.beat(worker.name, seen=told.seen, held=told.held, slots=told.slots, now=self.now)

    def hear_loader(self, worker: Worker, *, refused: bool = False) -> None:
        """A worker reads one message of the loader. refused: it cannot serve the lease and drops it."""
        if not worker.alive or worker.frozen or not worker.from_loader:
            return
        lease = worker.from_loader.popleft()
        if lease is None:
            self._greet(worker)
            return
        if lease.session != worker.session:
            return
        grant = lease.grant
        worker.seen = max(worker.seen, grant.number)
        share = worker.shares.get(grant.stream)
        if refused or share is None or share.free < 1 or grant.seq in (*share.leased, *share.finished):
            return
        share.leased.insert(0 if grant.head else len(share.leased), grant.seq)
        if grant.trial != (0, 0):
            share.trials[grant.seq] = grant.trial

    def tick(self, seconds: float) -> None:
        self.now += seconds
        self.leases.tick(self.now)

    def wanted(self) -> list[tuple[bytes, int]]:
        return [(stream, seq) for stream in self.leases.emptiest() for seq in self.leases.wanted(stream)]

    def load(self) -> None:
        for stream, seq in self.wanted():
            if seq not in self.loaded[stream] and len(self.loaded[stream]) < JPEG_SLOTS:
                self.loaded[stream].add(seq)
                self.leases.loaded(stream, seq)

    def plan(self) -> None:
        for grant in self.leases.plan(self.now):
            worker = self.workers[str(grant.worker)]
            self.grants += 1
            assert worker.identity == IDENTITY, "a worker of other pixels was given a lease"
            assert grant.seq in self.loaded[grant.stream], "a batch was given away that has no JPEG slot"
            assert grant.seq not in self.known[grant.stream], "a batch that has arrived was given again"
            self._assert_few_holders(grant.stream, grant.seq)
            if worker.full or not worker.connected:
                self.leases.revoke(grant)
                break
            session = self.sessions[worker.name]
            worker.from_loader.append(Leased(session, grant))
            if worker.alive and session == worker.session:
                self._assert_slot_is_free(worker, grant.stream, grant.head)

    def _assert_slot_is_free(self, worker: Worker, stream: bytes, head: bool) -> None:
        under_way = sum(
            1
            for lease in worker.from_loader
            if lease and (lease.grant.stream, lease.session) == (stream, worker.session)
        )
        spare = 0 if head else 1
        free = worker.shares[stream].free if stream in worker.shares else 0
        assert under_way + spare <= free, f"{under_way} leases under way for {free} free slots (head: {head})"

    def _assert_few_holders(self, stream: bytes, seq: int) -> None:
        holders = self.leases._streams[stream].batches[seq].holders
        *before, _ = sorted(holding.since for holding in holders.values())
        for since in before:
            waited = self.now - since
            assert waited > len(before) * TIMING.hedge, f"{len(before)} have batch {seq}, one for {waited:.1f} s"

    def _announce(self, worker: Worker) -> None:
        if worker.alive and worker.name in self.sessions:
            for stream in self.loaded:
                worker.shares.setdefault(stream, Share(worker.slots))

    def _greet(self, worker: Worker) -> None:
        worker.session += 1
        worker.to_loader.append(Told(worker.session))

    # Workers and trainers

    def work(self, worker: Worker) -> None:
        """Finish the batch that came first, a head before others."""
        if not worker.alive or worker.frozen:
            return
        for stream, share in worker.shares.items():
            if share.leased:
                seq = share.leased.pop(0)
                if (trial := share.trials.pop(seq, None)) is None:
                    share.tell(seq)
                else:
                    worker.to_loader.append(Told(worker.session, tried=(stream, seq, trial)))
                return

    def hear_batch(self, worker: Worker, stream: bytes) -> None:
        """The trainer reads one batch of a worker; whichever copy comes first is used."""
        share, trainer = worker.shares.get(stream), self.trainers.get(stream)
        if share is None or trainer is None or not share.to_trainer:
            return
        number, seq = share.to_trainer.popleft()
        trainer.seen[worker.name] = number
        if seq >= trainer.consumed and seq not in trainer.arrived:
            trainer.arrived.add(seq)
            trainer.holds.setdefault(worker.name, set()).add(seq)

    def hear_holds(self, worker: Worker, stream: bytes) -> None:
        """The worker reads what the trainer holds of it; its other slots are free."""
        share, trainer = worker.shares.get(stream), self.trainers.get(stream)
        if not worker.alive or worker.frozen or share is None or trainer is None:
            return
        seen = trainer.seen.get(worker.name, 0)
        held = trainer.holds.get(worker.name, set())
        for seq in [seq for seq, number in share.finished.items() if 0 < number <= seen and seq not in held]:
            del share.finished[seq]
        share.acknowledged = max(share.acknowledged, seen)

    # Faults

    def fault_kill(self, worker: Worker) -> None:
        worker.alive = False

    def notice_death(self, worker: Worker) -> None:
        """The side connection has hung up; what the dead had sent was read before, or never will be."""
        if not worker.alive:
            worker.to_loader.clear()
            worker.connected = False
            if self.sessions.pop(worker.name, None) is not None:
                self.leases.leave(worker.name, died=True)

    def fault_freeze(self, worker: Worker, *, frozen: bool) -> None:
        worker.frozen = frozen

    def fault_fill(self, worker: Worker, *, full: bool) -> None:
        worker.full = full

    def fault_lose_loader(self, worker: Worker, *, noticed: bool) -> None:
        """The connection to the loader breaks with all that is in it. Where the worker does not notice, it says
        HELLO only when the loader asks who it is."""
        if not worker.alive:
            return
        worker.to_loader.clear()
        worker.from_loader.clear()
        if noticed or worker.name not in self.sessions:
            worker.connected = False
            self._greet(worker)
        else:
            worker.from_loader.append(None)

    def fault_lose_trainer(self, worker: Worker, stream: bytes) -> None:
        """The connection to a trainer breaks: the numbering starts again and everything is told again."""
        share, trainer = worker.shares.get(stream), self.trainers.get(stream)
        if worker.alive and share is not None and trainer is not None:
            share.to_trainer.clear()
            share.sent = share.acknowledged = 0
            trainer.seen[worker.name] = 0
            for seq in share.finished:
                share.tell(seq)

    def fault_restart_loader(self, *, delivered: bool) -> None:
        """The loader starts anew; what it had sent has come through, or not."""
        self.leases = Leases(TIMING)
        self.sessions.clear()
        self.loaded.clear()
        for worker in self.workers.values():
            worker.to_loader.clear()
            if not delivered:
                worker.from_loader.clear()

    # Quiet

    def round(self, *, told: bool = True) -> None:
        """Half a second in which everything works: every message that can be said is said and heard.

        told: whether trainers reach the loader
        """
        for stream in self.trainers:
            self.reopen(stream)
        for worker in self.workers.values():
            self.notice_death(worker)
            self.beat(worker)
            while worker.to_loader:
                self.hear_worker(worker)
            if worker.alive and not worker.connected:
                self._greet(worker)
        self.load()
        self.plan()
        for worker in self.workers.values():
            while worker.alive and not worker.frozen and worker.from_loader:
                self.hear_loader(worker)
            self.work(worker)
        for stream, trainer in self.trainers.items():
            for worker in self.workers.values():
                while (share := worker.shares.get(stream)) and share.to_trainer:
                    self.hear_batch(worker, stream)
            while trainer.consumed in trainer.arrived:
                self.consume(stream)
            for worker in self.workers.values():
                self.hear_holds(worker, stream)
            self.report(stream)
            if told:
                self.hear_report(stream)
        self.tick(HEARTBEAT)

    def settle(self) -> None:
        """No more faults, and one worker at least that is not frozen: every stream must come to its end, each batch
        used once."""
        for worker in self.workers.values():
            worker.full = False
        if not any(w.alive and not w.frozen and w.identity == IDENTITY for w in self.workers.values()):
            self.hire(slots=2)
        left = sum(trainer.end - trainer.consumed for trainer in self.trainers.values())
        for _ in range(40 + 6 * left):
            if all(trainer.done for trainer in self.trainers.values()):
                break
            self.round()
        for trainer in self.trainers.values():
            assert trainer.done, f"stuck at batch {trainer.consumed} of {trainer.end}"
            assert trainer.used == list(range(trainer.start, trainer.end))
