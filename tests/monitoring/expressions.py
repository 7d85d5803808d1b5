"""What an expression of PromQL asks for: its selectors, their labels, and the labels that there are."""

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import promql_parser
import yaml

from fourstage.dashboards.pages import DASHBOARDS
from fourstage.dashboards.queries import ANNOTATIONS, concrete
from fourstage.metrics import METRICS

ROOT = Path(__file__).parent.parent.parent
MONITORING = ROOT / "docker" / "monitoring"
RULES = MONITORING / "rules"

TARGET_LABELS = {"job", "instance"}
"""Prometheus puts them on everything that it scrapes."""
NOT_OURS: dict[str, set[str]] = {
    "up": set(),
    "ALERTS": {"alertname", "alertstate", "severity"},
    "process_start_time_seconds": set(),
    "process_resident_memory_bytes": set(),
    "process_cpu_seconds_total": set(),
}
"""Of Prometheus and of prometheus-client, with their own labels."""


@dataclass(frozen=True, slots=True)
class Asked:
    """An expression and where it stands."""

    where: str
    expr: str


@dataclass(frozen=True, slots=True)
class Selector:
    """A series that is asked for: its name, and the labels that are matched."""

    name: str
    labels: frozenset[str]


@cache
def rule_groups() -> tuple[dict[str, Any], ...]:
    """Every group of every file."""
    return tuple(group for path in sorted(RULES.glob("*.yml")) for group in yaml.safe_load(path.read_text())["groups"])


def rules(kind: str) -> list[dict[str, Any]]:
    """All rules of a kind: ``alert`` or ``record``."""
    return [rule for group in rule_groups() for rule in group["rules"] if kind in rule]


def dashboard_expressions() -> list[Asked]:
    """As Grafana would send them, annotations included."""
    asked = [
        Asked(f"{dashboard.title}: {panel.title}: {query.legend}", concrete(query.expr))
        for dashboard in DASHBOARDS
        for panel in dashboard.panels
        for query in panel.queries
    ]
    return asked + [Asked(f"annotation {name}", concrete(entry[0])) for name, entry in ANNOTATIONS.items()]


def rule_expressions() -> list[Asked]:
    """Of every rule, and those within the annotations of alerts."""
    asked = []
    for kind in ("record", "alert"):
        for rule in rules(kind):
            asked.append(Asked(rule[kind], rule["expr"]))
            for text in rule.get("annotations", {}).values():
                asked += [Asked(f"{rule[kind]}, in words", inner) for inner in re.findall(r'query "([^"]+)"', text)]
    return asked


def known_labels() -> dict[str, set[str]]:
    """By series: every label that it can have."""
    known = {name: labels | TARGET_LABELS for name, labels in NOT_OURS.items()}
    for metric in METRICS:
        labels = {*metric.labels, *TARGET_LABELS}
        if metric.kind == "histogram":
            known |= {f"{metric.name}_bucket": labels | {"le"}}
            known |= {f"{metric.name}_sum": labels, f"{metric.name}_count": labels}
        else:
            known[metric.name] = labels
    return known | {rule["record"]: set(grouping(rule["expr"])) for rule in rules("record")}


def selectors(expr: str) -> set[Selector]:
    """All series that an expression asks for."""
    return {
        Selector(node.name or "", frozenset(matcher.name for matcher in node.matchers.matchers))
        for node in nodes(expr)
        if isinstance(node, promql_parser.VectorSelector)
    }


def grouping(expr: str) -> list[str]:
    """The labels that the outermost aggregation of an expression leaves; a recorded one's are those of its divisor."""
    for node in nodes(expr):
        if isinstance(node, promql_parser.AggregateExpr) and node.modifier is not None:
            return node.modifier.labels
        if isinstance(node, promql_parser.VectorSelector) and ":" in (node.name or ""):
            recorded = next(rule for rule in rules("record") if rule["record"] == node.name)
            return grouping(recorded["expr"])
    raise AssertionError(f"nothing is aggregated in {expr}")


def nodes(expr: str) -> list[promql_parser.Expr]:
    """Every node of an expression, from the outside in. Raises ValueError where it is none."""
    found: list[promql_parser.Expr] = []
    promql_parser.walk(promql_parser.parse(expr), pre_visit=found.append)
    return found
