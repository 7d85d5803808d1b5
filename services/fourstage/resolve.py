"""From a recipe, the environment and ``--set`` to settings, and from settings to a file.

Later values go over earlier ones: the recipe (TOML), the environment (``FOURSTAGE_BATCH_SIZE``,
``FOURSTAGE_TRAIN__THREADS``), ``--set key=value``, flags.
"""

import difflib
import os
import tomllib
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import tomli_w
from pydantic import ValidationError

from fourstage.errors import SettingsError
from fourstage.settings import Section, Settings

ENVIRONMENT_PREFIX = "FOURSTAGE_"


def recipe_names() -> list[str]:
    """The recipes that come with fourstage, sorted."""
    folder = resources.files("fourstage") / "recipes"
    return sorted(entry.name.removesuffix(".toml") for entry in folder.iterdir() if entry.name.endswith(".toml"))


def load_settings(
    recipe: str,
    *,
    overrides: Sequence[str] = (),
    flags: Mapping[str, Any] | None = None,
    environment: Mapping[str, str] | None = None,
) -> Settings:
    """Resolve a recipe (a name or a TOML file), the environment, ``key=value`` overrides and flags, in that order.

    Raises SettingsError with the name, the value received and what would be accepted.
    """
    values = read_recipe(recipe)
    values.setdefault("recipe", recipe)
    for name, value in sorted((os.environ if environment is None else environment).items()):
        if name.startswith(ENVIRONMENT_PREFIX):
            _assign(values, name.removeprefix(ENVIRONMENT_PREFIX).lower().replace("__", "."), _literal(value))
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals or not key:
            raise SettingsError(f"--set takes key=value, got {override!r}", hint="for example --set batch_size=64")
        _assign(values, key.strip(), _literal(value.strip()))
    for key, value in (flags or {}).items():
        if value is not None:
            _assign(values, key, value)
    return validated(values)


def read_recipe(recipe: str) -> dict[str, Any]:
    """The values of a recipe that comes with fourstage, or of a TOML file."""
    path = Path(recipe)
    if path.suffix == ".toml":
        return read_toml(path)
    bundled = resources.files("fourstage") / "recipes" / f"{recipe}.toml"
    if not bundled.is_file():
        raise SettingsError(
            f"there is no recipe {recipe!r}", hint=f"name a .toml file or one of {', '.join(recipe_names())}"
        )
    return tomllib.loads(bundled.read_text("utf-8"))


def read_toml(path: Path) -> dict[str, Any]:
    """A TOML file's values; SettingsError where it cannot be read or parsed."""
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise SettingsError(f"cannot read {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise SettingsError(f"{path} is not TOML: {error}") from error


def validated(values: Mapping[str, Any]) -> Settings:
    """Settings from nested values; SettingsError names the first wrong one."""
    try:
        return Settings.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        name = ".".join(str(part) for part in first["loc"] if part not in ("constrained-int", "literal['auto']"))
        if first["type"] == "extra_forbidden":
            raise SettingsError(f"there is no setting {name!r}", hint=_nearest(name)) from error
        subject = f"{name} = {first['input']!r}: " if name else ""
        raise SettingsError(subject + first["msg"].removeprefix("Value error, ")) from error


def write_settings(settings: Settings) -> str:
    """Settings as TOML text; what is unset is left out."""
    return tomli_w.dumps(settings.model_dump(mode="json", exclude_none=True))


def setting_names(section: type[Section] = Settings, prefix: str = "") -> list[str]:
    """Every dotted setting name."""
    names: list[str] = []
    for name, field in section.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            names += setting_names(field.annotation, f"{prefix}{name}.")
        else:
            names.append(prefix + name)
    return names


def _nearest(name: str) -> str:
    matches = difflib.get_close_matches(name, setting_names(), n=3, cutoff=0.5)
    return f"did you mean {' or '.join(matches)}?" if matches else "docs/settings.md lists them"


def _literal(text: str) -> Any:
    """A TOML value where the text is one (numbers, booleans, lists), else the text itself."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _assign(values: dict[str, Any], dotted: str, value: Any) -> None:
    *sections, name = dotted.split(".")
    for section in sections:
        inner = values.setdefault(section, {})
        if not isinstance(inner, dict):
            raise SettingsError(f"{dotted!r} names a setting inside {section!r}, which is not a section")
        values = inner
    values[name] = value
