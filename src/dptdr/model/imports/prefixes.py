"""Common to imports: a prompt as one matrix, and shifted positions.

They store a prompt as one matrix ``[prompt, layers * 2 * dim]``: for each row the keys and values
of all layers, one after the other. They ride on the generation cache, which moves token positions
by the prompt's length, so that what comes from them has the position policy ``shifted``.
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
    """Return prompt rows from the matrix of a prefix encoder.

    Args:
        matrix: ``[prompt, layers * 2 * dim]``: per layer the key, then the value.

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


def shifted_encoder(backbone: Backbone, rows: Mapping[str, Tensor], *, limits: Limits) -> Encoder:
    """Return an encoder with prompts that were trained with shifted positions.

    Args:
        rows: Prompt rows: ``shared``, or ``query`` and ``passage``.
        limits: Longest texts in tokens.

    Raises:
        BundleError: If texts and prompt together are longer than the encoder's positions.
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
            f"texts of {longest} tokens do not fit: the prompt's {length} rows move positions, and "
            f"the encoder has {backbone.pooling.max_tokens}; expected at most {room}"
        )


def imported(task: Path, backbone: str, *, weights: Sequence[Path]) -> Imported:
    """Return the result of an import."""
    return Imported(
        task=task,
        backbone=backbone,
        manifest=read_manifest(task),
        checkpoint_bytes=sum(path.stat().st_size for path in weights),
        task_bytes=sum(file.stat().st_size for file in task.iterdir()),
    )
