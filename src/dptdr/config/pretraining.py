"""Settings of intermediate pretraining."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

from dptdr.config.optimisation import OptimisationConfig
from dptdr.config.settings import Setting

ObjectiveName = Literal["mlm", "condenser", "contrastive", "fused"]
OBJECTIVE_NAMES: tuple[ObjectiveName, ...] = ("mlm", "condenser", "contrastive", "fused")
FUSED: tuple[ObjectiveName, ...] = ("fused",)

NEGATIVE_LOSS = "negative loss"
SIBLING_FIRST = "sibling R@1"
SIBLING_RANK = "sibling RR"
DEV_MEASURES: tuple[str, ...] = (NEGATIVE_LOSS, SIBLING_FIRST, SIBLING_RANK)
"""Measures on held-out documents that can select the checkpoint; higher is better."""

FUSED_MEASURE = "nDCG@10"
"""The same for the objective fused, on held-out pseudo-queries."""

OBJECTIVES_OF: dict[str, tuple[ObjectiveName, ...]] = {
    "bm25_weight": FUSED,
    "anchor": FUSED,
    "candidates_per_query": FUSED,
    "temperature": ("contrastive", "fused"),
    "min_span_tokens": ("mlm", "condenser", "contrastive"),
    "short_span_ratio": ("mlm", "condenser", "contrastive"),
    "mlm_probability": ("mlm", "condenser"),
    "head_warmup_steps": ("mlm", "condenser"),
    "head_learning_rate": ("mlm", "condenser"),
    "skip_from": ("condenser",),
    "head_layers": ("condenser",),
    "readers": ("mlm", "condenser", "contrastive"),
}
"""Settings that have an effect only with one of these objectives."""

DEFAULT_TEMPERATURE = 0.05
"""For encoders with unit-length vectors; others use raw dot products."""

DEFAULT_STEPS = 1000


@dataclass(frozen=True, kw_only=True)
class PretrainingConfig(OptimisationConfig):
    """Settings for pretraining on the unlabelled texts of a corpus."""

    objectives: Annotated[
        tuple[ObjectiveName, ...],
        Setting(
            "Equally weighted loss terms, separated by commas: mlm (masked words), condenser "
            "(masked words from an early layer and the text's vector) and contrastive (the other "
            "span of the same document), all three by default for a backbone; or, for a prompt "
            "only and by default, fused (the fused ranking of BM25 and the backbone, on "
            "pseudo-queries)."
        ),
    ] = ()
    max_steps: Annotated[
        int | None,
        Setting(
            f"Optimizer steps, excluding the warm-up of new heads. Default: {DEFAULT_STEPS}.",
            min=1,
            was=("steps",),
        ),
    ] = None
    batch_size: Annotated[
        int, Setting("Documents per step, across all processes; each yields two spans.", min=2)
    ] = 64
    mini_batch_size: Annotated[
        int | None,
        Setting(
            "Spans per forward pass (GradCache); limits memory regardless of --batch-size. "
            "none: the whole batch at once.",
            min=1,
            was=("chunk_texts",),
        ),
    ] = 64
    span_tokens: Annotated[
        int, Setting("Maximum span length in tokens, without special tokens.")
    ] = 80
    min_span_tokens: Annotated[
        int,
        Setting(
            "Documents shorter than twice this many tokens yield one span, for masked words only.",
            min=2,
            was=("least_span_tokens",),
        ),
    ] = 16
    short_span_ratio: Annotated[
        float,
        Setting(
            "Fraction of spans shortened to a random length.",
            min=0,
            max=1,
            was=("short_span_share",),
        ),
    ] = 0.1
    mlm_probability: Annotated[
        float,
        Setting(
            "Fraction of tokens to mask, in whole words.",
            above=0,
            below=1,
            was=("mask_share",),
        ),
    ] = 0.15
    skip_from: Annotated[
        int | None,
        Setting(
            "Layer whose token states feed the Condenser head. Default: half of the layers.", min=1
        ),
    ] = None
    head_layers: Annotated[int, Setting("Transformer layers of the Condenser head.", min=1)] = 2
    head_warmup_steps: Annotated[
        int | None,
        Setting("Steps of training new heads alone. Default: a tenth of the steps.", min=0),
    ] = None
    head_learning_rate: Annotated[float, Setting("Learning rate of the head warm-up.", above=0)] = (
        1e-3
    )
    temperature: Annotated[
        float | None,
        Setting(
            "Divides the dot products of spans. Default: 0.05 for encoders with unit-length "
            "vectors, otherwise 1 (raw dot products).",
            above=0,
        ),
    ] = None
    eval_steps: Annotated[
        float | None,
        Setting(
            "Steps between evaluations, or a fraction of all steps if below 1; 0: at the end only. "
            "The last step is always evaluated. Default: a fifth of the steps.",
            min=0,
        ),
    ] = 0.2
    dev_documents: Annotated[
        int, Setting("Held-out documents, at most a tenth of the corpus.", min=2)
    ] = 200
    dev_measure: Annotated[
        str, Setting(f"Measure for selecting the checkpoint: {', '.join(DEV_MEASURES)}.")
    ] = NEGATIVE_LOSS
    bm25_weight: Annotated[
        float,
        Setting("Weight of BM25 in the fused ranking, relative to 1 for the backbone.", min=0),
    ] = 1.0
    anchor: Annotated[
        float,
        Setting("Share of the backbone's own similarities in the fused targets.", min=0, max=1),
    ] = 0.0
    candidates_per_query: Annotated[
        int, Setting("Passages from the fused ranking per pseudo-query and step.", min=0)
    ] = 1
    readers: Annotated[
        int,
        Setting(
            "Prefetch worker processes; needed to keep a GPU busy. Does not affect the result.",
            min=0,
        ),
    ] = 0

    def problems(self) -> list[str]:
        """Describe invalid settings, one line each."""
        found = super().problems()
        if found:
            return found
        if self.span_tokens < self.min_span_tokens and self.objectives != FUSED:
            found.append(
                f"span_tokens: expected at least min_span_tokens ({self.min_span_tokens}), "
                f"got {self.span_tokens}"
            )
        if len(set(self.objectives)) != len(self.objectives):
            found.append(f"objectives: expected distinct names, got {', '.join(self.objectives)}")
        if "fused" in self.objectives and self.objectives != FUSED:
            found.append(f"objectives: expected fused alone, got {', '.join(self.objectives)}")
        measures = (FUSED_MEASURE,) if self.objectives == FUSED else DEV_MEASURES
        if self.dev_measure not in measures:
            found.append(
                f"dev_measure: expected one of {', '.join(measures)}, got '{self.dev_measure}'"
            )
        return found

    def with_steps(self, documents: int) -> "PretrainingConfig":
        """Fill in the number of steps for a given number of documents."""
        if self.max_steps is not None:
            return self
        steps = DEFAULT_STEPS
        if self.num_epochs is not None:
            steps = max(1, -int(-self.num_epochs * documents // self.batch_size))
        return replace(self, max_steps=steps, num_epochs=None)

    @property
    def warmup_steps_of_heads(self) -> int:
        """Number of steps in which new heads are trained alone."""
        if self.head_warmup_steps is not None:
            return self.head_warmup_steps
        return max(1, round(self.steps / 10))

    def identity(self) -> dict[str, Any]:
        """Return the settings that must match for a run to resume, as JSON values."""
        settings = super().identity()
        # Prefetching does not affect the batches.
        del settings["readers"]
        return settings


def fused_defaults(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the default settings of the ``fused`` objective."""
    steps = {} if "num_epochs" in given else {"max_steps": 120}
    return {
        **steps,
        "batch_size": 32,
        "mini_batch_size": None,
        "ffn_learning_rate": 4e-4,
        "patience": 2,
        "dev_measure": FUSED_MEASURE,
    }
