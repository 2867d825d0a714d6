"""LangChain's embeddings."""

from langchain_core.embeddings import Embeddings

from dptdr.model.encoder import Encoder


class DptdrEmbeddings(Embeddings):  # type: ignore[misc]
    """A task for LangChain; queries and documents use the prompt of their side."""

    def __init__(self, encoder: Encoder) -> None:
        self.encoder = encoder

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Return one vector per document."""
        vectors: list[list[float]] = self.encoder.encode_passages(texts).tolist()
        return vectors

    def embed_query(self, text: str) -> list[float]:
        """Return the vector of a query."""
        vector: list[float] = self.encoder.encode_queries([text])[0].tolist()
        return vector
