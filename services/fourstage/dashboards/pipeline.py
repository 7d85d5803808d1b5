"""Is training waiting, and for what? The first page to open."""

from fourstage.dashboards.grafana import Dashboard, Panel, Row, Step
from fourstage.dashboards.panels import STEP, STEPS, lines, run_state, stat, time_left, waited_for, waits_for
from fourstage.dashboards.queries import (
    AMBER,
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PINK,
    SKY,
    STAGE_COLOURS,
    STAGE_TITLES,
    quantile,
    rate,
    series,
)

_BUSY, _INPUT, _ROOM = "at work", "waits for input", "waits for room"
_INCIDENTS = {
    "silent": ("leases_expired", AMBER),
    "died": ("workers_died", ORANGE),
    "leased again": ("redispatched", BLUE),
    "came twice": ("duplicates_dropped", SKY),
    "refused messages": ("peer_errors", PINK),
    "refused connections": ("refused_handshakes", GREY),
    "refused keys": ("refused_messages", "#88CCEE"),
    "refused workers": ("workers_refused", "#882255"),
    "corrupt images": ("corrupt_samples", "#332288"),
    "read again": ("reads_repeated", "#117733"),
}
"""By legend: the counter and its colour."""
_HOPS = {"to-augmenter": BLUE, "to-trainer": ORANGE}


def _shares(stage: str) -> Panel:
    wait = "stage:fourstage_wait_seconds:share_rate1m"
    return lines(
        STAGE_TITLES[stage],
        "How the stage spends its time. The narrow stage is at work all the time; stages before it wait for room, "
        "stages after it wait for input. Of several workers it is the share of the time of all of them.",
        {
            _BUSY: series("stage:fourstage_busy_seconds:share_rate1m", stage=stage),
            _INPUT: series(wait, stage=stage, blocked_on="upstream"),
            _ROOM: series(wait, stage=stage, blocked_on="downstream"),
        },
        "percentunit",
        6,
        maximum=1,
        stacked=True,
        colours={_BUSY: GREEN, _INPUT: ORANGE, _ROOM: GREY},
    )


_WAITING = Row(
    "Is training waiting? On which stage, on which rank?",
    (
        waits_for(7),
        stat(
            "Longest wait of a rank",
            "Share of the last minute in which the trainer that waits most had no batch. Ranks step together, so it "
            "sets the pace of all. An alert fires above 10 % for five minutes.",
            f"max({series('job:fourstage_data_wait_seconds:max_rate1m')})",
            "percentunit",
            4,
            decimals=1,
            steps=(Step(None, "green"), Step(0.05, "orange"), Step(0.10, "red")),
        ),
        stat(
            "Trained on",
            "Images per second in the last minute, over all ranks.",
            f"sum({series('stage:fourstage_items:rate1m', stage='train')})",
            "suffix: images/s",
            4,
            decimals=0,
        ),
        run_state(3),
        stat(
            "Steps done",
            "Share of the run's steps, those before a resume included.",
            f"{STEP} / {STEPS}",
            "percentunit",
            3,
            decimals=0,
        ),
        time_left(3),
        waited_for(),
        *(_shares(stage) for stage in STAGE_TITLES),
        lines(
            "Wait of each rank",
            "Share of its time in which a trainer had no batch. One rank that waits more than the others has a slower "
            "way to its batches; all alike wait for a stage before them.",
            {"rank {{rank}}": f"max by (rank) ({rate('fourstage_data_wait_seconds_total')})"},
            "percentunit",
            12,
            steps=(Step(None, "transparent"), Step(0.10, "red")),
        ),
        lines(
            "Busy share of each stage",
            "The stages against one another: the highest line is the narrow place, unless it is train.",
            {"{{stage}}": f"max by (stage) ({series('stage:fourstage_busy_seconds:share_rate1m')})"},
            "percentunit",
            12,
            maximum=1,
            colours=STAGE_COLOURS,
        ),
    ),
)

_FLOW = Row(
    "What flows through the stages",
    (
        lines(
            "Images per second",
            "Of each stage, over all its workers. In a steady run they are equal; load and transform run ahead until "
            "the window is full. Validation passes through the first three stages only.",
            {"{{stage}}": f"sum by (stage) ({rate('fourstage_items_total')})"},
            "suffix: images/s",
            8,
            colours=STAGE_COLOURS,
        ),
        lines(
            "Bytes per second",
            "What each stage hands on: JPEG bytes (load), pixels as whole numbers (transform), finished pixels (copy).",
            {"{{stage}}": f"sum by (stage) ({rate('fourstage_bytes_total', stage='!=train')})"},
            "Bps",
            8,
            colours=STAGE_COLOURS,
        ),
        lines(
            "Bytes to and between GPUs",
            "Pixels that went up to a GPU, straight from the workers' memory (registered) or through another copy on "
            "the CPU (staged: slower, expected with inline transport only), and what two columns exchanged. Nothing "
            "on a CPU.",
            {
                "up, {{path}}": f"sum by (path) ({rate('fourstage_uploaded_bytes_total')})",
                "columns, {{pass}}": f"sum by (pass) ({rate('fourstage_exchanged_bytes_total')})",
            },
            "Bps",
            8,
        ),
    ),
)

_QUEUES = Row(
    "Where batches are: queues, window, shared memory, the way between stages",
    (
        lines(
            "Batches in hand",
            "Read and not leased (loaded), at augmenters (leased), at the trainer and not trained on (arrived). The "
            "highest stack lies before the narrow stage.",
            {"{{queue}}": f"sum by (queue) ({series('fourstage_queue_items')})"},
            "suffix: batches",
            8,
            stacked=True,
            colours={"loaded": BLUE, "leased": AMBER, "arrived": GREEN},
        ),
        lines(
            "How full queues and slots are",
            "Shares of capacity. Queues are bounded by the window, the loader's slots by its memory: they fill only "
            "where memory is the smaller of the two. Augmenters keep one spare slot of each stream for the batch that "
            "training waits for.",
            {
                "queue {{queue}}": f"max by (queue) ({series('queue:fourstage_queue_items:fill_ratio')})",
                "slots of {{job}}": f"max by (job) ({series('job:fourstage_slots:used_ratio')})",
            },
            "percentunit",
            8,
            maximum=1,
        ),
        lines(
            "Window",
            "Batches between the last one trained on and the furthest that may be read, of the widest stream, and the "
            "streams that are open. It grows with every augmenter unless a number was set.",
            {
                "window": f"max({series('fourstage_window_batches')})",
                "streams": f"sum({series('fourstage_streams')})",
            },
            "short",
            8,
            colours={"window": BLUE, "streams": GREY},
        ),
        lines(
            "Slots of shared memory",
            "Of all processes of a service. Used slots are leased, in work or finished; all of them used is right as "
            "long as the device is the slowest.",
            {"{{job}}, {{state}}": f"sum by (job, state) ({series('fourstage_slots', job='!=trainer')})"},
            "suffix: slots",
            8,
            colours={
                "loader, used": BLUE, "loader, free": SKY, "augmenter, used": AMBER, "augmenter, free": "#f5d695",
            },
        ),
        lines(
            "Shared memory",
            "What the arenas take: JPEG bytes at the loader, pixels at augmenters. It grows with augmenters, the "
            "window and the batch, never with time.",
            {"{{job}}": f"sum by (job) ({series('fourstage_arena_bytes', job='!=trainer')})"},
            "bytes",
            8,
            stacked=True,
            colours={"loader": BLUE, "augmenter": AMBER},
        ),
        lines(
            "Age of a batch",
            "Since the loader began to read it, when a stage had finished with it: half of the batches are younger, "
            "and of those trained on 99 %. Old batches are no fault: a full window makes them wait. Beyond ten seconds "
            "nothing is told apart.",
            {
                "{{stage}}": quantile(0.5, "fourstage_batch_age_seconds", ["stage"]),
                "train, 99 %": quantile(0.99, "fourstage_batch_age_seconds", [], stage="train"),
            },
            "s",
            8,
            colours={**STAGE_COLOURS, "train, 99 %": ORANGE},
        ),
        lines(
            "On the way, per batch",
            "From the lease to its receipt, and from the finished batch to its receipt. Milliseconds on one host; it "
            "holds the queue in front of a slow network.",
            {"{{hop}}": f"max by (hop) ({series('hop:fourstage_wire_seconds:mean_rate1m')})"},
            "s",
            12,
            colours=_HOPS,
        ),
        lines(
            "Batches that are on the way",
            "On average, between two stages. About one at all times, while no stage is busy, and the way is the narrow "
            "place.",
            {"{{hop}}": f"sum by (hop) ({rate('fourstage_wire_seconds_total')})"},
            "suffix: batches",
            12,
            colours=_HOPS,
        ),
    ),
)  # fmt: skip

_WORKERS = Row(
    "Workers",
    (
        lines(
            "Augmenters",
            "Those that are connected, those that are busy on average, those that would just feed the trainer however "
            "many there are, and those that there should be (loader.expect_augmenters; 0: any number).",
            {
                "connected": f"max({series('fourstage_peers', role='augmenter')})",
                "busy": f"sum({rate('fourstage_busy_seconds_total', stage='transform')})",
                "wanted": f"max({series('fourstage_augmenters_wanted')})",
                "expected": f"max({series('fourstage_augmenters_expected')})",
            },
            "short",
            12,
            colours={"connected": BLUE, "busy": GREEN, "wanted": ORANGE, "expected": GREY},
        ),
        lines(
            "Incidents",
            "What was noticed and mended: leases that ended by silence, workers that died, batches leased again, "
            "batches that came twice, messages that the protocol does not allow, connections without the right key, "
            "images that cannot be decoded. None changes what is trained on, but for images left out.",
            {
                legend: f"sum(increase({series(f'fourstage_{name}_total')}[$__rate_interval]))"
                for legend, (name, _) in _INCIDENTS.items()
            },
            "short",
            12,
            bars=True,
            colours={legend: colour for legend, (_, colour) in _INCIDENTS.items()},
        ),
    ),
)

PIPELINE = Dashboard(
    uid="fourstage-pipeline",
    title="fourstage: pipeline",
    description="Is training waiting, and for what: the four stages, what flows between them, and who does the work.",
    rows=(_WAITING, _FLOW, _QUEUES, _WORKERS),
)
