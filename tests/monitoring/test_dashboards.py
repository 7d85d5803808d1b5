"""The dashboards hold to what Grafana's linter asks, and every expression asks for what there is.

The rules are those of grafana/dashboard-linter, which is a Go program; they are kept here by tests.
"""

import json
import re
from collections.abc import Iterator
from typing import Any

import promql_parser
import pytest
import yaml

from fourstage.dashboards.grafana import COLUMNS, Dashboard, Panel, Query, Row, layout
from fourstage.dashboards.pages import DASHBOARDS, FOLDER, as_json, file_name, text
from fourstage.dashboards.queries import RUN_STATE_WORDS, STAGE_TITLES, STATES, WAITED_FOR, WAITS_FOR_WORDS, concrete
from fourstage.metrics import BOTTLENECKS, METRICS, RUN_STATES, STAGES
from tests.monitoring.expressions import (
    MONITORING,
    ROOT,
    TARGET_LABELS,
    Asked,
    dashboard_expressions,
    known_labels,
    nodes,
    rule_expressions,
    selectors,
)

UNITS = {"short", "percentunit", "s", "Bps", "bytes", "locale", "sci"}
"""Of Grafana's own, beside those of the form "suffix: WORD"."""
COUNTERS = {metric.name for metric in METRICS if metric.kind == "counter"} | {"process_cpu_seconds_total"}

every_dashboard = pytest.mark.parametrize("dashboard", DASHBOARDS, ids=file_name)
every_expression = pytest.mark.parametrize(
    "asked", [*dashboard_expressions(), *rule_expressions()], ids=lambda asked: asked.where
)


def queries(dashboard: Dashboard) -> Iterator[tuple[Panel, Query]]:
    for panel in dashboard.panels:
        for query in panel.queries:
            yield panel, query


@every_dashboard
def test_the_file_is_what_the_code_says(dashboard: Dashboard) -> None:
    path = ROOT / FOLDER / file_name(dashboard)
    assert path.read_text("utf-8") == text(dashboard), "run python -m fourstage.dashboards"


def test_no_other_file_lies_beside_them() -> None:
    assert {path.name for path in (ROOT / FOLDER).iterdir()} == {file_name(dashboard) for dashboard in DASHBOARDS}


def test_names_are_their_own() -> None:
    assert len({dashboard.uid for dashboard in DASHBOARDS}) == len(DASHBOARDS)
    assert len({dashboard.title for dashboard in DASHBOARDS}) == len(DASHBOARDS)
    for dashboard in DASHBOARDS:
        assert re.fullmatch(r"[a-z0-9-]{1,40}", dashboard.uid)
        titles = [panel.title for panel in dashboard.panels]
        assert len(set(titles)) == len(titles)


@every_dashboard
def test_a_page_is_not_for_editing_and_leads_to_the_others(dashboard: Dashboard) -> None:
    page: Any = as_json(dashboard)
    assert page["editable"] is False
    assert page["description"]
    assert "id" not in page, "a number of one Grafana's database"
    (link,) = page["links"]
    assert link["type"] == "dashboards"
    assert link["tags"] == page["tags"]
    assert link["keepTime"]
    assert link["includeVars"]


@every_dashboard
def test_the_data_source_can_be_chosen_and_nothing_names_another(dashboard: Dashboard) -> None:
    page: Any = as_json(dashboard)
    sources = [entry for entry in page["templating"]["list"] if entry["type"] == "datasource"]
    assert [(entry["name"], entry["label"], entry["query"]) for entry in sources] == [
        ("datasource", "Data source", "prometheus")
    ]
    assert set(re.findall(r'"uid": "([^"]+)"', text(dashboard))) == {"${datasource}", dashboard.uid}


@every_dashboard
def test_jobs_and_instances_can_be_chosen_and_are_looked_up_again(dashboard: Dashboard) -> None:
    page: Any = as_json(dashboard)
    variables = {entry["name"]: entry for entry in page["templating"]["list"]}
    assert set(variables) == {"datasource", "job", "instance"}
    for name in ("job", "instance"):
        entry = variables[name]
        assert (entry["type"], entry["label"]) == ("query", name.capitalize())
        assert entry["multi"]
        assert entry["includeAll"]
        assert entry["allValue"] == ".+"
        assert entry["refresh"] == 2, "whenever the time range changes"
        inner, label = re.fullmatch(r"label_values\((.+), (\w+)\)", entry["query"]["query"]).groups()  # type: ignore[union-attr]
        assert label == name
        (selector,) = selectors(concrete(inner))
        assert selector.labels <= known_labels()[selector.name]


@every_dashboard
def test_every_panel_says_what_it_shows_in_which_unit(dashboard: Dashboard) -> None:
    for panel in dashboard.panels:
        assert panel.title
        assert panel.description.endswith("."), panel.title
        assert panel.queries, panel.title
        assert panel.unit in UNITS or re.fullmatch(r"suffix: [a-z/]+", panel.unit), panel.title
        assert set(panel.units.values()) <= UNITS
        assert all(query.legend for query in panel.queries), panel.title
        for steps in (panel.steps, panel.steps[1:]):
            assert [step.start for step in steps][1:] == sorted(step.start or 0.0 for step in steps[1:])
        if panel.kind in ("stat", "state-timeline"):
            assert len(panel.queries) == 1, panel.title


@every_dashboard
def test_panels_lie_side_by_side_on_the_page(dashboard: Dashboard) -> None:
    taken: set[tuple[int, int]] = set()
    for item, place in layout(dashboard):
        cells = {(x, y) for x in range(place.x, place.x + place.width) for y in range(place.y, place.y + place.height)}
        assert not cells & taken, item.title
        assert place.x + place.width <= COLUMNS
        taken |= cells
    page: Any = as_json(dashboard)
    assert len({panel["id"] for panel in page["panels"]}) == len(page["panels"])
    # Rows are filled to the edge: no hole that looks like a panel that failed.
    assert {x for x, _ in taken} == set(range(COLUMNS))
    assert len(taken) == COLUMNS * (1 + max(y for _, y in taken))


def test_a_panel_wider_than_the_page_is_refused() -> None:
    panel = Panel(kind="stat", title="wide", description="", queries=(), unit="short", width=25)
    with pytest.raises(ValueError, match="wide: 25 of 24"):
        layout(Dashboard(uid="x", title="x", description="", rows=(Row("x", (panel,)),)))


@every_dashboard
def test_every_selector_heeds_the_chosen_jobs_and_instances(dashboard: Dashboard) -> None:
    for panel, query in queries(dashboard):
        for selector in re.findall(r"[a-z_]+(?::[a-z_0-9]+)*\{[^}]*\}", query.expr):
            assert 'job=~"$job"' in selector, panel.title
            assert ('instance=~"$instance"' in selector) == (":" not in selector.partition("{")[0]), panel.title


@every_dashboard
def test_rates_are_of_counters_over_a_time_that_fits_the_page(dashboard: Dashboard) -> None:
    for panel, query in queries(dashboard):
        assert set(re.findall(r"\[([^\]]+)\]", query.expr)) <= {"$__rate_interval"}, panel.title
        expr = concrete(query.expr)
        rated = {
            node.vector_selector.name
            for call in nodes(expr)
            if isinstance(call, promql_parser.Call) and call.func.name in ("rate", "increase")
            for node in call.args
        }
        for name in rated:
            assert name in COUNTERS or name.endswith("_bucket"), f"{panel.title}: {name} is no counter"
        bare = {selector.name for selector in selectors(expr)} - rated
        # How many checkpoints there were is of the whole run.
        allowed = {"fourstage_checkpoints_total"} if panel.title == "Checkpoints" else set()
        assert not bare & COUNTERS - allowed, f"{panel.title}: a counter that is not rated"


@every_expression
def test_an_expression_asks_for_series_that_there_are_by_labels_that_they_have(asked: Asked) -> None:
    known = known_labels()
    for selector in selectors(asked.expr):
        assert selector.name in known, f"{asked.where} asks for {selector.name}, which nobody exports"
        assert selector.labels <= known[selector.name], f"{asked.where}: {selector}"


@every_expression
def test_an_expression_groups_by_labels_that_there_are(asked: Asked) -> None:
    known = known_labels()
    for node in nodes(asked.expr):
        if isinstance(node, promql_parser.AggregateExpr) and node.modifier is not None:
            beneath = set().union(*(known[selector.name] for selector in selectors(node.expr.prettify())))
            assert set(node.modifier.labels) <= beneath, f"{asked.where}: {node.prettify()}"


def test_words_exist_for_everything_that_a_run_can_wait_for_or_be() -> None:
    assert tuple(WAITED_FOR) == BOTTLENECKS
    assert tuple(STATES) == RUN_STATES
    for words in (WAITS_FOR_WORDS, RUN_STATE_WORDS):
        assert len({word.text for word in words}) == len(words)
    assert list(STAGE_TITLES) == [stage for role in ("loader", "augmenter", "trainer") for stage in STAGES[role]]


def test_every_metric_is_on_a_page_or_in_a_rule() -> None:
    asked = {
        selector.name for entry in [*dashboard_expressions(), *rule_expressions()] for selector in selectors(entry.expr)
    }
    asked = {re.sub(r"_(bucket|sum|count)$", "", name) for name in asked}
    assert {metric.name for metric in METRICS} <= asked | TARGET_LABELS


def test_grafana_is_told_of_the_data_and_of_the_folder() -> None:
    provisioning = MONITORING / "grafana" / "provisioning"
    (source,) = yaml.safe_load((provisioning / "datasources" / "prometheus.yaml").read_text())["datasources"]
    scraping = yaml.safe_load((MONITORING / "prometheus.yml").read_text())["global"]["scrape_interval"]
    assert (source["uid"], source["url"]) == ("prometheus", "http://prometheus:9090")
    assert source["jsonData"]["timeInterval"] == scraping
    (provider,) = yaml.safe_load((provisioning / "dashboards" / "fourstage.yaml").read_text())["providers"]
    assert provider["allowUiUpdates"] is False
    assert provider["folder"] == ""
    assert provider["options"]["foldersFromFilesStructure"] is True
    mounted = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]["grafana"]["volumes"]
    assert f"./{FOLDER.parent}:{provider['options']['path']}:ro" in mounted


def test_files_are_json_that_any_reader_takes() -> None:
    for path in (ROOT / FOLDER).glob("*.json"):
        assert json.loads(path.read_text("utf-8"))["schemaVersion"] >= 39
