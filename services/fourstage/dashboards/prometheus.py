"""Questions to a Prometheus over its HTTP interface: what tests and pictures ask."""

import json
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fourstage.errors import FourstageError, SettingsError

_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Line:
    """One series: its labels, and its values by Unix time."""

    labels: Mapping[str, str]
    times: tuple[float, ...]
    values: tuple[float, ...]

    def named(self, legend: str) -> str:
        """Its name as a legend writes it, ``{{label}}`` by ``{{label}}``."""
        for label, value in self.labels.items():
            legend = legend.replace(f"{{{{{label}}}}}", value)
        return legend


class Prometheus:
    """A server. Every question raises FourstageError where it is not answered."""

    def __init__(self, url: str) -> None:
        if not url.startswith(("http://", "https://")):
            raise SettingsError(f"{url} is no address of a Prometheus", hint="such as http://127.0.0.1:9090")
        self._url = url.rstrip("/")

    def query(self, expr: str) -> list[Line]:
        """What an expression is now; a bare number has no labels."""
        answer = self.ask("query", query=expr)
        result = [{"metric": {}, "value": answer["result"]}] if answer["resultType"] == "scalar" else answer["result"]
        return [_line(entry["metric"], [entry["value"]]) for entry in result]

    def over(self, expr: str, start: float, end: float, step: float) -> list[Line]:
        """What an expression was from one Unix time to another, every ``step`` seconds."""
        answer = self.ask("query_range", query=expr, start=str(start), end=str(end), step=str(step))
        return [_line(entry["metric"], entry["values"]) for entry in answer["result"]]

    def ask(self, what: str, **form: str) -> dict[str, Any]:
        """The ``data`` of an answer of /api/v1."""
        url = f"{self._url}/api/v1/{what}?{urllib.parse.urlencode(form)}"
        try:
            with urllib.request.urlopen(url, timeout=_SECONDS) as answer:  # noqa: S310 - the scheme was checked
                body = json.load(answer)
        except urllib.error.HTTPError as error:
            with error:
                raise FourstageError(f"Prometheus refused {form.get('query', what)}: {_reason(error.read())}") from None
        except (OSError, ValueError) as error:
            raise FourstageError(f"no answer from Prometheus at {self._url}: {error}") from None
        data = body.get("data") if isinstance(body, dict) else None
        if not isinstance(data, dict):
            raise FourstageError(f"{self._url} is no Prometheus: {what} has no data")
        return data


def _line(labels: dict[str, str], points: list[tuple[float, str]]) -> Line:
    return Line(labels, tuple(float(time) for time, _ in points), tuple(float(value) for _, value in points))


def _reason(body: bytes) -> str:
    try:
        return str(json.loads(body)["error"])
    except (ValueError, KeyError, TypeError):
        return body.decode("utf-8", "replace")[:200]
