"""Distributed training; the only module that uses torch.distributed."""

import contextlib
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from dptdr.errors import DptdrError, OutputError
from dptdr.io.resume import Output, claim

T = TypeVar("T")


class ProcessGroup:
    """The ranks of a run; a single process needs no torch process group."""

    def __init__(self, *, rank: int = 0, size: int = 1) -> None:
        self.rank = rank
        self.size = size

    @property
    def is_first(self) -> bool:
        """True on rank 0, which writes files and prints."""
        return self.rank == 0

    def all_gather(self, rows: Tensor) -> Tensor:
        """Gather rows from all ranks, in rank order; gradients flow back to each rank.

        Args:
            rows: ``[rows, ...]``; the number of rows may differ between ranks.

        Returns:
            ``[all rows, ...]``. In the backward pass, each rank receives the sum over all ranks of
            the gradients of its rows.
        """
        if self.size == 1:
            return rows
        counts = self.gather_integers(rows.shape[0])
        if not rows.requires_grad:
            return _gather(rows, counts=counts)
        gathered: Tensor = _GatherRows.apply(rows, counts, self.rank)
        return gathered

    def gather_integers(self, value: int) -> list[int]:
        """Gather one integer from each rank, in rank order."""
        if self.size == 1:
            return [value]
        own = torch.tensor([value], dtype=torch.long, device=_device())
        parts = [torch.zeros_like(own) for _ in range(self.size)]
        torch.distributed.all_gather(parts, own)
        return [int(part) for part in parts]

    def sum_gradients(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Sum gradients over all ranks, in place."""
        if self.size == 1:
            return
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            torch.distributed.all_reduce(parameter.grad)

    def sum_scalar(self, value: float) -> float:
        """Sum a number over all ranks."""
        if self.size == 1:
            return value
        total = torch.tensor([value], dtype=torch.float64, device=_device())
        torch.distributed.all_reduce(total)
        return float(total)

    def broadcast(self, tensors: Iterable[Tensor]) -> None:
        """Overwrite tensors with those of rank 0, in place."""
        if self.size == 1:
            return
        for tensor in tensors:
            torch.distributed.broadcast(tensor.detach(), src=0)

    def broadcast_object(self, value: Any) -> Any:
        """Return rank 0's value on every rank."""
        if self.size == 1:
            return value
        values = [value]
        torch.distributed.broadcast_object_list(values, src=0)
        return values[0]

    def on_first(self, call: Callable[[], T]) -> T:
        """Call a function on rank 0 and return its result, or raise its error, on every rank.

        Raises:
            DptdrError: The original error on rank 0; an error with the same message elsewhere.
        """
        value: T | None = None
        error: DptdrError | None = None
        if self.is_first:
            try:
                value = call()
            except DptdrError as raised:
                error = raised
        value, words = self.broadcast_object((value, None if error is None else str(error)))
        if words is not None:
            raise error or OutputError(words)
        return cast(T, value)

    def barrier(self) -> None:
        """Wait for all ranks."""
        if self.size > 1:
            torch.distributed.barrier()


class _GatherRows(torch.autograd.Function):
    """All-gather of rows whose backward pass sums the gradients over ranks."""

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
    """Gather varying numbers of rows, padding to the largest."""
    most = max(counts)
    padded = rows.new_zeros((most, *rows.shape[1:]))
    padded[: rows.shape[0]] = rows.detach()
    parts = [torch.zeros_like(padded) for _ in counts]
    torch.distributed.all_gather(parts, padded)
    return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])


def _device() -> str:
    return "cuda" if torch.distributed.get_backend() == "nccl" else "cpu"


def local_device(device: torch.device) -> torch.device:
    """Return this rank's device; ranks on a machine use different GPUs."""
    if device.type != "cuda" or "LOCAL_RANK" not in os.environ:
        return device
    return torch.device("cuda", int(os.environ["LOCAL_RANK"]))


class SharedOutput:
    """An output shared by all ranks and written by rank 0."""

    def __init__(self, world: ProcessGroup, output: Output | None) -> None:
        self._world = world
        self._output = output

    def begin(
        self,
        settings: Mapping[str, Any],
        *,
        work: Path,
        work_files: Collection[str],
        began: Mapping[str, Any] | None,
        overwrite: bool,
    ) -> bool:
        """Check on every rank whether the output is complete; see :meth:`Output.begin`."""

        def begin() -> bool:
            assert self._output is not None
            return self._output.begin(
                settings, work=work, work_files=work_files, began=began, overwrite=overwrite
            )

        return self._world.on_first(begin)

    @property
    def result(self) -> Any:
        """Recorded result of a complete output on rank 0, ``None`` elsewhere."""
        return None if self._output is None else self._output.result

    def finish(self, result: Any) -> None:
        """Mark the output as complete, on rank 0."""
        if self._output is not None:
            self._output.finish(result)


@contextlib.contextmanager
def claim_shared_output(path: Path, *, mark: str, world: ProcessGroup) -> Iterator[SharedOutput]:
    """Claim an output for all ranks; see :func:`dptdr.io.resume.claim`.

    Args:
        mark: File that identifies the folder as written by dptdr.

    Raises:
        OutputError: On every rank, if rank 0 cannot claim it.
    """
    with contextlib.ExitStack() as stack:
        outputs: list[Output] = []
        world.on_first(lambda: outputs.append(stack.enter_context(claim(path, mark=mark))))
        yield SharedOutput(world, outputs[0] if outputs else None)


@contextlib.contextmanager
def process_group(device: str) -> Iterator[ProcessGroup]:
    """Join the process group started by ``torchrun``, if any.

    Args:
        device: ``cuda`` uses nccl, anything else gloo.
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        # The caller already has a process group: use it, and leave it open.
        yield ProcessGroup(
            rank=torch.distributed.get_rank(), size=torch.distributed.get_world_size()
        )
        return
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield ProcessGroup()
        return
    rank = int(os.environ["RANK"])
    if device.startswith("cuda"):
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    backend = "nccl" if device.startswith("cuda") else "gloo"
    torch.distributed.init_process_group(backend, rank=rank, world_size=size)
    try:
        yield ProcessGroup(rank=rank, size=size)
    finally:
        torch.distributed.destroy_process_group()
