"""Export a backbone as an ONNX graph with the prompt as an input.

::

    FOLDER/model.onnx       float32
    FOLDER/model.int8.onnx  int8 weights for matrix products, optional
    FOLDER/export.json      geometry, pooling, fingerprint, difference from torch
    FOLDER/tokenizer.json   for the tokenizers package

Inputs: ``input_ids`` and ``attention_mask`` ``[texts, tokens]``, ``prompt_keys`` and
``prompt_values`` ``[layers, texts, heads, prompt, head_dim]``, ``prompt_mask`` ``[texts, prompt]``
(true: the text attends to the row). Output: ``vectors`` ``[texts, dim]``. A text whose mask is all
false gets the bare backbone's vector.
"""

import contextlib
import importlib.util
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from dptdr.errors import BackboneError, ConfigError, DataError
from dptdr.io.atomic import atomic_folder, read_json, sha256_file, write_json
from dptdr.io.lines import describe
from dptdr.io.outputs import refuse_extra, refuse_foreign
from dptdr.io.probe import is_probe
from dptdr.model.backbone import Backbone, Tokens
from dptdr.model.prompt_rows import AttentionRows

FORMAT = "dptdr-onnx"
FORMAT_VERSION = 1
MANIFEST = "export.json"
FILES = {"fp32": "model.onnx", "int8": "model.int8.onnx"}
INPUTS = ("input_ids", "attention_mask", "prompt_keys", "prompt_values", "prompt_mask")
_VARYING = ((0, 1), (0, 1), (1, 3), (1, 3), (0, 1))
"""Dynamic axes of each input."""

FP32_TOLERANCE = 1e-4
"""Tolerance of the float32 graph against torch, relative to the largest norm."""

_MIN_COSINE = 0.9


class _Graph(nn.Module):
    """The module to be traced."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.model = backbone.model
        self._backbone = backbone

    def forward(
        self,
        input_ids: Int[Tensor, "texts tokens"],
        attention_mask: Int[Tensor, "texts tokens"],
        prompt_keys: Float[Tensor, "layers texts heads prompt head_dim"],
        prompt_values: Float[Tensor, "layers texts heads prompt head_dim"],
        prompt_mask: Bool[Tensor, "texts prompt"],
    ) -> Float[Tensor, "texts dim"]:
        """Compute one vector per text."""
        rows = AttentionRows(prompt_keys, prompt_values, prompt_mask)
        return self._backbone.vectors(Tokens(input_ids, attention_mask), attention=rows)


def refuse_other(out: Path) -> None:
    """Reject an output folder that has files other than those of an export.

    Raises:
        OutputError: If it has.
    """
    refuse_foreign(out, mark=MANIFEST)
    refuse_extra(out, known=(MANIFEST, "tokenizer.json", "*.onnx"))


def check_installed() -> None:
    """Raise ``ConfigError`` unless the packages of the ``export`` extra are installed."""
    missing = [
        name
        for name in ("onnx", "onnxscript", "onnxruntime")
        if importlib.util.find_spec(name) is None
    ]
    if missing:
        raise ConfigError(
            f"ONNX export needs {', '.join(missing)}; run `pip install 'dptdr[export]'`"
        )


def export(
    backbone: Backbone,
    out: Path,
    *,
    int8: bool = False,
    measure: Callable[[Path], Mapping[str, Any]] | None = None,
) -> dict[str, Any]:
    """Export a backbone as an ONNX graph verified against torch; return its ``export.json``.

    Args:
        backbone: A freshly loaded backbone in float32 on the CPU.
        out: The folder; an earlier export is kept until the new one is complete.
        int8: Also write the 8-bit graph.
        measure: Given the folder before it is published, returns more fields of ``export.json``.

    Raises:
        ConfigError: If packages are missing.
        OutputError: If ``out`` has files other than those of an export.
        BackboneError: If tracing fails, or the graph's vectors differ from torch.
    """
    check_installed()
    refuse_other(out)
    graph = _Graph(backbone)
    differences, cosines = {}, {}
    with atomic_folder(out) as folder:
        write_graph(graph, backbone, folder / FILES["fp32"], inputs=len(INPUTS))
        backbone.tokenizer.backend_tokenizer.save(str(folder / "tokenizer.json"))
        if int8:
            _quantise(folder)
        for precision in FILES if int8 else ("fp32",):
            difference, cosine = compare(graph, backbone, folder / FILES[precision])
            differences[precision], cosines[precision] = difference, cosine
            exact = precision == "fp32"
            if not (difference <= FP32_TOLERANCE if exact else cosine >= _MIN_COSINE):
                raise BackboneError(
                    f"backbone '{backbone.name}': the {precision} graph differs from torch by "
                    f"{difference:.1e} (cosine {cosine:.3f}), which exceeds the tolerance; serve "
                    "it with torch"
                )
        found = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "backbone": backbone.name,
            "backbone_fingerprint": backbone.fingerprint,
            "probe": list(backbone.probe),
            "prompt_attention": "joint",
            "files": {
                file: sha256_file(folder / file)
                for file in FILES.values()
                if (folder / file).exists()
            },
            "geometry": asdict(backbone.geometry),
            "dim": backbone.dim,
            "pooling": asdict(backbone.pooling),
            "largest_difference": differences,
            "least_cosine": cosines,
        }
        write_json(folder / MANIFEST, found)
        if measure is not None:
            found |= measure(folder)
            write_json(folder / MANIFEST, found)
    return found


def write_graph(module: nn.Module, backbone: Backbone, file: Path, *, inputs: int) -> None:
    """Write a module of a backbone as an ONNX graph with the output ``vectors``.

    Args:
        module: Takes the first ``inputs`` of :data:`INPUTS`.
        backbone: Determines the example inputs for tracing.
        inputs: Number of inputs.

    Raises:
        BackboneError: If the export fails.
    """
    sample = sample_inputs(backbone, lengths=(7, 4, 5), prompts=(3, 0, 2))
    try:
        with _quiet("onnxscript", "torch.onnx"), torch.no_grad():
            torch.onnx.export(
                module.eval(),
                tuple(torch.from_numpy(value) for value in sample[:inputs]),
                str(file),
                dynamo=True,
                dynamic_shapes=tuple(
                    dict.fromkeys(axes, torch.export.Dim.DYNAMIC) for axes in _VARYING[:inputs]
                ),
                input_names=list(INPUTS[:inputs]),
                output_names=["vectors"],
                external_data=False,
                verbose=False,
            )
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise BackboneError(
            f"backbone '{backbone.name}' cannot be exported to ONNX: {reason}; serve it with torch"
        ) from error


def _quantise(folder: Path) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with _quiet(""):
        quantize_dynamic(
            str(folder / FILES["fp32"]),
            str(folder / FILES["int8"]),
            weight_type=QuantType.QInt8,
            per_channel=True,
            # 7 bits: CPUs without VNNI accumulate 8-bit products in 16 bits and would overflow.
            reduce_range=True,
            op_types_to_quantize=["MatMul", "Gemm"],
            extra_options={"MatMulConstBOnly": True},
        )


@contextlib.contextmanager
def _quiet(*loggers: str) -> Iterator[None]:
    """Silence warnings, and the given loggers below error level."""
    before = {name: logging.getLogger(name).level for name in loggers}
    try:
        for name in loggers:
            logging.getLogger(name).setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)


def sample_inputs(
    backbone: Backbone, *, lengths: Sequence[int], prompts: Sequence[int], seed: int = 0
) -> tuple[np.ndarray, ...]:
    """Create random inputs in the order of :data:`INPUTS`.

    Args:
        backbone: Determines vocabulary and shapes.
        lengths: Tokens per text.
        prompts: Visible prompt rows per text.
    """
    generator = np.random.default_rng(seed)
    geometry = backbone.geometry
    vocabulary = int(backbone.model.get_input_embeddings().weight.shape[0])
    shape = (geometry.layers, len(lengths), geometry.heads, max(1, *prompts), geometry.head_dim)
    longest = max(lengths)
    mask = np.arange(longest)[None, :] < np.array(lengths)[:, None]
    ids = generator.integers(5, vocabulary, size=mask.shape) * mask
    visible = np.arange(shape[3])[None, :] < np.array(prompts)[:, None]
    keys, values = (generator.standard_normal(shape).astype(np.float32) for _ in range(2))
    return ids.astype(np.int64), mask.astype(np.int64), keys, values, visible


def compare(
    graph: nn.Module, backbone: Backbone, file: Path, *, longest: int | None = None
) -> tuple[float, float]:
    """Compare a graph with its module on random batches.

    Args:
        longest: Most tokens of a text; by default, what the backbone takes.

    Returns:
        The largest difference, relative to the largest norm, and the smallest cosine.
    """
    session = open_session(file)
    count = len(session.get_inputs())
    largest, smallest = 0.0, 1.0
    limit = longest or backbone.pooling.max_tokens
    batches = (
        ((3, 9, 40, 5), (0, 7, 2, 4)),
        ((12,), (0,)),
        ((1, 33), (16, 1)),
        ((limit, 2), (0, 3)),
    )
    for seed, (all_lengths, prompts) in enumerate(batches):
        lengths = [min(length, limit) for length in all_lengths]
        inputs = sample_inputs(backbone, lengths=lengths, prompts=prompts, seed=seed)[:count]
        with torch.no_grad():
            right = graph(*(torch.from_numpy(value) for value in inputs)).numpy()
        made = session.run(None, dict(zip(INPUTS, inputs, strict=False)))[0]
        norms = np.linalg.norm(right, axis=1)
        largest = max(largest, float(np.abs(made - right).max() / max(1.0, norms.max())))
        cosines = (made * right).sum(1) / (np.linalg.norm(made, axis=1) * norms)
        smallest = min(smallest, float(cosines.min()))
    return largest, smallest


def open_session(file: Path, *, threads: int = 0) -> Any:
    """Open an ONNX Runtime session; ``threads`` 0 uses the runtime's default.

    Raises:
        ConfigError: If ONNX Runtime is missing or the file is not an ONNX graph.
    """
    check_installed()
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise ConfigError(f"{file}: expected an ONNX graph, {str(error)[:200]}") from None


def read_export(folder: Path) -> dict[str, Any]:
    """Read ``export.json``.

    Raises:
        ConfigError: If the folder does not contain an export in this format.
    """
    try:
        found = read_json(folder / MANIFEST)
    except DataError as error:
        raise ConfigError(f"{error}; expected a folder that `dptdr export` wrote") from None
    if not isinstance(found, dict):
        raise ConfigError(f"{folder / MANIFEST}: expected a JSON object, got {describe(found)}")
    if found.get("prompt_attention", "joint") != "joint":
        raise ConfigError(
            f"{folder / MANIFEST}: expected prompts that share the tokens' softmax; re-export"
        )
    if found.get("format") != FORMAT or found.get("format_version") != FORMAT_VERSION:
        raise ConfigError(
            f"{folder / MANIFEST}: expected format {FORMAT} {FORMAT_VERSION}, got "
            f"{describe(found.get('format'))} {describe(found.get('format_version'))}"
        )
    for field in ("backbone", "backbone_fingerprint"):
        if not isinstance(found.get(field), str):
            raise ConfigError(
                f"{folder / MANIFEST}, field '{field}': expected a string, got "
                f"{describe(found.get(field))}; re-export"
            )
    probed = bool(found.get("probe")) and is_probe(found["probe"])
    if not probed or not isinstance(found.get("files"), dict):
        raise ConfigError(
            f"{folder / MANIFEST}: expected a list of numbers in field 'probe' and an object in "
            "field 'files'; re-export"
        )
    return found
