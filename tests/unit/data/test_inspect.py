import json
from pathlib import Path

import pytest

from dptdr.data.inspect import Inspection, inspect_folder
from dptdr.errors import DataError
from dptdr.io.beir import write_beir
from dptdr.records import Passage, Query


def write(folder: Path, **files: str) -> Path:
    (folder / "qrels").mkdir(parents=True)
    for name, content in files.items():
        path = "qrels/" + name if name in ("train", "test", "dev") else name
        suffix = ".tsv" if path.startswith("qrels/") else ".jsonl"
        (folder / f"{path}{suffix}").write_text(content, encoding="utf-8")
    return folder


def found(inspection: Inspection) -> dict[str, tuple[str, int]]:
    return {problem.kind: (problem.severity, problem.count) for problem in inspection.problems}


def examples(inspection: Inspection, kind: str) -> tuple[str, ...]:
    return next(problem.examples for problem in inspection.problems if problem.kind == kind)


def test_a_sound_folder_has_counts_lengths_grades_and_no_problem(tmp_path: Path):
    write_beir(
        tmp_path / "d",
        passages=[Passage("0", "one two"), Passage("1", "three", "title"), Passage("2", "aé")],
        queries=[Query("a", "what is one"), Query("b", "why")],
        qrels={"train": {"a": {"0": 2, "1": 0}}, "test": {"b": {"1": 1}}},
        meta={},
    )

    inspection = inspect_folder(tmp_path / "d")

    assert inspection.problems == ()
    assert inspection.passages.count == 3
    assert inspection.passages.titled == 1
    assert inspection.passages.characters.max == len("title three")
    assert inspection.passages.characters.median == 7
    assert inspection.passages.words.mean == 1.7
    assert inspection.queries.count == 2
    assert inspection.splits["train"].grades == {0: 1, 2: 1}
    assert inspection.splits["train"].positives == 1
    assert inspection.splits["test"].queries == 1
    assert json.loads(json.dumps(inspection.as_json()))["splits"]["test"]["judgements"] == 1


def test_all_problems_are_reported_at_once_with_their_places(tmp_path: Path):
    folder = write(
        tmp_path / "d",
        corpus=(
            '{"_id": "0", "text": "same"}\n'
            '{"_id": "0", "text": "same"}\n'
            '{"_id": "2", "text": " "}\n'
            '{"_id": "3", "text": "", "title": "only"}\n'
            '{"_id": 4.5, "text": "x"}\n'
            '{"_id": "5", "te\n'
        ),
        queries=(
            '{"_id": "a", "text": "alike"}\n'
            '{"_id": "b", "text": "alike"}\n'
            '{"_id": "a", "text": "again"}\n'
            '{"_id": "c", "text": ""}\n'
        ),
        train="query-id\tcorpus-id\tscore\na\t0\t1\na\t9\t1\nnobody\t0\t1\nc\t0\t0\n",
        test="a\t0\t1\na\t0\t2\nb\t3\tx\nb\t3\t1\n",
    )

    inspection = inspect_folder(folder)

    assert found(inspection) == {
        "duplicate passage id": ("error", 1),
        "empty passage": ("error", 1),
        "broken line": ("error", 3),
        "duplicate query id": ("error", 1),
        "empty query": ("error", 1),
        "judgement of an unknown passage": ("error", 1),
        "judgement of an unknown query": ("error", 1),
        "contradicting judgements": ("error", 1),
        "duplicate passage text": ("warning", 1),
        "passage without text": ("warning", 1),
        "query without a positive": ("warning", 1),
        "no header": ("warning", 1),
        "query in several splits": ("warning", 1),
        "same query text in several splits": ("warning", 1),
    }
    assert [problem.severity for problem in inspection.problems] == ["error"] * 8 + ["warning"] * 6
    assert len(inspection.errors) == 8
    assert len(inspection.warnings) == 6
    assert examples(inspection, "duplicate passage id") == (
        "corpus.jsonl:2: '0' is already on line 1",
    )
    assert examples(inspection, "duplicate passage text") == (
        "corpus.jsonl:2: same text as on line 1",
    )
    assert examples(inspection, "empty passage") == (
        "corpus.jsonl:3: '2' has neither title nor text",
    )
    broken = examples(inspection, "broken line")
    assert broken[0] == ("corpus.jsonl:5, field '_id': expected a string, got the number 4.5")
    assert broken[1].startswith("corpus.jsonl:6: expected a JSON object in one line, ")
    assert broken[2] == "qrels/test.tsv:3, field 'score': expected an integer, got 'x'"
    assert examples(inspection, "judgement of an unknown passage") == ("qrels/train.tsv:3: '9'",)
    assert examples(inspection, "judgement of an unknown query") == ("qrels/train.tsv:4: 'nobody'",)
    assert examples(inspection, "contradicting judgements") == (
        "qrels/test.tsv:2: 'a' and '0' have grades 1 and 2",
    )
    assert examples(inspection, "query without a positive") == ("qrels/train.tsv:5: 'c'",)
    assert examples(inspection, "query in several splits") == (
        "queries.jsonl:1: 'a' is in train, test",
    )
    assert examples(inspection, "same query text in several splits") == (
        "queries.jsonl:2: 'b' of test has the same text as 'a' of train",
    )


def test_examples_are_capped_and_counts_are_not(tmp_path: Path):
    folder = write(
        tmp_path / "d",
        corpus='{"_id": "p", "text": "x"}\n',
        queries='{"_id": "q", "text": "x"}\n',
        test="query-id\tcorpus-id\tscore\n" + "".join(f"q\tgone{i}\t1\n" for i in range(40)),
    )

    (problem,) = inspect_folder(folder).problems

    assert problem.count == 40
    assert problem.examples == tuple(f"qrels/test.tsv:{i + 2}: 'gone{i}'" for i in range(5))


def test_a_corpus_alone_is_reported_without_failing(tmp_path: Path):
    (tmp_path / "corpus.jsonl").write_text("")

    assert found(inspect_folder(tmp_path)) == {
        "no passages": ("error", 1),
        "no queries": ("error", 1),
        "no judgements": ("warning", 1),
    }


def test_a_missing_folder_is_an_error(tmp_path: Path):
    with pytest.raises(DataError, match="no such folder"):
        inspect_folder(tmp_path / "gone")


def test_progress_ends_at_all_bytes(tmp_path: Path):
    folder = write(
        tmp_path / "d",
        corpus="".join(f'{{"_id": "{i}", "text": "{i}"}}\n' for i in range(6000)),
        queries="",
    )
    told: list[tuple[int, int]] = []

    inspect_folder(folder, on_progress=lambda done, total: told.append((done, total)))

    size = (folder / "corpus.jsonl").stat().st_size
    assert len(told) == 2
    assert 0 < told[0][0] < size
    assert told[-1] == (size, size)
