"""Build the heads of a run, and save them beside a backbone."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from dptdr.config.pretraining import ObjectiveName, PretrainingConfig
from dptdr.errors import BackboneError, ConfigError
from dptdr.model import Backbone
from dptdr.model.backbone import resolve
from dptdr.pretraining.heads import (
    CondenserHead,
    MlmHead,
    Origin,
    TiedHead,
    head_count,
    own_head,
)
from dptdr.pretraining.objective import Heads
from dptdr.training.checkpoints import CHECKSUM, tensor_checksum

HEAD_FILE = "pretraining_head.safetensors"


@dataclass(frozen=True, kw_only=True)
class BuiltHeads:
    """Heads and their origins; ``None`` for heads that no objective needs."""

    heads: Heads
    mlm: Origin | None
    condenser: Origin | None


@dataclass(frozen=True, kw_only=True)
class SavedHeads:
    """Contents of a head file: tensors by name, and the heads' settings."""

    path: Path
    tensors: dict[str, Tensor]
    form: dict[str, str]

    def part(self, name: str) -> dict[str, Tensor]:
        """Return one head's tensors, without its name as a prefix."""
        start = f"{name}."
        return {k.removeprefix(start): v for k, v in self.tensors.items() if k.startswith(start)}


def has_mlm_head(backbone: Backbone) -> bool:
    """Check whether the encoder comes with a masked-language head."""
    saved = read_saved_heads(backbone.name)
    return (saved is not None and "mlm_kind" in saved.form) or own_head(backbone)[1]


def build_heads(
    backbone: Backbone,
    config: PretrainingConfig,
    *,
    objectives: Sequence[ObjectiveName],
    frozen: bool,
) -> BuiltHeads:
    """Build the heads required by the objectives.

    Args:
        backbone: The encoder to be trained.
        config: Shape of the Condenser head, and the seed.
        objectives: Parts of the loss.
        frozen: Freeze the heads after their warm-up, for training a prompt only.

    Raises:
        BackboneError: If saved heads do not match the encoder.
        ConfigError: If the early layer is not one of the encoder's.
    """
    if not {"mlm", "condenser"} & set(objectives):
        return BuiltHeads(heads=Heads(), mlm=None, condenser=None)
    saved = read_saved_heads(backbone.name)
    mlm, mlm_origin = _mlm_head(backbone, saved, seed=config.seed)
    condenser: CondenserHead | None = None
    condenser_origin: Origin | None = None
    if "condenser" in objectives:
        condenser, condenser_origin = _condenser(backbone, saved, config)
    trained: dict[str, nn.Parameter] = {}
    new: dict[str, nn.Parameter] = {}
    parts: list[tuple[str, dict[str, nn.Parameter], Origin | None]] = [
        ("mlm", mlm.own_parameters(), mlm_origin)
    ]
    if condenser is not None:
        parts.append(("condenser", dict(condenser.named_parameters()), condenser_origin))
    for name, parameters, origin in parts:
        named = {f"head.{name}.{key}": value for key, value in parameters.items()}
        if origin == "new":
            new |= named
        if not frozen:
            trained |= named
        for parameter in named.values():
            parameter.requires_grad = not frozen or origin == "new"
    heads = Heads(mlm=mlm, condenser=condenser, trained=trained, new=new)
    return BuiltHeads(heads=heads, mlm=mlm_origin, condenser=condenser_origin)


def _mlm_head(backbone: Backbone, saved: SavedHeads | None, *, seed: int) -> tuple[MlmHead, Origin]:
    own, complete = own_head(backbone)
    if saved is not None and "mlm_kind" in saved.form:
        head: MlmHead
        if saved.form["mlm_kind"] == "own" and own is not None:
            head = own
        else:
            head = TiedHead(backbone, seed=seed).to(backbone.device)
        copy_into(head.own_parameters(), saved.part("mlm"), path=saved.path)
        return head, "kept"
    if own is not None and complete:
        return own, "checkpoint"
    return TiedHead(backbone, seed=seed).to(backbone.device), "new"


def _condenser(
    backbone: Backbone, saved: SavedHeads | None, config: PretrainingConfig
) -> tuple[CondenserHead, Origin]:
    layers = backbone.geometry.layers
    if config.skip_from is not None and config.skip_from >= layers:
        raise ConfigError(
            f"skip_from: expected a layer from 1 to {layers - 1} of '{backbone.name}', or none "
            f"for half of its {layers} layers, got {config.skip_from}"
        )
    wanted = int(getattr(backbone.model.config, "num_attention_heads", backbone.geometry.heads))
    head = CondenserHead(
        dim=backbone.dim,
        heads=head_count(backbone.dim, wanted=wanted),
        layers=config.head_layers,
        seed=config.seed + 1,
    ).to(backbone.device)
    if saved is not None and saved.part("condenser"):
        copy_into(dict(head.named_parameters()), saved.part("condenser"), path=saved.path)
        return head, "kept"
    return head, "new"


def copy_into(
    parameters: Mapping[str, nn.Parameter], tensors: Mapping[str, Tensor], *, path: Path
) -> None:
    """Overwrite a head's weights.

    Raises:
        BackboneError: If names or shapes differ.
    """
    wanted = {name: tuple(p.shape) for name, p in parameters.items()}
    found = {name: tuple(t.shape) for name, t in tensors.items()}
    if wanted != found:
        different = sorted(
            f"'{name}': expected {wanted.get(name, 'nothing')}, got {found.get(name, 'nothing')}"
            for name in set(wanted) | set(found)
            if wanted.get(name) != found.get(name)
        )
        raise BackboneError(
            f"{path}: the saved heads do not match ({'; '.join(different[:3])}); use the settings "
            "they were trained with (--head-layers), or delete the file to start with new heads"
        )
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(tensors[name])


def head_tensors(heads: Heads) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the heads' weights and settings for a head file."""
    tensors: dict[str, Tensor] = {}
    form: dict[str, str] = {}
    if heads.mlm is not None:
        form["mlm_kind"] = heads.mlm.kind
        tensors |= {f"mlm.{n}": p for n, p in heads.mlm.own_parameters().items()}
    if heads.condenser is not None:
        tensors |= {f"condenser.{n}": p for n, p in heads.condenser.named_parameters()}
    plain = {n: t.detach().cpu().contiguous() for n, t in tensors.items()}
    return plain, form | {CHECKSUM: tensor_checksum(plain)}


def write_saved_heads(path: Path, heads: Heads) -> None:
    """Write a head file."""
    tensors, form = head_tensors(heads)
    # safetensors writes several keys in random order.
    metadata = {"form": json.dumps(form, sort_keys=True)}
    safetensors.torch.save_file(tensors, path, metadata=metadata)


def read_saved_heads(name: str) -> SavedHeads | None:
    """Read the heads saved by an earlier pretraining, if any.

    Raises:
        BackboneError: If the file is malformed.
    """
    folder = resolve(name)
    if folder is None or not (folder / HEAD_FILE).is_file():
        return None
    return read_head_file(folder / HEAD_FILE)


def read_head_file(path: Path) -> SavedHeads:
    """Read a head file.

    Raises:
        BackboneError: If the file is malformed, or does not match its checksum, if it has one.
    """
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            form = dict(file.metadata() or {})
            if "form" in form:
                form = dict(json.loads(form["form"]))
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (OSError, ValueError, TypeError, safetensors.SafetensorError) as error:
        raise BackboneError(
            f"{path}: expected a safetensors file with saved heads: {error}; copy the backbone "
            "again, or remove the file to start with new heads"
        ) from None
    if form.pop(CHECKSUM, None) not in (None, tensor_checksum(tensors)):
        raise BackboneError(
            f"{path}: the heads are damaged: their checksum does not match; copy the backbone "
            "again, or remove the file to start with new heads"
        )
    return SavedHeads(path=path, tensors=tensors, form=form)
