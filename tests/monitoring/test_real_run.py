"""Every question of every dashboard, asked of a real Prometheus that watches a real run."""

import math
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pytest

from fourstage.dashboards.draw import draw_all
from fourstage.dashboards.pages import DASHBOARDS, file_name
from fourstage.dashboards.prometheus import Prometheus
from fourstage.dashboards.queries import ANNOTATIONS, concrete, variables
from tests.monitoring.expressions import rules
from tests.monitoring.server import installed, watching
from tests.pipeline.conftest import store
from tests.pipeline.harness import CROP, Run, eventually, start_run

__all__ = ["store"]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not installed(), reason="prometheus is not installed (Debian: apt-get install prometheus)"),
]

TRAINING = [
    "--recipe", "demo", "--augmenters", "2", "--epochs", "10000", "--set", "batch_size=16",
    "--set", f"augmenter.crop={CROP}", "--set", "train.checkpoint_seconds=5", "--set", "loader.expect_augmenters=2",
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Watched:
    run: Run
    prometheus: Prometheus


@pytest.fixture(scope="module")
def watched(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    folder = tmp_path_factory.mktemp("watched")
    run = start_run(store, folder / "run", *TRAINING)
    try:
        with watching(folder / "run", folder / "prometheus") as prometheus:
            run.reach(20)
            yield Watched(run, prometheus)
    finally:
        run.process.terminate()
        run.process.communicate(timeout=60)


def asked() -> list[tuple[str, str, str]]:
    """Where it stands, what it asks, and how its lines are named."""
    return [
        (f"{dashboard.title}: {panel.title}: {query.legend}", concrete(query.expr, "10s"), query.legend)
        for dashboard in DASHBOARDS
        for panel in dashboard.panels
        for query in panel.queries
    ]


@pytest.mark.parametrize(("where", "expr", "legend"), asked(), ids=[entry[0] for entry in asked()])
def test_a_question_is_answered_with_numbers_and_all_the_labels_of_its_legend(
    watched: Watched, where: str, expr: str, legend: str
) -> None:
    def answered() -> bool:
        lines = watched.prometheus.query(expr)
        return bool(lines) and all(math.isfinite(line.values[0]) for line in lines)

    eventually(answered, f"an answer to {where}, {expr}")
    labels = set(re.findall(r"\{\{(\w+)\}\}", legend))
    assert all(labels <= set(line.labels) for line in watched.prometheus.query(expr))


@pytest.mark.parametrize("rule", rules("record"), ids=lambda rule: rule["record"])
def test_a_recording_rule_records(watched: Watched, rule: dict[str, str]) -> None:
    eventually(lambda: watched.prometheus.query(rule["record"]), rule["record"])


def test_annotations_are_questions_that_it_understands(watched: Watched) -> None:
    for expr, _, _ in ANNOTATIONS.values():
        watched.prometheus.query(concrete(expr))


def test_jobs_and_instances_can_be_chosen(watched: Watched) -> None:
    for of, jobs in (
        ("fourstage_build_info", {"loader", "augmenter", "trainer"}),
        ('fourstage_build_info{role="augmenter"}', {"augmenter"}),
    ):
        definitions = [str(entry["definition"]) for entry in variables(of) if "definition" in entry]
        for definition, label in zip(definitions, ("job", "instance"), strict=True):
            expr = concrete(definition).removeprefix("label_values(").removesuffix(f", {label})")
            values = {line.labels[label] for line in watched.prometheus.query(expr)}
            assert values == jobs if label == "job" else values


def test_the_bottleneck_is_one_of_its_words(watched: Watched) -> None:
    panel = next(panel for panel in DASHBOARDS[0].panels if panel.words)
    (line,) = watched.prometheus.query(concrete(panel.queries[0].expr))
    assert line.values[0] in {word.value for word in panel.words}


def test_every_dashboard_can_be_drawn(watched: Watched, tmp_path: Path) -> None:
    now = time.time()
    paths = draw_all(watched.prometheus, tmp_path / "pictures", now - 30, now, "10s")
    assert [path.name for path in paths] == [f"dashboard-{Path(file_name(page)).stem}.png" for page in DASHBOARDS]
    for path in paths:
        pixels = cv2.imread(str(path))
        assert pixels is not None
        assert pixels.shape[1] > 1500
        assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 100, "lines, words and colours"


def test_all_targets_are_up_and_all_rules_are_healthy(watched: Watched) -> None:
    targets = watched.prometheus.ask("targets")["activeTargets"]
    assert sorted(target["labels"]["job"] for target in targets) == [
        "augmenter", "augmenter", "loader", "prometheus", "trainer",
    ]  # fmt: skip
    eventually(
        lambda: all(target["health"] == "up" for target in watched.prometheus.ask("targets")["activeTargets"]),
        "all targets up",
    )
    eventually(
        lambda: (
            {rule["health"] for group in watched.prometheus.ask("rules")["groups"] for rule in group["rules"]} == {"ok"}
        ),
        "all rules evaluated without fault",
    )


def test_nothing_is_reported_but_the_watchdog(watched: Watched) -> None:
    assert watched.run.process.poll() is None
    firing = watched.prometheus.query('ALERTS{alertstate="firing"}')
    assert {line.labels["alertname"] for line in firing} == {"Watchdog"}
