"""Settings of intermediate pretraining."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args, get_type_hints

from dptdr.config.training import DEFAULT_LEARNING_RATES, Precision, Schedule, TrainingConfig
from dptdr.errors import ConfigError

ObjectiveName = Literal["mlm", "condenser", "contrastive"]
OBJECTIVE_NAMES: tuple[ObjectiveName, ...] = ("mlm", "condenser", "contrastive")

NEGATIVE_LOSS = "negative loss"
SIBLING_FIRST = "sibling R@1"
SIBLING_RANK = "sibling RR"
DEV_MEASURES: tuple[str, ...] = (NEGATIVE_LOSS, SIBLING_FIRST, SIBLING_RANK)
"""What can choose the checkpoint, all taken on held-out documents, higher is better."""

DEFAULT_TEMPERATURE = 0.05
"""For encoders whose vectors have length 1; others are compared by raw dot products."""


@dataclass(frozen=True, kw_only=True)
class PretrainingConfig:
    """How to pretrain on the bare texts of a corpus.

    Args:
        objectives: Parts of the loss, weighted equally: ``mlm`` (masked words from the last
            layer), ``condenser`` (masked words from an early layer and the text's vector),
            ``contrastive`` (the other span of the same document among all spans of the batch).
            Empty takes all three for a backbone; for a prompt ``contrastive``, and ``mlm`` where
            the checkpoint brings a masked-language head.
        steps: Optimiser steps, the warm-up of new heads not counted.
        batch_size: Documents per step, over all processes; each gives two spans.
        span_tokens: Longest span, without special tokens.
        least_span_tokens: A document is cut in two if both spans reach this length.
        short_span_share: Share of the spans that are cut shorter, to a random length.
        mask_share: Share of a span's tokens that are masked, by whole words.
        skip_from: Layer after which the token states go to the Condenser head; 0 is half of them.
        head_layers: Transformer layers of the Condenser head.
        head_warmup_steps: Steps in which new heads are trained alone; -1 is a tenth of ``steps``.
        head_learning_rate: Learning rate of that warm-up.
        learning_rate: Peak learning rate; 0 takes the default for what is trained.
        temperature: Dot products are divided by it; 0 takes 0.05 for encoders whose vectors have
            length 1 and 1 (raw dot products) for all others.
        warmup_share: Share of the steps over which the learning rate rises from 0.
        schedule: How it falls afterwards.
        weight_decay: AdamW's decoupled weight decay.
        clip_norm: Largest gradient norm; 0 never clips.
        chunk_texts: Spans per GradCache chunk: memory depends on it, not on ``batch_size``; 0 keeps
            the whole batch's activations.
        precision: Number type of the forward pass.
        evaluations: How often in a run the dev measures are taken.
        dev_documents: Documents held out for them, at most a tenth of the corpus.
        dev_measure: Which of them chooses the checkpoint.
        seed: Decides order, spans, masks, and where new heads and prompts start.
        readers: Processes that read coming batches ahead, for which a GPU would wait; 0 reads in
            the training process, between steps. The result does not depend on it. A script that
            uses them needs ``if __name__ == "__main__"``, as with all processes of Python.
    """

    objectives: tuple[ObjectiveName, ...] = ()
    steps: int = 1000
    batch_size: int = 64
    span_tokens: int = 80
    least_span_tokens: int = 16
    short_span_share: float = 0.1
    mask_share: float = 0.15
    skip_from: int = 0
    head_layers: int = 2
    head_warmup_steps: int = -1
    head_learning_rate: float = 1e-3
    learning_rate: float = 0.0
    temperature: float = 0.0
    warmup_share: float = 0.1
    schedule: Schedule = "linear"
    weight_decay: float = 0.0
    clip_norm: float = 1.0
    chunk_texts: int = 64
    precision: Precision = "float32"
    evaluations: int = 5
    dev_documents: int = 200
    dev_measure: str = NEGATIVE_LOSS
    seed: int = 0
    readers: int = 0

    def problems(self) -> list[str]:
        """Return all that is wrong, one line each; empty when all is well."""
        at_least = {
            "steps": 1,
            "batch_size": 2,
            "least_span_tokens": 2,
            "skip_from": 0,
            "head_layers": 1,
            "head_warmup_steps": -1,
            "learning_rate": 0.0,
            "temperature": 0.0,
            "weight_decay": 0.0,
            "clip_norm": 0.0,
            "chunk_texts": 0,
            "evaluations": 1,
            "dev_documents": 2,
            "seed": 0,
            "readers": 0,
        }
        found = [
            f"{name}: expected at least {least}, got {getattr(self, name)}"
            for name, least in at_least.items()
            # A comparison with NaN is false, so it is refused as well.
            if not getattr(self, name) >= least
        ]
        return found + self._wrong_shares() + self._wrong_choices()

    def _wrong_shares(self) -> list[str]:
        found = []
        for name in ("warmup_share", "short_span_share"):
            value = getattr(self, name)
            if not 0.0 <= value <= 1.0:
                found.append(f"{name}: expected a share in [0, 1], got {value}")
        if not 0.0 < self.mask_share < 1.0:
            found.append(f"mask_share: expected a share between 0 and 1, got {self.mask_share}")
        if not self.head_learning_rate > 0.0:
            found.append(f"head_learning_rate: expected above 0, got {self.head_learning_rate}")
        return found

    def _wrong_choices(self) -> list[str]:
        found = []
        if self.span_tokens < self.least_span_tokens:
            found.append(
                f"span_tokens: expected at least least_span_tokens ({self.least_span_tokens}), "
                f"got {self.span_tokens}"
            )
        if len(set(self.objectives)) != len(self.objectives):
            found.append(f"objectives: expected each once, got {', '.join(self.objectives)}")
        if self.dev_measure not in DEV_MEASURES:
            found.append(
                f"dev_measure: expected one of {', '.join(DEV_MEASURES)}, got '{self.dev_measure}'"
            )
        return found

    def check(self) -> None:
        """Refuse bad settings.

        Raises:
            ConfigError: With every problem.
        """
        found = self.problems()
        if found:
            raise ConfigError("pretraining settings: " + "; ".join(found))

    @property
    def warmup_steps_of_heads(self) -> int:
        """Steps in which new heads are trained alone."""
        if self.head_warmup_steps >= 0:
            return self.head_warmup_steps
        return max(1, round(self.steps / 10))

    def rate_for(self, method: str) -> float:
        """Return the peak learning rate for ``full`` or ``deep-prompt``."""
        return self.learning_rate or DEFAULT_LEARNING_RATES[method]

    def loop_settings(self) -> TrainingConfig:
        """Return what the training loop needs to know."""
        return TrainingConfig(
            steps=self.steps,
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            warmup_share=self.warmup_share,
            schedule=self.schedule,
            weight_decay=self.weight_decay,
            clip_norm=self.clip_norm,
            chunk_texts=self.chunk_texts,
            precision=self.precision,
            evaluations=self.evaluations,
            dev_measure=self.dev_measure,
            seed=self.seed,
        )

    def identity(self) -> dict[str, Any]:
        """Return what must be equal for a run to be resumed, as JSON values."""
        settings = {**asdict(self), "objectives": list(self.objectives)}
        # How batches are read does not change what is in them.
        del settings["readers"]
        return settings


def pretraining_config(values: Mapping[str, Any]) -> PretrainingConfig:
    """Return settings from plain values, such as a command line's or a recipe's.

    Args:
        values: Setting by name; what is not given takes its default.

    Returns:
        The settings.

    Raises:
        ConfigError: With every problem, unknown names among them.
    """
    hints = get_type_hints(PretrainingConfig)
    found = [f"{name}: unknown setting" for name in sorted(set(values) - set(hints))]
    kept = {name: value for name, value in values.items() if name in hints}
    choices: dict[str, tuple[str, ...]] = {
        "schedule": get_args(Schedule),
        "precision": get_args(Precision),
    }
    for name, allowed in choices.items():
        if name in kept and kept[name] not in allowed:
            found.append(f"{name}: expected one of {', '.join(allowed)}, got '{kept.pop(name)}'")
    objectives = kept.pop("objectives", ())
    for name in objectives:
        if name not in OBJECTIVE_NAMES:
            found.append(f"objectives: expected some of {', '.join(OBJECTIVE_NAMES)}, got '{name}'")
    known: Any = tuple(name for name in objectives if name in OBJECTIVE_NAMES)
    config = PretrainingConfig(objectives=known, **kept)
    found += config.problems()
    if found:
        raise ConfigError("pretraining settings: " + "; ".join(found))
    return config
