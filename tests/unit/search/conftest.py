import numpy as np
import pytest

from helpers.encoders import HashEncoder


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
