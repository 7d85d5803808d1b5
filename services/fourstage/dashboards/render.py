"""A dashboard as the JSON that Grafana 10 and later read."""

from collections.abc import Mapping, Sequence
from typing import TypeAlias

from fourstage.dashboards.grafana import Dashboard, Panel, Place, Query, Row, Step, Word, layout

Json: TypeAlias = Mapping[str, "Json"] | Sequence["Json"] | str | int | float | bool | None

SCHEMA = 39
"""Of Grafana 10.4; later ones migrate it on their own."""
TAG = "fourstage"
"""All dashboards bear it; the links between them go by it."""
DATASOURCE: Json = {"type": "prometheus", "uid": "${datasource}"}


def render(dashboard: Dashboard, annotations: Mapping[str, tuple[str, str, str]], variables: Sequence[Json]) -> Json:
    """The JSON of a dashboard.

    annotations: by name an expression that is positive where something happened, its text and its colour
    """
    return {
        "uid": dashboard.uid,
        "title": dashboard.title,
        "description": dashboard.description,
        "tags": [TAG],
        "schemaVersion": SCHEMA,
        "version": 1,
        "editable": False,
        "graphTooltip": 1,
        "timezone": "browser",
        "refresh": "10s",
        "time": {"from": "now-30m", "to": "now"},
        "timepicker": {},
        "fiscalYearStartMonth": 0,
        "liveNow": False,
        "weekStart": "",
        "links": [_link()],
        "annotations": {"list": [_annotation(name, *entry) for name, entry in annotations.items()]},
        "templating": {"list": list(variables)},
        "panels": [_item(number, item, place) for number, (item, place) in enumerate(layout(dashboard), 1)],
    }


def _item(number: int, item: Row | Panel, place: Place) -> Json:
    if isinstance(item, Row):
        return {
            "id": number,
            "type": "row",
            "title": item.title,
            "collapsed": False,
            "gridPos": _position(place),
            "panels": [],
        }
    transformations = _table_columns(item) if item.kind == "table" else []
    return {
        "id": number,
        "type": item.kind,
        "title": item.title,
        "description": item.description,
        "datasource": DATASOURCE,
        "gridPos": _position(place),
        "targets": [_target(index, query, item.kind) for index, query in enumerate(item.queries)],
        "fieldConfig": {"defaults": _defaults(item), "overrides": _overrides(item)},
        "options": _OPTIONS[item.kind],
        **({"transformations": transformations} if transformations else {}),
    }


def _position(place: Place) -> Json:
    return {"x": place.x, "y": place.y, "w": place.width, "h": place.height}


def _target(index: int, query: Query, kind: str) -> Json:
    table = kind == "table"
    return {
        "refId": chr(ord("A") + index),
        "datasource": DATASOURCE,
        "editorMode": "code",
        "expr": query.expr,
        "legendFormat": query.legend,
        "format": "table" if table else "time_series",
        "instant": table,
        "range": not table,
    }


def _defaults(panel: Panel) -> Json:
    steps = panel.steps or (Step(None, "text" if panel.kind == "stat" else "green"),)
    defaults: dict[str, Json] = {
        "unit": panel.unit,
        "color": {"mode": "thresholds" if panel.kind != "timeseries" else "palette-classic"},
        "thresholds": {"mode": "absolute", "steps": [{"color": s.colour, "value": s.start} for s in steps]},
        "mappings": _mappings(panel.words),
        "custom": _custom(panel),
    }
    bounds = {"decimals": panel.decimals, "min": panel.minimum, "max": panel.maximum}
    return defaults | {name: value for name, value in bounds.items() if value is not None}


def _custom(panel: Panel) -> Json:
    match panel.kind:
        case "timeseries":
            return {
                "drawStyle": "bars" if panel.bars else "line",
                "lineInterpolation": "linear",
                "lineWidth": 0 if panel.stacked else 2,
                "fillOpacity": 80 if panel.stacked or panel.bars else 0,
                "gradientMode": "none",
                "showPoints": "never",
                "spanNulls": False,
                "stacking": {"mode": "normal" if panel.stacked else "none", "group": "A"},
                "axisPlacement": "auto",
                "axisSoftMin": 0,
                "scaleDistribution": {"type": "log", "log": 10} if panel.log else {"type": "linear"},
                "thresholdsStyle": {"mode": "dashed" if panel.steps else "off"},
            }
        case "state-timeline":
            return {"lineWidth": 0, "fillOpacity": 90}
        case "table":
            return {"align": "auto", "filterable": False, "cellOptions": {"type": "auto"}}
        case "stat":
            return {}


def _mappings(words: Sequence[Word]) -> Json:
    if not words:
        return []
    options: dict[str, Json] = {
        str(word.value): {"text": word.text, "color": word.colour, "index": index} for index, word in enumerate(words)
    }
    return [{"type": "value", "options": options}]


def _overrides(panel: Panel) -> Json:
    coloured: list[Json] = [
        {
            "matcher": {"id": "byName", "options": name},
            "properties": [{"id": "color", "value": {"mode": "fixed", "fixedColor": colour}}],
        }
        for name, colour in panel.colours.items()
    ]
    measured: list[Json] = [
        {"matcher": {"id": "byName", "options": name}, "properties": [{"id": "unit", "value": unit}]}
        for name, unit in panel.units.items()
    ]
    return [*coloured, *measured]


def _table_columns(panel: Panel) -> Json:
    """One line for each set of labels; the values of each query are a column with its legend's name."""
    names = {f"Value #{chr(ord('A') + index)}": query.legend for index, query in enumerate(panel.queries)}
    return [
        {"id": "merge", "options": {}},
        {"id": "organize", "options": {"excludeByName": {"Time": True}, "indexByName": {}, "renameByName": names}},
    ]


def _link() -> Json:
    return {
        "title": "fourstage",
        "type": "dashboards",
        "tags": [TAG],
        "asDropdown": False,
        "includeVars": True,
        "keepTime": True,
        "targetBlank": False,
        "icon": "external link",
        "tooltip": "",
        "url": "",
    }


def _annotation(name: str, expr: str, text: str, colour: str) -> Json:
    return {
        "name": name,
        "datasource": DATASOURCE,
        "enable": True,
        "hide": False,
        "iconColor": colour,
        "expr": expr,
        "step": "5s",
        "titleFormat": name,
        "textFormat": text,
        "useValueForTime": False,
    }


_LEGEND: Json = {"displayMode": "list", "placement": "bottom", "showLegend": True, "calcs": []}
_TOOLTIP: Json = {"mode": "multi", "sort": "desc"}
_OPTIONS: Mapping[str, Json] = {
    "timeseries": {"legend": _LEGEND, "tooltip": _TOOLTIP},
    "stat": {
        "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
        "orientation": "auto",
        "textMode": "value",
        "colorMode": "value",
        "graphMode": "none",
        "justifyMode": "center",
    },
    "state-timeline": {
        "mergeValues": True,
        "showValue": "auto",
        "alignValue": "left",
        "rowHeight": 0.9,
        "legend": {"displayMode": "list", "placement": "bottom", "showLegend": False},
        "tooltip": {"mode": "single", "sort": "none"},
    },
    "table": {"showHeader": True, "cellHeight": "sm", "footer": {"show": False, "reducer": ["sum"], "fields": ""}},
}
