"""Train a task from training data and write its bundle."""

import contextlib
import dataclasses
import hashlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import safetensors.torch
from torch import Tensor

from dptdr.config.methods import MethodConfig, MethodName, settings_of
from dptdr.config.training import TrainingConfig
from dptdr.errors import ConfigError
from dptdr.model import Backbone, Encoder, Method, MethodFactory, TaskManifest
from dptdr.model.bundle import TASK_FILE, read_manifest, round_weights
from dptdr.training.checkpoint_selection import (
    bare_measures,
    dev_measures,
    save_as_task,
    training_limits,
)
from dptdr.training.checkpoints import RunFolder
from dptdr.training.distributed import (
    ProcessGroup,
    claim_shared_output,
    local_device,
    process_group,
)
from dptdr.training.health import prompt_health
from dptdr.training.loop import Clock, ProgressCallback, TrainState, selected_step, train_loop
from dptdr.training.losses import matryoshka_lengths
from dptdr.training.objective import ContrastiveObjective
from dptdr.training.preparation import TrainingData
from dptdr.training.tracking import UNTRACKED, Tracking, tracker_writer

Accept: TypeAlias = Callable[[Mapping[str, float], Mapping[str, float]], None]

_HEALTH_TEXTS = 32


@dataclass(frozen=True, kw_only=True)
class TrainingResult:
    """The result of a training run.

    Args:
        manifest: The bundle's ``task.json``.
    """

    manifest: TaskManifest
    history: dict[int, dict[str, float]]
    bare: dict[str, float]
    best_step: int
    seconds: float
    run_folder: Path


def measured_scale(backbone: Backbone, texts: list[str]) -> float:
    """Return 1 / mean squared vector norm over some texts; 1 for normalised vectors."""
    if backbone.pooling.normalise:
        return 1.0
    vectors = Encoder(backbone).encode_passages(texts[:64])
    return float(1.0 / (vectors**2).sum(axis=1).mean())


def train_task(  # noqa: PLR0913 - the stage's inputs and its observers
    data: TrainingData,
    out: Path,
    *,
    backbone: Backbone,
    method_name: MethodName,
    method_config: MethodConfig,
    config: TrainingConfig,
    overwrite: bool = False,
    start_rows: Mapping[str, Tensor] | None = None,
    progress: ProgressCallback | None = None,
    tracking: Tracking = UNTRACKED,
    clock: Clock = time.monotonic,
    objective: type[ContrastiveObjective] = ContrastiveObjective,
    accept: Accept | None = None,
    work: Path | None = None,
) -> TrainingResult | None:
    """Train a task, select its best checkpoint, and write the bundle.

    Calling it again with the same arguments returns immediately. An interrupted run resumes and
    produces byte-identical output. Under ``torchrun``, each batch is split across processes and
    only rank 0 writes.

    Args:
        out: Bundle folder; the run's working files go to ``OUT.training`` beside it.
        overwrite: Start over, discarding ``OUT.training``; an existing bundle remains until the new
            one is complete.
        accept: Called with the best checkpoint's and the backbone's dev measures; raises an error
            to prevent the bundle from being written.
        work: Folder for the run's working files; ``OUT.training`` by default.

    Returns:
        The result on rank 0, ``None`` on other ranks.

    Raises:
        ConfigError: If a setting is invalid.
        OutputError: If the existing bundle or run has other settings, another process is using it,
            or it cannot be written.
        TrainingError: If the loss is not finite.
    """
    config = config.with_steps(len(data.groups))
    config.check()
    try:
        matryoshka_lengths(config.matryoshka, dim=backbone.dim)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    out = Path(out)
    tracked = {"method": method_name, **settings_of(method_config), **dataclasses.asdict(config)}
    with contextlib.ExitStack() as stack:
        world = stack.enter_context(process_group(backbone.device.type))
        if config.batch_size < world.size:
            raise ConfigError(
                f"batch_size: expected at least one query per process ({world.size}), got "
                f"{config.batch_size}"
            )
        output = stack.enter_context(claim_shared_output(out, mark=TASK_FILE, world=world))
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
        work = work or out.with_name(f"{out.name}.training")
        identity = {
            **config.identity(),
            "learning_rate": config.rate_for(method_name),
            "score_scale": scale,
            "method": method_name,
            "method_settings": settings_of(method_config),
            "backbone_fingerprint": backbone.fingerprint,
            "probe": list(backbone.probe),
            "world_size": world.size,
            "data": data.facts,
            **({} if start_rows is None else {"start_rows": rows_digest(start_rows)}),
        }
        if output.begin(
            identity,
            work=work,
            work_files=RunFolder.FILES,
            began=RunFolder(work).began(),
            overwrite=overwrite,
        ):
            return _result_of(out, output.result, work=work) if world.is_first else None
        mirror = tracker_writer(tracking, world=world, name=out.name, settings=tracked)
        folder = RunFolder(work, mirror=stack.enter_context(mirror))
        if world.is_first:
            folder.begin(identity)
            _measure_start(folder, method, backbone=backbone, data=data, config=config)
        world.barrier()
        run = _Run(method=method, data=data, config=config, folder=folder, world=world)
        set_training_mode(method)
        history = train_loop(
            objective(method, data.groups, config, world=world, score_scale=scale),
            TrainState(method.trained(), config, rate=config.rate_for(method_name)),
            state=method.state,
            evaluate=run.evaluate,
            folder=folder,
            world=world,
            keep=selected_step if method_name == "full" else None,
            progress=progress,
            clock=clock,
        )
        if world.is_first:
            kept = run.finish(out, history, accept=accept)
            output.finish(kept)
        # Wait, so that every rank can load the bundle afterwards.
        world.barrier()
        return _result_of(out, kept, work=work) if world.is_first else None


def _result_of(out: Path, kept: Mapping[str, Any], *, work: Path) -> TrainingResult:
    """Return a finished run's result from its bundle and record."""
    return TrainingResult(
        manifest=read_manifest(out),
        history={int(step): dict(measures) for step, measures in kept["history"].items()},
        bare=dict(kept["bare"]),
        best_step=int(kept["best_step"]),
        seconds=float(kept["seconds"]),
        run_folder=work,
    )


def rows_digest(rows: Mapping[str, Tensor]) -> str:
    """Compute a fingerprint of the initial prompt rows."""
    plain = {name: rows[name].detach().cpu().contiguous() for name in sorted(rows)}
    return hashlib.sha256(safetensors.torch.save(plain)).hexdigest()


@dataclass(frozen=True, kw_only=True)
class _Run:
    """State shared by a run's evaluations and its final steps."""

    method: Method
    data: TrainingData
    config: TrainingConfig
    folder: RunFolder
    world: ProcessGroup

    def evaluate(self) -> dict[str, float]:
        """Evaluate the current parameters on the dev set."""
        backbone = self.method.backbone
        limits = training_limits(backbone, self.config.identity())
        self.method.module.eval()
        try:
            encoder = Encoder(backbone, method=self.method, limits=limits)
            return dev_measures(encoder, self.data.dev, measure=self.config.dev_measure)
        finally:
            set_training_mode(self.method)

    def finish(
        self, out: Path, history: dict[int, dict[str, float]], *, accept: Accept | None
    ) -> dict[str, Any]:
        """Load the best checkpoint, write the bundle, and return the result."""
        # An earlier version may have kept another checkpoint.
        kept = {step: history[step] for step in self.folder.checkpoint_steps()}
        best = selected_step(kept, measure=self.config.dev_measure)
        if accept is not None:
            accept(history[best], bare_measures(self.folder))
        self.method.load(self.folder.load_checkpoint(best))
        self.method.module.eval()
        log_health(self.folder, self.method, self.data, config=self.config, step=best)
        if self.config.storage_dtype is not None:
            round_weights(self.method, self.config.storage_dtype)
            self.folder.log({"kind": "stored", "step": best, **self.evaluate()})
        save_as_task(self.folder, out, method=self.method, step=best)
        steps = [record for record in self.folder.records() if record["kind"] == "step"]
        return {
            "history": {str(step): measures for step, measures in history.items()},
            "bare": bare_measures(self.folder),
            "best_step": best,
            "seconds": sum(record["seconds"] for record in steps),
        }


def set_training_mode(method: Method) -> None:
    """Enable the method's own dropout while the encoder's stays off.

    Encoder dropout would add noise over few steps; without it, all methods see the same encoder.
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
    """Evaluate the untuned backbone and the initial prompt on the dev set."""
    if bare_measures(folder):
        return
    encoder = Encoder(backbone, limits=training_limits(backbone, config.identity()))
    bare = dev_measures(encoder, data.dev, measure=config.dev_measure)
    folder.log({"kind": "bare", "step": 0, **bare})
    log_health(folder, method, data, config=config, step=0)


def log_health(
    folder: RunFolder, method: Method, data: TrainingData, *, config: TrainingConfig, step: int
) -> None:
    """Log a deep prompt's effect in each layer; do nothing for other methods."""
    health = prompt_health(
        method,
        queries=data.query_texts[:_HEALTH_TEXTS],
        passages=data.passage_texts[:_HEALTH_TEXTS],
        max_tokens=config.max_passage_tokens,
    )
    if health:
        folder.log({"kind": "health", "step": step, **health})
