"""Haystack embedders."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from haystack import Document, component, default_from_dict, default_to_dict

from dptdr.model.bundle import load_encoder
from dptdr.model.encoder import Encoder


class _Embedder:
    """Base of both embedders; loads the task on first use."""

    def __init__(self, task: Path | str, device: str = "cpu") -> None:
        self.task = str(task)
        self.device = device
        self._encoder: Encoder | None = None

    def warm_up(self) -> None:
        """Load the task."""
        if self._encoder is None:
            self._encoder = load_encoder(task=Path(self.task), device=self.device)

    @property
    def encoder(self) -> Encoder:
        """The task's encoder."""
        self.warm_up()
        assert self._encoder is not None
        return self._encoder

    def to_dict(self) -> dict[str, Any]:
        """Serialize the settings for a pipeline."""
        return dict(default_to_dict(self, task=self.task, device=self.device))

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Any:
        """Restore an embedder from a serialized pipeline."""
        return default_from_dict(cls, data)


@component
class DptdrTextEmbedder(_Embedder):
    """Embed queries with a task."""

    @component.output_types(embedding=list[float])  # type: ignore[untyped-decorator]
    def run(self, text: str) -> dict[str, list[float]]:
        """Return the query vector as ``embedding``."""
        return {"embedding": self.encoder.encode_queries([text])[0].tolist()}


@component
class DptdrDocumentEmbedder(_Embedder):
    """Embed documents with a task."""

    @component.output_types(documents=list[Document])  # type: ignore[untyped-decorator]
    def run(self, documents: list[Document]) -> dict[str, list[Document]]:
        """Add embeddings to documents; missing text is treated as empty."""
        vectors = self.encoder.encode_passages([document.content or "" for document in documents])
        return {
            "documents": [
                replace(document, embedding=vector.tolist())
                for document, vector in zip(documents, vectors, strict=True)
            ]
        }
