import json

import numpy as np
import pandas as pd
import pytest

from dptdr.data.formats.columns import TableSettings
from dptdr.data.formats.pairs import folder_from_records
from dptdr.data.formats.pairstore import text_id
from dptdr.data.training_files import read_groups
from dptdr.errors import ConfigError, DataError
from dptdr.io.beir import BeirFolder


def texts(folder, split="train"):
    """The judgements of a folder by text."""
    folder = BeirFolder(folder)
    passages = {passage.id: passage.content for passage in folder.passages()}
    queries = {query.id: query.text for query in folder.queries()}
    return {
        queries[query]: {passages[passage]: grade for passage, grade in grades.items()}
        for query, grades in folder.qrels(split).items()
    }


@pytest.mark.parametrize(
    "rows",
    [
        [("zip", "open an archive"), ("csv", "read rows")],
        [{"query": "zip", "positive": "open an archive"}, {"anchor": "csv", "answer": "read rows"}],
        pd.DataFrame({"Question": ["zip", "csv"], "Answer": ["open an archive", "read rows"]}),
        {"train": iter([["zip", "open an archive"], ["csv", "read rows"]])},
        [{"query": "zip", "positives": ["open an archive"]}, ("csv", "read rows")],
    ],
)
def test_pairs_in_any_form_become_the_same_folder(tmp_path, rows):
    done = folder_from_records(rows, out=tmp_path / "data")

    assert texts(tmp_path / "data") == {"zip": {"open an archive": 1}, "csv": {"read rows": 1}}
    assert [query.id for query in BeirFolder(tmp_path / "data").queries()] == [
        text_id("zip"),
        text_id("csv"),
    ]
    assert done.counts.judgements == {"train": 2}


def test_negatives_become_a_training_file_without_what_answers_the_query(tmp_path):
    rows = [("a", "p1", "n1", "p2"), ("b", "p3", "n1"), ("a", "p2", None), ("b", "p3", "b")]

    done = folder_from_records(rows, out=tmp_path / "data")

    folder = BeirFolder(tmp_path / "data")
    groups = list(read_groups(tmp_path / "data" / "negatives-train.jsonl", folder=folder))
    assert [(group.query, group.positives, group.negatives) for group in groups] == [
        ("a", ("p1", "p2"), ("n1",)),
        ("b", ("p3",), ("n1",)),
    ]
    assert done.negatives == {"train": 2}
    assert done.dropped == {
        "duplicate pairs": 1,
        "negatives that are a positive": 1,
        "negatives that are the query itself": 1,
    }


def test_what_is_dropped_is_counted_by_reason(tmp_path):
    rows = [("a", "p"), ("a", "p"), ("", "p"), ("a", "  "), (None, None), ("same", "same")]

    done = folder_from_records(rows, out=tmp_path / "data")

    assert done.dropped == {
        "duplicate pairs": 1,
        "rows without a query": 2,
        "rows without a positive": 1,
        "pairs of a text with itself": 1,
    }
    meta = json.loads((tmp_path / "data" / "meta.json").read_text(encoding="utf-8"))
    assert meta["dropped"] == done.dropped


def test_clicks_are_grades_and_add_up(tmp_path):
    rows = [
        {"query": "q", "document": document, "clicks": clicks}
        for document, clicks in [("a", 3), ("b", "1"), ("a", np.int64(4)), ("c", 0)]
    ]

    folder_from_records(rows, out=tmp_path / "data")

    assert texts(tmp_path / "data") == {"q": {"a": 7, "b": 1, "c": 0}}


def test_scores_are_grades_and_the_highest_of_a_pair_counts(tmp_path):
    rows = [
        {"query": "q", "positive": text, "score": score}
        for text, score in [("a", 2), ("b", 0.0), ("a", 3), ("c", None)]
    ]

    done = folder_from_records(rows, out=tmp_path / "data")

    assert texts(tmp_path / "data") == {"q": {"a": 3, "b": 0}}
    assert done.dropped == {"duplicate pairs": 1, "rows without a score": 1}


def test_a_least_score_divides_relevant_from_not(tmp_path):
    rows = [{"query": "q", "positive": text, "score": s} for text, s in [("a", 0.5), ("b", 0.4)]]

    folder_from_records(rows, out=tmp_path / "data", settings=TableSettings(min_score=0.5))

    assert texts(tmp_path / "data") == {"q": {"a": 1, "b": 0}}


def test_held_out_queries_keep_their_pairs_together_and_the_seed_decides(tmp_path):
    rows = [(f"q{number % 200}", f"p{number}") for number in range(400)]
    splits = {}
    for name, seed, order in (("a", 0, 1), ("b", 0, -1), ("c", 1, 1)):
        settings = TableSettings(dev_share=0.2, test_share=0.1, seed=seed)
        folder_from_records(rows[::order], out=tmp_path / name, settings=settings)
        splits[name] = {
            split: texts(tmp_path / name, split) for split in BeirFolder(tmp_path / name).splits()
        }

    assert splits["a"] == splits["b"]
    assert splits["a"] != splits["c"]
    assert all(len(found) == 2 for split in splits["a"].values() for found in split.values())
    assert sum(map(len, splits["a"].values())) == 200
    assert 25 <= len(splits["a"]["dev"]) <= 55
    assert 10 <= len(splits["a"]["test"]) <= 30


def test_named_splits_are_ours_and_shared_queries_are_said(tmp_path):
    done = folder_from_records(
        {"train": [("a", "p"), ("b", "q")], "validation": [("a", "r")]}, out=tmp_path / "data"
    )

    assert BeirFolder(tmp_path / "data").splits() == ["train", "dev"]
    assert done.notes == ("1 queries are in more than one split",)


def test_columns_of_other_names_are_named(tmp_path):
    rows = [{"frage": "a", "antwort": "b", "falsch": "c", "thema": "T", "x": 1}]
    settings = TableSettings(
        query_column="frage",
        positive_column="antwort",
        negative_columns=("falsch",),
        title_column="thema",
    )

    done = folder_from_records(rows, out=tmp_path / "data", settings=settings)

    assert texts(tmp_path / "data") == {"a": {"T b": 1}}
    assert done.read_as == (
        "records: triplets in Python objects (query = frage; positive = antwort; "
        "negatives = falsch; title = thema; unused = x)"
    )


def test_named_tuples_are_read_by_name(tmp_path):
    frame = pd.DataFrame({"positive": ["p", "r"], "query": ["a", "b"]})

    folder_from_records(frame.itertuples(), out=tmp_path / "data")

    assert texts(tmp_path / "data") == {"a": {"p": 1}, "b": {"r": 1}}


def test_negatives_with_the_text_of_a_titled_positive_are_dropped(tmp_path):
    rows = [{"query": "a", "positive": "b", "title": "T", "negative": text} for text in ("b", "c")]

    done = folder_from_records(rows, out=tmp_path / "data")

    assert done.dropped["negatives that are a positive"] == 1
    (line,) = (tmp_path / "data" / "negatives-train.jsonl").read_text().splitlines()
    assert len(json.loads(line)["negatives"]) == 1


@pytest.mark.parametrize(
    ("rows", "settings", "message"),
    [
        (
            [{"text": "a", "id": 1}],
            {"query_column": "ask"},
            "row 1: no column 'ask'; expected a column positive or positives or answer or passage "
            "or document (or --positive-column); the columns are: text, id",
        ),
        (
            [{"query": "a", "answer": "b", "passage": "c"}],
            {},
            "row 1: answer or passage: choose one with --positive-column; "
            "the columns are: query, answer, passage",
        ),
        ([("a", "b"), ("a", ["b"])], {}, "row 2, field 'positive': expected a text, got a list"),
        (
            [{"query": "a", "positives": "b"}],
            {},
            "row 1, field 'positives': expected a list of strings, got the text 'b'",
        ),
        ([("a", "b"), 7], {}, "row 2: expected a dict or a tuple of strings, got the number 7"),
        ([("a", "b"), ("a",)], {}, "row 2: expected a query and a positive, got 1 values"),
        (
            [{"query": "a", "positive": "b", "score": 0.7}],
            {},
            "row 1, field 'score': expected a whole number, got 0.7; "
            "name the score of a relevant pair by --min-score",
        ),
        (
            [{"query": "a", "positive": "b", "score": 2**40}],
            {},
            "row 1, field 'score': expected grades up to 1,000,000, equal pairs together, got "
            "1,099,511,627,776; scale them down",
        ),
        (
            [{"query": "a", "positive": "b", "clicks": -1}],
            {},
            "row 1, field 'clicks': expected a whole number of at least 0, got -1",
        ),
        (
            [("a", "b")],
            {"min_score": 0.5},
            "row 1: no score column for --min-score; the columns are: query, positive",
        ),
        (
            [("a", "\ud800")],
            {},
            "row 1, field 'positive': cannot encode as UTF-8: surrogates not allowed",
        ),
        ([("a", "")], {}, "no pair is left of 1 rows: 1 rows without a positive"),
        ([], {}, "expected rows, got none"),
    ],
)
def test_bad_rows_are_refused_and_nothing_is_written(tmp_path, rows, settings, message):
    with pytest.raises(DataError) as caught:
        folder_from_records(rows, out=tmp_path / "data", settings=TableSettings(**settings))

    assert str(caught.value) == message
    assert not list(tmp_path.iterdir())


def test_a_share_of_a_split_that_is_there_is_refused(tmp_path):
    with pytest.raises(DataError, match="has a split 'dev'; omit --dev-share"):
        folder_from_records(
            {"train": [("a", "b")], "dev": [("c", "d")]},
            out=tmp_path / "data",
            settings=TableSettings(dev_share=0.1),
        )
    with pytest.raises(ConfigError, match="expected non-negative shares"):
        TableSettings(dev_share=0.5, test_share=0.5)
