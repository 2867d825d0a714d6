"""Corpus, judgements and runs as arrays."""

import numpy as np
import pytest

from dptdr.errors import DataError, NegativesError
from dptdr.io.ids import normalised
from dptdr.mining.corpus import CorpusTable, JudgementTable
from dptdr.mining.runtable import RunTable, RunTableWriter, import_run
from dptdr.records import Passage


@pytest.fixture
def corpus():
    return CorpusTable.build(
        [
            Passage("0", "Same  Text", title="A"),
            Passage("b", "same text", title="B"),
            Passage("é", "", title="Only a title"),
            Passage("d", "ﬁnal"),
            Passage("0", "an id that occurs twice"),
        ]
    )


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("A  b\n", "a B"),
        ("ﬁnal", "FINAL"),
        ("e\u0301", "É"),
        ("ｆｕｌｌ", "full"),
        ("Straße", "STRASSE"),
    ],
)
def test_normalised_takes_forms_of_one_text_for_the_same(one, other):
    assert normalised(one) == normalised(other)


def test_normalised_keeps_words_apart():
    assert normalised("co-op") != normalised("coop")


def test_corpus_finds_rows_and_first_of_doubled_ids(corpus):
    assert corpus.rows_of(["d", "nope", "0", "é"]).tolist() == [3, -1, 0, 2]
    assert [corpus.ids[row] for row in range(5)] == ["0", "b", "é", "d", "0"]
    assert corpus.characters.tolist() == [12, 11, 13, 4, 23]


def test_corpus_knows_same_texts_without_their_titles(corpus):
    hashes = corpus.text_hashes.tolist()
    assert hashes[0] == hashes[1]
    assert len(set(hashes)) == 4


def test_corpus_without_passages_is_refused():
    with pytest.raises(NegativesError, match="got no passages"):
        CorpusTable.build([])


@pytest.mark.parametrize(
    ("last", "conflicting"), [(("q", "b", 0), True), (("q", "b", 1), False), (("r", "b", 0), False)]
)
def test_judgements_say_whether_grades_conflict(corpus, last, conflicting):
    triples = [("q", "b", 1), ("q", "d", 2), last]

    assert JudgementTable.build(triples, corpus=corpus).conflicting == conflicting


def test_judgements_are_found_by_query_in_their_order(corpus):
    table = JudgementTable.build(
        [("q2", "b", 1), ("q1", "d", 2), ("q2", "gone", 1), ("q2", "0", 0)], corpus=corpus
    )
    rows, grades = table.of("q2")
    assert (rows.tolist(), grades.tolist()) == ([1, -1, 0], [1, 1, 0])
    assert table.of("q3") is None
    assert table.queries == 2


def test_run_table_reads_back_what_was_written_in_parts(tmp_path):
    writer = RunTableWriter(tmp_path / "run", fingerprint="f")
    writer.write_part([("a", [3, 1], [0.5, 0.25]), ("none", [], [])])
    # A kill here: the next writer goes on behind the part that is whole.
    writer = RunTableWriter(tmp_path / "run", fingerprint="f")
    assert (writer.parts, writer.finished) == (1, False)
    writer.write_part([("b", [2], [0.1])])
    table = writer.finish()
    assert RunTableWriter(tmp_path / "run", fingerprint="f").finished
    ranking = table.ranking("a", depth=1)
    assert (ranking.rows.tolist(), ranking.scores.tolist()) == ([3], [0.5])
    assert table.ranking("b", depth=9).rows.tolist() == [2]
    assert table.ranking("none", depth=9).rows.tolist() == []
    assert table.ranking("c", depth=9) is None
    assert len(table.query_hashes()) == 3


def test_run_table_of_another_origin_is_begun_anew(tmp_path):
    RunTableWriter(tmp_path / "run", fingerprint="f").write_part([("a", [3], [0.5])])
    writer = RunTableWriter(tmp_path / "run", fingerprint="g")
    assert writer.parts == 0
    assert writer.finish().ranking("a", depth=1) is None


def test_run_table_that_is_unfinished_is_refused(tmp_path):
    RunTableWriter(tmp_path / "run", fingerprint="f")
    with pytest.raises(DataError, match="no such file"):
        RunTable(tmp_path / "run")


def test_import_run_orders_by_score_and_joins_lines_that_stand_apart(tmp_path, corpus):
    run = tmp_path / "run.trec"
    run.write_text("q Q0 b 2 1.0 t\nq Q0 d 1 3.0 t\nr Q0 d 1 1 t\nq Q0 0 3 2.0 t\n")
    table = import_run(tmp_path / "table", run=run, corpus=corpus, fingerprint="f")
    ranking = table.ranking("q", depth=3)
    assert ranking.rows.tolist() == [3, 0, 1]
    assert ranking.scores.tolist() == [3.0, 2.0, 1.0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("q Q0 b 1 2 t\nq Q0 zz 2 1 t\n", "line 2: passage 'zz' is not in the corpus"),
        ("q Q0 b 1 2 t\nq Q0 b 2 1 t\n", "line 2: query 'q' lists passage 'b' a second time"),
        ("", "expected a run, but the file is empty"),
        ("q Q0 b 1\n", "line 1: expected 6 fields"),
    ],
)
def test_import_run_names_file_and_line_of_what_is_wrong(tmp_path, corpus, text, message):
    run = tmp_path / "run.trec"
    run.write_text(text)
    with pytest.raises(DataError, match=message) as caught:
        import_run(tmp_path / "table", run=run, corpus=corpus, fingerprint="f")
    assert "run.trec" in str(caught.value)


def test_import_run_names_the_line_of_a_passage_that_is_listed_again_far_away(tmp_path, corpus):
    run = tmp_path / "run.trec"
    run.write_text("q Q0 b 1 2 t\nr Q0 b 1 1 t\nq Q0 b 2 1 t\n")
    for _ in range(2):
        with pytest.raises(DataError, match="line 3: query 'q' lists passage 'b' a sec"):
            import_run(tmp_path / "table", run=run, corpus=corpus, fingerprint="f")


def test_sampling_by_score_prefers_high_scores_and_by_uniform_none():
    from dptdr.mining.candidates import sampling_order

    texts = np.arange(10, dtype=np.uint64)
    scores = np.linspace(1, 0, 10)
    first = {"uniform": np.zeros(10), "score": np.zeros(10)}
    for name, counts in first.items():
        for query in range(2000):
            order = sampling_order(texts, scores, sampling=name, key=(0, f"q{query}", "s"))
            counts[int(order[0])] += 1
    weights = np.exp((scores - scores.mean()) / scores.std())
    # 2,000 draws: three standard errors are below .04.
    assert first["score"] / 2000 == pytest.approx(weights / weights.sum(), abs=0.04)
    assert first["uniform"] / 2000 == pytest.approx(np.full(10, 0.1), abs=0.03)
