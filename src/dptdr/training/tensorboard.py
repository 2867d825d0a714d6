"""A run's log as TensorBoard files, for those who watch several runs side by side."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

from dptdr.errors import ConfigError
from dptdr.training.checkpoints import Record
from dptdr.training.distributed import World

_LEFT_OUT = ("kind", "step", "attention_mass", "layer_gradient_norms")


@contextlib.contextmanager
def mirrored(path: Path | None, *, world: World) -> Iterator[Callable[[Record], None] | None]:
    """Give what writes each line of a run's log to TensorBoard files as well.

    Args:
        path: Folder for the files; ``None`` for no such files.
        world: The processes; only the first one writes.

    Yields:
        A function of one line of the log, or ``None``.

    Raises:
        ConfigError: If TensorBoard is not installed.
    """
    if path is None or not world.is_first:
        yield None
        return
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise ConfigError(
            "TensorBoard files need the package tensorboard; install 'dptdr[watch]'"
        ) from None
    writer = SummaryWriter(str(path))

    def write(record: Record) -> None:
        kind, step = record["kind"], int(record["step"])
        for name, value in record.items():
            if name not in _LEFT_OUT and isinstance(value, int | float):
                writer.add_scalar(f"{kind}/{name}", value, step)
        for layer, norm in enumerate(record.get("layer_gradient_norms", [])):
            writer.add_scalar(f"gradient norm/layer {layer}", norm, step)
        for side, layers in record.get("attention_mass", {}).items():
            for layer, heads in enumerate(layers):
                share = sum(heads) / len(heads)
                writer.add_scalar(f"attention to the prompt, {side}/layer {layer}", share, step)

    try:
        yield write
    finally:
        writer.close()
