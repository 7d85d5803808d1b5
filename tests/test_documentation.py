"""What the documentation says is what the code does."""

import re
import tomllib
from pathlib import Path

import pytest

from fourstage.resolve import load_settings, recipe_names, setting_names, write_settings
from fourstage.settings import Settings
from tests.pages import DOCS, PAGES

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("name", PAGES)
def test_generated_pages_are_up_to_date(name: str) -> None:
    assert (DOCS / name).read_text("utf-8") == PAGES[name](), "run python -m tests.pages"


def test_every_setting_says_what_it_is_for() -> None:
    page = PAGES["settings.md"]()
    for name in setting_names():
        row = re.search(rf"^\| `{re.escape(name)}` \| .+ \| (.+) \|$", page, re.MULTILINE)
        assert row, name
        assert len(row[1]) > 10, name


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_resolves_and_survives_being_written(name: str) -> None:
    settings = load_settings(name, environment={})
    assert settings.recipe == name
    assert Settings.model_validate(tomllib.loads(write_settings(settings))) == settings


def test_settings_come_in_the_documented_order(tmp_path: Path) -> None:
    recipe = tmp_path / "mine.toml"
    recipe.write_text("batch_size = 1\nseed = 1\n[train]\nthreads = 1\nepochs = 1\n")
    settings = load_settings(
        str(recipe),
        environment={
            "FOURSTAGE_SEED": "2",
            "FOURSTAGE_TRAIN__THREADS": "2",
            "FOURSTAGE_TRAIN__EPOCHS": "2",
            "PATH": "x",
        },
        overrides=["train.threads=3", "train.epochs=3"],
        flags={"train.epochs": 4, "seed": None},
    )
    assert (settings.batch_size, settings.seed, settings.train.threads, settings.train.epochs) == (1, 2, 3, 4)


def test_links_between_pages_lead_somewhere() -> None:
    for page in [ROOT / "README.md", ROOT / "proto" / "README.md", *DOCS.glob("*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text("utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
