"""The one training loop: no callbacks, an objective goes in, checkpoints come out."""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dptdr.config.training import TrainingConfig
from dptdr.errors import TrainingError
from dptdr.training.checkpoints import (
    RunFolder,
    check_same_run,
    optimizer_tensors,
    restore_optimizer,
)
from dptdr.training.distributed import World
from dptdr.training.objective import Objective, StepStats


@dataclass(frozen=True, kw_only=True)
class Progress:
    """What a watcher is told after each step.

    Args:
        step: Steps done.
        steps: Steps in all.
        loss: Loss of the step.
        dev: Last dev measure, if one was taken.
        texts_per_second: Over this process's texts since the start or resume.
        seconds_left: Estimate of the training time left.
    """

    step: int
    steps: int
    loss: float
    dev: float | None
    texts_per_second: float
    seconds_left: float


Watch = Callable[[Progress], None]
Evaluate = Callable[[], dict[str, float]]


class Trainable:
    """Parameters with their optimiser, schedule and running mean.

    Args:
        parameters: What is trained, by name.
        config: Settings.
        rate: Peak learning rate.
    """

    def __init__(
        self, parameters: Mapping[str, nn.Parameter], config: TrainingConfig, *, rate: float
    ) -> None:
        self.config = config
        values = {n: p for n, p in parameters.items() if n.rsplit(".", 1)[-1] == "values"}
        others = {n: p for n, p in parameters.items() if n not in values}
        groups = []
        self.factors = []
        self.parameters: dict[str, nn.Parameter] = {}
        for chosen, factor in ((others, 1.0), (values, config.value_rate_factor)):
            if chosen:
                groups.append({"params": list(chosen.values()), "lr": rate * factor})
                self.factors.append(rate * factor)
                self.parameters.update(chosen)
        self.optimizer = torch.optim.AdamW(
            groups, lr=rate, betas=(0.9, 0.999), weight_decay=config.weight_decay
        )
        self.mean: dict[str, Tensor] = {}
        if config.ema:
            self.mean = {n: p.detach().clone() for n, p in self.parameters.items()}

    def update(self, step: int) -> float:
        """Clip, take one optimiser step, and return the gradient's norm before clipping."""
        clip = self.config.clip_norm or math.inf
        norm = float(nn.utils.clip_grad_norm_(self.parameters.values(), clip))
        factor = rate_factor(step, config=self.config)
        for group, rate in zip(self.optimizer.param_groups, self.factors, strict=True):
            group["lr"] = rate * factor
        self.optimizer.step()
        if self.mean:
            # The mean forgets its start at the pace of a plain average first.
            decay = min(self.config.ema, (1 + step) / (10 + step))
            with torch.no_grad():
                for name, parameter in self.parameters.items():
                    self.mean[name].lerp_(parameter, 1.0 - decay)
        return norm

    def swap_mean(self) -> None:
        """Exchange the parameters with their running mean; calling it twice changes nothing."""
        with torch.no_grad():
            for name, mean in self.mean.items():
                kept = self.parameters[name].detach().clone()
                self.parameters[name].copy_(mean)
                mean.copy_(kept)

    def tensors(self) -> dict[str, Tensor]:
        """Return all that resuming needs."""
        tensors = {f"parameter|{n}": p.detach() for n, p in self.parameters.items()}
        tensors.update({f"mean|{n}": t for n, t in self.mean.items()})
        tensors.update(optimizer_tensors(self.optimizer, list(self.parameters)))
        return tensors

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Put back what :meth:`tensors` returned."""
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(tensors[f"parameter|{name}"])
            for name, mean in self.mean.items():
                mean.copy_(tensors[f"mean|{name}"])
        restore_optimizer(self.optimizer, list(self.parameters), tensors)


def rate_factor(step: int, *, config: TrainingConfig) -> float:
    """Return the learning rate of a step, counted from 0, as a share of the peak."""
    warmup = max(1, round(config.warmup_share * config.steps))
    if step < warmup and config.warmup_share > 0:
        return (step + 1) / warmup
    if config.schedule == "constant":
        return 1.0
    done = (step - warmup) / max(1, config.steps - warmup)
    if config.schedule == "linear":
        return max(0.0, 1.0 - done)
    return 0.5 * (1.0 + math.cos(math.pi * min(1.0, done)))


def evaluation_steps(config: TrainingConfig) -> set[int]:
    """Return after how many steps the dev measure is taken; the last step is always among them."""
    count = config.evaluations
    return {max(1, round(config.steps * (n + 1) / count)) for n in range(count)}


def train_loop(
    objective: Objective,
    trainable: Trainable,
    *,
    state: Callable[[], Mapping[str, Tensor]],
    evaluate: Evaluate,
    folder: RunFolder,
    identity: Mapping[str, Any],
    world: World,
    keep_all: bool = True,
    watch: Watch | None = None,
) -> dict[int, dict[str, float]]:
    """Train, evaluate, keep checkpoints; go on where an earlier run with this identity stopped.

    Args:
        objective: Leaves gradients on the parameters.
        trainable: The parameters and their optimiser.
        state: What a checkpoint holds.
        evaluate: Dev measures of the current parameters; the first process's count.
        folder: Where checkpoints, log and resume state go; only the first process writes.
        identity: Settings that must be the same to resume.
        world: The processes.
        keep_all: Whether to keep every checkpoint, or only the best.
        watch: Told about every step.

    Returns:
        Dev measures by step.

    Raises:
        TrainingError: If the loss is not finite; the last good checkpoint stays.
    """
    config = trainable.config
    history: dict[int, dict[str, float]] = {}
    start = 0
    resumed = folder.load_state()
    if resumed is not None:
        tensors, facts = resumed
        check_same_run(facts, identity, path=folder.path)
        trainable.restore(tensors)
        start = int(facts["step"])
        history = {int(s): dict(m) for s, m in facts["history"].items()}
    world.barrier()
    due = evaluation_steps(config)
    began, texts, waited = time.monotonic(), 0, 0.0
    for step in range(start, config.steps):
        stepped = time.monotonic()
        for parameter in trainable.parameters.values():
            parameter.grad = None
        stats = objective.backward(step)
        _check_finite(stats, step=step, history=history, folder=folder)
        layers = layer_norms(trainable.parameters)
        norm = trainable.update(step)
        texts += stats.texts
        done = step + 1
        if world.is_first:
            record = {"kind": "step", "step": done, "loss": stats.loss, "gradient_norm": norm}
            record |= {"seconds": time.monotonic() - stepped, "tokens": stats.tokens}
            folder.log({**record, "texts": stats.texts, "layer_gradient_norms": layers})
        if done in due:
            paused = time.monotonic()
            trainable.swap_mean()
            history[done] = world.broadcast_object(evaluate() if world.is_first else None)
            if world.is_first:
                folder.save_checkpoint(done, state())
                folder.log({"kind": "dev", "step": done, **history[done]})
            trainable.swap_mean()
            if world.is_first:
                facts = {"step": done, "history": history, "identity": dict(identity)}
                folder.save_state(trainable.tensors(), facts)
                if not keep_all:
                    _keep_best(history, folder=folder, measure=config.dev_measure)
            waited += time.monotonic() - paused
        if watch is not None and world.is_first:
            seconds = max(1e-9, time.monotonic() - began - waited)
            watch(
                Progress(
                    step=done,
                    steps=config.steps,
                    loss=stats.loss,
                    dev=history[max(history)][config.dev_measure] if history else None,
                    texts_per_second=texts / seconds,
                    seconds_left=seconds / (done - start) * (config.steps - done),
                )
            )
    world.barrier()
    return history


def _check_finite(
    stats: StepStats, *, step: int, history: Mapping[int, Any], folder: RunFolder
) -> None:
    if math.isfinite(stats.loss):
        return
    last = (
        f"the last checkpoint is step {max(history)} in {folder.path}"
        if history
        else ("there is no checkpoint yet")
    )
    raise TrainingError(
        f"step {step + 1}: the loss is {stats.loss}, expected a finite number; batch of queries "
        f"{', '.join(stats.query_ids[:8])}{' ...' if len(stats.query_ids) > 8 else ''}; {last}; "
        "lower the learning rate or train in float32"
    )


def best_step(history: Mapping[int, Mapping[str, float]], *, measure: str) -> int:
    """Return the step with the highest dev measure; the earliest of equals.

    Raises:
        TrainingError: If the measure was not taken.
    """
    for step, measures in history.items():
        if measure not in measures:
            raise TrainingError(
                f"step {step} has no measure '{measure}'; there is {', '.join(sorted(measures))}"
            )
    return max(sorted(history), key=lambda step: history[step][measure])


def _keep_best(
    history: Mapping[int, Mapping[str, float]], *, folder: RunFolder, measure: str
) -> None:
    best = best_step(history, measure=measure)
    for step in history:
        if step != best:
            folder.drop_checkpoint(step)


def layer_norms(parameters: Mapping[str, nn.Parameter]) -> list[float]:
    """Return the gradient's norm in each layer of deep prompts; empty for other methods."""
    squares: Tensor | None = None
    for name, parameter in parameters.items():
        kind = name.rsplit(".", 1)[-1]
        if kind in ("keys", "values") and parameter.grad is not None and parameter.dim() == 4:
            own = parameter.grad.detach().float().square().flatten(1).sum(dim=1)
            squares = own if squares is None else squares + own
    return [] if squares is None else [round(v, 8) for v in squares.sqrt().tolist()]


def run_identity(config: TrainingConfig, **facts: Any) -> dict[str, Any]:
    """Return what must be equal for a run to be resumed, as JSON values."""
    settings = asdict(config)
    settings["matryoshka"] = list(settings["matryoshka"])
    return {**settings, **facts}
