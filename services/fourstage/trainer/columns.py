"""Two columns over two processes (paper, section 3.2 and figure 2): who holds what, and what they tell one another.

Each process holds half of the kernels and units of every layer but fc8, the classes', which lives whole on the first.
The halves meet by two exchanges, each with exactly one adjoint in the backward pass:

    to_both     before conv3, the sixth convolution, fc6 and fc7
                forward     each sends its half, and has both
                backward    each sends the gradient of the other's half, and adds what arrives to that of its own
    to_first    before fc8
                forward     the second sends its half
                backward    the first sends the gradient of that half

Only halves travel, in one order of memory: maps last, (N,H,W,maps). The networks keep their maps so, hence nothing is
copied; and a tensor's layout is no hint to the other process's, for strides say nothing where a side is 1. Of a batch
without rows nothing travels: not every backend carries empty messages.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from fourstage.trainer.layout import COLUMNS

_ON_FIRST = "fc8"
_NOTHING = (0,)


@dataclass(slots=True)
class Traffic:
    """Exchanges in which one column took part, and the bytes that it sent in them."""

    exchanges: int = 0
    forward_bytes: int = 0
    adjoints: int = 0
    backward_bytes: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Column:
    """One process's half of a network. group: the two columns in order; None is the default group."""

    index: int
    group: dist.ProcessGroup | None = None
    traffic: Traffic = field(default_factory=Traffic)

    def half(self, tensor: Tensor, dim: int = 0) -> Tensor:
        """This column's half of a whole tensor: a view."""
        return tensor.chunk(COLUMNS, dim)[self.index]


def slice_of(name: str, tensor: Tensor, column: Column | None) -> Tensor:
    """A column's part of a whole parameter, or of its velocity: rows of a view, none of fc8 for the second column.

    ``name`` is that of the parameter, or of its layer. Without a column the part is the whole.
    """
    if column is None:
        return tensor
    if _on_first(name):
        return tensor[: 0 if column.index else None]
    return column.half(tensor)


def whole_shape(name: str, part: Tensor, column: Column | None) -> tuple[int, ...]:
    """The shape of the whole tensor of which ``part``, not empty, is this column's slice."""
    rows, *rest = part.shape
    return (rows if column is None or _on_first(name) else COLUMNS * rows, *rest)


@torch.no_grad()
def whole(tensors: Mapping[str, Tensor], column: Column) -> dict[str, Tensor]:
    """The whole tensors of both columns' slices, copies on the CPU of the first column; the second gets {}.

    Both call it at the same time, with the same names in the same order; fc8's are the first's alone.
    """
    result: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        own = tensor.detach().contiguous()
        if column.index:
            _transfer(column, own, _NOTHING)
        elif _on_first(name):
            result[name] = own.to("cpu", copy=True)
        else:
            other = _transfer(column, own.new_empty(_NOTHING), own.shape)
            result[name] = torch.cat((own, other)).cpu()
    return result


def to_both(half: Tensor, column: Column | None) -> Tensor:
    """Both columns' maps (N,C,H,W), channels last, or units (N,C), of this one's (N,C/2,...), on both columns.

    Without a column they are whole already.
    """
    if column is None:
        return half
    result: Tensor = _ToBoth.apply(half, column)  # type: ignore[no-untyped-call]
    return result


def to_first(half: Tensor, column: Column | None) -> Tensor:
    """Both columns' units (N,C) of this one's (N,C/2), on the first column; the second gets (N,0).

    The second's result is part of its graph: the backward pass through it, of a gradient (N,0), waits for what
    the first column sends. Without a column the units are whole already.
    """
    if column is None:
        return half
    result: Tensor = _ToFirst.apply(half, column)  # type: ignore[no-untyped-call]
    return result


class _ToBoth(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, half: Tensor, column: Column) -> Tensor:
        ctx.column = column
        own = half.movedim(1, -1).contiguous()
        other = _transfer(column, own, own.shape)
        column.traffic.exchanges += 1
        column.traffic.forward_bytes += _bytes(own)
        return torch.cat((other, own) if column.index else (own, other), -1).movedim(-1, 1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        column: Column = ctx.column
        halves = gradient.movedim(1, -1).chunk(COLUMNS, -1)
        others = halves[1 - column.index].contiguous()
        arriving = _transfer(column, others, others.shape)
        column.traffic.adjoints += 1
        column.traffic.backward_bytes += _bytes(others)
        return arriving.add_(halves[column.index]).movedim(-1, 1), None


class _ToFirst(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, half: Tensor, column: Column) -> Tensor:
        ctx.column, ctx.shape = column, half.shape
        own = half.contiguous()
        column.traffic.exchanges += 1
        if column.index:
            _transfer(column, own, _NOTHING)
            column.traffic.forward_bytes += _bytes(own)
            return own.new_empty(own.shape[0], 0)
        return torch.cat((own, _transfer(column, own.new_empty(_NOTHING), own.shape)), 1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        column: Column = ctx.column
        column.traffic.adjoints += 1
        if column.index:
            return _transfer(column, gradient.new_empty(_NOTHING), ctx.shape), None
        own, others = (half.contiguous() for half in gradient.chunk(COLUMNS, 1))
        _transfer(column, others, _NOTHING)
        column.traffic.backward_bytes += _bytes(others)
        return own, None


def _transfer(column: Column, outgoing: Tensor, shape: Sequence[int]) -> Tensor:
    """Send a contiguous tensor to the other column and receive one of ``shape``, at once; nothing empty travels."""
    # gloo reads and writes host memory alone: tensors of a GPU are staged there.
    device = torch.device("cpu") if dist.get_backend(column.group) == "gloo" else outgoing.device
    incoming = torch.empty(tuple(shape), dtype=outgoing.dtype, device=device)
    operations = [
        dist.P2POp(operation, tensor, group=column.group, group_peer=1 - column.index)
        for operation, tensor in ((dist.isend, outgoing.to(device)), (dist.irecv, incoming))
        if tensor.numel()
    ]
    if operations:
        for work in dist.batch_isend_irecv(operations):
            work.wait()
    return incoming.to(outgoing.device)


def _bytes(tensor: Tensor) -> int:
    # Not tensor.nbytes, at which torch.compile gives up; it lets the exchanges themselves run uncompiled.
    return tensor.numel() * tensor.element_size()


def _on_first(name: str) -> bool:
    """Whether a layer, or its parameter, lives whole on the first column."""
    return name.partition(".")[0] == _ON_FIRST
