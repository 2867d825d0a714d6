"""LangChain embeddings."""

from pathlib import Path

from langchain_core.embeddings import Embeddings

from dptdr.integrations import as_encoder
from dptdr.model.encoder import Encoder


class DptdrEmbeddings(Embeddings):  # type: ignore[misc]
    """LangChain embeddings from a task; queries and documents use their own side's prompt.

    Args:
        encoder: A loaded task, or its folder.
    """

    def __init__(self, encoder: Encoder | Path | str) -> None:
        self.encoder = as_encoder(encoder)

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Embed documents, one vector each."""
        vectors: list[list[float]] = self.encoder.encode_passages(texts).tolist()
        return vectors

    def embed_query(self, text: str) -> list[float]:
        """Embed a query."""
        vector: list[float] = self.encoder.encode_queries([text])[0].tolist()
        return vector
