"""A task as a sentence-transformers model; several tasks of one backbone may share the model.

The class of the module below is named in each task's ``modules.json``, so that
``SentenceTransformer("TASK", trust_remote_code=True)`` loads the task. The folder holds no code and
no weights of the backbone: both come from what is installed.
"""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import InputModule
from torch import nn

from dptdr.errors import BundleError, ConfigError
from dptdr.model.backbone import Backbone, Side
from dptdr.model.bundle import TASK_FILE, load_task, read_manifest, save_task
from dptdr.model.encoder import Encoder
from dptdr.model.hub import task_folder

_SIDES: dict[str | None, Side] = {"query": "query", "document": "passage"}


class TaskTransformer(SentenceTransformer):  # type: ignore[misc]
    """A sentence-transformers model whose first module is a :class:`TaskModule`."""

    def encode(self, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """Return embeddings as ``SentenceTransformer.encode`` does.

        Args:
            kwargs: Likewise; besides, ``prompt_task``: the name of a task that the model holds, or
                one name for each text. The first task by default.

        Raises:
            ConfigError: If there is no such task, or not one name for each text.
        """
        given = kwargs.pop("prompt_task", None)
        if given is not None:
            inputs = _with_tasks(inputs, given, known=self[0].encoders)
        return super().encode(inputs, *args, **kwargs)


class _TaskText(str):
    """A text that carries its task through sentence-transformers' sorting by length."""

    prompt_task: str


def _with_tasks(inputs: Any, given: Any, *, known: Mapping[str, Encoder]) -> Any:
    single = isinstance(inputs, str)
    texts = [inputs] if single else list(inputs)
    names = [given] * len(texts) if isinstance(given, str) else list(given)
    if len(names) != len(texts):
        raise ConfigError(
            f"prompt_task: expected one task or one for each of {len(texts)} texts, got "
            f"{len(names)}"
        )
    unknown = sorted({str(name) for name in names} - set(known))
    if unknown:
        raise ConfigError(
            f"prompt_task: the model holds {', '.join(known)}, got {', '.join(unknown)}; give "
            "further tasks to to_sentence_transformer"
        )
    marked = []
    for text, name in zip(texts, names, strict=True):
        row = _TaskText(text)
        row.prompt_task = name
        marked.append(row)
    return marked[0] if single else marked


class TaskModule(InputModule):  # type: ignore[misc]
    """The only module of such a model: texts in, tuned vectors out.

    Args:
        encoders: Encoders of one backbone by task name; the first is the default.
    """

    def __init__(self, encoders: Mapping[str, Encoder]) -> None:
        super().__init__()
        self.encoders = dict(encoders)
        self.default = next(iter(self.encoders))
        first = self.encoders[self.default]
        self.max_seq_length = max(first.limits.of("query"), first.limits.of("passage"))
        # Registered, so that the model's device and number type are those of all parts.
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
        """Return the vectors' dimension."""
        return self.encoders[self.default].dim

    def preprocess(
        self,
        inputs: Sequence[str],
        prompt: str | None = None,
        *,
        task: str | None = None,
        **_: Any,
    ) -> dict[str, Any]:
        """Return the texts' token ids, with the task and the side to encode them for.

        Args:
            task: ``query`` or ``document``, as ``encode_query`` and ``encode_document`` say it.

        Raises:
            ConfigError: If no side is given and it matters.
        """
        names = [getattr(text, "prompt_task", self.default) for text in inputs]
        ids: list[list[int]] = [[] for _ in inputs]
        for name in dict.fromkeys(names):
            encoder = self.encoders[name]
            side = _side(encoder, task)
            rows = [number for number, found in enumerate(names) if found == name]
            made = encoder.backbone.tokenize(
                [inputs[number] for number in rows],
                side=side,
                max_tokens=min(encoder.limits.of(side), self.max_seq_length),
                prefix=prompt or "",
            )
            for number, tokens in zip(rows, made, strict=True):
                ids[number] = tokens
        return {"token_ids": ids, "prompt_task": names, "side": task}

    def forward(self, features: dict[str, Any], **_: Any) -> dict[str, Any]:
        """Add ``sentence_embedding``; rows of one task go through the backbone together."""
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
        """Let a model loaded by sentence-transformers take ``prompt_task`` as well."""
        if type(model) is SentenceTransformer:
            model.__class__ = TaskTransformer

    def save(self, output_path: str, *_: Any, **__: Any) -> None:
        """Write the task's own files, without the backbone.

        Raises:
            ConfigError: If the model holds several tasks, or none.
        """
        encoder = self.encoders[self.default]
        if len(self.encoders) > 1 or encoder.method is None:
            raise ConfigError(
                f"expected a model of one task to save, got {', '.join(self.encoders)}; save each "
                "task as its own folder"
            )
        with tempfile.TemporaryDirectory(prefix="dptdr-") as folder:
            made = save_task(Path(folder) / "task", encoder, name=encoder.name)
            for file in (TASK_FILE, made.weights_file):
                (Path(output_path) / file).write_bytes((Path(folder) / "task" / file).read_bytes())

    @classmethod
    def load(cls, model_name_or_path: str, **options: Any) -> "TaskModule":
        """Load a task's folder, local or from the hub.

        Args:
            model_name_or_path: The folder or ``org/name``.
            options: As sentence-transformers gives them; of ``model_kwargs``, ``dtype`` and
                ``backbone`` count.

        Raises:
            BundleError: If there is no such task, or its backbone is another.
        """
        found = task_folder(
            model_name_or_path,
            revision=options.get("revision"),
            token=options.get("token"),
            cache=options.get("cache_folder"),
        )
        if found is None:
            raise BundleError(f"{model_name_or_path}: expected a task with a {TASK_FILE}")
        wanted = options.get("model_kwargs") or {}
        dtype = str(wanted.get("dtype", wanted.get("torch_dtype")) or "float32")
        name = wanted.get("backbone") or read_manifest(found).backbone
        backbone = Backbone.load(name, dtype=dtype.removeprefix("torch."))
        encoder = load_task(found, backbone=backbone)
        return cls({encoder.name: encoder})


def _side(encoder: Encoder, task: str | None) -> Side:
    if task in _SIDES:
        return _SIDES[task]
    if task is not None:
        raise ConfigError(f"task: expected 'query' or 'document', got '{task}'")
    if encoder.is_two_sided:
        raise ConfigError(
            f"task '{encoder.name}' encodes queries and passages differently: use encode_query and "
            "encode_document, or encode(..., task='query') and encode(..., task='document')"
        )
    return "passage"


def to_sentence_transformer(encoder: Encoder, *others: Encoder) -> TaskTransformer:
    """Return a sentence-transformers model of one task, or of several that share a backbone.

    Args:
        encoder: The default task.
        others: Further tasks, for ``encode(..., prompt_task=...)``.

    Returns:
        The model; it shares all weights with the encoders.

    Raises:
        ConfigError: If the tasks are of several backbones, or two have one name.
    """
    encoders: dict[str, Encoder] = {}
    for each in (encoder, *others):
        if each.name in encoders:
            raise ConfigError(f"expected one task of each name, '{each.name}' occurs twice")
        if each.backbone_fingerprint != encoder.backbone_fingerprint:
            raise ConfigError(
                f"expected tasks of one backbone: '{encoder.name}' has {encoder.backbone.name}, "
                f"'{each.name}' has {each.backbone.name}"
            )
        encoders[each.name] = each
    pooling = encoder.backbone.pooling
    return TaskTransformer(
        modules=[TaskModule(encoders)],
        device=str(encoder.backbone.device),
        prompts={"query": pooling.query_prefix, "document": pooling.passage_prefix},
        similarity_fn_name="dot",
    )
