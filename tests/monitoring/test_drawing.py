"""What the pictures are made of: values in words, and answers of a Prometheus, also of one that refuses."""

import json
import math
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from fourstage.dashboards.measures import scale, written
from fourstage.dashboards.prometheus import Line, Prometheus
from fourstage.errors import FourstageError, SettingsError


@pytest.mark.parametrize(
    ("value", "unit", "decimals", "text"),
    [
        (0.2231, "percentunit", 1, "22.3%"),
        (0.0, "s", None, "0"),
        (0.0042, "s", None, "4.2 ms"),
        (90.0, "s", None, "1.5 min"),
        (7200.0, "s", 0, "2 h"),
        (3 * 2**20, "bytes", None, "3 MiB"),
        (2.5e9, "Bps", None, "2.5 GB/s"),
        (46999.0, "locale", 0, "46,999"),
        (0.0001, "sci", None, "0.0001"),
        (161.4, "suffix: images/s", 0, "161 images/s"),
        (1234.0, "short", None, "1,234"),
        (2.345, "short", None, "2.35"),
        (math.nan, "s", None, ""),
    ],
)
def test_values_are_written_as_grafana_writes_them(value: float, unit: str, decimals: int | None, text: str) -> None:
    assert written(value, unit, decimals) == text


@pytest.mark.parametrize(
    ("value", "unit", "size"), [(90.0, "s", 60.0), (0.02, "s", 1e-3), (5e6, "bytes", 2**20), (5.0, "short", 1.0)]
)
def test_ticks_are_round_numbers_of_the_unit_that_is_written(value: float, unit: str, size: float) -> None:
    assert scale(value, unit) == size


@contextmanager
def answering(status: int, body: bytes) -> Iterator[str]:
    """A server that has one answer."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def success(data: object) -> bytes:
    return json.dumps({"status": "success", "data": data}).encode()


def test_series_are_read_with_their_labels_and_named_by_them() -> None:
    entry = {"metric": {"stage": "load", "job": "loader"}, "values": [[1.0, "0.5"], [2.0, "NaN"]]}
    with answering(200, success({"resultType": "matrix", "result": [entry]})) as url:
        (line,) = Prometheus(url).over("x", 0.0, 2.0, 1.0)
    assert (line.times, line.values[0]) == ((1.0, 2.0), 0.5)
    assert math.isnan(line.values[1])
    assert line.named("{{job}}, {{stage}}") == "loader, load"


def test_a_bare_number_is_a_series_without_labels() -> None:
    with answering(200, success({"resultType": "scalar", "result": [1.0, "3"]})) as url:
        assert Prometheus(url).query("3") == [Line({}, (1.0,), (3.0,))]


def test_a_question_that_it_does_not_understand_is_said_with_its_reason() -> None:
    refusal = b'{"status": "error", "error": "parse error: no operand"}'
    with answering(400, refusal) as url, pytest.raises(FourstageError, match=r"refused up \+: parse error: no operand"):
        Prometheus(url).query("up +")
    with answering(502, b"<html>bad gateway</html>") as url, pytest.raises(FourstageError, match="bad gateway"):
        Prometheus(url).query("up")


def test_what_is_no_prometheus_is_named() -> None:
    with answering(200, b"<html>hello</html>") as url, pytest.raises(FourstageError, match="no answer from Prometheus"):
        Prometheus(url).query("up")
    with answering(200, b"[1]") as url, pytest.raises(FourstageError, match="is no Prometheus"):
        Prometheus(url).query("up")
    with pytest.raises(SettingsError, match="localhost:9090 is no address"):
        Prometheus("localhost:9090")


def test_drawing_without_a_server_ends_in_one_line(tmp_path: Path) -> None:
    with answering(404, b"nothing here") as url:
        pass
    done = subprocess.run(
        [sys.executable, "-m", "fourstage.dashboards.draw", "--prometheus", url, "--out", str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"fourstage: no answer from Prometheus at {url}")
