"""Recording rules and alerts: named as Prometheus advises, tested by its own tools, each with a page that helps."""

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml

from fourstage.metrics import BOTTLENECKS
from tests.monitoring.expressions import (
    MONITORING,
    ROOT,
    RULES,
    dashboard_expressions,
    nodes,
    rule_expressions,
    rule_groups,
    rules,
    selectors,
)

needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool is not installed (Debian: apt-get install prometheus)"
)
TESTS = sorted((RULES / "tests").glob("*.yml"))
ALERTS = [rule["alert"] for rule in rules("alert")]


def promtool(*arguments: str | Path) -> str:
    """What it says; fails with its words where it finds fault."""
    done = subprocess.run(["promtool", *map(str, arguments)], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@needs_promtool
def test_promtool_takes_the_configuration_and_the_rules() -> None:
    files = sorted(RULES.glob("*.yml"))
    assert f"{len(files)} rule files found" in promtool("check", "config", MONITORING / "prometheus.yml")
    promtool("check", "rules", "--lint=all", "--lint-fatal", *files)


@needs_promtool
@pytest.mark.parametrize("path", TESTS, ids=lambda path: path.stem)
def test_the_rules_do_what_their_tests_say(path: Path) -> None:
    promtool("test", "rules", path)


@needs_promtool
@pytest.mark.parametrize("alert", [name for name in ALERTS if name != "Watchdog"])
def test_the_tests_of_an_alert_notice_when_it_never_fires_or_always(alert: str, tmp_path: Path) -> None:
    cases = yaml.safe_load((RULES / "tests" / "alerts.yml").read_text())
    cases["tests"] = [case for case in cases["tests"] if alert in case["name"]]
    cases["rule_files"] = [str(RULES / "recording.yml"), "alerts.yml"]
    (tmp_path / "cases.yml").write_text(yaml.safe_dump(cases))
    for broken in ("vector(0) > 1", "vector(1)"):
        content = yaml.safe_load((RULES / "alerts.yml").read_text())
        (rule,) = (rule for group in content["groups"] for rule in group["rules"] if rule["alert"] == alert)
        rule["expr"] = broken
        (tmp_path / "alerts.yml").write_text(yaml.safe_dump(content))
        done = subprocess.run(
            ["promtool", "test", "rules", tmp_path / "cases.yml"],
            capture_output=True,
            check=False,
            timeout=120,
        )
        assert done.returncode != 0, f"{alert} as {broken} passes its tests"


def test_every_alert_has_a_case_in_which_it_fires_and_one_in_which_it_is_silent() -> None:
    fires, silent = set(), set()
    for case in yaml.safe_load((RULES / "tests" / "alerts.yml").read_text())["tests"]:
        for entry in case.get("promql_expr_test", []):
            fires |= {
                name for sample in entry["exp_samples"] for name in re.findall(r'alertname="(\w+)"', sample["labels"])
            }
            silent |= set() if entry["exp_samples"] else {name for name in ALERTS if name in case["name"]}
        fires |= {entry["alertname"] for entry in case.get("alert_rule_test", []) if entry["exp_alerts"]}
    assert fires == set(ALERTS)
    assert silent | {"Watchdog"} == set(ALERTS)


def test_tests_hold_to_the_keys_that_the_oldest_promtool_knows() -> None:
    case = {"name", "interval", "input_series", "promql_expr_test", "alert_rule_test"}
    for path in TESTS:
        content = yaml.safe_load(path.read_text())
        assert set(content) <= {"rule_files", "evaluation_interval", "group_eval_order", "tests"}
        assert all(set(entry) <= case for entry in content["tests"])


def test_the_order_of_groups_in_the_tests_is_all_of_them() -> None:
    content = yaml.safe_load((RULES / "tests" / "alerts.yml").read_text())
    assert set(content["group_eval_order"]) == {group["name"] for group in rule_groups()}


def test_recorded_names_say_level_metric_and_operation() -> None:
    names = [rule["record"] for rule in rules("record")]
    assert len(set(names)) == len(names)
    for rule in rules("record"):
        assert re.fullmatch(r"(job|stage|rank|queue|hop):fourstage_[a-z_]+:[a-z_]+(1m)?", rule["record"])
        assert rule["record"].endswith("1m") == ("[1m]" in rule["expr"] or "rate1m" in rule["expr"])
        level = rule["record"].partition(":")[0]
        aggregations = [node for node in nodes(rule["expr"]) if isinstance(node, promql_parser.AggregateExpr)]
        recorded = [selector for selector in selectors(rule["expr"]) if selector.name.startswith(f"{level}:")]
        assert recorded or all(level in node.modifier.labels for node in aggregations[:1] if node.modifier)


def test_every_recorded_series_is_asked_for() -> None:
    asked = {s.name for entry in [*dashboard_expressions(), *rule_expressions()] for s in selectors(entry.expr)}
    assert {rule["record"] for rule in rules("record")} <= asked


@pytest.mark.parametrize("rule", rules("alert"), ids=lambda rule: rule["alert"])
def test_an_alert_says_what_it_means_and_where_more_is_said(rule: dict[str, Any]) -> None:
    name = rule["alert"]
    assert re.fullmatch(r"(Fourstage([A-Z][a-z]+)+|Watchdog)", name)
    assert rule["labels"]["severity"] in ("critical", "warning", "none")
    assert name == "Watchdog" or re.fullmatch(r"\d+[sm]", rule["for"])
    assert set(rule["annotations"]) == {"summary", "description", "runbook_url"}
    assert len(rule["annotations"]["description"]) > 100
    page, anchor = rule["annotations"]["runbook_url"].split("#")
    assert anchor == name.lower()
    assert anchor in anchors(ROOT / page)


def test_the_page_explains_no_alert_that_there_is_not() -> None:
    text = (ROOT / "docs" / "operations.md").read_text("utf-8")
    section = text.partition("## What each alert means")[2].partition("\n## ")[0]
    assert re.findall(r"^### (\w+)$", section, re.MULTILINE) == ALERTS


def test_the_page_says_what_to_do_for_everything_that_a_run_can_wait_for() -> None:
    text = (ROOT / "docs" / "operations.md").read_text("utf-8")
    for what in BOTTLENECKS:
        assert re.search(rf"^\| `{what}` \|", text, re.MULTILINE), what


def test_every_replica_of_every_service_is_scraped() -> None:
    content = yaml.safe_load((MONITORING / "prometheus.yml").read_text())
    compose = yaml.safe_load((ROOT / "compose.yaml").read_text())
    jobs = {job["job_name"]: job for job in content["scrape_configs"]}
    assert set(jobs) == {"loader", "augmenter", "trainer", "prometheus"}
    for name in ("loader", "augmenter", "trainer"):
        (found,) = jobs[name]["dns_sd_configs"]
        assert found == {"names": [name], "type": "A", "port": 9100, "refresh_interval": "5s"}
        assert name in compose["services"]
        assert str(found["port"]) in compose["services"][name]["expose"]


def anchors(page: Path) -> set[str]:
    """Of a page's headings, as they are linked to."""
    headings = re.findall(r"^#+ (.+)$", page.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
