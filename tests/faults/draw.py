"""Which faults strike which process at which moment: a pure function of a seed.

A plan has one or two strikes, each at a moment of the protocol; a strike has one or two faults. What a fault may hit,
and how a run may end after it, is one row of ``RULES``.
"""

import random
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final

BATCHES_PER_EPOCH: Final = 12
STEPS: Final = 2 * BATCHES_PER_EPOCH


class World(Enum):
    """How the processes are run."""

    RUN = "fourstage run"
    SERVICES = "services one by one, the loader's address in a file"
    HOSTS = "services over TCP with keys, through a proxy"


class Role(Enum):
    """What a fault hits, or where a moment is."""

    LOADER = "loader"
    AUGMENTER = "augmenter"
    TRAINER = "trainer"
    ENGINE = "run"
    TO_LOADER = "the network to the loader"
    TO_TRAINER = "the network to the trainer"
    PARTED = "the network between trainer and loader"
    STORE = "the store"


class Moment(Enum):
    """When a strike falls. All but STEP are held: the process stops there until the strike has fallen."""

    WELCOME = "before the first WELCOME"
    STREAM = "after STREAM, before the first LEASE"
    LEASE = "a lease is given"
    HALF_MADE = "a batch is half made"
    SENT = "BATCH is sent, not arrived"
    ARRIVED = "a batch has arrived, not consumed"
    STEP = "at any time"
    CHECKPOINT = "during a checkpoint"
    END_OF_EPOCH = "at the end of an epoch"
    VALIDATION = "during validation"
    DRAIN = "while draining at the end"


class Fault(Enum):
    KILL = auto()
    TERMINATE = auto()
    INTERRUPT = auto()
    FREEZE_SHORTLY = auto()
    FREEZE_BEYOND_SILENCE = auto()
    MOVE = auto()
    CUT_SHORTLY = auto()
    CUT_BEYOND_SILENCE = auto()
    BLACK_HOLE = auto()
    DELAY = auto()
    LONG_DELAY = auto()
    THROTTLE = auto()
    TRUNCATE = auto()
    RECONNECTS = auto()
    READ_ERROR_PASSING = auto()
    READ_ERROR_STAYING = auto()
    SLOW_READS = auto()
    MEMORY = auto()
    DESCRIPTORS = auto()
    CLOCK = auto()
    DISK_FULL = auto()
    STORE_TRUNCATED = auto()
    STORE_ALTERED = auto()

    def __str__(self) -> str:
        return self.name.lower().replace("_", " ")


class Stop(Enum):
    """Whether a fault ends the run with words; healed and resumed it must have the same bytes all the same."""

    NEVER = auto()
    MAYBE = auto()
    ALWAYS = auto()


PROCESSES: Final = (Role.LOADER, Role.AUGMENTER, Role.TRAINER)
NETWORKS: Final = (Role.TO_LOADER, Role.TO_TRAINER, Role.PARTED)
HELD_BY: Final[dict[Moment, tuple[Role, ...]]] = {
    Moment.WELCOME: (Role.AUGMENTER, Role.TRAINER),
    Moment.STREAM: (Role.AUGMENTER,),
    Moment.LEASE: (Role.LOADER, Role.AUGMENTER),
    Moment.HALF_MADE: (Role.AUGMENTER,),
    Moment.SENT: (Role.AUGMENTER,),
    Moment.ARRIVED: (Role.TRAINER,),
    Moment.STEP: (Role.TRAINER,),
    Moment.CHECKPOINT: (Role.TRAINER,),
    Moment.END_OF_EPOCH: (Role.TRAINER,),
    Moment.VALIDATION: (Role.TRAINER,),
    Moment.DRAIN: (Role.TRAINER,),
}
"""In the order of their coming: a plan's later strike is at a later moment."""
LAST_COUNT: Final = {Moment.CHECKPOINT: 5, Moment.WELCOME: 1, Moment.STREAM: 2, Moment.END_OF_EPOCH: 1, Moment.DRAIN: 2}
"""How many times each comes for certain, in whichever process; of others 3."""
EARLY: Final = (Moment.WELCOME, Moment.STREAM, Moment.LEASE, Moment.HALF_MADE, Moment.SENT, Moment.ARRIVED)
"""Before the second epoch is read: what is done to the store by then is certainly met."""
LATE: Final = tuple(moment for moment in Moment if moment not in EARLY)


@dataclass(frozen=True, slots=True)
class Rule:
    """What a fault may hit, and what may come of it."""

    targets: tuple[Role, ...] = PROCESSES
    worlds: tuple[World, ...] = tuple(World)
    moments: tuple[Moment, ...] = tuple(Moment)
    seconds: tuple[float, float] = (0.0, 0.0)
    """How long it lasts, from and to."""
    codes: frozenset[int] = frozenset()
    """How its process may end by it."""
    stop: Stop = Stop.NEVER
    words: str = ""
    """What the run says if it stops: a regular expression."""


SILENCE_SECONDS: Final = 1.2
RULES: Final[dict[Fault, Rule]] = {
    Fault.KILL: Rule((*PROCESSES, Role.ENGINE), codes=frozenset({-9})),
    # -15: it came before the process listened to signals.
    Fault.TERMINATE: Rule((*PROCESSES, Role.ENGINE), codes=frozenset({0, 130, -15})),
    Fault.INTERRUPT: Rule((Role.ENGINE,), (World.RUN,), codes=frozenset({130, -2})),
    Fault.FREEZE_SHORTLY: Rule((*PROCESSES, Role.ENGINE), seconds=(0.1, 0.8)),
    Fault.FREEZE_BEYOND_SILENCE: Rule((*PROCESSES, Role.ENGINE), seconds=(1.6, 3.0)),
    Fault.MOVE: Rule((Role.LOADER,), (World.SERVICES, World.HOSTS), codes=frozenset({-9})),
    Fault.CUT_SHORTLY: Rule(NETWORKS, (World.HOSTS,), seconds=(0.0, 0.8)),
    Fault.CUT_BEYOND_SILENCE: Rule(NETWORKS, (World.HOSTS,), seconds=(1.6, 3.0)),
    Fault.BLACK_HOLE: Rule(NETWORKS, (World.HOSTS,), seconds=(0.3, 3.0)),
    Fault.DELAY: Rule(NETWORKS, (World.HOSTS,), seconds=(0.5, 2.0)),
    Fault.LONG_DELAY: Rule(NETWORKS, (World.HOSTS,), seconds=(2.0, 4.0)),
    Fault.THROTTLE: Rule(NETWORKS, (World.HOSTS,), seconds=(0.5, 2.0)),
    Fault.TRUNCATE: Rule(NETWORKS, (World.HOSTS,)),
    Fault.RECONNECTS: Rule(NETWORKS, (World.HOSTS,), seconds=(0.3, 1.0)),
    Fault.READ_ERROR_PASSING: Rule((Role.STORE,), moments=EARLY),
    Fault.READ_ERROR_STAYING: Rule((Role.STORE,), moments=EARLY, stop=Stop.ALWAYS, words=r"cannot read sample '"),
    Fault.SLOW_READS: Rule((Role.STORE,), seconds=(0.3, 1.5)),
    # -6: libzmq ends a process in which it cannot start a thread, 127: the C library does where a thread finds no room.
    Fault.MEMORY: Rule((Role.AUGMENTER,), moments=EARLY, codes=frozenset({1, -6, 127})),
    # 1: what it cannot make, others can. -6: libzmq ends the process where it finds none for a Unix socket's peer.
    Fault.DESCRIPTORS: Rule(
        PROCESSES, seconds=(0.5, 2.0), codes=frozenset({1, -6}), stop=Stop.MAYBE, words=r"cannot .*Too many open files"
    ),
    Fault.CLOCK: Rule(PROCESSES),
    Fault.DISK_FULL: Rule(
        (Role.TRAINER,), stop=Stop.MAYBE, words=r"cannot write (a checkpoint of step \d+ in )?/.*: File too large"
    ),
    Fault.STORE_TRUNCATED: Rule(
        (Role.STORE,), moments=EARLY, stop=Stop.ALWAYS, words=r"sample '[^']+' .*beyond the end of its shard"
    ),
    Fault.STORE_ALTERED: Rule(
        (Role.STORE,), moments=EARLY, stop=Stop.ALWAYS, words=r"sample '[^']+' in .*\.tar: it was altered"
    ),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Blow:
    """One fault and what it hits."""

    fault: Fault
    role: Role
    number: int
    """Which augmenter, unless one is held at the moment."""
    seconds: float
    amount: int
    """Which sample, how many errors, how far a clock: as the fault takes it."""

    def __str__(self) -> str:
        which = f"-{self.number}" if self.role is Role.AUGMENTER else ""
        lasting = f" for {self.seconds} s" if self.seconds else ""
        return f"{self.fault} {self.role.value}{which}{lasting}"


@dataclass(frozen=True, slots=True)
class Strike:
    """Faults that fall together."""

    moment: Moment
    held: Role
    """The role of the process in which the moment is."""
    count: int
    """The moment's how manieth time in one process; of STEP the step."""
    blows: tuple[Blow, ...]

    @property
    def token(self) -> str:
        """The name by which the process in which the moment comes knows of it."""
        return f"{self.moment.name}.{self.held.value}.{self.count}"

    def __str__(self) -> str:
        return f"{self.moment.value} ({self.held.value}, {self.count}): {' and '.join(map(str, self.blows))}"


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything that one seed does."""

    seed: int
    world: World
    augmenters: int
    transport: str
    strikes: tuple[Strike, ...]

    @property
    def blows(self) -> list[Blow]:
        return [blow for strike in self.strikes for blow in strike.blows]

    def __str__(self) -> str:
        head = f"{self.world.value}, {self.augmenters} augmenters, {self.transport}"
        return "; ".join([head, *map(str, self.strikes)])


def draw(seed: int) -> Plan:
    """The plan of a seed: always the same. Faults, and what each hits, follow each other; all else is drawn."""
    chance = random.Random(seed)
    turn, kind = divmod(seed, len(Fault))
    first = list(Fault)[kind]
    rule = RULES[first]
    role = rule.targets[turn % len(rule.targets)]
    world = World.RUN if role is Role.ENGINE else chance.choice(rule.worlds)
    transport = "inline" if world is World.HOSTS else chance.choice(("arena", "arena", "inline"))
    augmenters = chance.randint(1, 3)
    blows = [_blow(chance, first, role, augmenters)]
    moment = chance.choice(rule.moments)
    # A run that a fault has ended goes on in another process: nothing else is to strike on the way there.
    alone = rule.stop is not Stop.NEVER
    if not alone and chance.random() < 0.4:
        blows.append(_another(chance, blows[0], moment, world, augmenters))
    strikes = [_strike(chance, moment, blows)]
    if not alone and moment in EARLY and chance.random() < 0.4:
        later = chance.choice([other for other in LATE if other is not Moment.STEP])
        strikes.append(_strike(chance, later, [_another(chance, None, later, world, augmenters)]))
    return Plan(seed, world, augmenters, transport, tuple(strikes))


def _another(chance: random.Random, first: Blow | None, moment: Moment, world: World, augmenters: int) -> Blow:
    """A blow that ends no run, on something else than the first one."""
    taken = {Role.ENGINE, first.role} if first else set() if world is World.RUN else {Role.ENGINE}
    fitting = [
        (fault, role)
        for fault in Fault
        for role in RULES[fault].targets
        if RULES[fault].stop is Stop.NEVER
        and world in RULES[fault].worlds
        and moment in RULES[fault].moments
        and role not in taken
    ]
    return _blow(chance, *chance.choice(fitting), augmenters)


def _strike(chance: random.Random, moment: Moment, blows: list[Blow]) -> Strike:
    last = STEPS - 6 if moment is Moment.STEP else LAST_COUNT.get(moment, 3)
    return Strike(moment, chance.choice(HELD_BY[moment]), chance.randint(1, last), tuple(blows))


def _blow(chance: random.Random, fault: Fault, role: Role, augmenters: int) -> Blow:
    seconds = round(chance.uniform(*RULES[fault].seconds), 2)
    return Blow(fault, role, chance.randrange(augmenters), seconds, chance.randrange(1 << 16))
