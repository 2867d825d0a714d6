"""Pretrain an encoder, or a prompt alone, on the bare texts of a corpus."""

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
from dptdr.training.distributed import claimed, joined, local_device
from dptdr.training.loop import Clock, ProgressCallback
from dptdr.training.train import TrainingResult


@dataclass(frozen=True, kw_only=True)
class PretrainingResult:
    """The result of a run.

    Args:
        out: The backbone's or the task's folder.
        temperature: Of the span contrast, or of the fused ranking's distribution.
        history: Dev measures by step.
        bare: Dev measures before training, of a prompt's run without prompt.
        losses: The parts of the loss at the first and at the last step.
        mlm_head: Where the masked-language head comes from; ``None`` if none was needed.
        condenser_head: Where the Condenser head comes from; ``None`` if none was needed.
        head_warmup: First and last loss of new heads; empty if there was no warm-up.
        documents: Documents drawn in all steps.
        single_span_documents: How many of them gave fewer than two spans, for masked words only.
        seconds: Training time of this process, without evaluations.
        tokens: Tokens that this process read in that time.
        fingerprint: Of the backbone written, or of the one the prompt belongs to.
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
    """Pretrain an encoder, or with ``prompt`` a deep prompt alone, on a corpus without labels.

    The same call once more returns at once; a stopped run is continued and ends in the same bytes.
    Started by ``torchrun``, the processes share each batch; the first one writes.

    Args:
        folder: The data; only its corpus is read.
        out: What to write; the run's files go to ``OUT.pretraining``.
        backbone: The encoder; it is not changed.
        config: Settings.
        prompt: Settings of the prompt to train with the backbone frozen; ``None`` trains a copy of
            the whole encoder.
        start_rows: Another task's prompt rows to start from.
        keep_head: Write the heads beside the backbone, to continue from them later.
        force: Write a prompt that the objective fused has not made better.
        overwrite: Start over, whatever is in ``OUT.pretraining``; an old result stays until the
            new one is complete.
        progress: Told about every step.
        note: Told, on the first process, about what comes before the first step.
        clock: Seconds, from any start.

    Returns:
        The result; ``None`` in every process but the first.

    Raises:
        BackboneError: If the encoder cannot be pretrained so.
        ConfigError: If settings or corpus do not fit.
        NoGain: If the objective is fused and the prompt is no better than the backbone.
        OutputError: If the result or the run was made with other settings, another process works
            on it, or it cannot be written.
        TrainingError: If the loss is not finite.

    Source:
        Gao and Callan, arXiv 2104.08253 and 2108.05540. Differs: see docs/pretraining.md; prompts
        alone are pretrained nowhere else.
    """
    config.check()
    out = Path(out)
    refuse_source(out, backbone=backbone)
    if config.objectives == FUSED:
        if prompt is None:
            raise ConfigError("objectives: fused trains a prompt alone; give its settings")
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
        world = stack.enter_context(joined(backbone.device.type))
        if config.batch_size < world.size:
            raise ConfigError(
                f"batch_size: expected at least one document for each of {world.size} processes, "
                f"got {config.batch_size}"
            )
        output = stack.enter_context(claimed(out, mark=mark, world=world))
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
            began=None if began is None else began | also,
            overwrite=overwrite,
        ):
            return _found(out, output.result, work=work) if world.is_first else None
        kept = run.train(keep_all=prompt is not None, progress=progress, note=note, clock=clock)
        if kept is None:
            return None
        output.finish(kept)
        return _found(out, kept, work=work)


def _found(out: Path, kept: Mapping[str, Any], *, work: Path) -> PretrainingResult:
    """Return the result of a finished run from its record."""
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
