import json

import numpy as np
import pytest

from dptdr.config.training import TrainingConfig
from dptdr.errors import ConfigError, DataError, TrainingError
from dptdr.io.beir import BeirFolder, write_beir
from dptdr.records import Passage, Query

TEXTS = {"q0": "Red car", "q1": "blue boat", "q2": "old house", "q3": "red  CAR", "q4": "fast dog"}


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "data"
    write_beir(
        path,
        passages=[Passage(f"p{i}", f"passage {i}") for i in range(8)],
        queries=[Query(q, text) for q, text in TEXTS.items()],
        qrels={"train": {"q1": {"p1": 1}, "q2": {"p2": 1}}, "dev": {"q0": {"p0": 1}}},
        meta={},
    )
    return BeirFolder(path)


def write_lines(path, *records):
    path.write_text("\n".join(json.dumps(record) for record in records) + "\n", encoding="utf-8")
    return path


def load(folder, path, **settings):
    from dptdr.training.preparation import load_data

    return load_data(folder, TrainingConfig(dev_passages=5, **settings), negatives=path)


def groups_of(data):
    return [data.groups[item] for item in range(len(data.groups))]


def mined(query_id, positives=("p1",), **more):
    return {
        "query_id": query_id,
        "positives": list(positives),
        "negatives": [{"id": "p5", "sources": {"bm25": {"rank": 1, "score": 2.0}}}],
        **more,
    }


def test_mined_negatives_are_read_without_dev_queries(tmp_path, folder):
    # q3 is the dev query q0 in other letters.
    path = write_lines(tmp_path / "mined.jsonl", *(mined(f"q{i}") for i in range(5)))
    data = load(folder, path)
    assert [g.query_id for g in groups_of(data)] == ["q1", "q2", "q4"]
    assert groups_of(data)[0].positives == ("passage 1",)
    assert groups_of(data)[0].negatives == ("passage 5",)
    assert data.facts["train_queries"] == 3
    assert data.facts["train_queries_left_out_as_dev"] == 2
    assert data.facts["training_file_format"] == "mined"


def test_queries_without_positive_are_left_out_and_counted(tmp_path, folder):
    path = write_lines(tmp_path / "mined.jsonl", mined("q1"), mined("q2", ()), mined("q4"))
    data = load(folder, path)
    assert [g.query_id for g in groups_of(data)] == ["q1", "q4"]
    assert data.facts["train_queries_without_positive"] == 1


def test_blank_lines_do_not_shift_rows(tmp_path, folder):
    path = tmp_path / "mined.jsonl"
    lines = [json.dumps(mined("q0")), "", json.dumps(mined("q1")), "   ", json.dumps(mined("q4"))]
    path.write_text("\n".join(lines), encoding="utf-8")
    assert [g.query_id for g in groups_of(load(folder, path))] == ["q1", "q4"]


def test_tevatron_files_are_told_by_text_since_their_ids_are_their_own(tmp_path, folder):
    def record(query_id, query):
        return {
            "query_id": query_id,
            "query": query,
            "positive_passages": [{"docid": "x", "title": "T", "text": "right"}],
            "negative_passages": [{"docid": "y", "title": "", "text": "wrong"}],
        }

    path = write_lines(
        tmp_path / "tevatron.jsonl",
        record("q0", "another question with the id of a dev query"),
        record("77", "RED car"),
        record("78", "green tree"),
    )
    data = load(folder, path)
    assert [g.query_id for g in groups_of(data)] == ["q0", "78"]
    assert groups_of(data)[1].positives == ("T right",)
    assert data.facts["training_file_format"] == "tevatron"


def test_dpr_files_are_read_as_they_are(tmp_path, folder):
    def record(question, positives):
        return {
            "question": question,
            "answers": ["a"],
            "positive_ctxs": positives,
            "hard_negative_ctxs": [{"title": "", "text": "hard", "passage_id": "9"}],
            "negative_ctxs": [],
        }

    right = [{"title": "T", "text": "right", "passage_id": "1"}]
    path = tmp_path / "dpr.json"
    records = [record("green tree", right), record("Red car", right), record("no answer", [])]
    path.write_text(json.dumps(records, indent=1), encoding="utf-8")
    data = load(folder, path)
    assert [g.query for g in groups_of(data)] == ["green tree"]
    assert groups_of(data)[0].negatives == ("hard",)
    assert data.facts["train_queries_left_out_as_dev"] == 1
    assert data.facts["train_queries_without_positive"] == 1


def test_a_training_file_needs_no_train_qrels(tmp_path, folder):
    (folder.path / "qrels" / "train.tsv").unlink()
    path = write_lines(tmp_path / "mined.jsonl", mined("q1"), mined("q2"))
    assert load(BeirFolder(folder.path), path).facts["train_queries"] == 2


def test_held_out_queries_are_left_out_where_there_is_no_dev_split(tmp_path, folder):
    (folder.path / "qrels" / "dev.tsv").unlink()
    path = write_lines(tmp_path / "mined.jsonl", mined("q1"), mined("q2"))
    data = load(BeirFolder(folder.path), path)
    (dev,) = data.dev.qrels
    assert {dev, groups_of(data)[0].query_id} == {"q1", "q2"}
    assert data.facts["dev_split"] == "held out from train"


def test_a_file_with_nothing_left_is_refused(tmp_path, folder):
    path = write_lines(tmp_path / "mined.jsonl", mined("q0"), mined("q1", ()))
    words = r"mined\.jsonl: no training groups left; 1 belong to dev queries, 1 have no pos"
    with pytest.raises(TrainingError, match=words):
        load(folder, path)


def test_broken_json_is_found_before_training(tmp_path, folder):
    path = tmp_path / "mined.jsonl"
    lines = [json.dumps(mined("q1"))] * 6
    path.write_text("\n".join([*lines, '{"query_id": ']), encoding="utf-8")
    with pytest.raises(DataError, match=r"mined\.jsonl, line 7: expected a JSON object"):
        load(folder, path)


def test_an_unknown_passage_is_named_with_its_line(tmp_path, folder):
    path = write_lines(tmp_path / "mined.jsonl", mined("q1"), mined("q2", ["nowhere"]))
    with pytest.raises(DataError, match=r"line 2, field 'positives': passage 'nowhere' is not in"):
        groups_of(load(folder, path))


@pytest.mark.parametrize("kind", ["kl", "margin-mse"])
def test_distillation_without_scores_is_refused(tmp_path, folder, kind):
    path = write_lines(tmp_path / "mined.jsonl", mined("q1"), mined("q2"))
    with pytest.raises(ConfigError, match=f"distillation '{kind}': expected teacher scores"):
        load(folder, path, distillation=kind)


def test_scores_of_the_file_reach_the_groups(tmp_path, folder):
    record = mined("q1", positive_teacher=[4.5])
    record["negatives"][0]["teacher"] = -1.5
    path = write_lines(tmp_path / "mined.jsonl", record)
    data = load(folder, path, distillation="margin-mse")
    assert groups_of(data)[0].positive_scores == (4.5,)
    assert groups_of(data)[0].negative_scores == (-1.5,)


def test_rows_are_held_as_numbers_not_as_texts(tmp_path, folder):
    path = write_lines(tmp_path / "mined.jsonl", *[mined("q1")] * 50)
    data = load(folder, path)
    assert isinstance(data.groups.rows, np.ndarray)
    assert data.groups.rows.nbytes == 50 * 8


def test_token_ids_are_texts_of_the_encoders_tokenizer_and_of_no_other(folder, tmp_path, tiny_bert):
    """The authors' files: query and passages as lists of ids."""
    from dptdr.data.tokens import TokenTexts
    from dptdr.training.filegroups import FileGroups

    def ids(text):
        return tiny_bert.tokenizer(text, add_special_tokens=False)["input_ids"]

    def record(query):
        negatives = [ids("a dog"), ids("the river")]
        return {"query": ids(query), "positives": [ids("the red boat")], "negatives": negatives}

    path = write_lines(tmp_path / "t.jsonl", record("the old train"), record("a dog"))
    tokens = TokenTexts(tiny_bert.tokenizer)
    groups = FileGroups(path, folder=folder, held_out={"q": "A dog"}, tokens=tokens)
    assert (groups.held_out, len(groups)) == (1, 1)
    group = groups[0]
    assert (group.query, group.positives) == ("the old train", ("the red boat",))
    assert group.negatives == ("a dog", "the river")
    with pytest.raises(DataError, match="line 1, field 'query': contains token ids"):
        FileGroups(path, folder=folder, held_out={})
    far = write_lines(tmp_path / "far.jsonl", {"query": [10**6], "positives": [[1]]})
    with pytest.raises(DataError, match=r"of this encoder's tokenizer, 0 to .*, got 1000000"):
        FileGroups(far, folder=folder, held_out={}, tokens=TokenTexts(tiny_bert.tokenizer))


def test_negatives_that_are_a_positive_are_dropped_and_counted_once_for_the_file(
    tmp_path, folder, capsys
):
    path = write_lines(tmp_path / "mined.jsonl", mined("q1", ["p5", "p1"]), mined("q2"))
    groups = groups_of(load(folder, path))
    assert [group.negative_ids for group in groups] == [(), ("p5",)]
    assert "mined.jsonl: dropped 1 negatives that are a positive\n" in capsys.readouterr().err
