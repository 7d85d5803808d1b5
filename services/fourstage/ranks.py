"""This process among those of torch.distributed: its place, and a text that the first of them tells all."""

import torch
import torch.distributed as dist

from fourstage.errors import FourstageError

_TEXT_BYTES = 1024


def place() -> tuple[int, int]:
    """Rank and world; 0 of 1 without torch.distributed."""
    if not (dist.is_available() and dist.is_initialized()):
        return 0, 1
    return dist.get_rank(), dist.get_world_size()


def tell(text: str) -> str:
    """What rank 0 says; a collective call, the other ranks' text is not looked at.

    As bytes in a tensor of fixed size: broadcast_object_list would unpickle them.
    """
    raw = text.encode()
    if len(raw) > _TEXT_BYTES:
        raise FourstageError(f"{text!r} has more than {_TEXT_BYTES} bytes")
    tensor = torch.zeros(_TEXT_BYTES, dtype=torch.uint8)
    tensor[: len(raw)] = torch.tensor(list(raw), dtype=torch.uint8)
    tensor = tensor.to(_device())
    dist.broadcast(tensor, 0)
    return bytes(tensor.tolist()).rstrip(b"\0").decode()


def all_agree(agreed: bool) -> bool:
    """Whether every rank says yes; a collective call that also waits for all of them."""
    tensor = torch.tensor(int(agreed)).to(_device())
    dist.all_reduce(tensor, dist.ReduceOp.MIN)
    return bool(tensor.item())


def _device() -> torch.device:
    """Where the default group's backend takes tensors."""
    on_gpu = dist.get_backend() == "nccl"
    return torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu")
