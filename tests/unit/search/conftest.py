import hashlib

import numpy as np
import pytest


class HashEncoder:
    """An encoder double: a text's vector is a pure function of the text.

    Each word adds a fixed random direction, so that texts that share words score higher.
    """

    def __init__(self, *, dim=16, name="double", prompt="p1", backbone="b1"):
        self.dim = dim
        self.name = name
        self.backbone_fingerprint = f"backbone-{backbone}"
        self.query_fingerprint = f"query-{backbone}-{prompt}"
        self.passage_fingerprint = f"passage-{backbone}-{prompt}"
        self.prompt = prompt
        self.encoded = []

    def _word(self, word):
        digest = hashlib.sha256(f"{self.prompt} {word}".encode()).digest()
        generator = np.random.default_rng(int.from_bytes(digest[:8], "little"))
        return generator.standard_normal(self.dim)

    def _encode(self, texts):
        rows = []
        for text in texts:
            row = np.sum([self._word(word) for word in text.split()] or [np.ones(self.dim)], axis=0)
            rows.append(row / np.linalg.norm(row))
        return np.array(rows, dtype=np.float32).reshape(len(texts), self.dim)

    def encode_queries(self, texts, *, on_progress=None):
        if on_progress is not None:
            on_progress(len(texts), len(texts))
        return self._encode(texts)

    def encode_passages(self, texts, *, on_progress=None):
        self.encoded.extend(texts)
        if on_progress is not None:
            on_progress(len(texts), len(texts))
        return self._encode(texts)


@pytest.fixture
def make_encoder():
    return HashEncoder


@pytest.fixture
def encoder():
    return HashEncoder()


class TableEncoder(HashEncoder):
    """An encoder double that looks vectors up: the text ``17`` has row 17 of a table."""

    def __init__(self, table):
        super().__init__(dim=table.shape[1])
        self.table = table

    def _encode(self, texts):
        return self.table[[int(text) for text in texts]]


@pytest.fixture(scope="session")
def make_table_encoder():
    return TableEncoder


def clustered_vectors(count, *, dim=32, seed=0):
    generator = np.random.default_rng(seed)
    centres = generator.standard_normal((40, dim))
    vectors = centres[generator.integers(0, 40, count)] + 0.6 * generator.standard_normal(
        (count, dim)
    )
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="session")
def table():
    return clustered_vectors(3000)


@pytest.fixture(scope="session")
def table_folder(table, tmp_path_factory):
    from dptdr.records import Document, Passage
    from dptdr.search.vectors.documents import Source
    from dptdr.search.vectors.encoding import EncodeSettings, encode_folder

    documents = [
        Document(Passage(f"d{n}", str(n)), {"lang": "de" if n % 10 == 0 else "en"})
        for n in range(len(table))
    ]
    return encode_folder(
        TableEncoder(table),
        documents,
        out=tmp_path_factory.mktemp("table") / "v",
        source=Source(fingerprint="table"),
        settings=EncodeSettings(shard_size=700),
    )
