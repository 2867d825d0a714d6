import pytest

from dptdr.data.formats.conversion import convert
from dptdr.data.merge import cap_folder, join_folders
from dptdr.errors import ConfigError, DataError
from dptdr.io.beir import BeirFolder, write_beir
from dptdr.records import Document, Passage, Query


def made(path, *, passages, qrels):
    queries = sorted({query for judged in qrels.values() for query in judged})
    write_beir(
        path,
        passages=[Passage(f"{i}", f"text {i} of {path.name}", "T") for i in range(passages)],
        queries=[Query(query, f"question {query}") for query in queries],
        qrels=qrels,
        meta={},
    )
    return path


def test_joined_ids_carry_their_folder_and_splits_are_united(tmp_path):
    one = made(tmp_path / "one", passages=2, qrels={"train": {"q": {"0": 1}}})
    two = made(
        tmp_path / "two", passages=3, qrels={"train": {"q": {"2": 2}}, "test": {"r": {"1": 1}}}
    )
    counts = join_folders([one, two], out=tmp_path / "both")
    both = BeirFolder(tmp_path / "both")
    assert counts.passages == 5
    assert [p.id for p in both.passages()] == ["one:0", "one:1", "two:0", "two:1", "two:2"]
    assert [q.id for q in both.queries()] == ["one:q", "two:q", "two:r"]
    assert both.qrels("train") == {"one:q": {"one:0": 1}, "two:q": {"two:2": 2}}
    assert both.qrels("test") == {"two:r": {"two:1": 1}}
    assert next(both.passages()).title == "T"


def test_one_folder_or_two_of_one_name_are_not_joined(tmp_path):
    one = made(tmp_path / "one", passages=1, qrels={"train": {"q": {"0": 1}}})
    with pytest.raises(ConfigError, match="different names"):
        join_folders([one], out=tmp_path / "both")
    with pytest.raises(ConfigError, match="one, one"):
        join_folders([one, one], out=tmp_path / "both")


def test_capped_folder_keeps_all_judged_passages_and_as_many_others_as_fit(tmp_path):
    qrels = {
        "train": {f"t{i}": {str(i): 1, str(i + 20): 0} for i in range(8)},
        "test": {f"u{i}": {str(i + 10): 2} for i in range(6)} | {"none": {"3": 0}},
        "dev": {"d": {"0": 1}},
    }
    source = made(tmp_path / "all", passages=60, qrels=qrels)
    counts = [
        cap_folder(
            source, queries={"train": 3, "test": 2}, passages=12, seed=seed, out=tmp_path / name
        )
        for seed, name in ((0, "a"), (0, "b"), (1, "c"))
    ]
    assert counts[0].passages == 12
    assert counts[0].judgements == {"train": 6, "test": 2}
    capped = BeirFolder(tmp_path / "a")
    held = {passage.id for passage in capped.passages()}
    assert {p for s in ("train", "test") for g in capped.qrels(s).values() for p in g} <= held
    assert "none" not in capped.qrels("test")
    assert {q.id for q in capped.queries()} == {*capped.qrels("train"), *capped.qrels("test")}
    assert capped.fingerprint() == BeirFolder(tmp_path / "b").fingerprint()
    assert capped.fingerprint() != BeirFolder(tmp_path / "c").fingerprint()


def test_cap_refuses_what_does_not_fit_and_unknown_ids(tmp_path):
    source = made(
        tmp_path / "all", passages=9, qrels={"test": {"q": {str(i): 1 for i in range(5)}}}
    )
    with pytest.raises(ConfigError, match="judged passages for the kept queries, got 5"):
        cap_folder(source, queries={"test": 1}, passages=4, seed=0, out=tmp_path / "x")
    with pytest.raises(DataError, match="no split 'train'"):
        cap_folder(source, queries={"train": 1}, passages=9, seed=0, out=tmp_path / "x")
    with (source / "qrels" / "test.tsv").open("a") as handle:
        handle.write("q\t77\t1\n")
    with pytest.raises(DataError, match="'77'"):
        cap_folder(source, queries={"test": 1}, passages=9, seed=0, out=tmp_path / "x")


def test_capped_judgements_keep_a_positive_of_every_query(tmp_path):
    qrels = {"test": {f"q{i}": {str(j): int(j == 7) for j in range(20)} for i in range(4)}}
    source = made(tmp_path / "all", passages=30, qrels=qrels)
    cap_folder(source, queries={"test": 4}, passages=30, seed=0, out=tmp_path / "c", judged=3)
    kept = BeirFolder(tmp_path / "c").qrels("test")
    assert len(kept) == 4
    assert all(len(grades) == 3 and grades["7"] == 1 for grades in kept.values())
    assert len({frozenset(grades) for grades in kept.values()}) > 1


def test_positives_without_their_judgement_do_not_come_back_as_wrong_answers(tmp_path):
    qrels = {"test": {"q0": {str(j): 1 for j in range(10)}}}
    source = made(tmp_path / "all", passages=30, qrels=qrels)
    cap_folder(source, queries={"test": 1}, passages=30, seed=0, out=tmp_path / "c", judged=3)
    folder = BeirFolder(tmp_path / "c")
    kept = folder.qrels("test")["q0"]
    assert {passage.id for passage in folder.passages()} == {*kept, *map(str, range(10, 30))}


def test_metadata_of_passages_outlast_joining_capping_and_converting(tmp_path):
    metadata = [{"lang": "en", "tags": ["a", 1]}, {}, {"year": 2020}]
    for name in ("one", "two"):
        write_beir(
            tmp_path / name,
            passages=[
                Document(Passage(f"{i}", f"text {i}"), fields) for i, fields in enumerate(metadata)
            ],
            queries=[Query("q", "question")],
            qrels={"train": {"q": {"0": 1}}},
            meta={},
        )
    join_folders([tmp_path / "one", tmp_path / "two"], out=tmp_path / "both")
    cap_folder(tmp_path / "one", queries={"train": 1}, passages=3, seed=0, out=tmp_path / "cap")
    convert(tmp_path / "one", out=tmp_path / "again")

    for name, times in (("both", 2), ("cap", 1), ("again", 1)):
        kept = [document.metadata for document in BeirFolder(tmp_path / name).documents()]
        assert kept == metadata * times
    corpora = [(tmp_path / name / "corpus.jsonl").read_bytes() for name in ("one", "again")]
    assert corpora[0] == corpora[1]


def test_a_split_without_a_judgement_is_not_written(tmp_path):
    source = made(tmp_path / "all", passages=2, qrels={"train": {"q": {"0": 0}}})
    with pytest.raises(DataError, match=r"train.tsv: cannot write: the split contains no"):
        cap_folder(source, queries={"train": 1}, passages=2, seed=0, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
