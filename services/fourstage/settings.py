"""Every setting, typed, with its default, its unit and what it is for.

One model holds the sections of all processes: each process reads the section with its name, the trainer also
the top level. Values come, later ones over earlier ones, from the recipe (TOML), the environment
(``FOURSTAGE_BATCH_SIZE``, ``FOURSTAGE_TRAIN__THREADS``) and ``--set key=value``.
"""

import os
import tomllib
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from fourstage.errors import SettingsError

ENVIRONMENT_PREFIX = "FOURSTAGE_"

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Seconds = Annotated[float, Field(ge=0.0, le=86_400.0)]


class Section(BaseModel):
    """A group of settings: unknown names are errors, values never change after they are read."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, use_attribute_docstrings=True)


class ModelSettings(Section):
    """The network."""

    name: Literal["alexnet", "cifar", "none"] = "alexnet"
    """``alexnet``: five convolutional and three dense layers in two columns; ``cifar``: the four-layer net of
    the paper's figure 1; ``none``: batches are consumed without training."""

    activation: Literal["relu", "tanh"] = "relu"
    """The nonlinearity after every hidden layer."""

    response_norm: bool = True
    """Local response normalisation (paper, section 3.3) after the first two layers."""

    dropout: Fraction | None = None
    """Share of the units of fc6 and fc7 that is zeroed in training (paper, section 4.2); unset, AlexNet's 0.5."""

    init_std: Annotated[float, Field(gt=0.0, le=10.0)] | None = None
    """Standard deviation of the initial weights; unset, the model's own (AlexNet 0.01, paper section 5)."""


class TrainSettings(Section):
    """Training: rule, schedule, device."""

    learning_rate: Annotated[float, Field(ge=0.0, le=100.0)] = 0.01
    """The rate of the first epoch (paper, section 5)."""

    momentum: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.9
    """Share of the velocity that a step keeps."""

    weight_decay: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0005
    """Of the rule's decay term, which is multiplied by the rate."""

    epochs: Annotated[int, Field(ge=1, le=1_000_000)] = 90
    """Passes over the training split."""

    max_steps: Annotated[int, Field(ge=1)] | None = None
    """Stop after this many steps, counted from the run's beginning, also after a resume."""

    drop_epochs: tuple[Annotated[int, Field(ge=1)], ...] = ()
    """Epochs at whose beginning the learning rate is divided by ten."""

    device: str = Field(default="auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$")
    """``auto``: the first GPU where there is one, else the CPU."""

    threads: Annotated[int, Field(ge=1, le=1024)] = 1
    """CPU threads of the train stage; fixed, never derived from the number of augmenters, because the order of
    floating-point sums depends on it."""

    deterministic: bool = False
    """On CUDA: only deterministic kernels, equal losses on one kind of GPU."""

    step_seconds: Seconds = 0.0
    """With ``model.name = "none"``: how long the simulated device takes for a step."""

    checkpoint_seconds: Seconds = 600.0
    """A checkpoint is written this often, on interruption, at the end, and at the end of an epoch unless the last one
    is younger than ten seconds."""

    keep_checkpoints: Annotated[int, Field(ge=1, le=10_000)] = 2
    """The newest ones; older are removed."""


class LoaderSettings(Section):
    """Stage 1."""

    address: str = "tcp://127.0.0.1:5555"
    """Where the loader binds and everybody else connects: ``tcp://HOST:PORT``, ``ipc://PATH``, or
    ``file:PATH``, a file that holds the present address and is read again on every reconnect."""

    threads: Annotated[int, Field(ge=1, le=256)] = 4
    """Threads that read from the store (preadv releases the interpreter)."""

    memory: Annotated[int, Field(ge=1 << 10)] = 2 << 30
    """Bytes that the JPEG slots of one stream may take; bounds the window."""

    heartbeat_seconds: Annotated[float, Field(ge=0.05, le=60.0)] = 0.5
    """How often every peer says what it holds."""

    silence_seconds: Annotated[float, Field(ge=0.2, le=600.0)] = 5.0
    """A peer that says nothing for this long loses its leases."""

    hedge_seconds: Annotated[float, Field(ge=0.01, le=600.0)] = 1.0
    """The batch that training waits for is given to a second worker when its holder has had it this long."""


class AugmenterSettings(Section):
    """Stage 2."""

    crop: Annotated[int, Field(ge=1, le=65_500)] = 224
    """Width and height of the training crop in pixels."""

    decoder: Literal["auto", "simplejpeg", "turbojpeg"] = "auto"
    """JPEG decoder; ``auto`` is simplejpeg, the faster of two with equal pixels."""

    slots: Annotated[int, Field(ge=1, le=256)] = 2
    """Batches that one augmenter may hold finished or in work per stream, besides one spare for the head."""

    memory: Annotated[int, Field(ge=1 << 10)] = 2 << 30
    """Bytes that the pixel slots of one stream may take in one augmenter."""

    batch_seconds: Seconds = 0.0
    """Simulated work: each batch takes at least this long."""


class MetricsSettings(Section):
    """/metrics and /healthz of each process."""

    host: str = "127.0.0.1"
    """Interface; 0.0.0.0 lets a Prometheus on another host scrape."""

    port: Annotated[int, Field(ge=0, le=65_535)] = 0
    """0 takes a free port; it is written to the log and to the run directory."""


class Settings(Section):
    """Everything resolved: what ``settings.toml`` in a run directory holds."""

    recipe: str = "alexnet"
    """Name or file of the recipe that the values came from."""

    seed: Annotated[int, Field(ge=0, le=2**63 - 1)] = 0
    """Of order, draws, first weights and dropout."""
    batch_size: Annotated[int, Field(ge=1, le=65_536)] = 128
    """Images of one step over all ranks."""

    remainder: Literal["keep", "drop"] = "keep"
    """``keep``: the last batch of an epoch is smaller; ``drop``: the samples that fill no batch are left out."""

    window: Literal["auto"] | Annotated[int, Field(ge=1, le=65_536)] = "auto"
    """Batches between the last one trained on and the furthest that may be read."""

    preset: Literal["paper", "code-2012"] = "paper"
    """Whose draws and finish: the paper's words or the released 2012 code's. Network and rule are the paper's."""

    augment: bool = True
    """Random crop, reflection and colour shift; without it training takes centre crops."""

    colour_std: Annotated[float, Field(ge=0.0, le=10.0)] = 0.1
    """Standard deviation of the colour shift's coefficients (paper, section 4.1); 0 switches it off."""

    subtract: Literal["mean-image", "mean-colour"] = "mean-image"
    """What is subtracted from each pixel."""

    transport: Literal["arena", "inline"] = "arena"
    """``arena``: shared memory where both ends are on one host, frames elsewhere; ``inline``: frames always."""

    receipt: Literal["keys", "pixels"] = "keys"
    """What the digest covers: sequence numbers, keys and draws, or the pixels as well."""

    on_corrupt: Literal["fail"] = "fail"
    """A stored image that cannot be decoded ends the run with its name."""

    train_split: str = "train"
    """The split that is trained on."""

    validation_split: str = "val"
    """A store that lacks it trains without validation."""

    validation_batch: Annotated[int, Field(ge=1, le=65_536)] | None = None
    """Images of one validation batch; unset, ``batch_size``."""

    receiver: str = "auto"
    """Where augmenters send batches to the trainer: ``auto`` is a Unix socket beside a local loader, else a free
    port on the interface that reaches the loader; or ``tcp://HOST:PORT``."""

    sockets: str = ""
    """Directory of the Unix sockets that hand arenas over; empty: a private temporary one."""

    trace: bool = False
    """Write the timeline of every batch through the four stages."""

    model: ModelSettings = ModelSettings()
    train: TrainSettings = TrainSettings()
    loader: LoaderSettings = LoaderSettings()
    augmenter: AugmenterSettings = AugmenterSettings()
    metrics: MetricsSettings = MetricsSettings()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.train.step_seconds > 0.0 and self.model.name != "none":
            raise ValueError('train.step_seconds simulates a device: it needs model.name = "none"')
        if self.model.name == "cifar" and self.model.dropout:
            raise ValueError(f"model.dropout = {self.model.dropout}: the four-layer net has no dropout; leave it out")
        if self.loader.silence_seconds <= 2 * self.loader.heartbeat_seconds:
            raise ValueError("loader.silence_seconds must be more than two loader.heartbeat_seconds")
        return self


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
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
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
    import difflib

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
