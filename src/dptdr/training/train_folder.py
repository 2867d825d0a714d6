"""Run a training request, from Python or the command line."""

import dataclasses
import sys
from pathlib import Path

from dptdr.config.methods import DeepPromptConfig
from dptdr.config.requests import TrainingRequest
from dptdr.config.training import DEFAULT_STEPS, MAX_EPOCHS
from dptdr.data.tokens import TokenTexts
from dptdr.io.beir import BeirFolder
from dptdr.model import Backbone
from dptdr.model.bundle import load_prompt_rows
from dptdr.training.loop import ProgressCallback
from dptdr.training.preparation import load_data
from dptdr.training.tracking import UNTRACKED, Tracking
from dptdr.training.train import TrainingResult, train_task

FEW_QUERIES_RATE = 1e-3
"""Learning rate of feed-forward rows for few queries; see docs/what-makes-prompts-work.md."""

_FEW_DEV_QUERIES = 50
"""With fewer dev queries, differences between checkpoints are mostly noise."""


def train_folder(
    folder: BeirFolder,
    out: Path,
    *,
    backbone: Backbone,
    request: TrainingRequest,
    negatives: Path | None = None,
    from_task: Path | None = None,
    min_grade: int = 1,
    overwrite: bool = False,
    progress: ProgressCallback | None = None,
    tracking: Tracking = UNTRACKED,
) -> TrainingResult | None:
    """Train a task on a data folder with the settings of a request.

    Args:
        from_task: Bundle whose prompt is the starting point.
        min_grade: Lowest grade of a relevant passage.
        overwrite: First delete ``out`` and its working folder ``<out>.training``.

    Returns:
        The result on rank 0, ``None`` on other ranks.
    """
    folder.qrels("train")
    rows = None
    if from_task is not None:
        assert isinstance(request.method_config, DeepPromptConfig)
        method_config, rows = load_prompt_rows(
            from_task, backbone=backbone, config=request.method_config, given=request.given
        )
        request = request._replace(method_config=method_config)
    data = load_data(
        folder,
        request.config,
        negatives=negatives,
        tokens=TokenTexts(backbone.tokenizer),
        min_grade=min_grade,
    )
    request = for_few_queries(request, queries=len(data.groups), from_task=rows is not None)
    if data.facts["dev_queries"] < _FEW_DEV_QUERIES:
        sys.stderr.write(
            f"only {data.facts['dev_queries']} dev queries: too few to select checkpoints "
            "reliably; evaluate on a test split, or add queries to qrels/dev.tsv\n"
        )
    return train_task(
        data,
        out,
        backbone=backbone,
        method_name=request.method,
        method_config=request.method_config,
        config=request.config,
        overwrite=overwrite,
        start_rows=rows,
        progress=progress,
        tracking=tracking,
    )


def for_few_queries(
    request: TrainingRequest, *, queries: int, from_task: bool = False
) -> TrainingRequest:
    """With few queries, default to fewer steps and to feed-forward rows only.

    Such a prompt starts exactly at the backbone; attention rows start below it. Explicit settings
    are kept. Feed-forward rows alone are trained at a lower rate.
    """
    config, method = request.config, request.method_config
    settled = config.with_steps(queries)
    asked = config.max_steps is not None or config.num_epochs is not None
    if asked or settled.steps >= DEFAULT_STEPS:
        return request._replace(config=settled)
    said = f"only {queries} training queries: training {settled.steps} steps ({MAX_EPOCHS} epochs)"
    lengths = {"prompt_length", "ffn_length"} & request.given
    if isinstance(method, DeepPromptConfig):
        if not lengths and not from_task:
            method = dataclasses.replace(method, prompt_length=0)
            said += " with feed-forward rows only"
        # Also if they were asked for, or another task has none but these.
        if method.prompt_length == 0 and "ffn_learning_rate" not in request.given:
            settled = dataclasses.replace(settled, ffn_learning_rate=FEW_QUERIES_RATE)
    sys.stderr.write(f"{said}; set max_steps or prompt_length to override\n")
    return request._replace(config=settled, method_config=method)
