"""docs/fidelity.md has every place where the sources differ, and names only settings and tests that exist."""

import ast
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from fourstage.presets import PRESETS
from fourstage.resolve import setting_names

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "fidelity.md").read_text("utf-8")
ROWS = {
    int(number): [cell.strip() for cell in cells.split(" | ")]
    for number, cells in re.findall(r"^\| (\d+) \| (.*) \|$", PAGE, re.MULTILINE)
}
"""By number: what the paper says, what the code does, the settings, the tests."""


@cache
def functions_of(path: str) -> set[str]:
    tree = ast.parse((ROOT / path).read_text("utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")}


def shown(value: Any) -> str:
    """A preset's value as the page writes it."""
    if isinstance(value, bool):
        return str(value).lower()
    return "unset" if value is None else str(list(value)) if isinstance(value, tuple) else str(value)


def test_the_table_has_all_rows_whole() -> None:
    assert list(ROWS) == list(range(1, 18))
    assert {len(cells) for cells in ROWS.values()} == {4}


@pytest.mark.parametrize("number", range(1, 18))
def test_every_row_is_held_by_tests_that_exist(number: int) -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", ROWS[number][3])
    assert named
    assert len(named) == ROWS[number][3].count("`") // 2
    for path, name in named:
        assert name in functions_of(path), f"{path}::{name}"


@pytest.mark.parametrize("name", PRESETS["paper"])
def test_every_value_of_the_presets_stands_in_one_row(name: str) -> None:
    words = f"`{name}`: {shown(PRESETS['paper'][name])} / {shown(PRESETS['code-2012'][name])}"
    assert [number for number, cells in ROWS.items() if re.search(re.escape(words) + r"(;|$)", cells[2])], words


def test_every_setting_that_is_named_exists() -> None:
    for cells in ROWS.values():
        for name in re.findall(r"`([^`]+)`", cells[2]):
            assert name in setting_names(), name
    prose = re.findall(r"`((?:model|train|augmenter|loader)\.\w+)`", PAGE)
    assert set(prose) <= set(setting_names())
