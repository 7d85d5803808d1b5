"""Train a network of your own on a store; the same command goes on from the last checkpoint.

python train_your_own.py STORE
torchrun --nproc-per-node=2 train_your_own.py STORE
"""

import argparse
import os
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from fourstage import BatchStream


def network(classes: int) -> nn.Module:
    """Any network that takes float32 (rows, 3, crop, crop)."""
    return nn.Sequential(
        nn.Conv2d(3, 32, 5, stride=2), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(32, 64, 3), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, classes),
    )  # fmt: skip


def train(stream: BatchStream, device: torch.device, checkpoint: Path, epochs: int, save_every: int) -> None:
    """Train until ``epochs`` are over, from the checkpoint if there is one."""
    torch.manual_seed(0)
    whole = network(len(stream.classes)).to(device)
    model = DistributedDataParallel(whole) if dist.is_initialized() else whole
    optimizer = torch.optim.SGD(model.parameters(), lr=0.001, momentum=0.9)
    if checkpoint.exists():
        saved = torch.load(checkpoint, map_location=device, weights_only=True)
        whole.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        stream.load_state_dict(saved["stream"])

    first = not dist.is_initialized() or dist.get_rank() == 0
    while stream.epoch < epochs:
        for batch in stream:
            loss: Tensor = nn.functional.cross_entropy(model(batch["images"]), batch["labels"])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            state = stream.state_dict()
            if first and state["batch"] % save_every == 0:
                # Whole or not at all: a half-written checkpoint must not take the place of a good one.
                torch.save(
                    {"model": whole.state_dict(), "optimizer": optimizer.state_dict(), "stream": state},
                    checkpoint.with_suffix(".new"),
                )
                checkpoint.with_suffix(".new").replace(checkpoint)
                print(f"epoch {state['epoch']} batch {state['batch']} loss {loss.item():.4f}", flush=True)


def main() -> None:
    """Find the device, open the stream, train."""
    parser = argparse.ArgumentParser()
    parser.add_argument("store", help="directory made by fourstage prepare, or a loader's address tcp://HOST:PORT")
    parser.add_argument("--checkpoint", type=Path, default=Path("train_your_own.pt"))
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--batch-size", type=int, default=128, help="images of one step over all processes")
    parser.add_argument("--crop", type=int, default=224)
    parser.add_argument("--workers", type=int, help="augmenters to start; 8 unless given")
    parser.add_argument("--save-every", type=int, default=100, help="batches")
    chosen = parser.parse_args()

    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
    if "RANK" in os.environ:  # torchrun sets it
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        with BatchStream(
            chosen.store,
            batch_size=chosen.batch_size,
            seed=0,
            workers=chosen.workers,
            settings={"augmenter.crop": chosen.crop},
            remainder="drop",  # every rank then has as many rows, and the mean of their gradients is that of the batch
            finish=True,
            device=device,
        ) as stream:
            train(stream, device, chosen.checkpoint, chosen.epochs, chosen.save_every)
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


if __name__ == "__main__":
    main()
