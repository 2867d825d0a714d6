"""Methods that train encoder weights: LoRA, BitFit and full fine-tuning."""

import copy
from collections.abc import Callable, Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dptdr.config.methods import LoraConfig, MethodConfig, MethodName
from dptdr.errors import BundleError, ConfigError
from dptdr.model.backbone import Backbone, Side, Tokens
from dptdr.model.prompt_rows import Observer


class WeightsMethod:
    """LoRA, BitFit or full fine-tuning on a private copy of the encoder.

    Args:
        choose: Prepares the copy and returns the names of the trainable parameters.

    Raises:
        ConfigError: If the encoder has no such weights (BitFit without biases).
    """

    def __init__(
        self,
        backbone: Backbone,
        config: MethodConfig,
        *,
        name: MethodName,
        choose: Callable[[nn.Module], list[str]],
    ) -> None:
        self.name: MethodName = name
        self.config: MethodConfig = config
        self.base_fingerprint = backbone.fingerprint
        self.base_probe = backbone.probe
        model = copy.deepcopy(backbone.model).float()
        chosen = choose(model)
        if not chosen:
            raise ConfigError(
                f"method '{name}': {type(model).__name__} has no such weights to train; choose "
                "another method"
            )
        self.backbone = Backbone(
            model, backbone.tokenizer, name=backbone.name, pooling=backbone.pooling
        )
        self.module: nn.Module = model
        self._parameters = {n: p for n, p in model.named_parameters() if n in set(chosen)}
        for parameter in self._parameters.values():
            parameter.requires_grad_(requires_grad=True)

    def vectors(
        self, tokens: Tokens, *, side: Side, observer: Observer | None = None
    ) -> Float[Tensor, "texts dim"]:
        """Encode each text into one vector."""
        del side
        return self.backbone.vectors(tokens, observer=observer)

    def changes(self, side: Side) -> bool:
        """Return true: tuned weights change both sides."""
        del side
        return True

    def trained(self) -> dict[str, nn.Parameter]:
        """Return the trainable weights by name."""
        return dict(self._parameters)

    def state(self) -> dict[str, Tensor]:
        """Return a CPU copy of the trained weights."""
        return {n: p.detach().cpu().contiguous() for n, p in self._parameters.items()}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Load saved weights."""
        copy_parameters(self._parameters, state)


def copy_parameters(into: Mapping[str, nn.Parameter], state: Mapping[str, Tensor]) -> None:
    """Copy a saved state into parameters.

    Raises:
        BundleError: If names or shapes differ.
    """
    if set(into) != set(state):
        missing, extra = sorted(set(into) - set(state)), sorted(set(state) - set(into))
        raise BundleError(f"weights do not match the method: missing {missing}, unexpected {extra}")
    with torch.no_grad():
        for name, parameter in into.items():
            if parameter.shape != state[name].shape:
                raise BundleError(
                    f"weight '{name}': expected shape {tuple(parameter.shape)}, got "
                    f"{tuple(state[name].shape)}"
                )
            parameter.copy_(state[name])


# Names of query and value projections by architecture; fused projections have a single name.
_LORA_TARGETS: tuple[tuple[str, ...], ...] = (
    ("query", "value"),
    ("q_proj", "v_proj"),
    ("q_lin", "v_lin"),
    ("query_proj", "value_proj"),
    ("q", "v"),
    ("Wqkv",),
    ("qkv_proj",),
    ("in_proj",),
)


def _lora_targets(backbone: Backbone, model: nn.Module, config: LoraConfig) -> list[str]:
    """Return the names of the linear layers to adapt."""
    if config.targets == "attention":
        linear = {
            n.rsplit(".", 1)[-1] for n, m in model.named_modules() if isinstance(m, nn.Linear)
        }
        targets = next((t for t in _LORA_TARGETS if set(t) <= linear), None)
        if targets is None:
            raise ConfigError(
                f"LoRA: expected known query and value projections in {type(model).__name__}, got "
                f"linear layers {sorted(linear)}; use targets 'feed-forward' or 'all'"
            )
        return list(targets)
    linears = backbone.injection.linear_layers()
    if config.targets == "all":
        return sorted({name for names in linears.values() for name in names})
    return sorted(set(linears["feed-forward"]))


def lora_parameters(
    backbone: Backbone, config: LoraConfig, *, seed: int
) -> Callable[[nn.Module], list[str]]:
    """Return a function that adds LoRA adapters to a model and names their parameters."""

    def choose(model: nn.Module) -> list[str]:
        import peft

        targets = _lora_targets(backbone, model, config)
        torch.manual_seed(seed)
        settings = peft.LoraConfig(
            r=config.rank,
            lora_alpha=config.alpha,
            lora_dropout=config.dropout,
            target_modules=targets,
        )
        peft.inject_adapter_in_model(settings, model)
        return [name for name, _ in model.named_parameters() if "lora_" in name]

    return choose


def biases(model: nn.Module) -> list[str]:
    """Return the names of all biases that affect the vectors."""
    return [name for name in parameters_affecting_vectors(model) if name.endswith("bias")]


def parameters_affecting_vectors(model: nn.Module) -> list[str]:
    """Return the names of all parameters that affect the vectors; a pooler does not."""
    return [n for n, _ in model.named_parameters() if not n.startswith("pooler.")]
