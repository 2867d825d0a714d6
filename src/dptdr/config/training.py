"""Settings of a training run."""

from dataclasses import dataclass, replace
from typing import Annotated, Literal

from dptdr.config.methods import StorageDtype
from dptdr.config.optimisation import OptimisationConfig
from dptdr.config.settings import Setting

Distillation = Literal["none", "kl", "margin-mse"]

DEFAULT_STEPS = 150

# Many epochs over few queries overfit: 150 steps on 33 queries cost .12 of nDCG@10 on MS MARCO. 20
# steps cost .08 when starting from tokens, and nothing when starting exactly at the backbone. See
# docs/what-makes-prompts-work.md.
MAX_EPOCHS = 20


@dataclass(frozen=True, kw_only=True)
class TrainingConfig(OptimisationConfig):
    """Training settings shared by all methods."""

    max_steps: Annotated[
        int | None,
        Setting(
            f"Optimizer steps. Default: {DEFAULT_STEPS}, or {MAX_EPOCHS} epochs if fewer.",
            min=1,
            was=("steps",),
        ),
    ] = None
    batch_size: Annotated[
        int,
        Setting(
            "Queries per step; larger batches have more in-batch negatives.", min=2, max=1_000_000
        ),
    ] = 32
    positives_per_query: Annotated[
        int, Setting("Positives drawn per query and step, if there are several.", min=1)
    ] = 1
    negatives_per_query: Annotated[
        int, Setting("Mined negatives drawn per query and step.", min=0)
    ] = 1
    temperature: Annotated[
        float, Setting("Divides scores before the softmax; lower is sharper.", above=0)
    ] = 0.05
    score_scale: Annotated[
        float | None,
        Setting(
            "Multiplies dot products before --temperature is applied; 1 as in the paper. Default: "
            "measured, so that scores are of order 1.",
            above=0,
        ),
    ] = None
    distillation: Annotated[
        Distillation, Setting("Distillation loss on teacher scores in --negatives.")
    ] = "none"
    distillation_weight: Annotated[
        float, Setting("Weight of the distillation loss; the rest is contrastive.", min=0, max=1)
    ] = 0.5
    matryoshka: Annotated[
        tuple[int, ...], Setting("Additional, smaller dimension to train; repeatable.", min=1)
    ] = ()
    max_query_tokens: Annotated[
        int | None,
        Setting("Maximum query length in tokens in training; none: the backbone's limit.", min=3),
    ] = 64
    max_passage_tokens: Annotated[
        int | None,
        Setting("Maximum passage length in tokens in training; none: the backbone's limit.", min=3),
    ] = 96
    gradient_checkpointing: Annotated[
        bool,
        Setting(
            "Recompute activations in the backward pass, to save memory at the cost of speed.",
            was=("checkpointing",),
        ),
    ] = False
    dev_queries: Annotated[int, Setting("Maximum number of dev queries.", min=1)] = 200
    dev_passages: Annotated[
        int, Setting("Maximum size of the dev corpus, including judged passages.", min=2)
    ] = 400
    storage_dtype: Annotated[
        StorageDtype | None,
        Setting(
            "Storage dtype of trained weights; they are used in float32. 16-bit types cost some "
            "quality: dev measures of the stored weights are printed. Default: float32."
        ),
    ] = None
    keep_identical: Annotated[
        bool, Setting("Allow a query that is also a passage to be its own answer or negative.")
    ] = False

    def with_steps(self, queries: int) -> "TrainingConfig":
        """Resolve ``max_steps``: as set, from ``num_epochs``, or the default, capped by epochs.

        Args:
            queries: Number of training queries.
        """
        if self.max_steps is not None:
            return self
        epochs = MAX_EPOCHS if self.num_epochs is None else self.num_epochs
        steps = max(1, -int(-epochs * queries // self.batch_size))
        if self.num_epochs is None:
            steps = min(DEFAULT_STEPS, steps)
        return replace(self, max_steps=steps, num_epochs=None)
