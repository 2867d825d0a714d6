import pytest

from dptdr.config.training import TrainingConfig
from dptdr.errors import TrainingError
from dptdr.io.beir import BeirFolder, write_beir
from dptdr.records import Passage, Query
from helpers.tasks import tiny_data


def load(path, **settings):
    from dptdr.training.preparation import load_data

    return load_data(BeirFolder(path), TrainingConfig(**settings))


def write(path, *, queries, qrels, passages=6):
    write_beir(
        path,
        passages=[Passage(f"p{i}", f"passage {i}") for i in range(passages)],
        queries=[Query(f"q{i}", text) for i, text in enumerate(queries)],
        qrels=qrels,
        meta={},
    )
    return path


def test_train_and_held_out_queries_do_not_overlap(tmp_path):
    data = load(tiny_data(tmp_path / "data"))
    trained = {data.groups[i].query_id for i in range(len(data.groups))}
    assert len(data.dev.qrels) == 10
    assert trained.isdisjoint(data.dev.qrels)
    assert len(trained) + len(data.dev.qrels) == 24
    assert {q.id for q in data.dev.queries} == set(data.dev.qrels)
    judged = {p for judged in data.dev.qrels.values() for p in judged}
    assert judged <= {p.id for p in data.dev.passages}


def test_a_train_query_with_the_text_of_a_dev_query_is_left_out(tmp_path):
    qrels = {"train": {"q0": {"p0": 1}, "q1": {"p1": 1}}, "dev": {"q2": {"p2": 1}}}
    data = load(write(tmp_path / "data", queries=["one", "two", "one"], qrels=qrels))
    assert [data.groups[i].query_id for i in range(len(data.groups))] == ["q1"]


def test_it_is_left_out_also_where_the_dev_query_was_not_drawn(tmp_path):
    dev = {f"q{i}": {f"p{i}": 1} for i in (2, 3)}
    qrels = {"train": {"q0": {"p0": 1}, "q1": {"p1": 1}, "q4": {"p4": 1}}, "dev": dev}
    queries = ["one", "two", "one", "two", "three"]
    path = write(tmp_path / "data", queries=queries, qrels=qrels)
    data = load(path, dev_queries=1)
    assert len(data.dev.qrels) == 1
    assert [data.groups[i].query for i in range(len(data.groups))] == ["three"]


def test_queries_of_one_text_are_one_group_with_all_positives(tmp_path):
    qrels = {
        "train": {"q0": {"p0": 1, "p3": 0}, "q1": {"p1": 2}, "q3": {"p5": 0}},
        "dev": {"q2": {"p2": 1}},
    }
    data = load(write(tmp_path / "data", queries=["one", "one", "two", "three"], qrels=qrels))
    assert len(data.groups) == 1
    assert data.groups[0].positives == ("passage 0", "passage 1")
    assert data.facts["train_queries_without_positive"] == 1


def test_one_train_query_without_a_dev_split_is_refused(tmp_path):
    qrels = {"train": {"q0": {"p0": 1}}}
    path = write(tmp_path / "data", queries=["one"], qrels=qrels)
    with pytest.raises(
        TrainingError, match=r"at least two judged train queries, one to .*, got 1; add"
    ):
        load(path)


def test_no_positive_at_all_is_refused(tmp_path):
    qrels = {"train": {"q0": {"p0": 0}}, "dev": {"q1": {"p1": 1}}}
    path = write(tmp_path / "data", queries=["one", "two"], qrels=qrels)
    with pytest.raises(TrainingError, match="no query has a positive with grade 1 or higher"):
        load(path)


def test_dev_without_positive_is_refused(tmp_path):
    qrels = {"train": {"q0": {"p0": 1}}, "dev": {"q1": {"p1": 0}}}
    path = write(tmp_path / "data", queries=["one", "two"], qrels=qrels)
    with pytest.raises(TrainingError, match="expected a dev query with a positive, got none"):
        load(path)


def test_unknown_ids_are_refused(tmp_path):
    qrels = {"train": {"q0": {"p0": 1}, "q1": {"p1": 1}}, "dev": {"q1": {"p1": 1}}}
    path = write(tmp_path / "data", queries=["one", "two"], qrels=qrels)
    (path / "qrels" / "train.tsv").write_text(
        "query-id\tcorpus-id\tscore\nq0\tp77\t1\n", encoding="utf-8"
    )
    with pytest.raises(TrainingError, match=r"1 unknown passage ids, such as 'p77'; run `dpt"):
        load(path)


def test_the_same_seed_draws_the_same_dev_set(tmp_path):
    path = tiny_data(tmp_path / "data")
    one, two, other = (load(path, dev_queries=4, dev_passages=12, seed=s) for s in (1, 1, 2))
    assert one.dev.qrels == two.dev.qrels
    assert one.dev.passages == two.dev.passages
    assert one.query_texts == two.query_texts
    assert len(one.dev.passages) == 12
    assert one.dev.qrels != other.dev.qrels


def test_few_queries_take_fewer_steps():
    config = TrainingConfig(batch_size=32)
    assert config.with_steps(33).steps == 21
    assert config.with_steps(240).steps == 150
    assert config.with_steps(100_000).steps == 150
    assert config.with_steps(1).steps == 1
    assert TrainingConfig(batch_size=32, num_epochs=1.5).with_steps(64).steps == 3
    assert TrainingConfig(max_steps=500).with_steps(1).steps == 500


def test_a_query_that_is_a_passage_is_no_negative_of_its_own(tmp_path, capsys):
    write_beir(
        tmp_path / "data",
        passages=[Passage(f"p{i}", f"passage {i}", "title") for i in range(4)],
        queries=[Query("p0", "passage 0"), Query("q1", "one"), Query("q2", "two")],
        qrels={"train": {"p0": {"p1": 1}, "q1": {"p0": 1}}, "dev": {"q2": {"p2": 1}}},
        meta={},
    )
    data = load(tmp_path / "data")
    assert {g.query_id: g.own_passage for g in (data.groups[0], data.groups[1])} == {
        "p0": "title passage 0",
        "q1": "",
    }
    assert capsys.readouterr().err.count("1 queries are also passages with the same id") == 1
    kept = load(tmp_path / "data", keep_identical=True)
    assert kept.groups[0].own_passage == ""
    assert kept.dev.keep_identical


@pytest.mark.parametrize("negatives", ["[]", '["dog"]'])
def test_a_training_file_without_negatives_is_said(tmp_path, capsys, negatives):
    from dptdr.training.preparation import load_data

    folder = BeirFolder(tiny_data(tmp_path / "data"))
    file = tmp_path / "groups.jsonl"
    file.write_text(f'{{"query": "red", "positives": ["car"], "negatives": {negatives}}}\n' * 3)
    load_data(folder, TrainingConfig(), negatives=file)
    said = f"{file}: no negatives in the first 3 records"
    assert (said in capsys.readouterr().err) == (negatives == "[]")
