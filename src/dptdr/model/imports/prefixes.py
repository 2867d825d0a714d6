"""Code shared by all imports: prompts stored as one matrix, and shifted positions.

Other programs store a prompt as one matrix ``[prompt, layers * 2 * dim]``, with each row's keys and
values of all layers in sequence. They use the generation cache, which shifts token positions by the
prompt's length, so imported tasks have position ``shifted``.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from jaxtyping import Float
from torch import Tensor

from dptdr.config.methods import DeepPromptConfig
from dptdr.errors import BundleError
from dptdr.model.backbone import Backbone
from dptdr.model.bundle import TaskManifest, read_manifest
from dptdr.model.encoder import Encoder, Limits
from dptdr.model.injection import Geometry
from dptdr.model.methods import DeepPromptMethod


@dataclass(frozen=True, kw_only=True)
class Imported:
    """Result of an import.

    Args:
        manifest: The bundle's ``task.json``.
    """

    task: Path
    backbone: str
    manifest: TaskManifest
    checkpoint_bytes: int
    task_bytes: int


def rows_of_matrix(
    matrix: Float[Tensor, "prompt layers_two_dim"], *, geometry: Geometry
) -> Float[Tensor, "layers two heads prompt head_dim"]:
    """Convert a prefix encoder's matrix to prompt rows.

    Args:
        matrix: ``[prompt, layers * 2 * dim]``: per layer the key, then the value.

    Raises:
        BundleError: If the matrix does not match the backbone.

    Source:
        Liu et al., P-Tuning v2, arXiv 2110.07602, in the layout of their public code.
    """
    layers, heads, size = geometry.layers, geometry.heads, geometry.head_dim
    if matrix.dim() != 2 or matrix.shape[1] != layers * 2 * heads * size:
        raise BundleError(
            f"expected a prompt of shape [prompt, {layers * 2 * heads * size}] ({layers} layers, "
            f"keys and values of {heads * size}), got {list(matrix.shape)}"
        )
    parts = matrix.float().reshape(matrix.shape[0], layers, 2, heads, size)
    return parts.permute(1, 2, 3, 0, 4).contiguous()


def matrix_of_rows(
    rows: Float[Tensor, "layers two heads prompt head_dim"],
) -> Float[Tensor, "prompt layers_two_dim"]:
    """Convert prompt rows to a prefix encoder's matrix, inverting :func:`rows_of_matrix`."""
    prompt = rows.shape[3]
    return rows.permute(3, 0, 1, 2, 4).reshape(prompt, -1).contiguous()


def shifted_encoder(backbone: Backbone, rows: Mapping[str, Tensor], *, limits: Limits) -> Encoder:
    """Build an encoder with prompts trained with shifted positions.

    Args:
        rows: Prompt rows: ``shared``, or ``query`` and ``passage``.
        limits: Maximum text lengths in tokens.

    Raises:
        BundleError: If text and prompt together exceed the encoder's positions.
    """
    length = next(iter(rows.values())).shape[3]
    _refuse_long(backbone, limits, length=length)
    config = DeepPromptConfig(
        prompt_length=length,
        sharing="tied" if "shared" in rows else "untied",
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
            f"expected texts of at most {room} tokens, got {longest}: the prompt's {length} rows "
            f"shift positions, and the encoder has {backbone.pooling.max_tokens}; lower "
            "--max-query-tokens and --max-passage-tokens"
        )


def imported(task: Path, backbone: str, *, weights: Sequence[Path]) -> Imported:
    """Collect the result of an import."""
    return Imported(
        task=task,
        backbone=backbone,
        manifest=read_manifest(task),
        checkpoint_bytes=sum(path.stat().st_size for path in weights),
        task_bytes=sum(file.stat().st_size for file in task.iterdir()),
    )
