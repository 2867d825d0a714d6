"""Settings of the training loop and its optimiser."""

from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal

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
"""Learning rate per method where none is given; see docs/what-makes-prompts-work.md."""

_RATES = ", ".join(f"{name} {rate:g}" for name, rate in DEFAULT_LEARNING_RATES.items())
_EVALUATIONS = 3


@dataclass(frozen=True, kw_only=True)
class OptimisationConfig:
    """How to optimise any objective."""

    max_steps: Annotated[
        int | None, Setting("Optimiser steps.", min=1, was=("steps",), unset=0)
    ] = None
    num_epochs: Annotated[
        float | None,
        Setting(
            "Passes through the training data, instead of --max-steps.",
            above=0,
            given_as="epochs",
        ),
    ] = None
    batch_size: Annotated[
        int, Setting("Queries (or documents) per step, over all processes.", min=2)
    ] = 32
    mini_batch_size: Annotated[
        int | None,
        Setting(
            "Texts per forward pass (GradCache): memory depends on it, not on --batch-size. "
            "none: the whole batch at once.",
            min=1,
            was=("chunk_texts",),
            unset=0,
        ),
    ] = None
    learning_rate: Annotated[
        float | None,
        Setting(f"Peak learning rate. Default: the method's ({_RATES}).", above=0, unset=0),
    ] = None
    ffn_learning_rate: Annotated[
        float, Setting("Peak learning rate of a deep prompt's feed-forward rows.", min=0)
    ] = 4e-3
    warmup_ratio: Annotated[
        float,
        Setting(
            "Share of the steps over which the learning rate rises.",
            min=0,
            max=1,
            was=("warmup_share",),
        ),
    ] = 0.1
    schedule: Annotated[Schedule, Setting("How the learning rate falls afterwards.")] = "linear"
    weight_decay: Annotated[float, Setting("AdamW's decoupled weight decay.", min=0)] = 0.0
    max_grad_norm: Annotated[
        float,
        Setting("Maximum gradient norm; 0 never clips.", min=0, was=("clip_norm",)),
    ] = 1.0
    precision: Annotated[
        Precision, Setting("Number type of the forward pass; updates stay float32.")
    ] = "float32"
    eval_steps: Annotated[
        float | None,
        Setting(
            "Steps between dev measures, or a share of all steps if below 1; 0: at the end only. "
            "The last step is always measured. Default: a third of the steps.",
            min=0,
        ),
    ] = None
    patience: Annotated[
        int | None,
        Setting("Stop early after so many dev measures without a better one.", min=1),
    ] = None
    dev_measure: Annotated[str, Setting("Measure that selects the checkpoint.")] = "nDCG@10"
    seed: Annotated[int, Setting("Random seed.", min=0)] = 0

    def problems(self) -> list[str]:
        """Return the problems, one line each."""
        found = faults(self)
        if self.max_steps is not None and self.num_epochs is not None:
            found.append("num_epochs: expected max_steps or num_epochs, got both")
        if self.patience is not None and self.eval_steps == 0:
            found.append("patience: has no effect with eval_steps 0, which measures once")
        return found

    def check(self) -> None:
        """Refuse bad settings.

        Raises:
            ConfigError: With every problem.
        """
        if found := self.problems():
            raise ConfigError("settings: " + "; ".join(found))

    @property
    def steps(self) -> int:
        """The number of optimiser steps, once known."""
        assert self.max_steps is not None
        return self.max_steps

    def rate_for(self, method: str) -> float:
        """Return the peak learning rate for a method."""
        return self.learning_rate or DEFAULT_LEARNING_RATES[method]

    def evaluation_steps(self) -> set[int]:
        """Return the steps after which dev measures are taken, the last one included."""
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
