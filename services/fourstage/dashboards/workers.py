"""Each augmenter beside the others: one that is slower, older or larger than the rest is seen here."""

from fourstage.dashboards.grafana import Dashboard, Panel, Query, Row
from fourstage.dashboards.panels import Looks, lines
from fourstage.dashboards.queries import rate, series

_NAME = f"max by (job, instance, replica) ({series('fourstage_build_info', role='augmenter')})"
_LEGEND = "{{replica}} {{instance}}"
_TIME = (
    f"sum by (job, instance) ({rate('fourstage_busy_seconds_total', stage='transform')})"
    f" + sum by (job, instance) ({rate('fourstage_wait_seconds_total', stage='transform')})"
)


def _named(expr: str) -> str:
    """With the replica's name, which the address alone does not tell; of augmenters only."""
    return f"sum by (job, instance) ({expr}) * on (job, instance) group_left (replica) {_NAME}"


def _share(expr: str) -> str:
    return (
        f"(sum by (job, instance) ({expr}) / on (job, instance) ({_TIME} > 0))"
        f" * on (job, instance) group_left (replica) {_NAME}"
    )


_BUSY = _share(rate("fourstage_busy_seconds_total", stage="transform"))
_INPUT = _share(rate("fourstage_wait_seconds_total", stage="transform", blocked_on="upstream"))
_ROOM = _share(rate("fourstage_wait_seconds_total", stage="transform", blocked_on="downstream"))
_IMAGES = _named(rate("fourstage_items_total", stage="transform"))
_MEMORY = _named(series("process_resident_memory_bytes"))
_CORES = _named(rate("process_cpu_seconds_total"))
_PER_BATCH = _named(
    f"{rate('fourstage_busy_seconds_total', stage='transform')}"
    f" / ({rate('fourstage_batches_total', stage='transform')} > 0)"
)
_USED = _named(series("fourstage_slots", state="used"))
_UP_FOR = _named(f"time() - {series('process_start_time_seconds')}")


def _lines(title: str, description: str, expr: str, unit: str) -> Panel:
    looks: Looks = {"height": 8, "maximum": 1} if unit == "percentunit" else {"height": 8}
    return lines(title, description, {_LEGEND: expr}, unit, 8, **looks)


def _in_table(expr: str) -> str:
    """One line a worker: every column has the same labels, the version among them."""
    return (
        f"sum by (instance, replica, version) (sum by (job, instance) ({expr}) * on (job, instance)"
        f" group_left (replica, version) {series('fourstage_build_info', role='augmenter')})"
    )


_ALL = Row(
    "All augmenters",
    (
        Panel(
            kind="table",
            title="Augmenters",
            description="One line for each. Replica is the host's name, in a container the container's.",
            queries=(
                Query(_in_table(f"{rate('fourstage_busy_seconds_total', stage='transform')}"), "Busy"),
                Query(
                    _in_table(rate("fourstage_wait_seconds_total", stage="transform", blocked_on="upstream")),
                    "Waits for input",
                ),
                Query(
                    _in_table(rate("fourstage_wait_seconds_total", stage="transform", blocked_on="downstream")),
                    "Waits for room",
                ),
                Query(_in_table(rate("fourstage_items_total", stage="transform")), "Images/s"),
                Query(_in_table(series("fourstage_slots", state="used")), "Slots used"),
                Query(_in_table(series("process_resident_memory_bytes")), "Memory"),
                Query(_in_table(rate("process_cpu_seconds_total")), "Cores"),
                Query(_in_table(f"time() - {series('process_start_time_seconds')}"), "Up for"),
            ),
            unit="short",
            units={
                "Busy": "percentunit",
                "Waits for input": "percentunit",
                "Waits for room": "percentunit",
                "Memory": "bytes",
                "Up for": "s",
            },
            width=24,
            height=8,
        ),
    ),
)

_TIME_ROW = Row(
    "How they spend their time",
    (
        _lines("At work", "Share of its time in which each one decodes and crops.", _BUSY, "percentunit"),
        _lines(
            "Waits for input",
            "No lease: the loader is behind, or the window is closed because training is. High for all while one is at "
            "work: the batch that training waits for is that one's.",
            _INPUT,
            "percentunit",
        ),
        _lines(
            "Waits for room",
            "All slots hold finished batches: training is behind, as it should be; or the way to the trainer is.",
            _ROOM,
            "percentunit",
        ),
    ),
)

_WORK = Row(
    "What they do",
    (
        _lines("Images per second", "Of each one.", _IMAGES, "suffix: images/s"),
        _lines(
            "Seconds of a batch",
            "At work on one batch. One line above the rest: that worker's core is shared, or slower.",
            _PER_BATCH,
            "s",
        ),
        _lines(
            "Slots used",
            "Batches that each one holds: leased, in work or finished and not yet released by the trainer.",
            _USED,
            "suffix: slots",
        ),
    ),
)

_COST = Row(
    "What they take",
    (
        _lines(
            "Memory",
            "Resident, shared memory that was touched included: an arena counts here and at whoever maps it.",
            _MEMORY,
            "bytes",
        ),
        _lines(
            "Cores",
            "Processor seconds per second. An augmenter has one thread: 1 is all that it can use.",
            _CORES,
            "short",
        ),
        _lines("Up for", "Time since each one started. A line that falls to 0: it was started again.", _UP_FOR, "s"),
    ),
)

WORKERS = Dashboard(
    uid="fourstage-workers",
    title="fourstage: workers",
    description="Each augmenter: its time, its work, its memory, its version.",
    rows=(_ALL, _TIME_ROW, _WORK, _COST),
)
