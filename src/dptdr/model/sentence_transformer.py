"""Tasks as sentence-transformers models; tasks with the same backbone can share one model.

Each task's ``modules.json`` names the module class below, so that
``SentenceTransformer("TASK", trust_remote_code=True)`` loads the task. The folder contains neither
code nor backbone weights: both come from the local installation.
"""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import InputModule
from torch import nn

from dptdr.config.arguments import check_unicode, fits
from dptdr.errors import BundleError, ConfigError
from dptdr.model.backbone import Backbone, Side
from dptdr.model.bundle import TASK_FILE, TaskManifest, load_task, read_manifest, save_task
from dptdr.model.encoder import Encoder, Limits
from dptdr.model.hub import task_folder

_SIDES: dict[str | None, Side] = {"query": "query", "document": "passage"}


class TaskTransformer(SentenceTransformer):  # type: ignore[misc]
    """A sentence-transformers model whose first module is a :class:`TaskModule`."""

    def save(self, path: str, *args: Any, **kwargs: Any) -> None:
        """Save the task like ``SentenceTransformer.save``.

        Raises:
            ConfigError: If prompts were given that the task itself does not have.
        """
        module = self[0]
        pooling = module.encoders[module.default].backbone.pooling
        own = {"query": pooling.query_prefix, "document": pooling.passage_prefix}
        changed = [name for name, text in self.prompts.items() if text != own.get(name, "")]
        if changed:
            raise ConfigError(
                f"prompts: expected those of the task's backbone, got another '{changed[0]}'; only "
                "sentence-transformers would read it from the saved task"
            )
        super().save(path, *args, **kwargs)

    def encode(self, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """Compute embeddings like ``SentenceTransformer.encode``.

        Args:
            kwargs: As for ``SentenceTransformer.encode``, plus ``prompt_task``: one task name, or
                one per text; the model's first task by default.

        Raises:
            ConfigError: If a task is unknown, the number of names differs from the number of
                texts, or ``task`` and ``prompt_name`` name different sides.
        """
        output = kwargs.get("output_value", "sentence_embedding")
        if output != "sentence_embedding":
            raise ConfigError(f"output_value: expected 'sentence_embedding', got {output!r}")
        task, prompt = kwargs.get("task"), args[0] if args else kwargs.get("prompt_name")
        if task in _SIDES and prompt in _SIDES and None not in (task, prompt) and task != prompt:
            raise ConfigError(
                f"prompt_name: expected '{task}' beside task '{task}', got '{prompt}'"
            )
        # Before the texts are sorted, so that the error has the right number.
        texts = inputs if isinstance(inputs, list | tuple) else [inputs]
        check_unicode([text for text in texts if isinstance(text, str)])
        given = kwargs.pop("prompt_task", None)
        if given is not None:
            inputs = _with_tasks(inputs, given, known=self[0].encoders)
        return super().encode(inputs, *args, **kwargs)


class _TaskText(str):
    """A text tagged with its task, so that sorting by length keeps them together."""

    prompt_task: str


def _with_tasks(inputs: Any, given: Any, *, known: Mapping[str, Encoder]) -> Any:
    single = isinstance(inputs, str)
    texts = [inputs] if single else list(inputs)
    names = [given] * len(texts) if isinstance(given, str) else given
    if not fits(names, Sequence[str]):
        raise ConfigError(
            f"prompt_task: expected a task name, or a list of them, got {given!r:.80}"
        )
    if len(names) != len(texts):
        raise ConfigError(
            f"prompt_task: expected one task, or one per text ({len(texts)}), got {len(names)}"
        )
    unknown = sorted({str(name) for name in names} - set(known))
    if unknown:
        raise ConfigError(
            f"prompt_task: expected one of {', '.join(known)}, got {', '.join(unknown)}; pass "
            "additional tasks to to_sentence_transformer"
        )
    marked = []
    for text, name in zip(texts, names, strict=True):
        row = _TaskText(text)
        row.prompt_task = name
        marked.append(row)
    return marked[0] if single else marked


class TaskModule(InputModule):  # type: ignore[misc]
    """The model's only module: texts in, tuned vectors out.

    Args:
        encoders: Encoders with the same backbone, by task name; the first is the default.
        manifest: Contents of the first one's ``task.json``, if it has any.
    """

    def __init__(
        self, encoders: Mapping[str, Encoder], *, manifest: TaskManifest | None = None
    ) -> None:
        super().__init__()
        self.encoders = dict(encoders)
        self._manifest = manifest
        self.default = next(iter(self.encoders))
        # A cap on all tasks' own limits, for users to lower.
        self.max_seq_length = max(
            encoder.limits.of(side) for encoder in self.encoders.values() for side in get_args(Side)
        )
        # Registered so that moving or casting the model affects all parts.
        self.models = nn.ModuleList(
            {id(e.backbone.model): e.backbone.model for e in self.encoders.values()}.values()
        )
        self.methods = nn.ModuleList(
            e.method.module for e in self.encoders.values() if e.method is not None
        )

    @property
    def tokenizer(self) -> Any:
        """The backbone's tokenizer."""
        return self.encoders[self.default].backbone.tokenizer

    def get_embedding_dimension(self) -> int:
        """Return the embedding dimension."""
        return self.encoders[self.default].dim

    def preprocess(
        self,
        inputs: Sequence[str],
        prompt: str | None = None,
        *,
        task: str | None = None,
        **_: Any,
    ) -> dict[str, Any]:
        """Tokenize texts, keeping each text's task and the side to encode.

        Args:
            task: ``query`` or ``document``, as set by ``encode_query`` and ``encode_document``.

        Raises:
            ConfigError: If the side is required but missing.
        """
        names = [getattr(text, "prompt_task", self.default) for text in inputs]
        ids: list[list[int]] = [[] for _ in inputs]
        for name in dict.fromkeys(names):
            encoder = self.encoders[name]
            side = _side(encoder, task)
            pooling = encoder.backbone.pooling
            if (task, prompt) == (None, None) and pooling.query_prefix != pooling.passage_prefix:
                raise _either_side(encoder)
            rows = [number for number, found in enumerate(names) if found == name]
            made = encoder.backbone.tokenize(
                [inputs[number] for number in rows],
                side=side,
                max_tokens=min(encoder.limits.of(side), self.max_seq_length),
                prefix=prompt,
            )
            for number, tokens in zip(rows, made, strict=True):
                ids[number] = tokens
        return {"token_ids": ids, "prompt_task": names, "side": task}

    def forward(self, features: dict[str, Any], **_: Any) -> dict[str, Any]:
        """Add ``sentence_embedding``, encoding the texts of each task together."""
        names, ids = features["prompt_task"], features["token_ids"]
        parts, order = [], []
        for name in dict.fromkeys(names):
            encoder = self.encoders[name]
            rows = [number for number, found in enumerate(names) if found == name]
            side = _side(encoder, features["side"])
            parts.append(encoder.vectors([ids[number] for number in rows], side=side))
            order += rows
        back = torch.argsort(torch.tensor(order)).to(parts[0].device)
        features["sentence_embedding"] = torch.cat(parts)[back]
        return features

    def on_model_ready(self, model: Any) -> None:
        """Enable ``prompt_task`` on models loaded by sentence-transformers."""
        if type(model) is SentenceTransformer:
            model.__class__ = TaskTransformer

    def save(self, output_path: str, *_: Any, **__: Any) -> None:
        """Write the task's own files, without the backbone.

        Raises:
            ConfigError: If the model does not have exactly one task.
        """
        encoder = self.encoders[self.default]
        if len(self.encoders) > 1 or encoder.method is None:
            raise ConfigError(
                f"expected a model of one task to save, got {', '.join(self.encoders)}; save each "
                "task as its own folder"
            )
        limits = encoder.limits
        shorter = Limits(
            max_query_tokens=min(limits.max_query_tokens, self.max_seq_length),
            max_passage_tokens=min(limits.max_passage_tokens, self.max_seq_length),
        )
        saved = Encoder(encoder.backbone, method=encoder.method, limits=shorter, name=encoder.name)
        known = self._manifest
        with tempfile.TemporaryDirectory(prefix="dptdr-") as folder:
            made = save_task(
                Path(folder) / "task",
                saved,
                name=encoder.name,
                training=None if known is None else known.training,
                measures=None if known is None else known.measures,
            )
            for file in (TASK_FILE, made.weights_file):
                (Path(output_path) / file).write_bytes((Path(folder) / "task" / file).read_bytes())

    @classmethod
    def load(cls, model_name_or_path: str, **options: Any) -> "TaskModule":
        """Load a task from a local folder or the Hub.

        Args:
            model_name_or_path: The folder or ``org/name``.
            options: sentence-transformers' options; from ``model_kwargs``, only ``dtype`` and
                ``backbone`` are used.

        Raises:
            BundleError: If there is no such task, or it was trained on another backbone.
            ConfigError: If an option has no effect.
        """
        found = task_folder(
            model_name_or_path,
            revision=options.get("revision"),
            token=options.get("token"),
            cache=options.get("cache_folder"),
        )
        if found is None:
            raise BundleError(f"{model_name_or_path}: expected a folder with a {TASK_FILE}")
        if options.get("backend", "torch") != "torch":
            raise ConfigError(
                f"backend: expected torch, got '{options['backend']}'; use `dptdr export` for ONNX"
            )
        wanted = options.get("model_kwargs") or {}
        if unknown := sorted(set(wanted) - {"dtype", "torch_dtype", "backbone"}):
            raise ConfigError(f"model_kwargs: expected dtype or backbone, got {unknown[0]}")
        dtype = str(wanted.get("dtype", wanted.get("torch_dtype")) or "float32")
        manifest = read_manifest(found)
        name = wanted.get("backbone") or manifest.backbone
        backbone = Backbone.load(name, dtype=dtype.removeprefix("torch."))
        encoder = load_task(found, backbone=backbone)
        return cls({encoder.name: encoder}, manifest=manifest)


def _side(encoder: Encoder, task: str | None) -> Side:
    if task in _SIDES:
        return _SIDES[task]
    if task is not None:
        raise ConfigError(f"task: expected 'query' or 'document', got '{task}'")
    if encoder.is_two_sided:
        raise _either_side(encoder)
    return "passage"


def _either_side(encoder: Encoder) -> ConfigError:
    return ConfigError(
        f"task '{encoder.name}' encodes queries and passages differently; use encode_query and "
        "encode_document, or encode(..., task='query') and encode(..., task='document')"
    )


def to_sentence_transformer(encoder: Encoder, *others: Encoder) -> TaskTransformer:
    """Combine one or more tasks with the same backbone into a sentence-transformers model.

    Args:
        encoder: The default task.
        others: Additional tasks, for ``encode(..., prompt_task=...)``.

    Returns:
        A model that shares its weights with the encoders.

    Raises:
        ConfigError: If backbones differ or task names repeat.
    """
    encoders: dict[str, Encoder] = {}
    for each in (encoder, *others):
        if each.name in encoders:
            raise ConfigError(f"expected unique task names, got '{each.name}' twice")
        if each.backbone_fingerprint != encoder.backbone_fingerprint:
            raise ConfigError(
                f"expected tasks with the same backbone, got {encoder.backbone.name} for "
                f"'{encoder.name}' and {each.backbone.name} for '{each.name}'"
            )
        encoders[each.name] = each
    pooling = encoder.backbone.pooling
    return TaskTransformer(
        modules=[TaskModule(encoders, manifest=getattr(encoder, "manifest", None))],
        device=str(encoder.backbone.device),
        prompts={"query": pooling.query_prefix, "document": pooling.passage_prefix},
        similarity_fn_name="dot",
    )
