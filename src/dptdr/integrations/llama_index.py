"""LlamaIndex embeddings."""

import asyncio
from pathlib import Path
from typing import Any

from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.bridge.pydantic import PrivateAttr

from dptdr.integrations import as_encoder
from dptdr.model.encoder import Encoder


class DptdrEmbedding(BaseEmbedding):  # type: ignore[misc]
    """LlamaIndex embeddings from a task; queries and texts use their own side's prompt.

    Args:
        encoder: A loaded task, or its folder.
    """

    _encoder: Encoder = PrivateAttr()

    def __init__(self, encoder: Encoder | Path | str, **options: Any) -> None:
        loaded = as_encoder(encoder)
        # LlamaIndex' caches tell models apart by this name alone.
        prompts = dict.fromkeys((loaded.passage_fingerprint, loaded.query_fingerprint))
        name = "@".join([loaded.name, *(prompt[:12] for prompt in prompts)])
        super().__init__(model_name=name, **options)
        self._encoder = loaded

    @classmethod
    def class_name(cls) -> str:
        """Return the name of this class in LlamaIndex' records."""
        return "DptdrEmbedding"

    def _get_query_embedding(self, query: str) -> list[float]:
        vector: list[float] = self._encoder.encode_queries([query])[0].tolist()
        return vector

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return await asyncio.to_thread(self._get_query_embedding, query)

    def _get_text_embedding(self, text: str) -> list[float]:
        return self._get_text_embeddings([text])[0]

    def _get_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        vectors: list[list[float]] = self._encoder.encode_passages(texts).tolist()
        return vectors
