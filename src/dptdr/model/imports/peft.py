"""Import and export PEFT prefix-tuning adapters."""

from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch

from dptdr.errors import BundleError
from dptdr.io.atomic import atomic_folder, read_json, write_json
from dptdr.io.lines import describe
from dptdr.io.outputs import refuse_filled
from dptdr.model.backbone import Backbone
from dptdr.model.bundle import load_task, save_task
from dptdr.model.encoder import Limits
from dptdr.model.imports.prefixes import (
    Imported,
    imported,
    matrix_of_rows,
    rows_of_matrix,
    shifted_encoder,
)
from dptdr.model.methods import DeepPromptMethod

PEFT_CONFIG = "adapter_config.json"
PEFT_WEIGHTS = "adapter_model.safetensors"


def import_peft(source: Path, out: Path, *, backbone: str | None, limits: Limits) -> Imported:
    """Convert a PEFT prefix-tuning adapter to a task bundle.

    Args:
        backbone: The encoder; by default the one named in the adapter.
        limits: Maximum text lengths in tokens.

    Raises:
        BundleError: If the adapter is of another type or does not match the encoder.
        BackboneError: If the encoder cannot be loaded.
    """
    source, out = Path(source), Path(out)
    refuse_filled(out)
    settings = read_json(source / PEFT_CONFIG)
    if not isinstance(settings, dict) or settings.get("peft_type") != "PREFIX_TUNING":
        kind = settings.get("peft_type") if isinstance(settings, dict) else None
        raise BundleError(f"{source / PEFT_CONFIG}: expected PREFIX_TUNING, got {kind!r}")
    name = backbone or settings.get("base_model_name_or_path")
    if not name or not isinstance(name, str):
        raise BundleError(
            f"{source / PEFT_CONFIG}, field 'base_model_name_or_path': expected the name of an "
            f"encoder, got {describe(name)}; pass it with --backbone"
        )
    path = source / PEFT_WEIGHTS
    try:
        state = safetensors.torch.load_file(path)
    except (OSError, safetensors.SafetensorError) as error:
        raise BundleError(f"{path}: expected the adapter's weights: {error}") from None
    if set(state) != {"prompt_embeddings"}:
        raise BundleError(f"{path}: expected only prompt_embeddings, got {sorted(state)}")
    loaded = Backbone.load(name)
    matrix = state["prompt_embeddings"]
    # Checks of 8-bit numbers are not implemented.
    if not matrix.is_floating_point() or not bool(matrix.float().isfinite().all()):
        raise BundleError(f"{path}: expected finite floating-point rows")
    wanted = settings.get("num_virtual_tokens")
    if matrix.ndim != 2 or (wanted is not None and matrix.shape[0] != wanted):
        raise BundleError(
            f"{path}: expected {wanted} rows (num_virtual_tokens in {PEFT_CONFIG}), got "
            f"{tuple(matrix.shape)}"
        )
    fitting = _peft_settings(loaded, length=matrix.shape[0])
    for field in ("num_layers", "num_attention_heads", "token_dim"):
        got = settings.get(field)
        if got is not None and got != fitting[field]:
            raise BundleError(
                f"{source / PEFT_CONFIG}: field {field!r}: expected {fitting[field]}, as in the "
                f"encoder {name}, got {got!r}"
            )
    rows = {"shared": rows_of_matrix(matrix, geometry=loaded.geometry)}
    encoder = shifted_encoder(loaded, rows, limits=limits)
    save_task(out, encoder, name=out.name, training={"imported_from": "peft"})
    return imported(out, name, weights=[path])


def export_peft(
    task: Path, out: Path, *, backbone: Backbone, accept_shift: bool = False
) -> list[Path]:
    """Export a deep-prompt task as PEFT prefix-tuning adapters.

    A default task has no exact equivalent: PEFT shifts token positions by the prompt's length and
    has no feed-forward rows.

    Args:
        out: Output folder for the adapter, or for subfolders ``query`` and ``passage`` if they
            differ.
        accept_shift: Export a task without shifted positions although PEFT will shift them.

    Raises:
        BundleError: If PEFT cannot represent the task.
        WrongBackbone: If the task was trained on another backbone.
    """
    encoder = load_task(task, backbone=backbone)
    method = encoder.method
    if not isinstance(method, DeepPromptMethod):
        raise BundleError(
            f"{task}: expected a deep prompt; PEFT's prefix tuning supports nothing else"
        )
    config = method.config
    if config.ffn_length:
        raise BundleError(
            f"{task}: PEFT's prefix tuning does not support the task's {config.ffn_length} "
            "feed-forward rows; train with --ffn-length 0, or use the task as a "
            "sentence-transformers model"
        )
    if config.prompt_layers is not None:
        raise BundleError(f"{task}: PEFT's prefix tuning needs rows in all layers")
    if config.position == "shifted" and accept_shift:
        raise BundleError(f"{task}: positions are shifted already; omit --accept-shift")
    if config.position != "shifted" and not accept_shift:
        raise BundleError(
            f"{task}: PEFT shifts token positions by the prompt's {config.prompt_length} rows, "
            "which would change this task's vectors; train with --position shifted, or pass "
            "--accept-shift"
        )
    state = method.state()
    single = len(state) == 1
    refuse_filled(out)
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
