import dataclasses
import json
from pathlib import Path

import pytest

from dptdr.data.inspect import inspect_folder
from dptdr.data.sample import SAMPLES, build_sample
from dptdr.errors import DataError
from dptdr.io.beir import BeirFolder


@pytest.mark.parametrize(
    "name", ["python-code", pytest.param("python-api", marks=pytest.mark.learning)]
)
def test_a_sample_is_sound_big_enough_and_split_by_file(tmp_path: Path, name: str):
    told: list[tuple[int, int]] = []
    counts = build_sample(
        name, out=tmp_path / name, on_progress=lambda done, total: told.append((done, total))
    )
    folder = BeirFolder(tmp_path / name)
    inspection = inspect_folder(folder.path)

    assert inspection.problems == ()
    assert 3000 < counts.passages <= 5000
    assert counts.passages == counts.queries
    assert counts.judgements["test"] >= 500
    assert counts.judgements["train"] > 0.7 * counts.queries
    assert counts.judgements["dev"] > 100
    assert inspection.passages.characters.max <= 1500
    assert inspection.queries.words.max <= 40
    assert told[-1][0] == told[-1][1]

    # A passage is named module.definition; longest module names first, as one may hold another.
    files = {file.module for file in SAMPLES[name].sources()}

    def file_of(passage_id: str) -> str:
        parts = passage_id.split("#")[0].split(".")
        ends = range(len(parts) - 1, 0, -1)
        return next(".".join(parts[:end]) for end in ends if ".".join(parts[:end]) in files)

    seen = {
        split: {file_of(p) for grades in folder.qrels(split).values() for p in grades}
        for split in folder.splits()
    }
    assert not seen["train"] & seen["test"]
    assert not seen["train"] & seen["dev"]
    assert not seen["dev"] & seen["test"]

    texts = {passage.id: passage.content for passage in folder.passages()}
    queries = {query.id: query.text for query in folder.queries()}
    answers = {
        query_id: texts[next(iter(grades))]
        for split in folder.splits()
        for query_id, grades in folder.qrels(split).items()
    }
    assert answers.keys() == queries.keys()
    assert not [query_id for query_id, text in answers.items() if queries[query_id] in text]
    meta = json.loads((folder.path / "meta.json").read_text())
    assert meta["seed"] == 0
    assert meta["packages"].keys() == set(SAMPLES[name].packages)


def test_the_same_seed_gives_the_same_bytes_and_another_seed_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    half = SAMPLES["python-code"].sources()[::2]
    sample = dataclasses.replace(SAMPLES["python-code"], sources=lambda: half)
    monkeypatch.setitem(SAMPLES, "python-code", sample)
    for out, seed in (("a", 0), ("b", 0), ("c", 1)):
        build_sample("python-code", out=tmp_path / out, seed=seed)
    prints = {out: BeirFolder(tmp_path / out).fingerprint() for out in "abc"}

    assert prints["a"] == prints["b"] != prints["c"]
    assert (tmp_path / "a" / "meta.json").read_bytes() == (
        tmp_path / "b" / "meta.json"
    ).read_bytes()


def test_an_unknown_sample_names_those_that_exist(tmp_path: Path):
    with pytest.raises(DataError, match="samples python-code, python-api, got 'python'"):
        build_sample("python", out=tmp_path / "x")
    assert not list(tmp_path.iterdir())
