"""Names and units as Prometheus advises: by rules kept here, and by promtool on the pages that are served."""

import re
import shutil
import subprocess
import urllib.request
from typing import get_args

import pytest

from fourstage.metrics import METRICS, Metric, Role
from fourstage.settings import MetricsSettings
from fourstage.telemetry import Telemetry

BASE_UNITS = ("seconds", "bytes", "ratio")
SCALED = re.compile(r"milli|micro|nano|kilo|mega|giga|minutes|hours|days|percent|_ms\b|_mb\b|_kb\b")
every_metric = pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name)


@every_metric
def test_a_name_says_its_unit_and_whether_it_counts(metric: Metric) -> None:
    assert re.fullmatch(r"fourstage_[a-z]+(_[a-z]+)*", metric.name)
    assert not SCALED.search(metric.name), "base units alone"
    assert metric.name.endswith("_total") == (metric.kind == "counter")
    assert not re.search(r"_(count|sum|bucket|created)$", metric.name), "the ends of a histogram's series"
    assert not re.search(r"counter|gauge|histogram|metric", metric.name)
    unit = metric.name.removesuffix("_total").rpartition("_")[2]
    units = [part for part in metric.name.split("_") if part in BASE_UNITS]
    assert len(units) <= 1
    if units:
        assert unit == units[0], "the unit comes last"
    if metric.kind == "histogram":
        assert unit in BASE_UNITS


@every_metric
def test_a_label_is_short_and_never_what_prometheus_adds(metric: Metric) -> None:
    for label in metric.labels:
        assert re.fullmatch(r"[a-z]+(_[a-z]+)*", label)
        assert label not in ("le", "quantile", "job", "instance", "name")
    assert all(len(values) == len(metric.labels) for values in metric.values)


@every_metric
def test_a_help_text_is_a_sentence(metric: Metric) -> None:
    assert metric.help.endswith(".")
    assert metric.help[0].isupper() or metric.help[0].isdigit()
    assert "\n" not in metric.help
    assert metric.roles


@pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool is not installed (Debian: apt-get install prometheus)"
)
@pytest.mark.parametrize("role", get_args(Role))
def test_promtool_finds_no_fault_with_a_page(role: Role) -> None:
    process = Telemetry(role, MetricsSettings(), "1.2.3")
    try:
        with urllib.request.urlopen(f"{process.serve()}/metrics", timeout=10) as answer:
            page = answer.read()
    finally:
        process.close()
    done = subprocess.run(["promtool", "check", "metrics"], input=page, capture_output=True, check=False, timeout=60)
    assert (done.returncode, done.stdout + done.stderr) == (0, b"")
