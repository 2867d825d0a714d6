"""Import the authors' checkpoints: a whole encoder with ``prefix_encoder.*`` weights."""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from dptdr.errors import BackboneError, BundleError
from dptdr.io.atomic import atomic_folder, read_json
from dptdr.io.outputs import refuse_filled
from dptdr.model.backbone import Backbone
from dptdr.model.bundle import save_task
from dptdr.model.encoder import Limits
from dptdr.model.imports.prefixes import Imported, imported, rows_of_matrix, shifted_encoder

SIDES = ("query_model", "passage_model")
"""Subfolders of an untied checkpoint."""

_PREFIX = "prefix_encoder."
_PREFIX_SETTINGS = ("pre_seq_len", "prefix_projection", "prefix_hidden_size")
_WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")


def import_authors(
    source: Path, out: Path, *, limits: Limits, tokenizer: Path | None = None
) -> Imported:
    """Split a model saved by the authors' code into ``OUT/backbone`` and ``OUT/task``.

    Args:
        source: Folder with ``config.json`` and the weights of encoder and prompt, or, for untied
            prompts, with subfolders ``query_model`` and ``passage_model``.
        limits: Maximum text lengths in tokens; the checkpoint does not store them.
        tokenizer: Tokenizer folder, if the checkpoint has none.

    Raises:
        BundleError: If the layout is unknown, the two encoders differ, or text and prompt together
            exceed the encoder's positions.
        BackboneError: If the encoder cannot be loaded.
    """
    source, out = Path(source), Path(out)
    refuse_filled(out)
    untied = (source / SIDES[0]).is_dir()
    folders = [source / side for side in SIDES] if untied else [source]
    parts = [_read_checkpoint(folder) for folder in folders]
    if untied:
        _refuse_different(folders, [body for body, _ in parts])
    config = read_json(folders[0] / "config.json")
    if not isinstance(config, dict):
        raise BundleError(f"{folders[0] / 'config.json'}: expected a JSON object")
    fresh = not out.exists()
    try:
        with atomic_folder(out / "backbone") as temporary:
            _write_backbone(
                temporary,
                parts[0][0],
                config=config,
                tokenizer=tokenizer or _with_tokenizer([source, *folders]),
            )
            backbone = Backbone.load(str(temporary))
            names = ("query", "passage") if untied else ("shared",)
            rows = {
                name: rows_of_matrix(
                    prefix_matrix(prefix, where=folder), geometry=backbone.geometry
                )
                for name, folder, (_, prefix) in zip(names, folders, parts, strict=True)
            }
            encoder = shifted_encoder(backbone, rows, limits=limits)
    except BaseException:
        if fresh and out.exists():
            shutil.rmtree(out)
        raise
    backbone.name = str(out / "backbone")
    save_task(out / "task", encoder, name=out.name, training={"imported_from": "dptdr-authors"})
    weights = [_weights_file(folder) for folder in folders]
    return imported(out / "task", str(out / "backbone"), weights=weights)


def prefix_matrix(state: Mapping[str, Tensor], *, where: Path) -> Tensor:
    """Extract the prompt matrix from a prefix encoder's weights, including its MLP's output.

    Args:
        state: Weights by name, without ``prefix_encoder.``.

    Returns:
        ``[prompt, layers * 2 * dim]``.

    Raises:
        BundleError: If these are not a prefix encoder's weights.
    """
    embedding = state.get("embedding.weight")
    mlp = {"trans.0.weight", "trans.0.bias", "trans.2.weight", "trans.2.bias"}
    found = set(state)
    if embedding is None or (found - {"embedding.weight"} and found != {"embedding.weight", *mlp}):
        raise BundleError(
            f"{where}: expected prefix_encoder.embedding.weight, alone or with an MLP "
            f"(prefix_encoder.trans.0 and .2), got {sorted(found)}"
        )
    if found == {"embedding.weight"}:
        return embedding.float()
    hidden = torch.tanh(
        embedding.float() @ state["trans.0.weight"].float().T + state["trans.0.bias"].float()
    )
    return hidden @ state["trans.2.weight"].float().T + state["trans.2.bias"].float()


def _read_checkpoint(folder: Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the weights of encoder and prefix encoder, without common name prefixes."""
    if not (folder / "config.json").is_file():
        raise BundleError(f"{folder}: expected a saved model with a config.json, found none")
    path = _weights_file(folder)
    try:
        if path.suffix == ".safetensors":
            state = safetensors.torch.load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except (safetensors.SafetensorError, RuntimeError, ValueError, EOFError, OSError) as error:
        raise BundleError(f"{path}: expected saved weights: {error}") from None
    except Exception as error:
        # The unpickler raises its own errors for anything but plain tensors.
        reason = str(error).partition("\n")[0]
        raise BundleError(f"{path}: expected a file with weights only: {reason}") from None
    body: dict[str, Tensor] = {}
    prefix: dict[str, Tensor] = {}
    for name, tensor in state.items():
        _, found, rest = name.rpartition(_PREFIX)
        if found:
            prefix[rest] = tensor
        elif not name.endswith(("position_ids", "prefix_tokens")):
            body[name] = tensor
    if not prefix:
        raise BundleError(
            f"{path}: expected weights named {_PREFIX}*, found none among {len(state)}; the "
            "checkpoint has no deep prompt"
        )
    return body, prefix


def _weights_file(folder: Path) -> Path:
    for name in _WEIGHT_FILES:
        if (folder / name).is_file():
            return folder / name
    raise BundleError(f"{folder}: expected {' or '.join(_WEIGHT_FILES)}, found none")


def _refuse_different(folders: Sequence[Path], bodies: Sequence[Mapping[str, Tensor]]) -> None:
    first, second = bodies
    different = sorted(set(first) ^ set(second)) or [
        name for name in first if not torch.equal(first[name], second[name])
    ]
    if different:
        raise BundleError(
            f"{folders[1]}: expected the encoder in {folders[0].name}, got {len(different)} "
            f"different weights, such as {different[0]}; only prompts on the same frozen encoder "
            "can be imported"
        )


def _with_tokenizer(folders: Sequence[Path]) -> Path:
    names = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "vocab.txt", "spm.model")
    for folder in folders:
        if any((folder / name).is_file() for name in names):
            return folder
    raise BundleError(
        f"{folders[0]}: the checkpoint has no tokenizer; pass the original encoder's folder with "
        "--tokenizer"
    )


def _write_backbone(
    folder: Path, state: Mapping[str, Tensor], *, config: Mapping[str, Any], tokenizer: Path
) -> None:
    """Write the encoder, without its prompt, as a plain Hugging Face folder."""
    from transformers import AutoConfig, AutoModel, AutoTokenizer

    plain = {key: value for key, value in config.items() if key not in _PREFIX_SETTINGS}
    kind = plain.get("model_type")
    if not isinstance(kind, str):
        raise BundleError("config.json: expected a model_type, found none")
    try:
        settings = AutoConfig.for_model(**plain)
        model = AutoModel.from_config(settings)
        made = AutoTokenizer.from_pretrained(str(tokenizer))
    except Exception as error:
        # A damaged config fails anywhere in transformers, with any error.
        raise BackboneError(f"cannot build the checkpoint's encoder '{kind}': {error}") from None
    begin = f"{getattr(model, 'base_model_prefix', kind)}."
    weights = {name.removeprefix(begin): tensor for name, tensor in state.items()}
    try:
        result = model.load_state_dict(weights, strict=False)
    except RuntimeError as error:
        reason = str(error).replace("\n\t", " ")
        raise BundleError(f"the checkpoint does not match its config.json: {reason}") from None
    missing = [name for name in result.missing_keys if "pooler" not in name.split(".")]
    # Other heads may accompany the encoder, but all of its own weights must be used.
    if missing or result.unexpected_keys:
        raise BundleError(
            f"the checkpoint does not match a {kind} encoder: missing {missing[:3]}, unexpected "
            f"{list(result.unexpected_keys)[:3]}"
        )
    try:
        model.save_pretrained(folder)
        made.save_pretrained(folder)
    except OSError:
        raise
    except Exception as error:
        raise BundleError(f"config.json: expected settings of an encoder: {error}") from None
