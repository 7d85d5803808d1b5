"""The pages that each process answers, over HTTP."""

import json
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import get_args
from urllib.parse import urlsplit

import pytest
from prometheus_client.parser import text_string_to_metric_families

from fourstage import telemetry
from fourstage.errors import SettingsError
from fourstage.metrics import METRICS, STAGES, Role
from fourstage.settings import MetricsSettings
from fourstage.telemetry import Telemetry

ROLES: tuple[Role, ...] = get_args(Role)


@pytest.fixture(params=ROLES)
def served(request: pytest.FixtureRequest) -> Iterator[tuple[Role, Telemetry, str]]:
    process = Telemetry(request.param, MetricsSettings(), "1.2.3")
    yield request.param, process, process.serve()
    process.close()


def get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=10) as answer:
        return str(answer.read().decode())


def test_exactly_the_declared_families_are_exported_twice_alike(served: tuple[Role, Telemetry, str]) -> None:
    role, _, page = served
    declared = {metric.name.removesuffix("_total") for metric in METRICS if role in metric.roles}
    for _ in range(2):
        families = {family.name for family in text_string_to_metric_families(get(f"{page}/metrics"))}
        assert {name for name in families if name.startswith("fourstage_")} == declared


def test_labels_exist_before_anything_happened(served: tuple[Role, Telemetry, str]) -> None:
    role, _, page = served
    samples = [s for family in text_string_to_metric_families(get(f"{page}/metrics")) for s in family.samples]
    for stage in STAGES[role]:
        assert any(s.name == "fourstage_batches_total" and s.labels == {"stage": stage} for s in samples)


def test_seconds_items_and_bytes_are_counted(served: tuple[Role, Telemetry, str]) -> None:
    role, process, page = served
    stage = STAGES[role][0]
    meter = process.meter(stage)
    meter.done(0.5, items=128, size=1000)
    meter.waited(0.25, "upstream")
    meter.waited(0.125, "downstream")
    text = get(f"{page}/metrics")
    assert f'fourstage_items_total{{stage="{stage}"}} 128.0' in text
    assert f'fourstage_bytes_total{{stage="{stage}"}} 1000.0' in text
    assert f'fourstage_busy_seconds_total{{stage="{stage}"}} 0.5' in text
    assert f'fourstage_wait_seconds_total{{blocked_on="downstream",stage="{stage}"}} 0.125' in text
    assert (meter.usage.batches, meter.usage.busy, meter.usage.wait_upstream) == (1, 0.5, 0.25)


def test_health_is_the_data_loop_s_and_not_the_web_server_s(
    served: tuple[Role, Telemetry, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, process, page = served
    assert json.loads(get(f"{page}/healthz"))["healthy"] is True
    monkeypatch.setattr(telemetry, "HEALTHY_SECONDS", 0.0)
    with pytest.raises(urllib.error.HTTPError) as caught:
        get(f"{page}/healthz")
    assert caught.value.code == 503
    caught.value.close()
    monkeypatch.undo()
    process.turn()
    assert json.loads(get(f"{page}/healthz"))["data_loop_age_seconds"] < 5


def test_an_unknown_page_and_a_taken_port(served: tuple[Role, Telemetry, str]) -> None:
    _, _, page = served
    with pytest.raises(urllib.error.HTTPError) as caught:
        get(f"{page}/")
    assert caught.value.code == 404
    caught.value.close()
    port = int(page.rpartition(":")[2])
    with pytest.raises(SettingsError, match=f"metrics.port = {port}"):
        Telemetry("loader", MetricsSettings(port=port), "1").serve()


def test_a_client_that_said_nothing_kept_a_thread_for_ever(
    served: tuple[Role, Telemetry, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(telemetry._QuietHandler, "timeout", 0.2)
    page = urlsplit(served[2])
    assert page.port is not None
    with socket.create_connection(("127.0.0.1", page.port), timeout=20.0) as silent:
        assert silent.recv(1) == b"", "hung up on"
    assert capsys.readouterr().err == "", "nor a traceback in the log"


def test_pages_close_at_once_and_their_port_is_free(served: tuple[Role, Telemetry, str]) -> None:
    _, process, page = served
    get(f"{page}/healthz")
    began = time.monotonic()
    process.close()
    # A web server that looks for its end now and then would take half a second.
    assert time.monotonic() - began < 0.3
    with pytest.raises(urllib.error.URLError):
        get(f"{page}/healthz")


def test_the_file_that_says_that_the_loop_turns_is_touched_while_it_does(tmp_path: Path) -> None:
    alive = tmp_path / "alive"
    process = Telemetry("loader", MetricsSettings(alive_file=str(alive)), "1")
    assert not alive.exists(), "a process that has not begun is not healthy"
    process.turn()
    assert alive.is_file()


def test_a_process_whose_loop_hangs_ends_itself_and_says_why() -> None:
    program = """
from fourstage.settings import MetricsSettings
from fourstage.logs import configure_logging
from fourstage.telemetry import Telemetry
import threading
configure_logging("loader")
Telemetry("loader", MetricsSettings(watchdog_seconds=0.3), "1").serve()
threading.Event().wait(30)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "has not turned for" in done.stderr


def test_a_rank_that_waited_for_another_one_s_batch_was_ended_as_hanging(tmp_path: Path) -> None:
    """Rank 1 waits for data and says so by turning; rank 0 has its batch and waits for rank 1's vote."""
    program = """
import os, time, torch
from fourstage.process import StopFlag
from fourstage.resolve import load_settings
from fourstage.settings import MetricsSettings
from fourstage.telemetry import Telemetry
from fourstage.trainer.group import Group
from fourstage.trainer.layout import layout
telemetry = Telemetry("trainer", MetricsSettings(watchdog_seconds=1.0), "1")
telemetry.serve()
settings = load_settings("alexnet", overrides=["parallel=data", "replicas=2"], environment={})
place = layout(settings, os.environ)
with Group(place, torch.device("cpu"), StopFlag(), telemetry.waiting_for_others) as group:
    for _ in range(30 if place.rank else 0):
        telemetry.turn()
        time.sleep(0.1)
    votes, total = group.tell(f"vote {place.rank}"), float(group.total(torch.tensor(1.0 + place.rank)))
    os.write(1, f"{votes} {total}\\n".encode())
"""
    path = tmp_path / "program.py"
    path.write_text(program)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(path)]
    done = subprocess.run(torchrun, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["['vote 0', 'vote 1'] 3.0"] * 2
