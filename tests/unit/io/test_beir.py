import gzip
import json
from pathlib import Path

import pytest

from dptdr.errors import ConfigError, DataError, OutputError
from dptdr.io.beir import BeirFolder, write_beir
from dptdr.io.lines import raw_lines
from dptdr.io.store import PassageStore, QueryStore
from dptdr.records import Passage, Query

ODD = 'line separator \u2028 next line \x85 lone return \r tab \t quote " end'


def make(folder: Path, *, corpus: bytes = b"", queries: bytes = b"", **splits: bytes) -> BeirFolder:
    (folder / "qrels").mkdir(parents=True)
    (folder / "corpus.jsonl").write_bytes(corpus)
    (folder / "queries.jsonl").write_bytes(queries)
    for name, content in splits.items():
        (folder / "qrels" / f"{name}.tsv").write_bytes(content)
    return BeirFolder(folder)


def line(**fields: object) -> bytes:
    return json.dumps({("_id" if name == "id" else name): v for name, v in fields.items()}).encode()


GOOD = line(id="p", title="", text="a text") + b"\n"


def message(error: pytest.ExceptionInfo[DataError], folder: BeirFolder) -> str:
    return str(error.value).replace(f"{folder.path}/", "")


@pytest.mark.parametrize("split", ["../../x", "a/b", "a\0b", "\ud800", "x" * 300, ""])
def test_a_split_is_part_of_a_file_name(tmp_path: Path, split):
    with pytest.raises(ConfigError, match="expected the name of a split"):
        write_beir(
            tmp_path / "out",
            passages=[Passage("p", "text")],
            queries=[Query("q", "text")],
            qrels={split: {"q": {"p": 1}}},
            meta={},
        )
    assert not list(tmp_path.iterdir())


def test_a_written_folder_reads_back_the_same(tmp_path: Path):
    passages = [Passage("0", ODD, "title"), Passage("1", "", ""), Passage("é 2", "text")]
    queries = [Query("q0", "what \u2029 is it"), Query("0", "zero")]
    qrels = {"train": {"q0": {"0": 1, "1": 0}}, "test": {"0": {"é 2": 3}}}

    counts = write_beir(
        tmp_path / "made", passages=passages, queries=queries, qrels=qrels, meta={"source": "here"}
    )

    folder = BeirFolder(tmp_path / "made")
    assert list(folder.passages()) == passages
    assert list(folder.queries()) == queries
    assert {split: folder.qrels(split) for split in folder.splits()} == qrels
    assert counts == (3, 2, {"train": 2, "test": 1})
    assert folder.name == "made"
    assert json.loads((folder.path / "meta.json").read_text()) == {
        "source": "here",
        "counts": {"passages": 3, "queries": 2, "judgements": {"train": 2, "test": 1}},
        "written": ["corpus.jsonl", "qrels/test.tsv", "qrels/train.tsv", "queries.jsonl"],
    }


def test_meta_may_be_made_from_the_counts(tmp_path: Path):
    write_beir(
        tmp_path / "made",
        passages=[Passage("a", "b")],
        queries=[],
        qrels={},
        meta=lambda counts: {"one": counts.passages},
    )

    assert json.loads((tmp_path / "made" / "meta.json").read_text())["one"] == 1


@pytest.mark.parametrize("bad_id", ["", " ", "a\tb", "a\nb"])
def test_an_id_that_no_qrels_file_can_hold_is_refused_and_the_old_folder_stays(
    tmp_path: Path, bad_id: str
):
    target = tmp_path / "made"
    write_beir(target, passages=[Passage("old", "old")], queries=[], qrels={}, meta={})

    with pytest.raises(DataError, match="cannot write: "):
        write_beir(
            target,
            passages=[Passage("a", "x"), Passage(bad_id, "y")],
            queries=[],
            qrels={},
            meta={},
        )
    with pytest.raises(DataError, match="cannot write: "):
        write_beir(target, passages=[], queries=[], qrels={"test": {"q": {bad_id: 1}}}, meta={})

    assert [passage.id for passage in BeirFolder(target).passages()] == ["old"]
    assert [path.name for path in tmp_path.iterdir()] == ["made"]


def test_a_folder_that_somebody_else_made_is_not_replaced(tmp_path: Path):
    folder = make(tmp_path / "d", corpus=line(id="a", text="x"))
    (tmp_path / "link").symlink_to(folder.path)
    nothing = {"passages": [], "queries": [], "qrels": {}, "meta": {}}
    with pytest.raises(DataError, match=r"not written by dptdr \(it has no meta.json\)"):
        write_beir(folder.path, **nothing)
    with pytest.raises(DataError, match="expected a folder that is not a link"):
        write_beir(tmp_path / "link", **nothing)
    write_beir(tmp_path / "own", **nothing)
    (tmp_path / "own" / ".notes").write_text("mine")
    with pytest.raises(OutputError, match=r"files that would be lost \(.notes\)"):
        write_beir(tmp_path / "own", **nothing)
    (tmp_path / "own" / ".notes").unlink()
    write_beir(tmp_path / "own", **nothing)


def test_text_that_is_no_unicode_is_refused(tmp_path: Path):
    with pytest.raises(DataError, match=r"corpus.jsonl, line 1: cannot write 'a'"):
        write_beir(
            tmp_path / "made", passages=[Passage("a", "\ud800")], queries=[], qrels={}, meta={}
        )


@pytest.mark.parametrize(
    ("value", "wrong"),
    [
        ("12345678901234567890123", True),
        ('["a", -12345678901234567890123]', True),
        ('{"deep": [18446744073709551616]}', True),
        ("18446744073709551615", False),
        ("1e22", False),
        ("12345678901234567890123.0", False),
        ('"12345678901234567890123"', False),
    ],
)
def test_integers_that_would_be_rounded_are_refused(tmp_path: Path, value, wrong):
    corpus = b'{"_id": "a", "text": "x", "metadata": {"uid": %s}}' % value.encode()
    folder = make(tmp_path / "d", corpus=corpus)
    if not wrong:
        (document,) = folder.documents()
        assert document.metadata == {"uid": json.loads(value)}
        return
    with pytest.raises(DataError, match=r"line 1, .*metadata.*: expected integers of at most 64"):
        list(folder.documents())


@pytest.mark.parametrize("kind", ["gzip", "zstd", "xz", "zip"])
def test_compressed_files_without_their_suffix_are_named(tmp_path: Path, kind):
    start = {"gzip": b"\x1f\x8b\x08", "zstd": b"\x28\xb5\x2f\xfd", "xz": b"\xfd7zXZ\0"}
    folder = make(tmp_path / "d", corpus=start.get(kind, b"PK\x03\x04") + b"\xff\0\n{}")
    with pytest.raises(DataError, match=rf"line 1: expected UTF-8 text, got {kind} data"):
        list(folder.passages())


def test_a_missing_title_is_empty_and_unknown_fields_are_ignored(tmp_path: Path):
    folder = make(
        tmp_path / "d",
        corpus=line(id="a", text="x", metadata={"url": 1})
        + b"\n"
        + line(id="b", text="", title=None),
    )

    assert list(folder.passages()) == [Passage("a", "x", ""), Passage("b", "", "")]


def test_blank_lines_crlf_and_a_byte_order_mark_are_tolerated(tmp_path: Path):
    folder = make(
        tmp_path / "d",
        corpus=b"\xef\xbb\xbf" + line(id="0", text="x") + b"\r\n\r\n" + line(id="1", text="y"),
        test=b"query-id\tcorpus-id\tscore\r\nq\t0\t1\r\n\r\nq\t1\t2\r\n",
    )

    assert [passage.id for passage in folder.passages()] == ["0", "1"]
    assert folder.qrels("test") == {"q": {"0": 1, "1": 2}}


def test_qrels_without_header_are_read_from_the_first_line(tmp_path: Path):
    folder = make(tmp_path / "d", corpus=GOOD, test=b"q\t0\t1\nq\t1\t0\n")

    assert folder.qrels("test") == {"q": {"0": 1, "1": 0}}


def test_ids_that_are_numbers_are_read_as_texts(tmp_path: Path):
    folder = make(tmp_path / "d", corpus=b'{"_id": 7, "text": "x"}', test=b"q\t7\t1\n")

    assert [passage.id for passage in folder.passages()] == ["7"]
    assert folder.qrels("test") == {"q": {"7": 1}}


def test_splits_are_listed_in_the_usual_order(tmp_path: Path):
    folder = make(tmp_path / "d", corpus=GOOD, test=b"", dev=b"", train=b"", b=b"", a=b"")

    assert folder.splits() == ["train", "dev", "test", "a", "b"]
    assert folder.has_split("dev")
    assert not folder.has_split("eval")


def six() -> bytes:
    return b"".join(line(id=str(number), text="x") + b"\n" for number in range(1, 7))


@pytest.mark.parametrize(
    ("seventh", "expected"),
    [
        (b'{"_id": "p7", "text": ', "corpus.jsonl, line 7: expected a JSON object in one line, "),
        (b"[1, 2]", "corpus.jsonl, line 7: expected a JSON object in one line, got a list"),
        (b'{"text": "x"}', "corpus.jsonl, line 7, field '_id': missing; the record has text"),
        (b"{}", "corpus.jsonl, line 7, field '_id': missing; the record has no fields"),
        (
            b'{"_id": 7.5, "text": "x"}',
            "corpus.jsonl, line 7, field '_id': expected a string, got the number 7.5",
        ),
        (
            b'{"_id": "", "text": "x"}',
            "corpus.jsonl, line 7, field '_id': expected an id, got an empty string",
        ),
        (
            b'{"_id": "p7", "text": null}',
            "corpus.jsonl, line 7, field 'text': expected a string, got null",
        ),
        (
            b'{"_id": "p7", "text": "x", "title": ["a"]}',
            "corpus.jsonl, line 7, field 'title': expected a string, got a list",
        ),
        (
            b'{"_id": "p7", "text": "\xff"}',
            "corpus.jsonl, line 7: expected UTF-8 text, got 0xff at byte 24 of the line; "
            "save the file as UTF-8, or convert it (`iconv -f WINDOWS-1252 -t UTF-8`)",
        ),
    ],
)
def test_a_broken_passage_is_named_with_file_line_and_field(
    tmp_path: Path, seventh: bytes, expected: str
):
    folder = make(tmp_path / "d", corpus=six() + seventh + b"\n" + GOOD)

    with pytest.raises(DataError) as error:
        list(folder.passages())

    assert message(error, folder).startswith(expected)
    assert error.value.line == 7


def test_passages_before_the_broken_line_are_given(tmp_path: Path):
    folder = make(tmp_path / "d", corpus=six() + b"{")
    stream = folder.passages()

    assert [next(stream).id for _ in range(6)] == list("123456")
    with pytest.raises(DataError, match="line 7"):
        next(stream)


def test_a_broken_query_is_named_with_file_line_and_field(tmp_path: Path):
    folder = make(tmp_path / "d", corpus=GOOD, queries=b'{"_id": "q"}')

    with pytest.raises(DataError) as error:
        list(folder.queries())

    assert message(error, folder) == (
        "queries.jsonl, line 1, field 'text': missing; the record has _id"
    )


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (
            b"query-id\tcorpus-id\tscore\nq p 1\n",
            "qrels/test.tsv, line 2: expected 3 fields separated by tabs (query-id, corpus-id, "
            "score) or 4 fields (query-id, 0, passage-id, grade), got 3: 'q p 1'",
        ),
        (
            b"q\tp\t1\nq\tp",
            "qrels/test.tsv, line 2: expected 3 fields separated by tabs (query-id, corpus-id, "
            "score) or 4 fields (query-id, 0, passage-id, grade), got 2: 'q\\tp'",
        ),
        (
            b"query-id\tcorpus-id\tscore\nq\tp\t0.5\n",
            "qrels/test.tsv, line 2, field 'score': expected an integer, got '0.5'",
        ),
        (
            b"q\tp\thigh\n",
            "qrels/test.tsv, line 1, field 'score': expected an integer, got 'high'",
        ),
        (
            b"q\tp\t1_0\n",
            "qrels/test.tsv, line 1, field 'score': expected an integer, got '1_0'",
        ),
        (
            b"q\tp\t1732700000000\n",
            "qrels/test.tsv, line 1, field 'score': expected an integer from -1,000,000 to "
            "1,000,000, got 1732700000000",
        ),
        (
            b"q\t\t1\n",
            "qrels/test.tsv, line 1, field 'corpus-id': expected an id, got an empty string",
        ),
        (
            b"q\tp\t1\nq\tp\t0\n",
            "qrels/test.tsv, line 2: query 'q' and passage 'p' have "
            "conflicting grades 1 and 0; keep one",
        ),
    ],
)
def test_a_broken_judgement_is_named_with_file_line_and_field(
    tmp_path: Path, content: bytes, expected: str
):
    folder = make(tmp_path / "d", corpus=GOOD, test=content)

    with pytest.raises(DataError) as error:
        folder.qrels("test")

    assert message(error, folder) == expected


def test_a_missing_split_names_those_that_exist(tmp_path: Path):
    folder = make(tmp_path / "d", corpus=GOOD, test=b"", train=b"")

    with pytest.raises(DataError, match="no split 'dev'; this folder has train, test"):
        folder.qrels("dev")


def test_a_missing_folder_a_file_and_a_folder_without_corpus_are_told_apart(tmp_path: Path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()

    with pytest.raises(DataError, match="expected a BEIR folder"):
        BeirFolder(tmp_path / "nowhere")
    with pytest.raises(DataError, match="this is a file; expected a BEIR folder"):
        BeirFolder(tmp_path / "file")
    with pytest.raises(DataError, match=r"no corpus.jsonl in this folder"):
        BeirFolder(tmp_path / "empty")


def test_a_missing_queries_file_is_an_error_before_the_first_query(tmp_path: Path):
    folder = make(tmp_path / "d", corpus=GOOD)
    (folder.path / "queries.jsonl").unlink()

    with pytest.raises(DataError, match=r"queries.jsonl: no such file"):
        folder.queries()


def test_the_fingerprint_changes_with_any_byte_of_any_file_but_not_with_meta(tmp_path: Path):
    folder = make(tmp_path / "d", corpus=GOOD, queries=line(id="q", text="x"), test=b"q\tp\t1\n")
    seen = [folder.fingerprint()]
    for file in ("corpus.jsonl", "queries.jsonl", "qrels/test.tsv"):
        path = folder.path / file
        path.write_bytes(path.read_bytes() + b"\n")
        seen.append(folder.fingerprint())
    (folder.path / "qrels" / "dev.tsv").touch()
    seen.append(folder.fingerprint())
    (folder.path / "meta.json").write_text("{}")

    assert len(set(seen)) == 5
    assert folder.fingerprint() == seen[-1]


def test_a_folder_that_a_killed_writer_had_moved_aside_comes_back(tmp_path: Path):
    write_beir(tmp_path / "made", passages=[Passage("a", "x")], queries=[], qrels={}, meta={})
    (tmp_path / "made").rename(tmp_path / ".made.old")

    assert [passage.id for passage in BeirFolder(tmp_path / "made").passages()] == ["a"]


def test_gzip_is_unpacked_and_a_cut_archive_is_named(tmp_path: Path):
    whole = tmp_path / "lines.tsv.gz"
    whole.write_bytes(gzip.compress(b"a\nb\x0c\n\nc"))
    cut = tmp_path / "cut.tsv.gz"
    cut.write_bytes(whole.read_bytes()[:-9])

    assert list(raw_lines(whole)) == [(1, b"a"), (2, b"b\x0c"), (4, b"c")]
    with pytest.raises(DataError, match=r"cut.tsv.gz, line \d: cannot be read"):
        list(raw_lines(cut))


def test_a_folder_of_other_files_is_never_replaced(tmp_path: Path):
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "letter.txt").touch()
    (tmp_path / "empty").mkdir()

    with pytest.raises(DataError, match=r"contains other files and no corpus.jsonl"):
        write_beir(tmp_path / "home", passages=[], queries=[], qrels={}, meta={})
    with pytest.raises(DataError, match="expected an output folder, got a file"):
        write_beir(tmp_path / "home" / "letter.txt", passages=[], queries=[], qrels={}, meta={})
    write_beir(tmp_path / "empty", passages=[], queries=[], qrels={}, meta={})

    assert [file.name for file in (tmp_path / "home").iterdir()] == ["letter.txt"]
    assert (tmp_path / "empty" / "corpus.jsonl").exists()


def pack(path: Path) -> None:
    path.with_name(path.name + ".gz").write_bytes(gzip.compress(path.read_bytes()))
    path.unlink()


def test_packed_members_are_read_as_the_plain_ones(tmp_path: Path):
    written = {
        "passages": [Passage("a", "x"), Passage("b", "y")],
        "queries": [Query("q", "what")],
        "qrels": {"test": {"q": {"a": 1}}, "train": {"q": {"b": 1}}},
    }
    write_beir(tmp_path / "d", **written, meta={})
    for name in ("corpus.jsonl", "queries.jsonl", "qrels/test.tsv"):
        pack(tmp_path / "d" / name)
    folder = BeirFolder(tmp_path / "d")

    assert list(folder.passages()) == written["passages"]
    assert list(folder.queries()) == written["queries"]
    assert folder.splits() == ["train", "test"]
    assert {split: folder.qrels(split) for split in folder.splits()} == written["qrels"]
    assert PassageStore(folder)["b"] == Passage("b", "y")
    assert QueryStore(folder)["q"] == Query("q", "what")


def test_a_damaged_packed_corpus_is_one_error_for_streams_and_stores(tmp_path: Path):
    write_beir(tmp_path / "d", passages=[Passage("a", "x" * 999)], queries=[], qrels={}, meta={})
    pack(tmp_path / "d" / "corpus.jsonl")
    packed = tmp_path / "d" / "corpus.jsonl.gz"
    content = bytearray(packed.read_bytes())
    content[24] ^= 0xFF
    packed.write_bytes(content)
    folder = BeirFolder(tmp_path / "d")

    with pytest.raises(DataError, match=r"corpus.jsonl.gz.*: cannot be read"):
        list(folder.passages())
    with pytest.raises(DataError, match=r"corpus.jsonl.gz: cannot be read"):
        PassageStore(folder)


def test_hidden_files_are_no_splits(tmp_path: Path):
    folder = make(tmp_path / "d", corpus=GOOD, test=b"q\tp\t1\n")
    for name in ("._test.tsv", ".DS_Store", "._dev.tsv.gz"):
        (folder.path / "qrels" / name).write_bytes(b"\x00\x05")

    assert folder.splits() == ["test"]


@pytest.mark.parametrize("name", ["corpus.jsonl", "queries.jsonl"])
def test_an_id_that_is_there_twice_is_refused_with_both_lines(tmp_path: Path, name: str):
    lines = b"\n\n".join(line(id=i, text=i) for i in ("a", "b", "a"))
    folder = make(tmp_path / "d", corpus=GOOD)
    (folder.path / name).write_bytes(lines)
    noun = "passage" if name == "corpus.jsonl" else "query"
    expected = rf"{name}, line 5, field '_id': duplicate {noun} id 'a', first in line 1; delete"

    with pytest.raises(DataError, match=expected):
        list(folder.passages() if noun == "passage" else folder.queries())
    with pytest.raises(DataError, match=expected):
        PassageStore(folder) if noun == "passage" else QueryStore(folder)


def test_trec_judgements_of_four_columns_are_read(tmp_path: Path):
    folder = make(tmp_path / "d", corpus=GOOD, test=b"q 0 p 1\nq\tQ0\tp 2\t2\n")

    assert folder.qrels("test") == {"q": {"p": 1, "p 2": 2}}


def test_a_data_set_is_not_replaced_with_what_somebody_put_beside_it(tmp_path):
    target = tmp_path / "data"
    parts = {"passages": [Passage("a", "x")], "queries": [], "qrels": {}, "meta": {}}
    write_beir(target, **parts)
    write_beir(target, **parts)
    for name in ("thesis.txt", "negatives-train.jsonl", "qrels/dev.tsv", ".n.made.json"):
        (target / name).write_text("years of work")
        with pytest.raises(OutputError, match=rf"files that would be lost \({name}\)"):
            write_beir(target, **parts)
        assert (target / name).read_text() == "years of work"
        (target / name).unlink()
    # Earlier versions did not list what they wrote.
    (target / "meta.json").write_text("{}")
    (target / "negatives-train.jsonl").write_text("from a conversion")
    write_beir(target, **parts)
    assert not (target / "negatives-train.jsonl").exists()


def test_an_id_too_long_for_vector_folders_is_refused_by_file_and_line(tmp_path):
    (tmp_path / "corpus.jsonl").write_text(
        json.dumps({"_id": "é" * 512, "text": "a"})
        + "\n"
        + json.dumps({"_id": "é" * 512 + "b", "text": "b"})
    )
    words = r"corpus.jsonl, line 2.*expected an id of at most 1,024 bytes, got 1,025 bytes"
    with pytest.raises(DataError, match=words):
        list(BeirFolder(tmp_path).passages())


def test_a_plain_file_beside_a_compressed_one_is_refused(tmp_path):
    (tmp_path / "corpus.jsonl").write_text('{"_id": "a", "text": "one"}\n')
    (tmp_path / "corpus.jsonl.gz").write_bytes(b"")
    with pytest.raises(DataError, match=r"expected one file, got corpus.jsonl.gz beside it"):
        BeirFolder(tmp_path)
