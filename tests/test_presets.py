"""A preset is a column of values: it fills what is unset, all of it is shown, and nothing else asks for its name."""

import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fourstage
from fourstage.errors import SettingsError
from fourstage.presets import PRESETS, with_preset
from fourstage.resolve import load_settings, recipe_names, setting_names, write_settings
from fourstage.settings import Settings
from fourstage.views import EVERY_EPOCH, View, view_of

RECIPES = {"paper": "alexnet", "code-2012": "alexnet-code-2012"}
OTHER: dict[str, Any] = {
    "colour_scale": "deviations", "colour_divide": False, "colour_epochs": 5, "crop_positions": "exclusive",
    "crop_chunk": 7, "mean_place": "crop", "model.norm_scale": "sum", "model.middle_std": 0.5,
    "model.conv1_order": "activation-norm-pool", "model.map_norm": False, "train.bias_rate": 0.5,
    "train.bias_decay": True, "train.drop_epochs": (3,), "train.epochs": 7, "train.schedule": "plateau",
}  # fmt: skip
"""A value for every setting of a preset."""


def value_of(settings: Settings, name: str) -> Any:
    value: Any = settings
    for part in name.split("."):
        value = getattr(value, part)
    return value


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("recipe", ["of its own", "alexnet with --set preset"])
def test_alexnet_has_every_value_of_its_preset(preset: str, recipe: str) -> None:
    own = recipe == "of its own"
    resolved = load_settings(
        RECIPES[preset] if own else "alexnet", overrides=[] if own else [f"preset={preset}"], environment={}
    )
    assert {name: value_of(resolved, name) for name in PRESETS[preset]} == dict(PRESETS[preset])


@pytest.mark.parametrize("preset", PRESETS)
def test_the_resolved_file_shows_every_value_and_does_not_need_the_preset_again(preset: str) -> None:
    resolved = load_settings(RECIPES[preset], environment={})
    shown = tomllib.loads(write_settings(resolved))
    for name, value in PRESETS[preset].items():
        section, _, field = name.rpartition(".")
        plain = list(value) if isinstance(value, tuple) else value
        assert (shown[section] if section else shown).get(field) == plain
    assert Settings.model_validate(shown) == resolved


def test_both_presets_set_the_same_settings_and_these_exist() -> None:
    names = [list(values) for values in PRESETS.values()]
    assert names[0] == names[1] == [name for name in names[0] if name in setting_names()]
    assert set(OTHER) == set(names[0])


def test_without_a_preset_the_settings_are_the_paper_s() -> None:
    """All but the schedule, whose default fits the recipes that name epochs."""
    defaults = Settings.model_construct()
    for name, value in PRESETS["paper"].items():
        assert value_of(defaults, name) == ("epochs" if name == "train.schedule" else value), name


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.sampled_from(sorted(PRESETS)), st.sets(st.sampled_from(sorted(OTHER))))
def test_what_is_set_wins_and_what_is_not_is_filled(preset: str, names: set[str]) -> None:
    if {"train.schedule", "train.drop_epochs"} <= names:
        names = names - {"train.drop_epochs"}
    values: dict[str, Any] = {"preset": preset}
    for name in names:
        section, _, field = name.rpartition(".")
        (values.setdefault(section, {}) if section else values)[field] = OTHER[name]
    resolved = Settings.model_validate(values)
    for name, value in PRESETS[preset].items():
        if name == "train.schedule" and "train.drop_epochs" in names:
            value = "epochs"
        if name == "train.drop_epochs" and "train.schedule" in names:
            value = ()
        assert value_of(resolved, name) == (OTHER[name] if name in names else value), name


@pytest.mark.parametrize("recipe", [name for name in recipe_names() if not name.startswith("alexnet")])
def test_other_networks_take_what_is_not_alexnet_s_alone(recipe: str) -> None:
    paper = load_settings(recipe, environment={})
    code = load_settings(recipe, overrides=["preset=code-2012"], environment={})
    assert code.crop_chunk == 32
    assert code.model.norm_scale == "mean"
    assert code.train == paper.train
    assert code.train.schedule == "epochs"
    assert code.model == paper.model.model_copy(update={"norm_scale": "mean"})


def test_a_schedule_that_contradicts_itself_is_refused() -> None:
    with pytest.raises(SettingsError, match=r"plateau.*\[30\].*leave one of them out"):
        load_settings("alexnet", overrides=["train.schedule=plateau", "train.drop_epochs=[30]"], environment={})


@pytest.mark.parametrize("values", [{"preset": "2012"}, {"preset": [1]}, {"preset": None}, {"model": 3}, {"train": []}])
def test_what_is_no_preset_or_section_is_named(values: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(values))):
        Settings.model_validate(values)
    assert with_preset(values).items() >= values.items()


def test_the_view_of_each_preset() -> None:
    paper, code = (load_settings(recipe, environment={}) for recipe in RECIPES.values())
    assert view_of(paper, "random") == View("random", 224, colour_std=0.1)
    assert view_of(code, "random") == View("random", 224, 0.1, "deviations", 67, "inclusive", 32)
    assert view_of(code, "centre") == view_of(paper, "centre") == View("centre", 224)
    plain = load_settings("alexnet", overrides=["augment=false"], environment={})
    assert view_of(plain, "random") == View("centre", 224)
    assert [view_of(code, "random").std(epoch) for epoch in (0, 66, 67, 90)] == [0.1, 0.1, 0.0, 0.0]
    assert view_of(paper, "random").std(EVERY_EPOCH - 1) == 0.1


def test_no_other_code_asks_for_a_preset_s_name() -> None:
    package = Path(next(iter(fourstage.__path__)))
    asking = [path.name for path in package.rglob("*.py") if '"code-2012"' in path.read_text("utf-8")]
    assert sorted(asking) == ["presets.py", "settings.py"]
