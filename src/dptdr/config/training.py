"""Settings of a training run."""

from dataclasses import dataclass
from typing import Literal

from dptdr.errors import ConfigError

Precision = Literal["float32", "bfloat16"]
Schedule = Literal["linear", "cosine", "constant"]
Distillation = Literal["none", "kl", "margin-mse"]

DEFAULT_LEARNING_RATES: dict[str, float] = {
    "deep-prompt": 1e-1,
    "shallow-prompt": 1e-2,
    "lora": 1e-3,
    "bitfit": 1e-3,
    "full": 1e-4,
}
"""Learning rate per method where none is given; see docs/what-makes-prompts-work.md."""


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """How to train; the same for every method.

    Args:
        steps: Optimiser steps.
        batch_size: Queries per step, over all processes.
        positives_per_query: Positives drawn for each query and step, where there are several; the
            loss is averaged over them.
        negatives_per_query: Mined negatives drawn for each query and step, where there are any.
        learning_rate: Peak learning rate; 0 takes the method's own default.
        ffn_learning_rate: Peak learning rate of a deep prompt's feed-forward rows.
        warmup_share: Share of the steps over which the learning rate rises from 0.
        schedule: How it falls afterwards.
        weight_decay: AdamW's decoupled weight decay.
        clip_norm: Largest gradient norm; larger ones are scaled down; 0 never clips.
        temperature: Scores are divided by it before the softmax.
        score_scale: What turns the backbone's dot product into a score of order 1: 1 for
            normalised vectors; 0 measures it on the first batch for others.
        distillation: Which loss teaches from the teacher's scores in the training file.
        distillation_weight: Share of that loss; the rest is contrastive.
        matryoshka: Vector lengths, besides the full one, that the loss is also taken on.
        max_query_tokens: Longest query while training; 0 is the backbone's limit.
        max_passage_tokens: Longest passage while training; 0 is the backbone's limit.
        chunk_texts: Texts per GradCache chunk; 0 keeps the whole batch's activations.
        checkpointing: Whether to recompute activations in the backward pass.
        precision: Number type of the forward pass; vectors, loss and updates are float32.
        evaluations: How often in a run the dev measure is taken.
        dev_queries: Most dev queries.
        dev_passages: Most passages of the dev corpus, judged ones included.
        dev_measure: The measure that selects the checkpoint.
        seed: Decides initialisation, order and sampling.
    """

    steps: int = 150
    batch_size: int = 32
    positives_per_query: int = 1
    negatives_per_query: int = 1
    learning_rate: float = 0.0
    ffn_learning_rate: float = 4e-3
    warmup_share: float = 0.1
    schedule: Schedule = "linear"
    weight_decay: float = 0.0
    clip_norm: float = 1.0
    temperature: float = 0.05
    score_scale: float = 0.0
    distillation: Distillation = "none"
    distillation_weight: float = 0.5
    matryoshka: tuple[int, ...] = ()
    max_query_tokens: int = 64
    max_passage_tokens: int = 96
    chunk_texts: int = 0
    checkpointing: bool = False
    precision: Precision = "float32"
    evaluations: int = 3
    dev_queries: int = 200
    dev_passages: int = 400
    dev_measure: str = "nDCG@10"
    seed: int = 0

    def problems(self) -> list[str]:
        """Return all that is wrong, one line each; empty when all is well."""
        found = []
        at_least = {
            "steps": 1,
            "batch_size": 2,
            "positives_per_query": 1,
            "negatives_per_query": 0,
            "max_query_tokens": 0,
            "max_passage_tokens": 0,
            "chunk_texts": 0,
            "evaluations": 1,
            "dev_queries": 1,
            "dev_passages": 2,
            "seed": 0,
        }
        for name, least in at_least.items():
            value = getattr(self, name)
            if value < least:
                found.append(f"{name}: expected at least {least}, got {value}")
        if not self.temperature > 0.0:
            found.append(f"temperature: expected a number above 0, got {self.temperature}")
        for name in ("warmup_share", "distillation_weight"):
            value = getattr(self, name)
            if not 0.0 <= value <= 1:
                found.append(f"{name}: expected a share in [0, 1], got {value}")
        rates = ("learning_rate", "ffn_learning_rate", "weight_decay", "clip_norm")
        for name in (*rates, "score_scale"):
            if getattr(self, name) < 0.0:
                found.append(f"{name}: expected at least 0, got {getattr(self, name)}")
        if any(length < 1 for length in self.matryoshka):
            found.append(f"matryoshka: expected lengths of at least 1, got {self.matryoshka}")
        return found

    def check(self) -> None:
        """Refuse bad settings.

        Raises:
            ConfigError: With every problem, one line each.
        """
        found = self.problems()
        if found:
            raise ConfigError("training settings: " + "; ".join(found))

    def rate_for(self, method: str) -> float:
        """Return the peak learning rate for a method."""
        return self.learning_rate or DEFAULT_LEARNING_RATES[method]
