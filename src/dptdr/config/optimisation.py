"""Settings of the training loop and its optimizer."""

from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal

from dptdr.config.arguments import MAX_SEED
from dptdr.config.settings import Setting, faults
from dptdr.errors import ConfigError

Precision = Literal["float32", "bfloat16"]
Schedule = Literal["linear", "cosine", "constant"]

DEFAULT_LEARNING_RATES: dict[str, float] = {
    "deep-prompt": 1e-1,
    "shallow-prompt": 1e-2,
    "lora": 1e-3,
    "bitfit": 1e-3,
    "full": 1e-4,
}
"""Default learning rate by method; see docs/what-makes-prompts-work.md."""

_RATES = ", ".join(f"{name} {rate:g}" for name, rate in DEFAULT_LEARNING_RATES.items())
_EVALUATIONS = 3


@dataclass(frozen=True, kw_only=True)
class OptimisationConfig:
    """Optimization settings shared by all objectives."""

    max_steps: Annotated[int | None, Setting("Optimiser steps.", min=1, was=("steps",))] = None
    num_epochs: Annotated[
        float | None,
        Setting(
            "Passes over the training data, instead of --max-steps.",
            above=0,
            given_as="epochs",
        ),
    ] = None
    batch_size: Annotated[
        int, Setting("Queries (or documents) per step, across all processes.", min=2, max=1_000_000)
    ] = 32
    mini_batch_size: Annotated[
        int | None,
        Setting(
            "Texts per forward pass (GradCache); limits memory regardless of --batch-size. "
            "none: the whole batch at once.",
            min=1,
            was=("chunk_texts",),
        ),
    ] = None
    learning_rate: Annotated[
        float | None,
        Setting(f"Peak learning rate. Default: the method's ({_RATES}).", above=0),
    ] = None
    ffn_learning_rate: Annotated[
        float, Setting("Peak learning rate of a deep prompt's feed-forward rows.", min=0)
    ] = 4e-3
    warmup_ratio: Annotated[
        float,
        Setting(
            "Fraction of the steps over which the learning rate warms up.",
            min=0,
            max=1,
            was=("warmup_share",),
        ),
    ] = 0.1
    schedule: Annotated[Schedule, Setting("Learning rate decay after warm-up.")] = "linear"
    weight_decay: Annotated[float, Setting("AdamW's decoupled weight decay.", min=0)] = 0.0
    max_grad_norm: Annotated[
        float,
        Setting("Maximum gradient norm; 0 disables clipping.", min=0, was=("clip_norm",)),
    ] = 1.0
    precision: Annotated[
        Precision, Setting("Dtype of the forward pass; updates are in float32.")
    ] = "float32"
    eval_steps: Annotated[
        float | None,
        Setting(
            "Steps between evaluations, or a fraction of all steps if below 1; 0: at the end only. "
            "The last step is always evaluated. Default: a third of the steps.",
            min=0,
        ),
    ] = None
    patience: Annotated[
        int | None,
        Setting(
            "Stop after this many evaluations without improvement; none: train all steps.", min=1
        ),
    ] = None
    dev_measure: Annotated[str, Setting("Measure for selecting the checkpoint.")] = "nDCG@10"
    seed: Annotated[int, Setting("Random seed.", min=0, max=MAX_SEED)] = 0

    def problems(self) -> list[str]:
        """Describe invalid settings, one line each."""
        found = faults(self)
        if self.max_steps is not None and self.num_epochs is not None:
            found.append("num_epochs: expected max_steps or num_epochs, got both")
        if self.patience is not None and self.eval_steps == 0:
            found.append("patience: has no effect with eval_steps 0, which evaluates only once")
        return found

    def check(self) -> None:
        """Validate the settings.

        Raises:
            ConfigError: If any setting is invalid; lists every problem.
        """
        if found := self.problems():
            raise ConfigError("settings: " + "; ".join(found))

    @property
    def steps(self) -> int:
        """Number of optimizer steps, once known."""
        assert self.max_steps is not None
        return self.max_steps

    def rate_for(self, method: str) -> float:
        """Return a method's peak learning rate."""
        return self.learning_rate or DEFAULT_LEARNING_RATES[method]

    def evaluation_steps(self) -> set[int]:
        """Return the steps followed by an evaluation, including the last."""
        share = 1 / _EVALUATIONS if self.eval_steps is None else self.eval_steps
        if share == 0:
            return {self.steps}
        if share < 1:
            count = max(1, round(1 / share))
            return {max(1, round(self.steps * (n + 1) / count)) for n in range(count)}
        every = max(1, round(share))
        return {*range(every, self.steps, every), self.steps}

    def identity(self) -> dict[str, Any]:
        """Return the settings that must match for a run to resume, as JSON values."""
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in asdict(self).items()
        }
