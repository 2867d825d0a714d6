"""Checkpoints of other programs: the authors' whole encoders, and PEFT's prefix tuning.

All of them store a prompt as one matrix ``[prompt, layers * 2 * dim]``: for each row the keys and
values of all layers, one after the other. They ride on the generation cache, which moves token
positions by the prompt's length, so that what comes from them has the position policy ``shifted``.
"""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import safetensors
import safetensors.torch
import torch
from jaxtyping import Float
from torch import Tensor

from dptdr.config.methods import DeepPromptConfig, Sharing
from dptdr.errors import BackboneError, BundleError
from dptdr.files import atomic_folder, read_json, write_json
from dptdr.model.backbone import Backbone
from dptdr.model.bundle import TaskManifest, load_task, save_task
from dptdr.model.encoder import Encoder, Limits
from dptdr.model.injection import Geometry
from dptdr.model.methods import DeepPromptMethod

SourceFormat = Literal["dptdr-authors", "peft"]
SOURCE_FORMATS: tuple[SourceFormat, ...] = ("dptdr-authors", "peft")
SIDES = ("query_model", "passage_model")
"""Folders of an untied checkpoint of the authors."""

PEFT_CONFIG = "adapter_config.json"
PEFT_WEIGHTS = "adapter_model.safetensors"
_PREFIX = "prefix_encoder."
_PREFIX_SETTINGS = (
    "pre_seq_len",
    "prefix_projection",
    "prefix_hidden_size",
    "hidden_dropout_prob_prefix",
)
_WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")


@dataclass(frozen=True, kw_only=True)
class Imported:
    """What an import wrote.

    Args:
        task: The task bundle.
        backbone: The backbone's folder or name.
        manifest: The bundle's ``task.json``.
        checkpoint_bytes: Size of the checkpoint's weights.
        task_bytes: Size of the bundle.
    """

    task: Path
    backbone: str
    manifest: TaskManifest
    checkpoint_bytes: int
    task_bytes: int


def rows_of_matrix(
    matrix: Float[Tensor, "prompt layers_two_dim"], *, geometry: Geometry
) -> Float[Tensor, "layers two heads prompt head_dim"]:
    """Return prompt rows from the matrix of a prefix encoder.

    Args:
        matrix: ``[prompt, layers * 2 * dim]``: per layer the key, then the value.
        geometry: Layers, heads and head size of the backbone.

    Returns:
        The rows.

    Raises:
        BundleError: If the matrix does not fit the backbone.

    Source:
        Liu et al., P-Tuning v2, arXiv 2110.07602, as their public code lays it out.
    """
    layers, heads, size = geometry.layers, geometry.heads, geometry.head_dim
    if matrix.dim() != 2 or matrix.shape[1] != layers * 2 * heads * size:
        raise BundleError(
            f"expected a prompt of [prompt, {layers * 2 * heads * size}] numbers ({layers} layers, "
            f"keys and values of {heads * size}), got {list(matrix.shape)}"
        )
    parts = matrix.float().reshape(matrix.shape[0], layers, 2, heads, size)
    return parts.permute(1, 2, 3, 0, 4).contiguous()


def matrix_of_rows(
    rows: Float[Tensor, "layers two heads prompt head_dim"],
) -> Float[Tensor, "prompt layers_two_dim"]:
    """Return the matrix of a prefix encoder from prompt rows: the inverse of the above."""
    prompt = rows.shape[3]
    return rows.permute(3, 0, 1, 2, 4).reshape(prompt, -1).contiguous()


def prefix_matrix(state: Mapping[str, Tensor], *, where: Path) -> Tensor:
    """Return the prompt's matrix from the weights of a prefix encoder, its MLP folded in.

    Args:
        state: Weights by name, without ``prefix_encoder.``.
        where: The file, for messages.

    Returns:
        ``[prompt, layers * 2 * dim]``.

    Raises:
        BundleError: If the names are not those of a prefix encoder.
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


def import_authors(
    source: Path, out: Path, *, limits: Limits, tokenizer: Path | None = None
) -> Imported:
    """Take apart the authors' saved model: ``OUT/backbone`` and ``OUT/task``.

    Args:
        source: Folder with ``config.json`` and the weights of the whole encoder, prompt included;
            or with the folders ``query_model`` and ``passage_model``, where they differ.
        out: Folder to write.
        limits: Longest texts in tokens; they are not stored in the checkpoint.
        tokenizer: Folder of the tokenizer where the checkpoint holds none.

    Returns:
        What was written.

    Raises:
        BundleError: If the checkpoint is of another layout, the encoders of the two folders
            differ, or texts and prompt together are longer than the encoder's positions.
        BackboneError: If the encoder cannot be loaded.
    """
    source, out = Path(source), Path(out)
    untied = (source / SIDES[0]).is_dir()
    folders = [source / side for side in SIDES] if untied else [source]
    parts = [_read_checkpoint(folder) for folder in folders]
    if untied:
        _refuse_different(folders, [body for body, _ in parts])
    config = read_json(folders[0] / "config.json")
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
            encoder = _shifted_encoder(backbone, rows, limits=limits)
    except BaseException:
        if fresh and out.exists():
            shutil.rmtree(out)
        raise
    backbone.name = str(out / "backbone")
    save_task(out / "task", encoder, name=out.name, training={"imported_from": "dptdr-authors"})
    weights = [_weights_file(folder) for folder in folders]
    return _imported(out / "task", str(out / "backbone"), weights=weights)


def _read_checkpoint(folder: Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the encoder's weights and the prefix encoder's, without their common beginnings."""
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
        # The unpickler raises errors of its own for whatever is not plain tensors.
        raise BundleError(f"{path}: expected saved weights and nothing else: {error}") from None
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
            f"{path}: expected weights named {_PREFIX}*, found none among {len(state)}; this is no "
            "checkpoint with a deep prompt"
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
            f"{folders[1]}: the encoder differs from that of {folders[0].name} in "
            f"{len(different)} weights, such as {different[0]}; two encoders were trained, not two "
            "prompts on one frozen encoder"
        )


def _with_tokenizer(folders: Sequence[Path]) -> Path:
    names = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "vocab.txt", "spm.model")
    for folder in folders:
        if any((folder / name).is_file() for name in names):
            return folder
    raise BundleError(
        f"{folders[0]}: the checkpoint holds no tokenizer; name the folder of the encoder that it "
        "was trained from with --tokenizer"
    )


def _write_backbone(
    folder: Path, state: Mapping[str, Tensor], *, config: Mapping[str, Any], tokenizer: Path
) -> None:
    """Write an encoder without its prompt as a plain Hugging Face folder."""
    from transformers import AutoConfig, AutoModel, AutoTokenizer

    plain = {key: value for key, value in config.items() if key not in _PREFIX_SETTINGS}
    kind = plain.get("model_type")
    if not isinstance(kind, str):
        raise BundleError("config.json: expected a model_type, found none")
    try:
        settings = AutoConfig.for_model(**plain)
        model = AutoModel.from_config(settings)
        made = AutoTokenizer.from_pretrained(str(tokenizer))
    except (ValueError, KeyError, OSError) as error:
        raise BackboneError(f"the checkpoint's encoder '{kind}' cannot be made: {error}") from None
    begin = f"{getattr(model, 'base_model_prefix', kind)}."
    weights = {name.removeprefix(begin): tensor for name, tensor in state.items()}
    result = model.load_state_dict(weights, strict=False)
    missing = [name for name in result.missing_keys if "pooler" not in name.split(".")]
    # Heads of other tasks may stand beside the encoder; its own weights may not be left over.
    if missing or result.unexpected_keys:
        raise BundleError(
            f"the checkpoint does not fit a {kind} encoder: missing {missing[:3]}, unknown "
            f"{list(result.unexpected_keys)[:3]}"
        )
    model.save_pretrained(folder)
    made.save_pretrained(folder)


def _shifted_encoder(
    backbone: Backbone,
    rows: Mapping[str, Tensor],
    *,
    limits: Limits,
    sharing: Sharing | None = None,
) -> Encoder:
    length = next(iter(rows.values())).shape[3]
    _refuse_long(backbone, limits, length=length)
    config = DeepPromptConfig(
        prompt_length=length,
        sharing=sharing or ("tied" if "shared" in rows else "untied"),
        initialisation="task",
        position="shifted",
    )
    method = DeepPromptMethod(backbone, config, rows=rows)
    method.module.eval()
    return Encoder(backbone, method=method, limits=limits)


def _refuse_long(backbone: Backbone, limits: Limits, *, length: int) -> None:
    longest = max(limits.max_query_tokens, limits.max_passage_tokens)
    room = backbone.pooling.max_tokens - length
    if longest > room:
        raise BundleError(
            f"texts of {longest} tokens do not fit: the prompt's {length} rows move positions, and "
            f"the encoder has {backbone.pooling.max_tokens}; expected at most {room}"
        )


def import_peft(source: Path, out: Path, *, backbone: str | None, limits: Limits) -> Imported:
    """Turn a PEFT prefix-tuning adapter into a task bundle.

    Args:
        source: The adapter's folder.
        out: The bundle to write.
        backbone: The encoder; by default the one that the adapter names.
        limits: Longest texts in tokens.

    Returns:
        What was written.

    Raises:
        BundleError: If the adapter is of another kind or does not fit the encoder.
        BackboneError: If the encoder cannot be loaded.
    """
    source, out = Path(source), Path(out)
    settings = read_json(source / PEFT_CONFIG)
    if not isinstance(settings, dict) or settings.get("peft_type") != "PREFIX_TUNING":
        kind = settings.get("peft_type") if isinstance(settings, dict) else None
        raise BundleError(f"{source / PEFT_CONFIG}: expected PREFIX_TUNING, got {kind!r}")
    name = backbone or settings.get("base_model_name_or_path")
    if not name:
        raise BundleError(f"{source / PEFT_CONFIG}: names no encoder; give it with --backbone")
    path = source / PEFT_WEIGHTS
    try:
        state = safetensors.torch.load_file(path)
    except (OSError, safetensors.SafetensorError) as error:
        raise BundleError(f"{path}: expected the adapter's weights: {error}") from None
    if set(state) != {"prompt_embeddings"}:
        raise BundleError(f"{path}: expected prompt_embeddings alone, got {sorted(state)}")
    loaded = Backbone.load(name)
    rows = {"shared": rows_of_matrix(state["prompt_embeddings"], geometry=loaded.geometry)}
    encoder = _shifted_encoder(loaded, rows, limits=limits)
    save_task(out, encoder, name=out.name, training={"imported_from": "peft"})
    return _imported(out, name, weights=[path])


def export_peft(
    task: Path, out: Path, *, backbone: Backbone, accept_shift: bool = False
) -> list[Path]:
    """Write a deep-prompt task as PEFT prefix-tuning adapters.

    Args:
        task: The task bundle.
        out: Folder to write: the adapter, or ``query`` and ``passage`` in it where they differ.
        backbone: The task's backbone.
        accept_shift: Export a task without shifted positions, though PEFT will shift them.

    Returns:
        The adapters' folders.

    Raises:
        BundleError: If the task cannot be said in PEFT's terms.
        WrongBackbone: If the task belongs to another backbone.
    """
    encoder = load_task(task, backbone=backbone)
    method = encoder.method
    if not isinstance(method, DeepPromptMethod):
        raise BundleError(f"{task}: expected a deep prompt, PEFT's prefix tuning holds no other")
    config = method.config
    if config.attention != "joint":
        raise BundleError(f"{task}: PEFT has no attention '{config.attention}', only 'joint'")
    if config.position != "shifted" and not accept_shift:
        raise BundleError(
            f"{task}: PEFT moves token positions by the prompt's {config.prompt_length} rows, the "
            "task was trained without; its vectors would change. Train with --position shifted, "
            "or accept that with --accept-shift"
        )
    state = method.state()
    single = len(state) == 1
    with atomic_folder(out) as temporary:
        for name, rows in state.items():
            folder = temporary if single else temporary / name
            folder.mkdir(exist_ok=True)
            safetensors.torch.save_file(
                {"prompt_embeddings": matrix_of_rows(rows)}, folder / PEFT_WEIGHTS
            )
            write_json(folder / PEFT_CONFIG, _peft_settings(backbone, length=rows.shape[3]))
    return [out] if single else [out / name for name in state]


def _peft_settings(backbone: Backbone, *, length: int) -> dict[str, Any]:
    geometry = backbone.geometry
    dim = geometry.heads * geometry.head_dim
    return {
        "base_model_name_or_path": backbone.name,
        "encoder_hidden_size": dim,
        "inference_mode": True,
        "num_attention_heads": geometry.heads,
        "num_layers": geometry.layers,
        "num_transformer_submodules": 1,
        "num_virtual_tokens": length,
        "peft_type": "PREFIX_TUNING",
        "prefix_projection": False,
        "task_type": "FEATURE_EXTRACTION",
        "token_dim": dim,
    }


def _imported(task: Path, backbone: str, *, weights: Sequence[Path]) -> Imported:
    from dptdr.model.bundle import read_manifest

    return Imported(
        task=task,
        backbone=backbone,
        manifest=read_manifest(task),
        checkpoint_bytes=sum(path.stat().st_size for path in weights),
        task_bytes=sum(file.stat().st_size for file in task.iterdir()),
    )
