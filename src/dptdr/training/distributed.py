"""Several processes: the only place that talks to torch.distributed."""

import contextlib
import os
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor


class World:
    """The processes of a run; a single process needs no process group.

    Args:
        rank: This process's number.
        size: Number of processes.
    """

    def __init__(self, *, rank: int = 0, size: int = 1) -> None:
        self.rank = rank
        self.size = size

    @property
    def is_first(self) -> bool:
        """Whether this process writes files and prints."""
        return self.rank == 0

    def gather_rows(self, rows: Tensor) -> Tensor:
        """Return the rows of all processes in rank order, with gradients to each one's own.

        Args:
            rows: ``[rows, ...]``; the number of rows may differ between processes.

        Returns:
            ``[rows of all, ...]``. In the backward pass every process gets the sum of all
            processes' gradients for its rows.
        """
        if self.size == 1:
            return rows
        counts = self.gather_integers(rows.shape[0])
        if not rows.requires_grad:
            return _gather(rows, counts=counts)
        gathered: Tensor = _GatherRows.apply(rows, counts, self.rank)
        return gathered

    def gather_integers(self, value: int) -> list[int]:
        """Return each process's integer, in rank order."""
        if self.size == 1:
            return [value]
        own = torch.tensor([value], dtype=torch.long, device=_device())
        parts = [torch.zeros_like(own) for _ in range(self.size)]
        torch.distributed.all_gather(parts, own)
        return [int(part) for part in parts]

    def sum_gradients(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Add up the processes' gradients in place."""
        if self.size == 1:
            return
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            torch.distributed.all_reduce(parameter.grad)

    def sum_scalar(self, value: float) -> float:
        """Return the sum of a number over all processes."""
        if self.size == 1:
            return value
        total = torch.tensor([value], dtype=torch.float64, device=_device())
        torch.distributed.all_reduce(total)
        return float(total)

    def share_first(self, tensors: Iterable[Tensor]) -> None:
        """Overwrite tensors by the first process's, in place."""
        if self.size == 1:
            return
        for tensor in tensors:
            torch.distributed.broadcast(tensor.detach(), src=0)

    def broadcast_object(self, value: Any) -> Any:
        """Return the first process's value in every process."""
        if self.size == 1:
            return value
        values = [value]
        torch.distributed.broadcast_object_list(values, src=0)
        return values[0]

    def barrier(self) -> None:
        """Wait until all processes are here."""
        if self.size > 1:
            torch.distributed.barrier()


class _GatherRows(torch.autograd.Function):
    """All-gather of rows whose backward sums the gradients of all processes."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, counts: list[int], rank: int) -> Tensor:
        ctx.counts, ctx.rank = counts, rank
        return _gather(rows, counts=counts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = gradients
        total = gradient.contiguous().clone()
        torch.distributed.all_reduce(total)
        start = sum(ctx.counts[: ctx.rank])
        return total[start : start + ctx.counts[ctx.rank]], None, None


def _gather(rows: Tensor, *, counts: list[int]) -> Tensor:
    """Gather rows of different numbers by padding to the most."""
    most = max(counts)
    padded = rows.new_zeros((most, *rows.shape[1:]))
    padded[: rows.shape[0]] = rows.detach()
    parts = [torch.zeros_like(padded) for _ in counts]
    torch.distributed.all_gather(parts, padded)
    return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])


def _device() -> str:
    return "cuda" if torch.distributed.get_backend() == "nccl" else "cpu"


def local_device(device: torch.device) -> torch.device:
    """Return the device of this process: with several on a machine each takes a GPU of its own."""
    if device.type != "cuda" or "LOCAL_RANK" not in os.environ:
        return device
    return torch.device("cuda", int(os.environ["LOCAL_RANK"]))


@contextlib.contextmanager
def joined(device: str) -> Iterator[World]:
    """Join the processes that ``torchrun`` has started; without others, be alone.

    Args:
        device: ``cuda`` takes nccl, everything else gloo.

    Yields:
        The world.
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        # A caller's process group: used as it is, and left open.
        yield World(rank=torch.distributed.get_rank(), size=torch.distributed.get_world_size())
        return
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield World()
        return
    rank = int(os.environ["RANK"])
    if device.startswith("cuda"):
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    backend = "nccl" if device.startswith("cuda") else "gloo"
    torch.distributed.init_process_group(backend, rank=rank, world_size=size)
    try:
        yield World(rank=rank, size=size)
    finally:
        torch.distributed.destroy_process_group()
