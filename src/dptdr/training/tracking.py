"""Send a run's log to experiment trackers."""

import contextlib
import importlib
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

from dptdr.errors import ConfigError
from dptdr.training.checkpoints import Record
from dptdr.training.distributed import ProcessGroup

Tracker = Literal["wandb", "trackio", "mlflow"]
TRACKERS: tuple[Tracker, ...] = get_args(Tracker)


@dataclass(frozen=True, kw_only=True)
class Tracking:
    """Experiment tracker settings.

    Args:
        tracker: Name of a tracker. Destination and offline mode come from the tracker's own
            configuration (``WANDB_MODE=offline``, ``MLFLOW_TRACKING_URI``).

    Raises:
        ConfigError: If the tracker is unknown.
    """

    tensorboard: Path | None = None
    tracker: str | None = None

    def __post_init__(self) -> None:
        """Check the name before loading anything."""
        if self.tracker is not None and self.tracker not in TRACKERS:
            raise ConfigError(f"track: expected one of {', '.join(TRACKERS)}, got '{self.tracker}'")


UNTRACKED = Tracking()

_Write: TypeAlias = Callable[[dict[str, float], int], None]
_LEFT_OUT = ("kind", "step", "attention_mass", "layer_gradient_norms")


@contextlib.contextmanager
def tracker_writer(
    tracking: Tracking,
    *,
    world: ProcessGroup,
    name: str = "task",
    settings: Mapping[str, Any] | None = None,
) -> Iterator[Callable[[Record], None] | None]:
    """Yield a function that sends log records to the tracker, or ``None`` without tracking.

    Raises:
        ConfigError: If the tracker is not installed.
    """
    tensorboard, track = tracking.tensorboard, tracking.tracker
    if not world.is_first or (tensorboard is None and track is None):
        yield None
        return
    with contextlib.ExitStack() as stack:
        writers: list[_Write] = []
        if tensorboard is not None:
            writers.append(stack.enter_context(_tensorboard(tensorboard)))
        if track is not None:
            tracker = _mlflow if track == "mlflow" else _wandb
            writers.append(stack.enter_context(tracker(track, name, dict(settings or {}))))

        def write(record: Record) -> None:
            values = scalars(record)
            for writer in writers:
                writer(values, int(record["step"]))

        yield write


def scalars(record: Record) -> dict[str, float]:
    """Return the numbers in a log record under the names shown by trackers."""
    kind = record["kind"]
    found = {
        f"{kind}/{name}": float(value)
        for name, value in record.items()
        if name not in _LEFT_OUT and isinstance(value, int | float)
    }
    for layer, norm in enumerate(record.get("layer_gradient_norms", [])):
        found[f"gradient norm/layer {layer}"] = norm
    for side, layers in record.get("attention_mass", {}).items():
        for layer, heads in enumerate(layers):
            found[f"attention to the prompt, {side}/layer {layer}"] = sum(heads) / len(heads)
    return found


@contextlib.contextmanager
def _tensorboard(path: Path) -> Iterator[_Write]:
    writer = _package("torch.utils.tensorboard", needs="tensorboard").SummaryWriter(str(path))

    def write(values: dict[str, float], step: int) -> None:
        for name, value in values.items():
            writer.add_scalar(name, value, step)

    try:
        yield write
    finally:
        writer.close()


@contextlib.contextmanager
def _wandb(package: str, name: str, settings: dict[str, Any]) -> Iterator[_Write]:
    """Log to Weights & Biases, or to trackio, which has the same interface."""
    tracker = _package(package, needs=package)
    tracker.init(project="dptdr", name=name, config=settings)
    try:
        yield lambda values, step: tracker.log(values, step=step)
    finally:
        tracker.finish()


@contextlib.contextmanager
def _mlflow(package: str, name: str, settings: dict[str, Any]) -> Iterator[_Write]:
    tracker = _package(package, needs=package)
    with tracker.start_run(run_name=name):
        tracker.log_params(settings)

        def write(values: dict[str, float], step: int) -> None:
            # MLflow does not allow '@' or commas in names.
            allowed = {re.sub(r"[^\w./ -]", "_", key): value for key, value in values.items()}
            tracker.log_metrics(allowed, step=step)

        yield write


def _package(module: str, *, needs: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError:
        extra = "; install 'dptdr[watch]'" if needs == "tensorboard" else f": pip install {needs}"
        raise ConfigError(f"tracking needs the package {needs}{extra}") from None
