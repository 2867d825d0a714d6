"""Settings of a training run."""

from dataclasses import dataclass, replace
from typing import Annotated, Literal

from dptdr.config.methods import StorageDtype
from dptdr.config.optimisation import OptimisationConfig
from dptdr.config.settings import Setting

Distillation = Literal["none", "kl", "margin-mse"]

DEFAULT_STEPS = 150

# A few queries, seen over and over, are learned by heart: 33 queries for 150 steps cost .12 of
# nDCG@10 on MS MARCO; 20 steps from a quiet start cost nothing, from tokens as they are .08. See
# docs/what-makes-prompts-work.md.
MAX_EPOCHS = 20


@dataclass(frozen=True, kw_only=True)
class TrainingConfig(OptimisationConfig):
    """How to train; the same for every method."""

    max_steps: Annotated[
        int | None,
        Setting(
            f"Optimiser steps. Default: {DEFAULT_STEPS}, or {MAX_EPOCHS} epochs where that is "
            "less.",
            min=1,
            was=("steps",),
            unset=0,
        ),
    ] = None
    batch_size: Annotated[
        int, Setting("Queries per step; larger batches bring more in-batch negatives.", min=2)
    ] = 32
    positives_per_query: Annotated[
        int, Setting("Positives drawn for each query and step, where there are several.", min=1)
    ] = 1
    negatives_per_query: Annotated[
        int, Setting("Mined negatives drawn for each query and step.", min=0)
    ] = 1
    temperature: Annotated[
        float, Setting("Scores are divided by it before the softmax; lower is sharper.", above=0)
    ] = 0.05
    score_scale: Annotated[
        float | None,
        Setting(
            "Dot products are multiplied by it before --temperature: 1 for raw ones (the "
            "paper's). Default: measured, so that scores are of order 1.",
            above=0,
            unset=0,
        ),
    ] = None
    distillation: Annotated[Distillation, Setting("Loss on a teacher's scores in --negatives.")] = (
        "none"
    )
    distillation_weight: Annotated[
        float, Setting("Share of that loss; the rest is contrastive.", min=0, max=1)
    ] = 0.5
    matryoshka: Annotated[
        tuple[int, ...], Setting("Shorter dimension to train as well; repeatable.", min=1)
    ] = ()
    max_query_tokens: Annotated[
        int | None,
        Setting(
            "Longest query in tokens while training; none: the backbone's limit.", min=1, unset=0
        ),
    ] = 64
    max_passage_tokens: Annotated[
        int | None,
        Setting(
            "Longest passage in tokens while training; none: the backbone's limit.", min=1, unset=0
        ),
    ] = 96
    gradient_checkpointing: Annotated[
        bool,
        Setting(
            "Recompute activations in the backward pass: less memory, slower.",
            was=("checkpointing",),
        ),
    ] = False
    dev_queries: Annotated[int, Setting("Maximum number of dev queries.", min=1)] = 200
    dev_passages: Annotated[
        int, Setting("Maximum number of passages in the dev corpus, judged ones included.", min=2)
    ] = 400
    storage_dtype: Annotated[
        StorageDtype | None,
        Setting(
            "Number type that trained weights are stored in; they are used in float32. Half the "
            "size costs some quality: dev measures of the stored weights are printed. Default: "
            "float32."
        ),
    ] = None
    keep_identical: Annotated[
        bool, Setting("Let a query that is a passage of the data be its own answer or negative.")
    ] = False

    def settled(self, queries: int) -> "TrainingConfig":
        """Return the settings with the number of steps that fits the training queries.

        Returns:
            Settings with ``max_steps``: as given, ``num_epochs`` times through the queries, or
            the default, which is less for few queries.
        """
        if self.max_steps is not None:
            return self
        epochs = MAX_EPOCHS if self.num_epochs is None else self.num_epochs
        steps = max(1, -int(-epochs * queries // self.batch_size))
        if self.num_epochs is None:
            steps = min(DEFAULT_STEPS, steps)
        return replace(self, max_steps=steps, num_epochs=None)
