"""Pretrain an encoder, or only a prompt, on the unlabelled texts of a corpus."""

import contextlib
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from dptdr.config.methods import DeepPromptConfig
from dptdr.config.pretraining import (
    DEFAULT_TEMPERATURE,
    FUSED,
    ObjectiveName,
    PretrainingConfig,
)
from dptdr.errors import ConfigError
from dptdr.io.beir import BeirFolder
from dptdr.model import Backbone
from dptdr.model.bundle import TASK_FILE
from dptdr.pretraining.fused import pretrain_fused
from dptdr.pretraining.run import Note, PretrainingRun, log_records
from dptdr.pretraining.saving import FACTS_FILE, refuse_source
from dptdr.training.checkpoints import RunFolder
from dptdr.training.distributed import claim_shared_output, local_device, process_group
from dptdr.training.loop import Clock, ProgressCallback
from dptdr.training.train import TrainingResult


@dataclass(frozen=True, kw_only=True)
class PretrainingResult:
    """The result of a pretraining run.

    Args:
        out: Folder of the backbone or task.
        temperature: Temperature of the span contrast, or of the fused ranking's distribution.
        history: Dev measures by step.
        bare: Dev measures before training; for a prompt, without it.
        losses: Loss terms at the first and last step.
        mlm_head: Origin of the masked-language head; ``None`` if not needed.
        condenser_head: Origin of the Condenser head; ``None`` if not needed.
        head_warmup: First and last loss of new heads; empty without warm-up.
        documents: Number of documents drawn over all steps.
        single_span_documents: Number of them with fewer than two spans, used for masked words only.
        seconds: This process's training time, without evaluations.
        tokens: Tokens this process read in that time.
        fingerprint: Fingerprint of the backbone written, or of the prompt's backbone.
        run_folder: Checkpoints and log.
    """

    out: Path
    prompt_only: bool
    objectives: tuple[ObjectiveName, ...]
    temperature: float
    history: dict[int, dict[str, float]]
    bare: dict[str, float]
    best_step: int
    losses: tuple[dict[str, float], dict[str, float]]
    mlm_head: str | None
    condenser_head: str | None
    head_warmup: tuple[float, ...]
    documents: int
    single_span_documents: int
    seconds: float
    tokens: int
    fingerprint: str
    run_folder: Path


def pretrain(  # noqa: PLR0913 - the stage's inputs and its observers
    folder: BeirFolder,
    out: Path,
    *,
    backbone: Backbone,
    config: PretrainingConfig,
    prompt: DeepPromptConfig | None = None,
    start_rows: Mapping[str, Tensor] | None = None,
    keep_head: bool = False,
    force: bool = False,
    overwrite: bool = False,
    progress: ProgressCallback | None = None,
    note: Note | None = None,
    clock: Clock = time.monotonic,
) -> PretrainingResult | None:
    """Pretrain an encoder, or with ``prompt`` only a deep prompt, on an unlabelled corpus.

    Calling it again with the same arguments returns immediately. An interrupted run resumes and
    produces byte-identical output. Under ``torchrun``, each batch is split across processes and
    only rank 0 writes.

    Args:
        folder: The data; only its corpus is read.
        out: Output folder; the run's working files go to ``OUT.pretraining``.
        backbone: The encoder; it is not modified.
        prompt: Settings of a prompt to train on the frozen backbone; ``None`` trains a copy of the
            whole encoder.
        start_rows: Another task's prompt rows to start from.
        keep_head: Save the heads beside the backbone, so that pretraining can continue.
        force: Write a prompt even if the fused objective has made it worse.
        overwrite: Start over, discarding ``OUT.pretraining``; an existing result remains until the
            new one is complete.
        progress: Called after every step.
        note: Called on rank 0 with messages about the preparation.
        clock: Monotonic time in seconds.

    Returns:
        The result on rank 0, ``None`` on other ranks.

    Raises:
        BackboneError: If the encoder does not support the objectives.
        ConfigError: If a setting is invalid, or the corpus is too small.
        NoGain: If the objective is fused and the prompt is worse than the backbone.
        OutputError: If the existing result or run has other settings, another process is using it,
            or it cannot be written.
        TrainingError: If the loss is not finite.

    Source:
        Gao and Callan, arXiv 2104.08253 and 2108.05540. Differs: see docs/pretraining.md;
        pretraining only a prompt is new here.
    """
    config.check()
    out = Path(out)
    refuse_source(out, backbone=backbone)
    if config.objectives == FUSED:
        if prompt is None:
            raise ConfigError("objectives: fused trains a prompt only; pass the prompt's settings")
        made = pretrain_fused(
            folder,
            out,
            backbone=backbone,
            config=config,
            prompt=prompt,
            start_rows=start_rows,
            force=force,
            overwrite=overwrite,
            progress=progress,
            clock=clock,
        )
        return None if made is None else _of_fused(out, made, config=config)
    mark = FACTS_FILE if prompt is None else TASK_FILE
    with contextlib.ExitStack() as stack:
        world = stack.enter_context(process_group(backbone.device.type))
        if config.batch_size < world.size:
            raise ConfigError(
                f"batch_size: expected at least one document per process ({world.size}), "
                f"got {config.batch_size}"
            )
        output = stack.enter_context(claim_shared_output(out, mark=mark, world=world))
        backbone.model.to(local_device(backbone.device))
        run = PretrainingRun.prepare(
            folder,
            out,
            backbone=backbone,
            config=config,
            prompt=prompt,
            start_rows=start_rows,
            world=world,
            keep_head=keep_head,
        )
        stack.callback(run.objective.close)
        work, also = run.folder.path, {"keep_head": keep_head}
        began = run.folder.began()
        if output.begin(
            run.identity | also,
            work=work,
            work_files=RunFolder.FILES,
            began=None if began is None else began | also,
            overwrite=overwrite,
        ):
            return _result_of(out, output.result, work=work) if world.is_first else None
        kept = run.train(keep_all=prompt is not None, progress=progress, note=note, clock=clock)
        if kept is None:
            return None
        output.finish(kept)
        return _result_of(out, kept, work=work)


def _result_of(out: Path, kept: Mapping[str, Any], *, work: Path) -> PretrainingResult:
    """Return a finished run's result from its record."""
    first, last = kept["losses"]
    changed = {
        "objectives": tuple(kept["objectives"]),
        "history": {int(step): dict(measures) for step, measures in kept["history"].items()},
        "losses": (dict(first), dict(last)),
        "head_warmup": tuple(kept["head_warmup"]),
    }
    return PretrainingResult(**{**kept, **changed}, out=out, run_folder=work)


def _of_fused(out: Path, made: TrainingResult, *, config: PretrainingConfig) -> PretrainingResult:
    steps = log_records(RunFolder(made.run_folder), "step")
    return PretrainingResult(
        out=out,
        prompt_only=True,
        objectives=FUSED,
        temperature=config.temperature or DEFAULT_TEMPERATURE,
        history=made.history,
        bare=made.bare,
        best_step=made.best_step,
        losses=({"fused": steps[0]["loss"]}, {"fused": steps[-1]["loss"]}),
        mlm_head=None,
        condenser_head=None,
        head_warmup=(),
        documents=sum(made.manifest.training["pseudo_queries"].values()),
        single_span_documents=0,
        seconds=made.seconds,
        tokens=sum(record["tokens"] for record in steps),
        fingerprint=made.manifest.backbone_fingerprint,
        run_folder=made.run_folder,
    )
