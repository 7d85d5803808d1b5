"""What tells the paper's words from the released 2012 code, as values of settings; docs/fidelity.md says why.

A preset is nothing but its column of this table: it stands in for whatever the user left unset. No other code asks for
a preset's name, so every value can be set alone and ``settings.toml`` shows what held.
"""

from collections.abc import Mapping
from typing import Any, Final

PRESETS: Final[Mapping[str, Mapping[str, Any]]] = {
    "paper": {
        "colour_scale": "eigenvalues",
        "colour_divide": False,
        "colour_epochs": None,
        "crop_positions": "exclusive",
        "crop_chunk": 1,
        "mean_place": "crop",
        "model.norm_scale": "sum",
        "model.middle_std": None,
        "model.conv1_order": "activation-norm-pool",
        "model.map_norm": False,
        "train.bias_rate": None,
        "train.bias_decay": True,
        "train.schedule": "plateau",
        "train.drop_epochs": (),
        "train.epochs": 90,
    },
    "code-2012": {
        "colour_scale": "deviations",
        "colour_divide": True,
        "colour_epochs": 67,
        "crop_positions": "inclusive",
        "crop_chunk": 32,
        "mean_place": "centre",
        "model.norm_scale": "mean",
        "model.middle_std": 0.03,
        "model.conv1_order": "norm-pool-activation",
        "model.map_norm": True,
        "train.bias_rate": 0.02,
        "train.bias_decay": False,
        "train.schedule": "epochs",
        "train.drop_epochs": (25, 51, 67),
        "train.epochs": 91,
    },
}
"""None: the setting stays unset."""

_ANY_NETWORK = frozenset({"model.norm_scale"})
"""Of the network and the rule; the others are figures of AlexNet's own layers and rates."""


def with_preset(values: Mapping[str, Any]) -> dict[str, Any]:
    """Nested values of settings with those of their preset wherever nothing is set.

    Left out: what belongs to AlexNet alone, for another network, and of the schedule what contradicts the values.
    What is no preset or no section stays as it is, for validation to name.
    """
    filled = {name: dict(value) if isinstance(value, Mapping) else value for name, value in values.items()}
    for name, value in PRESETS.get(str(filled.get("preset", "paper")), {}).items():
        section, _, field = name.rpartition(".")
        target = filled.setdefault(section, {}) if section else filled
        if isinstance(target, dict) and target.get(field) is None and value is not None and _belongs(name, filled):
            target[field] = value
    return filled


def _belongs(name: str, values: Mapping[str, Any]) -> bool:
    """Whether a preset's value goes together with the other values."""
    model, train = values.get("model"), values.get("train")
    network = model.get("name", "alexnet") if isinstance(model, Mapping) else "alexnet"
    if name.startswith(("model.", "train.")) and network != "alexnet" and name not in _ANY_NETWORK:
        return False
    if isinstance(train, Mapping):
        # Whoever names epochs of drops wants them, and whoever wants the plateau wants no others.
        if name == "train.schedule":
            return train.get("drop_epochs") is None
        if name == "train.drop_epochs":
            return train.get("schedule") != "plateau"
    return True
