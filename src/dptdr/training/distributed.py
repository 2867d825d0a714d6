"""Several processes: the only user of torch.distributed."""

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from dptdr.errors import DptdrError, OutputError
from dptdr.io.resume import Output, claim

T = TypeVar("T")


class ProcessGroup:
    """The processes of a run; one process works without a process group."""

    def __init__(self, *, rank: int = 0, size: int = 1) -> None:
        self.rank = rank
        self.size = size

    @property
    def is_first(self) -> bool:
        """Whether this process writes files and prints."""
        return self.rank == 0

    def all_gather(self, rows: Tensor) -> Tensor:
        """Return the rows of all processes in rank order; gradients flow back to each.

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

    def broadcast(self, tensors: Iterable[Tensor]) -> None:
        """Overwrite tensors with those of the first process, in place."""
        if self.size == 1:
            return
        for tensor in tensors:
            torch.distributed.broadcast(tensor.detach(), src=0)

    def broadcast_object(self, value: Any) -> Any:
        """Return the value of the first process in every process."""
        if self.size == 1:
            return value
        values = [value]
        torch.distributed.broadcast_object_list(values, src=0)
        return values[0]

    def on_first(self, call: Callable[[], T]) -> T:
        """Call in the first process and return its result everywhere; its error stops all.

        Raises:
            DptdrError: What the call raised, or its words in the other processes.
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
    """Gather different numbers of rows, padded to the largest."""
    most = max(counts)
    padded = rows.new_zeros((most, *rows.shape[1:]))
    padded[: rows.shape[0]] = rows.detach()
    parts = [torch.zeros_like(padded) for _ in counts]
    torch.distributed.all_gather(parts, padded)
    return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])


def _device() -> str:
    return "cuda" if torch.distributed.get_backend() == "nccl" else "cpu"


def local_device(device: torch.device) -> torch.device:
    """Return the device of this process; each process on a machine gets another GPU."""
    if device.type != "cuda" or "LOCAL_RANK" not in os.environ:
        return device
    return torch.device("cuda", int(os.environ["LOCAL_RANK"]))


class SharedOutput:
    """An output that several processes share and the first one writes."""

    def __init__(self, world: ProcessGroup, output: Output | None) -> None:
        self._world = world
        self._output = output

    def begin(
        self,
        settings: Mapping[str, Any],
        *,
        work: Path,
        began: Mapping[str, Any] | None,
        overwrite: bool,
    ) -> bool:
        """Return whether the output is complete, in every process; see :meth:`Output.begin`."""

        def begin() -> bool:
            assert self._output is not None
            return self._output.begin(settings, work=work, began=began, overwrite=overwrite)

        return self._world.on_first(begin)

    @property
    def result(self) -> Any:
        """What the first process kept of a complete output, ``None`` elsewhere."""
        return None if self._output is None else self._output.result

    def finish(self, result: Any) -> None:
        """Record in the first process that the output is complete."""
        if self._output is not None:
            self._output.finish(result)


@contextlib.contextmanager
def claimed(path: Path, *, mark: str, world: ProcessGroup) -> Iterator[SharedOutput]:
    """Claim an output for all processes; see :func:`dptdr.io.resume.claim`.

    Args:
        mark: The file by which a folder of ours is known.

    Raises:
        OutputError: In every process, if the first one cannot claim it.
    """
    with contextlib.ExitStack() as stack:
        outputs: list[Output] = []
        world.on_first(lambda: outputs.append(stack.enter_context(claim(path, mark=mark))))
        yield SharedOutput(world, outputs[0] if outputs else None)


@contextlib.contextmanager
def joined(device: str) -> Iterator[ProcessGroup]:
    """Join the processes that ``torchrun`` started, if any.

    Args:
        device: ``cuda`` takes nccl, everything else gloo.
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        # A caller's process group: used as it is, and left open.
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
