"""How expressions of the dashboards are written, and what Grafana puts into them before it asks."""

from collections.abc import Mapping, Sequence

from fourstage.dashboards.grafana import Word
from fourstage.dashboards.render import DATASOURCE, Json
from fourstage.metrics import BOTTLENECKS, RUN_STATES

GREEN, ORANGE, BLUE, PINK, AMBER, SKY, GREY = (
    "#009E73", "#D55E00", "#0072B2", "#CC79A7", "#E69F00", "#56B4E9", "#9fb4c7",
)  # fmt: skip
"""Okabe and Ito (2008): told apart with any kind of colour vision, on dark and on light."""

STAGE_COLOURS = {"load": BLUE, "transform": AMBER, "copy": PINK, "train": GREEN}
STAGE_TITLES = {
    "load": "Load: the loader reads",
    "transform": "Transform: augmenters decode and crop",
    "copy": "Copy: to the device",
    "train": "Train: the device",
}

WAITED_FOR: Mapping[str, tuple[str, str]] = {
    "starting": ("nothing trained on yet", GREY),
    "train": ("the device: the pipeline keeps up", GREEN),
    "copy": ("the copy to the device", PINK),
    "to-trainer": ("the way to the trainer", SKY),
    "transform": ("augmenters: more would help", ORANGE),
    "to-augmenter": ("the way to augmenters", SKY),
    "load": ("the loader's disk", BLUE),
    "window": ("more batches in flight", AMBER),
    "peer": ("a process that is not there", "#b3001b"),
}
"""What a run waits for, in words."""

STATES: Mapping[str, tuple[str, str]] = {
    "starting": ("starting", GREY),
    "running": ("training", GREEN),
    "validating": ("validating", SKY),
    "interrupted": ("interrupted", ORANGE),
    "done": ("done", BLUE),
}


def series(name: str, **labels: str) -> str:
    """A selector that heeds the page's variables. A recorded series has been summed over instances: it has none.

    A label's value may begin with an operator: ``stage="!=train"``.
    """
    matchers = []
    for label, value in labels.items():
        operator = next((sign for sign in ("!=", "=~", "!~") if value.startswith(sign)), "=")
        matchers.append(f'{label}{operator}"{value.removeprefix(operator)}"')
    matchers.append('job=~"$job"')
    if ":" not in name:
        matchers.append('instance=~"$instance"')
    return f"{name}{{{', '.join(matchers)}}}"


def rate(name: str, **labels: str) -> str:
    """Per second, over a time that fits what the page shows."""
    return f"rate({series(name, **labels)}[$__rate_interval])"


def quantile(share: float, name: str, by: Sequence[str], **labels: str) -> str:
    """Of a histogram; by: the labels that remain."""
    return f"histogram_quantile({share}, sum by ({', '.join(('le', *by))}) ({rate(f'{name}_bucket', **labels)}))"


def numbered(name: str, label: str, values: Sequence[str]) -> str:
    """The number, counted from 1, of the one value of a label whose series is 1."""
    cases = [f"(max({series(name, **{label: value})}) == 1) * {n}" for n, value in enumerate(values, 1)]
    return " or ".join(cases)


WAITS_FOR = numbered("fourstage_bottleneck", "what", BOTTLENECKS)
WAITS_FOR_WORDS = tuple(Word(n, *WAITED_FOR[what]) for n, what in enumerate(BOTTLENECKS, 1))
RUN_STATE = numbered("fourstage_run_state", "state", RUN_STATES)
RUN_STATE_WORDS = tuple(Word(n, *STATES[state]) for n, state in enumerate(RUN_STATES, 1))

ANNOTATIONS = {
    # changes() would miss what starts again at another address: to Prometheus that is another series.
    "Starts": (
        f"time() - {series('process_start_time_seconds')} < 20",
        "{{job}} {{instance}} was started, or started again",
        ORANGE,
    ),
    "Scaling": (
        f"changes({series('fourstage_peers', role='augmenter')}[1m]) > 0",
        "the number of augmenters changed",
        BLUE,
    ),
    "Alerts": (
        'ALERTS{alertstate="firing", alertname!="Watchdog"}',
        "{{alertname}}",
        "#b3001b",
    ),
}  # fmt: skip


def variables(of: str) -> list[dict[str, Json]]:
    """What can be chosen above a page: where the data is, jobs, instances. of: a metric of those that are offered."""
    chosen: Json = {"selected": True, "text": ["All"], "value": ["$__all"]}
    return [
        {
            "name": "datasource",
            "label": "Data source",
            "type": "datasource",
            "query": "prometheus",
            "current": {"selected": True, "text": "Prometheus", "value": "prometheus"},
            "hide": 0,
            "includeAll": False,
            "multi": False,
            "options": [],
            "refresh": 1,
            "regex": "",
        },
        *(
            {
                "name": name,
                "label": name.capitalize(),
                "type": "query",
                "datasource": DATASOURCE,
                "definition": query,
                "query": {"query": query, "refId": name},
                "current": chosen,
                "allValue": ".+",
                "hide": 0,
                "includeAll": True,
                "multi": True,
                "options": [],
                # On every change of the time that is shown: workers come and go.
                "refresh": 2,
                "regex": "",
                "sort": 1,
            }
            for name, query in (
                ("job", f"label_values({of}, job)"),
                (
                    "instance",
                    f'label_values({of[:-1] + ", " if of.endswith("}") else of + "{"}job=~"$job"}}, instance)',
                ),
            )
        ),
    ]


def concrete(expr: str, interval: str = "1m", **chosen: str) -> str:
    """An expression as Grafana would send it. chosen: values of variables; what is not chosen is all of them."""
    values = {"__rate_interval": interval, "job": ".+", "instance": ".+"} | chosen
    for name, value in values.items():
        expr = expr.replace(f"${name}", value)
    return expr
