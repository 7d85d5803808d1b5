"""One of two processes that train a network in columns, and what the first finds in comparison with one process.

    python -m tests.trainer.columns_process RANK FOLDER

FOLDER/cases.json holds the cases by name; FOLDER/0.json and 1.json get what each process found.
"""

import json
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from fourstage.settings import ModelSettings
from fourstage.trainer.columns import Column, slice_of, whole
from fourstage.trainer.networks import DropoutKey, Network, build_network
from fourstage.trainer.optimizer import MomentumSGD

CLASSES = 3
SEED = 4


class Trained:
    """A network after some steps of the paper's rule on the same images, and what came of the last one."""

    def __init__(self, case: Mapping[str, Any], column: Column | None) -> None:
        """Of the weights' drawing nothing is changed but the type."""
        self.network: Network = build_network(
            ModelSettings.model_validate(case["model"]), classes=CLASSES, crop=case["crop"], seed=SEED, column=column
        )
        self.first = {name: weight.detach().clone() for name, weight in self.network.named_parameters()}
        self.network.to(torch.float32 if case["bf16"] else torch.float64)
        optimizer = MomentumSGD(self.network.named_parameters(), momentum=0.9, weight_decay=0.0005)
        images = pictures(case)
        for step in range(case["steps"]):
            with torch.autocast("cpu", torch.bfloat16, enabled=case["bf16"]):
                # The rows of this share of the batch begin at the third.
                self.logits = self.network(images, DropoutKey(SEED, step, 2))
            self.network.zero_grad()
            self.logits.square().sum().backward()
            optimizer.step(1e-6)
        with torch.no_grad():
            self.features = self.network.features(images)
        self.weights: dict[str, Tensor] = dict(self.network.named_parameters())
        self.velocities = optimizer.state

    @property
    def gradients(self) -> dict[str, Tensor]:
        """Of the last step, by name."""
        return {name: weight.grad for name, weight in self.weights.items() if weight.grad is not None}


def pictures(case: Mapping[str, Any]) -> Tensor:
    """(rows,3,crop,crop), in the layout of the case."""
    shape = (case["rows"], 3, case["crop"], case["crop"])
    pixels = torch.from_numpy(np.random.default_rng(SEED).normal(0.0, 60.0, shape))
    pixels = pixels.float() if case["bf16"] else pixels
    return pixels.contiguous(memory_format=torch.channels_last) if case["channels_last"] else pixels


def relative_error(found: Tensor, expected: Tensor) -> float:
    """Of the norms; 0 of nothing, and of zeros where zeros were expected."""
    if found.shape != expected.shape:
        return float("inf")
    difference, size = (float(values.detach().double().norm()) for values in (found - expected, expected))
    return difference if size == 0.0 else difference / size


def examine(case: Mapping[str, Any], column: Column) -> dict[str, Any]:
    """Train in columns; the first also as one process, and how far they are apart."""
    half = Trained(case, column)
    found: dict[str, Any] = {
        "traffic": asdict(column.traffic),
        "names": list(half.weights),
        "logits": list(half.logits.shape),
        "features": list(half.features.shape),
    }
    parts = {"first": half.first, "weight": half.weights, "velocity": half.velocities, "gradient": half.gradients}
    wholes = {what: whole(tensors, column) for what, tensors in parts.items()}
    if column.index:
        return {**found, "wholes": [len(tensors) for tensors in wholes.values()]}
    alone = Trained(case, None)
    expected = {"first": alone.first, "weight": alone.weights, "velocity": alone.velocities}
    errors = {
        f"{what} {name}": relative_error(wholes[what][name], tensor)
        for what, tensors in (*expected.items(), ("gradient", alone.gradients))
        for name, tensor in tensors.items()
    }
    errors["logits"] = relative_error(half.logits, alone.logits)
    errors["features"] = relative_error(half.features, alone.features)
    sliced = all(torch.equal(slice_of(name, alone.first[name], column), own) for name, own in half.first.items())
    return {**found, "errors": errors, "sliced": sliced}


def main(rank: int, folder: Path) -> None:
    """Every case in turn, by one pair of processes."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    pair = dist.new_group([0, 1], backend="gloo")
    cases = json.loads((folder / "cases.json").read_text())
    found = {name: examine(case, Column(rank, pair)) for name, case in cases.items()}
    (folder / f"{rank}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
