"""The training loop: runs an objective and writes checkpoints."""

import contextlib
import math
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dptdr.config.optimisation import OptimisationConfig
from dptdr.errors import TrainingError
from dptdr.io.atomic import write_json
from dptdr.training.checkpoints import RunFolder, optimizer_tensors, restore_optimizer
from dptdr.training.distributed import ProcessGroup
from dptdr.training.objective import Objective, StepStats

# Interval between saves of the resume state, apart from evaluations.
SECONDS_BETWEEN_STATES = 60.0


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Progress after a step.

    Args:
        texts_per_second: Average for this process since the start or resume.
    """

    step: int
    steps: int
    loss: float
    dev: float | None
    texts_per_second: float
    seconds_left: float


ProgressCallback = Callable[[Progress], None]
Evaluate = Callable[[], dict[str, float]]
Clock = Callable[[], float]

DEV_NOISE = 0.005
"""Differences of dev measures that say nothing: a few hundred queries, one seed."""


Select = Callable[..., int]
"""Chooses a step from dev measures by step, and ``measure=``."""


class TrainState:
    """Trainable parameters with their optimizer and schedule.

    Args:
        rate: Peak learning rate; a prompt's feed-forward rows have their own in the settings.
    """

    def __init__(
        self, parameters: Mapping[str, nn.Parameter], config: OptimisationConfig, *, rate: float
    ) -> None:
        self.config = config
        rows = {n: p for n, p in parameters.items() if n.rsplit(".", 1)[-1].startswith("ffn_")}
        others = {n: p for n, p in parameters.items() if n not in rows}
        groups = []
        self.rates = []
        self.parameters: dict[str, nn.Parameter] = {}
        for chosen, own in ((others, rate), (rows, config.ffn_learning_rate)):
            if chosen:
                groups.append({"params": list(chosen.values()), "lr": own})
                self.rates.append(own)
                self.parameters.update(chosen)
        self.optimizer = torch.optim.AdamW(
            groups,
            lr=rate,
            betas=(0.9, 0.999),
            weight_decay=config.weight_decay,
        )

    def zero_grad(self) -> None:
        """Clear all gradients."""
        for parameter in self.parameters.values():
            parameter.grad = None

    def clip(self) -> float:
        """Clip the gradient norm and return its value before clipping."""
        clip = self.config.max_grad_norm or math.inf
        return float(nn.utils.clip_grad_norm_(self.parameters.values(), clip))

    def update(self, step: int) -> None:
        """Take one optimizer step at the scheduled learning rate."""
        factor = rate_factor(step, config=self.config)
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * factor
        self.optimizer.step()

    def tensors(self) -> dict[str, Tensor]:
        """Return the resume state."""
        tensors = {f"parameter|{n}": p.detach() for n, p in self.parameters.items()}
        tensors.update(optimizer_tensors(self.optimizer, list(self.parameters)))
        return tensors

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore the state returned by :meth:`tensors`."""
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(tensors[f"parameter|{name}"])
        restore_optimizer(self.optimizer, list(self.parameters), tensors)


def rate_factor(step: int, *, config: OptimisationConfig) -> float:
    """Return the learning rate at a step, counted from 0, as a fraction of the peak."""
    warmup = round(config.warmup_ratio * config.steps)
    if step < warmup:
        return (step + 1) / warmup
    if config.schedule == "constant":
        return 1.0
    done = (step - warmup) / max(1, config.steps - warmup)
    if config.schedule == "linear":
        return max(0.0, 1.0 - done)
    return 0.5 * (1.0 + math.cos(math.pi * min(1.0, done)))


def train_loop(
    objective: Objective,
    trainable: TrainState,
    *,
    state: Callable[[], Mapping[str, Tensor]],
    evaluate: Evaluate,
    folder: RunFolder,
    world: ProcessGroup,
    keep: Select | None = None,
    progress: ProgressCallback | None = None,
    clock: Clock = time.monotonic,
) -> dict[int, dict[str, float]]:
    """Train, evaluate and write checkpoints, resuming an earlier run in the folder.

    The resume state is saved at every evaluation and once a minute in between. Each step is a pure
    function of its number and the parameters, so a run can resume from any step.

    Args:
        evaluate: Computes dev measures of the current parameters; rank 0's are used.
        folder: Destination of checkpoints, log and resume state, written by rank 0 only. An
            existing state must come from a run with the same settings.
        keep: Keep only the checkpoint that this selects, rather than all.

    Raises:
        TrainingError: If the loss or gradient is not finite; the last good checkpoint remains.
    """
    config = trainable.config
    start, history = _begin(trainable, folder=folder, world=world)
    due = config.evaluation_steps()
    saver = _Saver(trainable, folder, clock=clock) if world.is_first else None
    pace = _Pace(start=start, steps=config.steps, clock=clock)
    for step in range(start, config.steps):
        if _out_of_patience(history, config=config):
            break
        stepped = clock()
        trainable.zero_grad()
        stats = objective.backward(step)
        layers = layer_norms(trainable.parameters)
        norm = trainable.clip()
        _check_finite(stats, norm, step=step, folder=folder, writes=world.is_first)
        trainable.update(step)
        done = step + 1
        pace.count(stats.texts)
        if world.is_first:
            record = {"kind": "step", "step": done, "loss": stats.loss, "gradient_norm": norm}
            record |= {"seconds": clock() - stepped, "tokens": stats.tokens}
            folder.log({**record, "texts": stats.texts, "layer_gradient_norms": layers})
        if done in due:
            with pace.paused():
                history[done] = world.broadcast_object(evaluate() if world.is_first else None)
                if world.is_first:
                    folder.save_checkpoint(done, state())
                    folder.log({"kind": "dev", "step": done, **history[done]})
                if saver is not None:
                    saver.save(done, history)
                    if keep is not None:
                        _drop_others(folder, history, keep(history, measure=config.dev_measure))
        elif saver is not None:
            saver.save_sometimes(done, history)
        if progress is not None and world.is_first:
            progress(pace.progress(done, stats.loss, history=history, measure=config.dev_measure))
    world.barrier()
    return history


def _out_of_patience(
    history: Mapping[int, Mapping[str, float]], *, config: OptimisationConfig
) -> bool:
    if config.patience is None or not history:
        return False
    best = best_step(history, measure=config.dev_measure)
    return sum(step > best for step in history) >= config.patience


def _begin(
    trainable: TrainState, *, folder: RunFolder, world: ProcessGroup
) -> tuple[int, dict[int, dict[str, float]]]:
    """Restore an earlier run's state, if any: completed steps and dev measures by step."""
    if world.is_first:
        folder.forget_failure()
    resumed = folder.load_state()
    if resumed is None:
        world.broadcast(trainable.parameters.values())
        return 0, {}
    tensors, facts = resumed
    trainable.restore(tensors)
    return int(facts["step"]), {int(s): dict(m) for s, m in facts["history"].items()}


class _Saver:
    """Saves the resume state, rarely enough to cost little."""

    def __init__(self, trainable: TrainState, folder: RunFolder, *, clock: Clock) -> None:
        self._trainable = trainable
        self._folder = folder
        self._clock = clock
        self._saved = clock()
        self._cost = 0.0

    def save(self, done: int, history: Mapping[int, Mapping[str, float]]) -> None:
        began = self._clock()
        self._folder.save_state(
            self._trainable.tensors(),
            {"step": done, "history": {str(s): dict(m) for s, m in history.items()}},
        )
        self._saved = self._clock()
        self._cost = self._saved - began

    def save_sometimes(self, done: int, history: Mapping[int, Mapping[str, float]]) -> None:
        # The state of full fine-tuning is three times the encoder: spend at most 5 % of the time.
        if self._clock() - self._saved >= max(SECONDS_BETWEEN_STATES, 20.0 * self._cost):
            self.save(done, history)


class _Pace:
    """Tracks texts and time, excluding evaluations."""

    def __init__(self, *, start: int, steps: int, clock: Clock) -> None:
        self._start, self._steps, self._clock = start, steps, clock
        self._began, self._texts, self._waited = clock(), 0, 0.0

    def count(self, texts: int) -> None:
        self._texts += texts

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        began = self._clock()
        yield
        self._waited += self._clock() - began

    def progress(
        self, done: int, loss: float, *, history: Mapping[int, Mapping[str, float]], measure: str
    ) -> Progress:
        seconds = max(1e-9, self._clock() - self._began - self._waited)
        return Progress(
            step=done,
            steps=self._steps,
            loss=loss,
            dev=history[max(history)][measure] if history else None,
            texts_per_second=self._texts / seconds,
            seconds_left=seconds / (done - self._start) * (self._steps - done),
        )


def _check_finite(
    stats: StepStats, norm: float, *, step: int, folder: RunFolder, writes: bool
) -> None:
    """Raise an error before a non-finite loss or gradient reaches the parameters."""
    if math.isfinite(stats.loss) and math.isfinite(norm):
        return
    steps = folder.checkpoint_steps()
    kept = (
        f"the last checkpoint is {folder.checkpoint_path(steps[-1])}"
        if steps
        else "there is no checkpoint yet"
    )
    if writes:
        failure = {"step": step + 1, "loss": str(stats.loss), "gradient_norm": str(norm)}
        write_json(folder.path / "failed.json", {**failure, "query_ids": list(stats.query_ids)})
    ids = ", ".join(stats.query_ids[:8]) + (" ..." if len(stats.query_ids) > 8 else "")
    what = "loss" if not math.isfinite(stats.loss) else "gradient norm"
    value = stats.loss if what == "loss" else norm
    raise TrainingError(
        f"step {step + 1}: expected a finite {what}, got {value}; the batch has queries {ids} "
        f"(all in {folder.path / 'failed.json'}); {kept}; lower the learning rate, or train in "
        "float32"
    )


def best_step(history: Mapping[int, Mapping[str, float]], *, measure: str) -> int:
    """Return the step with the highest dev measure, the earliest in a tie.

    Raises:
        TrainingError: If the measure is missing.
    """
    for step, measures in history.items():
        if measure not in measures:
            raise TrainingError(
                f"step {step} has no measure '{measure}'; available: {', '.join(sorted(measures))}"
            )
    return max(sorted(history), key=lambda step: history[step][measure])


def selected_step(history: Mapping[int, Mapping[str, float]], *, measure: str) -> int:
    """Return the latest step whose dev measure is within ``DEV_NOISE`` of the highest.

    Raises:
        TrainingError: If the measure is missing.
    """
    highest = history[best_step(history, measure=measure)][measure]
    return max(step for step in history if history[step][measure] >= highest - DEV_NOISE)


def _drop_others(folder: RunFolder, history: Iterable[int], kept: int) -> None:
    for step in history:
        if step != kept:
            folder.drop_checkpoint(step)


def layer_norms(parameters: Mapping[str, nn.Parameter]) -> list[float]:
    """Return each layer's gradient norm; parameters outside layers are ignored."""
    squares: dict[int, Tensor] = {}
    for name, parameter in parameters.items():
        if parameter.grad is None:
            continue
        square = parameter.grad.detach().float().square()
        numbered = re.search(r"\b(?:layers?|blocks?|h)\.(\d+)\.", name)
        own_name = name.rsplit(".", 1)[-1]
        if own_name.startswith("ffn_") or (own_name in ("keys", "values") and square.dim() == 4):
            for layer, own in enumerate(square.flatten(1).sum(dim=1)):
                squares[layer] = squares.get(layer, own.new_zeros(())) + own
        elif numbered is not None:
            layer = int(numbered[1])
            squares[layer] = squares.get(layer, square.new_zeros(())) + square.sum()
    if not squares:
        return []
    norms = torch.stack([squares[layer] for layer in sorted(squares)]).sqrt().tolist()
    return [round(norm, 8) for norm in norms]
