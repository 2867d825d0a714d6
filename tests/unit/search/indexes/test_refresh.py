import json

import pytest

from dptdr.errors import OutputError, VectorsError
from dptdr.records import Query
from dptdr.search.index import search_queries
from dptdr.search.indexes.building import BuildSettings, build_index
from dptdr.search.indexes.local import open_index
from dptdr.search.indexes.refresh import refresh_index
from dptdr.search.vectors.encoding import EncodeSettings, encode_data


def write_corpus(folder, texts):
    folder.mkdir(exist_ok=True)
    lines = [json.dumps({"_id": name, "text": text}) for name, text in texts.items()]
    (folder / "corpus.jsonl").write_text("\n".join(lines) + "\n")


@pytest.fixture
def built(make_encoder, tmp_path):
    texts = {f"d{n}": f"word{n} common" for n in range(20)}
    write_corpus(tmp_path / "data", texts)
    folder = encode_data(
        make_encoder(),
        tmp_path / "data",
        out=tmp_path / "v",
        settings=EncodeSettings(shard_size=6, dtype="float16"),
    )
    build_index(
        folder, out=tmp_path / "i", index_type="hnsw", settings=BuildSettings(options={"M": 8})
    )
    return texts


def renew(encoder, tmp_path, **options):
    return refresh_index(
        encoder,
        data=tmp_path / "data",
        vectors=tmp_path / "v",
        index=tmp_path / "i",
        **options,
    )


def test_only_changed_and_new_passages_are_encoded_and_gone_ones_leave(
    built, make_encoder, tmp_path
):
    texts = {**built, "d3": "changed text", "new": "fresh words"}
    del texts["d7"]
    write_corpus(tmp_path / "data", texts)
    old = open_index(tmp_path / "i")
    encoder = make_encoder()
    done = renew(encoder, tmp_path)
    assert encoder.encoded == ["changed text", "fresh words"]
    assert (done.encoded, done.kept, done.rebuilt) == (2, 18, True)
    run = search_queries(
        open_index(tmp_path / "i"), encoder, queries=[Query("q", "fresh words")], depth=20
    )
    found = [hit.passage_id for hit in run["q"]]
    assert found[0] == "new"
    assert "d7" not in found
    # Whoever had the old index open goes on with it.
    before = search_queries(old, encoder, queries=[Query("q", "word7 common")], depth=1)
    assert before["q"][0].passage_id == "d7"


def test_what_would_be_lost_is_said_before_anything_is_encoded(built, make_encoder, tmp_path):
    write_corpus(tmp_path / "data", {**built, "new": "fresh words"})
    (tmp_path / "i" / "notes.txt").write_text("mine")
    encoder = make_encoder()
    with pytest.raises(OutputError, match=r"would be lost \(notes.txt\)"):
        renew(encoder, tmp_path)
    assert encoder.encoded == []


def test_the_seed_of_the_index_is_kept(built, make_encoder, tmp_path):
    settings = BuildSettings(seed=7)
    renew(make_encoder(), tmp_path, index_type="ivf-sq", settings=settings)
    write_corpus(tmp_path / "data", {**built, "new": "fresh words"})
    renew(make_encoder(), tmp_path)
    manifest = json.loads((tmp_path / "i" / "manifest.json").read_text())
    assert (manifest["index_type"], manifest["seed"]) == ("ivf-sq", 7)


def test_another_prompt_encodes_everything_and_keeps_kind_options_and_precision(
    built, make_encoder, tmp_path
):
    other = make_encoder(prompt="p2")
    done = renew(other, tmp_path)
    assert (done.encoded, done.kept, done.rebuilt) == (20, 0, True)
    index = open_index(tmp_path / "i")
    assert index.index_type == "hnsw"
    assert index.options == {"M": 8}
    assert index.origin.dtype == "float16"
    assert index.origin.passage_fingerprint == "passage-b1-p2"


def test_nothing_changed_does_nothing(built, make_encoder, tmp_path):
    encoder = make_encoder()
    manifest = (tmp_path / "i" / "manifest.json").stat().st_ino
    done = renew(encoder, tmp_path)
    assert (done.encoded, done.kept, done.rebuilt) == (0, 20, False)
    assert encoder.encoded == []
    assert (tmp_path / "i" / "manifest.json").stat().st_ino == manifest


def test_another_type_or_option_builds_again_though_nothing_changed(built, make_encoder, tmp_path):
    done = renew(make_encoder(), tmp_path, settings=BuildSettings(options={"M": 16}))
    assert (done.encoded, done.rebuilt, done.index.options) == (0, True, {"M": 16})
    done = renew(make_encoder(), tmp_path, index_type="exact")
    assert (done.index.index_type, done.index.options) == ("exact", {})


def test_an_option_without_effect_is_refused_before_anything_is_encoded(
    built, make_encoder, tmp_path
):
    encoder = make_encoder(prompt="p2")
    with pytest.raises(VectorsError, match="option nlist has no effect"):
        renew(encoder, tmp_path, settings=BuildSettings(options={"nlist": 3}))
    assert encoder.encoded == []


def test_a_stop_before_the_index_is_built_is_made_good_by_the_next_call(
    built, make_encoder, tmp_path, monkeypatch
):
    write_corpus(tmp_path / "data", {**built, "new": "fresh words"})

    def stopped(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("dptdr.search.indexes.refresh.build_index", stopped)
    with pytest.raises(KeyboardInterrupt):
        renew(make_encoder(), tmp_path)
    assert open_index(tmp_path / "i").count == 20
    monkeypatch.undo()
    done = renew(make_encoder(), tmp_path)
    assert (done.encoded, done.rebuilt, done.index.count) == (0, True, 21)


def test_an_index_of_another_task_is_refused_before_anything_is_encoded(
    built, make_encoder, tmp_path
):
    other = make_encoder(prompt="p9")
    other.name = "other"
    folder = encode_data(other, tmp_path / "data", out=tmp_path / "other")
    build_index(folder, out=tmp_path / "i9", index_type="exact")
    encoder = make_encoder()
    with pytest.raises(VectorsError, match="i9: expected the index of"):
        refresh_index(
            encoder, data=tmp_path / "data", vectors=tmp_path / "v", index=tmp_path / "i9"
        )
    assert encoder.encoded == []
    assert open_index(tmp_path / "i9").origin.passage_fingerprint == "passage-b1-p9"


def test_a_refresh_keeps_dimensions_with_another_type_and_other_options_beside_a_new_one(
    built, make_encoder, tmp_path
):
    renew(make_encoder(), tmp_path, settings=BuildSettings(dimensions=4, options={"ef_search": 50}))
    index = open_index(tmp_path / "i")
    assert (index.reduction.dimensions, index.options) == (4, {"M": 8, "ef_search": 50})

    renew(make_encoder(), tmp_path, index_type="exact")

    index = open_index(tmp_path / "i")
    assert (index.index_type, index.reduction.dimensions, index.options) == ("exact", 4, {})
