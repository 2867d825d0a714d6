"""Settings of intermediate pretraining."""

from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

from dptdr.config.optimisation import OptimisationConfig
from dptdr.config.settings import Setting

ObjectiveName = Literal["mlm", "condenser", "contrastive"]
OBJECTIVE_NAMES: tuple[ObjectiveName, ...] = ("mlm", "condenser", "contrastive")

NEGATIVE_LOSS = "negative loss"
SIBLING_FIRST = "sibling R@1"
SIBLING_RANK = "sibling RR"
DEV_MEASURES: tuple[str, ...] = (NEGATIVE_LOSS, SIBLING_FIRST, SIBLING_RANK)
"""What can choose the checkpoint, all taken on held-out documents, higher is better."""

DEFAULT_TEMPERATURE = 0.05
"""For encoders whose vectors have length 1; others are compared by raw dot products."""

DEFAULT_STEPS = 1000


@dataclass(frozen=True, kw_only=True)
class PretrainingConfig(OptimisationConfig):
    """How to pretrain on the bare texts of a corpus."""

    objectives: Annotated[
        tuple[ObjectiveName, ...],
        Setting(
            "Parts of the loss, weighted equally and separated by commas: mlm (masked words), "
            "condenser (masked words from an early layer and the text's vector), contrastive (the "
            "other span of the same document). Default: all three for a backbone; for a prompt "
            "contrastive, and mlm where the encoder brings a head for it."
        ),
    ] = ()
    max_steps: Annotated[
        int | None,
        Setting(
            f"Optimiser steps, the warm-up of new heads not counted. Default: {DEFAULT_STEPS}.",
            min=1,
            was=("steps",),
        ),
    ] = None
    batch_size: Annotated[
        int, Setting("Documents per step, over all processes; each gives two spans.", min=2)
    ] = 64
    mini_batch_size: Annotated[
        int | None,
        Setting(
            "Spans per forward pass (GradCache): memory depends on it, not on --batch-size. "
            "none: the whole batch at once.",
            min=1,
            was=("chunk_texts",),
            unset=0,
        ),
    ] = 64
    span_tokens: Annotated[int, Setting("Longest span in tokens, special ones not counted.")] = 80
    min_span_tokens: Annotated[
        int,
        Setting(
            "Documents shorter than twice this many tokens give one span, for masked words only.",
            min=2,
            was=("least_span_tokens",),
        ),
    ] = 16
    short_span_ratio: Annotated[
        float,
        Setting(
            "Share of the spans that are cut to a random shorter length.",
            min=0,
            max=1,
            was=("short_span_share",),
        ),
    ] = 0.1
    mlm_probability: Annotated[
        float,
        Setting(
            "Share of the tokens that are masked, by whole words.",
            above=0,
            below=1,
            was=("mask_share",),
        ),
    ] = 0.15
    skip_from: Annotated[
        int | None,
        Setting(
            "Layer whose token states the Condenser head reads. Default: half of the layers.",
            min=1,
            unset=0,
        ),
    ] = None
    head_layers: Annotated[int, Setting("Transformer layers of the Condenser head.", min=1)] = 2
    head_warmup_steps: Annotated[
        int | None,
        Setting(
            "Steps in which new heads are trained alone. Default: a tenth of the steps.",
            min=0,
            unset=-1,
        ),
    ] = None
    head_learning_rate: Annotated[float, Setting("Learning rate of that warm-up.", above=0)] = 1e-3
    temperature: Annotated[
        float | None,
        Setting(
            "Dot products of spans are divided by it. Default: 0.05 for encoders whose vectors "
            "have length 1, else 1 (raw dot products).",
            above=0,
            unset=0,
        ),
    ] = None
    eval_steps: Annotated[
        float | None,
        Setting(
            "Steps between dev measures, or a share of all steps if below 1; 0: at the end only. "
            "The last step is always measured. Default: a fifth of the steps.",
            min=0,
        ),
    ] = 0.2
    dev_documents: Annotated[
        int, Setting("Documents held out, at most a tenth of the corpus.", min=2)
    ] = 200
    dev_measure: Annotated[
        str, Setting(f"Measure that selects the checkpoint: {', '.join(DEV_MEASURES)}.")
    ] = NEGATIVE_LOSS
    readers: Annotated[
        int,
        Setting(
            "Prefetch worker processes; needed to keep a GPU busy. Any number gives the same "
            "result.",
            min=0,
        ),
    ] = 0

    def problems(self) -> list[str]:
        """Return all that is wrong, one line each; empty when all is well."""
        found = super().problems()
        if found:
            return found
        if self.span_tokens < self.min_span_tokens:
            found.append(
                f"span_tokens: expected at least min_span_tokens ({self.min_span_tokens}), "
                f"got {self.span_tokens}"
            )
        if len(set(self.objectives)) != len(self.objectives):
            found.append(f"objectives: expected each once, got {', '.join(self.objectives)}")
        if self.dev_measure not in DEV_MEASURES:
            found.append(
                f"dev_measure: expected one of {', '.join(DEV_MEASURES)}, got '{self.dev_measure}'"
            )
        return found

    def settled(self, documents: int) -> "PretrainingConfig":
        """Return the settings with the number of steps for so many documents."""
        if self.max_steps is not None:
            return self
        steps = DEFAULT_STEPS
        if self.num_epochs is not None:
            steps = max(1, -int(-self.num_epochs * documents // self.batch_size))
        return replace(self, max_steps=steps, num_epochs=None)

    @property
    def warmup_steps_of_heads(self) -> int:
        """Steps in which new heads are trained alone."""
        if self.head_warmup_steps is not None:
            return self.head_warmup_steps
        return max(1, round(self.steps / 10))

    def identity(self) -> dict[str, Any]:
        """Return what must be equal for a run to be resumed, as JSON values."""
        settings = super().identity()
        # How batches are read does not change what is in them.
        del settings["readers"]
        return settings
