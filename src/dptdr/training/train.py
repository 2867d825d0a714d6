"""From training data to a task bundle."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from dptdr.config.methods import MethodConfig, MethodName, settings_of
from dptdr.config.training import TrainingConfig
from dptdr.errors import ConfigError
from dptdr.model import Backbone, Encoder, Method, MethodFactory, TaskManifest
from dptdr.training.checkpoints import RunFolder
from dptdr.training.distributed import World, joined, local_device
from dptdr.training.health import prompt_health
from dptdr.training.loop import Trainable, Watch, best_step, train_loop
from dptdr.training.objective import ContrastiveObjective
from dptdr.training.preparation import TrainingData, load_data
from dptdr.training.selection import (
    bare_measures,
    dev_measures,
    save_as_task,
    select_again,
    training_limits,
)
from dptdr.training.tracking import UNTRACKED, Tracking, mirrored

__all__ = [
    "TrainingData",
    "TrainingResult",
    "dev_measures",
    "load_data",
    "measured_scale",
    "select_again",
    "set_threads",
    "train_task",
]

_HEALTH_TEXTS = 32


@dataclass(frozen=True, kw_only=True)
class TrainingResult:
    """What a run leaves.

    Args:
        manifest: The bundle's ``task.json``.
        history: Dev measures by step.
        bare: Dev measures of the bare backbone.
        best_step: The chosen checkpoint.
        seconds: Training time of this process, without evaluations.
        run_folder: Checkpoints and log.
    """

    manifest: TaskManifest
    history: dict[int, dict[str, float]]
    bare: dict[str, float]
    best_step: int
    seconds: float
    run_folder: Path


def measured_scale(backbone: Backbone, texts: list[str]) -> float:
    """Return 1 over the mean squared vector length of some texts, 1 for normalised vectors."""
    if backbone.pooling.normalise:
        return 1.0
    vectors = Encoder(backbone).encode_passages(texts[:64])
    return float(1.0 / (vectors**2).sum(axis=1).mean())


def train_task(
    data: TrainingData,
    out: Path,
    *,
    backbone: Backbone,
    method_name: MethodName,
    method_config: MethodConfig,
    config: TrainingConfig,
    resume: bool = False,
    start_rows: Mapping[str, Tensor] | None = None,
    watch: Watch | None = None,
    tracking: Tracking = UNTRACKED,
) -> TrainingResult | None:
    """Train one task, choose its best checkpoint, and write the bundle.

    Started by ``torchrun``, the processes share each batch; the first one writes.

    Args:
        data: What to train on and to select by.
        out: The bundle's folder; the run's own files go to ``OUT.training`` beside it.
        backbone: The frozen encoder.
        method_name: Tuning method.
        method_config: Its settings.
        config: Training settings.
        resume: Go on with the run found in ``OUT.training``, or start one if there is none.
        start_rows: Another task's prompt rows to start from.
        watch: Told about every step.
        tracking: Where the log goes besides its own file.

    Returns:
        The result; ``None`` in every process but the first.

    Raises:
        ConfigError: If a setting is wrong.
        TrainingError: If the run cannot be resumed or the loss is not finite.
    """
    config = config.settled(len(data.groups))
    config.check()
    out = Path(out)
    tracked = {"method": method_name, **settings_of(method_config), **dataclasses.asdict(config)}
    with (
        joined(backbone.device.type) as world,
        mirrored(tracking, world=world, name=out.name, settings=tracked) as mirror,
    ):
        if config.batch_size < world.size:
            raise ConfigError(
                f"batch_size: expected at least one query for each of {world.size} processes, got "
                f"{config.batch_size}"
            )
        backbone.model.to(local_device(backbone.device))
        factory = MethodFactory(
            query_texts=data.query_texts, passage_texts=data.passage_texts, rows=start_rows
        )
        method = factory.build(method_name, backbone, method_config, seed=config.seed)
        if config.gradient_checkpointing:
            method.backbone.injection.enable_checkpointing()
        scale = world.broadcast_object(
            config.score_scale or measured_scale(backbone, data.passage_texts)
        )
        folder = RunFolder(out.parent / f"{out.name}.training", mirror=mirror)
        if world.is_first:
            if not resume:
                folder.clear()
            _measure_start(folder, method, backbone=backbone, data=data, config=config)
        objective = ContrastiveObjective(
            method,
            data.groups,
            config,
            world=world,
            score_scale=scale,
        )
        run = _Run(method=method, data=data, config=config, folder=folder, world=world)
        identity = {
            **config.identity(),
            "learning_rate": config.rate_for(method_name),
            "score_scale": scale,
            "method": method_name,
            "method_settings": settings_of(method_config),
            "backbone_fingerprint": backbone.fingerprint,
            "world_size": world.size,
            "data": data.facts,
        }
        set_training_mode(method)
        history = train_loop(
            objective,
            Trainable(method.trained(), config, rate=config.rate_for(method_name)),
            state=method.state,
            evaluate=run.evaluate,
            folder=folder,
            identity=identity,
            world=world,
            keep_all=method_name != "full",
            watch=watch,
        )
        result = run.finish(out, history) if world.is_first else None
        # Every process may load the bundle afterwards.
        world.barrier()
        return result


@dataclass(frozen=True, kw_only=True)
class _Run:
    """What the beginning of a run hands to its evaluations and its end."""

    method: Method
    data: TrainingData
    config: TrainingConfig
    folder: RunFolder
    world: World

    def evaluate(self) -> dict[str, float]:
        """Measure the current parameters on dev."""
        backbone = self.method.backbone
        limits = training_limits(backbone, self.config.identity())
        self.method.module.eval()
        try:
            encoder = Encoder(backbone, method=self.method, limits=limits)
            return dev_measures(encoder, self.data.dev, measure=self.config.dev_measure)
        finally:
            set_training_mode(self.method)

    def finish(self, out: Path, history: dict[int, dict[str, float]]) -> TrainingResult:
        """Load the best checkpoint and write the bundle."""
        best = best_step(history, measure=self.config.dev_measure)
        self.method.load(self.folder.load_checkpoint(best))
        self.method.module.eval()
        log_health(self.folder, self.method, self.data, config=self.config, step=best)
        manifest = save_as_task(self.folder, out, method=self.method, step=best)
        steps = [record for record in self.folder.records() if record["kind"] == "step"]
        return TrainingResult(
            manifest=manifest,
            history=history,
            bare=bare_measures(self.folder),
            best_step=best,
            seconds=sum(record["seconds"] for record in steps),
            run_folder=self.folder.path,
        )


def set_training_mode(method: Method) -> None:
    """Switch on the method's own dropout, and leave the encoder's off.

    The encoder's dropout would blur what is learned in few steps; with it off, all methods see the
    same encoder.
    """
    method.module.train()
    method.backbone.model.eval()
    for name, module in method.backbone.model.named_modules():
        if "lora_dropout" in name:
            module.train()


def _measure_start(
    folder: RunFolder,
    method: Method,
    *,
    backbone: Backbone,
    data: TrainingData,
    config: TrainingConfig,
) -> None:
    """Measure the untuned backbone on dev, which tuning must beat, and the prompt's start."""
    if bare_measures(folder):
        return
    encoder = Encoder(backbone, limits=training_limits(backbone, config.identity()))
    bare = dev_measures(encoder, data.dev, measure=config.dev_measure)
    folder.log({"kind": "bare", "step": 0, **bare})
    log_health(folder, method, data, config=config, step=0)


def log_health(
    folder: RunFolder, method: Method, data: TrainingData, *, config: TrainingConfig, step: int
) -> None:
    """Write into the log what a deep prompt does in each layer; nothing for other methods.

    Args:
        folder: The run's files.
        method: The method as it is at the step.
        data: Its first texts are looked at.
        config: Longest passage while training.
        step: The step.
    """
    health = prompt_health(
        method,
        queries=data.query_texts[:_HEALTH_TEXTS],
        passages=data.passage_texts[:_HEALTH_TEXTS],
        max_tokens=config.max_passage_tokens,
    )
    if health:
        folder.log({"kind": "health", "step": step, **health})


def set_threads(threads: int) -> None:
    """Limit torch to a number of threads; 0 leaves its own choice."""
    if threads:
        torch.set_num_threads(threads)
