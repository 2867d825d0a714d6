"""Any damage to a BM25 folder, qrels, a run or mined negatives is one error, or does no harm."""

import json
import shutil
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dptdr.data.training_files import GroupFile
from dptdr.errors import DptdrError
from dptdr.io.atomic import sha256_file
from dptdr.io.beir import BeirFolder, write_beir
from dptdr.io.resumable import ResumableFile
from dptdr.io.trec import read_qrels, read_run
from dptdr.mining.statistics import SourceCounts, Statistics
from dptdr.records import Passage, Query
from dptdr.search.bm25 import Bm25Index

QUIET = settings(
    max_examples=200,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
SMALL_MEMORY = 4 << 20
"""Bytes; far more than any of these files, far less than a forged size asks for."""

WORDS = ["red", "fox", "jumps", "over", "lazy", "dogs", "while", "cats", "sleep", "by", "river"]
PASSAGES = [Passage(f"p{n}", " ".join(WORDS[n : n + 4])) for n in range(10)]
QRELS = "query-id\tcorpus-id\tscore\n" + "".join(f"q{n}\tp{n}\t{n % 3}\n" for n in range(10))
RUN = "".join(f"q{n // 3} Q0 p{n} {n % 3 + 1} {9.5 - n} tag\n" for n in range(10))


@st.composite
def damages(draw):
    """Give a function from a file's bytes to damaged ones."""
    kind = draw(st.sampled_from(["byte", "byte", "cut", "swap", "double", "insert"]))
    place, byte = draw(st.integers(0, 5000)), draw(st.integers(0, 255))
    piece = draw(
        st.sampled_from(["\0", "\t", "\n", "9" * 5000, "[" * 2000, "NaN", "1e999", "\udcff", "١"])
    ).encode("utf-8", "surrogatepass")

    def damage(content):
        at = place % (len(content) + 1)
        return {
            "byte": content[:at] + bytes([byte]) + content[at + 1 :],
            "cut": content[:at],
            "swap": content[at:] + content[:at],
            "double": content + content[at:],
            "insert": content[:at] + piece + content[at:],
        }[kind]

    return damage


def one_error_or_none(use, name):
    """Run what reads a damaged file; return whether it was refused."""
    message = None
    tracemalloc.start()
    try:
        use()
    except DptdrError as error:
        message = str(error)
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak < SMALL_MEMORY
    if message is not None:
        assert any(place in message for place in (name, "BM25", "ids in UTF-8", "interrupted run"))
        assert "\n" not in message
    return message is not None


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    path = tmp_path_factory.mktemp("bm25") / "bm25"
    Bm25Index.build(PASSAGES).save(path)
    return path


def _search(path):
    index = Bm25Index.load(path)
    queries = [Query(f"q{n}", passage.content) for n, passage in enumerate(PASSAGES)]
    assert all(len(hits) <= 5 for hits in index.search(queries, depth=5).values())


FILES = ("data.csc.index", "indices.csc.index", "indptr.csc.index", "ids", "id_offsets")


@given(
    name=st.sampled_from([*(f"{name}.npy" for name in FILES), "vocab.index.json"]),
    damage=damages(),
)
@QUIET
def test_a_bm25_file_with_forged_size_and_checksum(words, name, damage):
    path, header = words / name, words / "bm25.json"
    whole, record = path.read_bytes(), header.read_bytes()
    try:
        path.write_bytes(damage(whole))
        forged = json.loads(record)
        forged["files"][name] = {"bytes": path.stat().st_size, "sha256": sha256_file(path)}
        header.write_text(json.dumps(forged))
        one_error_or_none(lambda: _search(words), str(words))
    finally:
        path.write_bytes(whole)
        header.write_bytes(record)


@given(damage=damages())
@QUIET
def test_a_damaged_bm25_header(words, damage):
    path = words / "bm25.json"
    whole = path.read_bytes()
    try:
        path.write_bytes(damage(whole))
        one_error_or_none(lambda: _search(words), str(words))
    finally:
        path.write_bytes(whole)


@pytest.mark.parametrize("name", ["vocab.index.json", "ids.npy", "bm25.json"])
def test_links_in_a_bm25_folder_are_refused(words, tmp_path, name):
    shutil.copytree(words, tmp_path / "bm25")
    (tmp_path / "bm25" / name).rename(tmp_path / "outside")
    (tmp_path / "bm25" / name).symlink_to(tmp_path / "outside")
    assert one_error_or_none(lambda: Bm25Index.load(tmp_path / "bm25"), name)


@pytest.mark.parametrize(
    "change", [{"files": {"../x": {}}}, {"settings": {"k1": 1}}, {"format": 3}]
)
def test_a_bm25_header_of_another_kind_is_refused(words, tmp_path, change):
    shutil.copytree(words, tmp_path / "bm25")
    path = tmp_path / "bm25" / "bm25.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    assert one_error_or_none(lambda: Bm25Index.load(tmp_path / "bm25"), "bm25.json")


@pytest.mark.parametrize(("read", "text"), [(read_qrels, QRELS), (read_run, RUN)])
@given(damage=damages())
@QUIET
def test_damaged_qrels_and_runs(tmp_path, read, text, damage):
    path = tmp_path / "file"
    path.write_bytes(damage(text.encode()))
    one_error_or_none(lambda: read(path), str(path))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    write_beir(
        tmp_path_factory.mktemp("data") / "d",
        passages=PASSAGES,
        queries=[Query(f"q{n}", "a question") for n in range(10)],
        qrels={},
        meta={},
    )
    return BeirFolder(next(iter(Path(tmp_path_factory.getbasetemp()).glob("data*/d"))))


MINED = "".join(
    json.dumps(
        {
            "query_id": f"q{n}",
            "positives": [f"p{n}"],
            "positive_teacher": [0.5],
            "negatives": [
                {
                    "id": f"p{(n + 1) % 10}",
                    "sources": {"a": {"rank": 1, "score": 2}},
                    "teacher": 0.1,
                }
            ],
        }
    )
    + "\n"
    for n in range(10)
)


@given(damage=damages())
@QUIET
def test_damaged_mined_negatives(folder, tmp_path, damage):
    path = tmp_path / "negatives.jsonl"
    path.write_bytes(damage(MINED.encode()))

    def read():
        groups = GroupFile(path, folder=folder)
        return [groups[row] for row in range(len(groups))]

    one_error_or_none(read, str(path))


@given(damage=damages())
@QUIET
def test_a_damaged_state_of_an_unfinished_mining(tmp_path, damage):
    path = tmp_path / "state.json"
    if not path.exists():
        file = ResumableFile(tmp_path)
        file.append_block(b"a line\n", extra=Statistics(sources={"a": SourceCounts()}).as_json())
        file.close()
    whole = path.read_bytes()
    try:
        path.write_bytes(damage(whole))

        def read():
            file = ResumableFile(tmp_path)
            file.close()
            if file.extra is not None:
                Statistics.from_json(file.extra)

        one_error_or_none(read, str(tmp_path))
    finally:
        path.write_bytes(whole)
        (tmp_path / "mined.jsonl").write_bytes(b"a line\n")
