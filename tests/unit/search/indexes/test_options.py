import json

import numpy as np
import pytest

from dptdr.errors import VectorsError
from dptdr.records import Passage
from dptdr.search.indexes.building import BuildSettings, build_index
from dptdr.search.indexes.options import GRAPH_OPTIONS, LIST_OPTIONS, OPTIONS, check_options
from dptdr.search.indexes.types import INDEX_TYPES
from dptdr.search.vectors.documents import Source
from dptdr.search.vectors.encoding import encode_folder


@pytest.fixture
def small_folder(make_encoder, tmp_path):
    passages = [Passage(f"d{n}", f"word{n} common") for n in range(12)]
    source = Source(fingerprint="small")
    return encode_folder(make_encoder(), passages, out=tmp_path / "v", source=source)


def build(folder, index_type, **settings):
    out = folder.path.parent / "i"
    settings = BuildSettings(**settings)
    build_index(folder, out=out, index_type=index_type, settings=settings, overwrite=True)
    return json.loads((out / "manifest.json").read_text())


@pytest.mark.parametrize("index_type", INDEX_TYPES)
def test_every_type_refuses_what_has_no_effect_on_it(small_folder, index_type):
    for name in {*GRAPH_OPTIONS, *LIST_OPTIONS, "speed"} - set(INDEX_TYPES[index_type].options):
        with pytest.raises(VectorsError, match=f"option {name} has no effect .* {index_type}"):
            build(small_folder, index_type, options={name: 4})
    assert not (small_folder.path.parent / "i").exists()


def test_a_refusal_names_what_the_type_takes():
    with pytest.raises(VectorsError, match="exact, which takes no options; omit it"):
        check_options({"M": 4}, index_type="exact", accepted=())
    with pytest.raises(VectorsError, match="hnsw, which takes M, ef_construction, ef_search"):
        check_options({"nprobe": 4}, index_type="hnsw", accepted=GRAPH_OPTIONS)


def test_former_names_mean_the_names_of_today_and_one_option_is_given_once():
    found = check_options({"links": 4, "ef_search": 9}, index_type="hnsw", accepted=GRAPH_OPTIONS)
    assert found == {"M": 4, "ef_search": 9}
    with pytest.raises(VectorsError, match="option M is given twice, also as links"):
        check_options({"M": 4, "links": 5}, index_type="hnsw", accepted=GRAPH_OPTIONS)


@pytest.mark.parametrize("value", [0, 1, -3, 10**9, True])
def test_a_value_out_of_bounds_is_refused_before_native_code_sees_it(small_folder, value):
    with pytest.raises(VectorsError, match="option M: expected a number from 2 to 512, got"):
        build(small_folder, "hnsw", options={"M": value})


@pytest.mark.parametrize("value", [4.0, "4", None, [4]])
def test_a_value_that_is_no_whole_number_is_refused(value):
    with pytest.raises(VectorsError, match="option M: expected a number from 2 to 512, got"):
        check_options({"M": value}, index_type="hnsw", accepted=GRAPH_OPTIONS)


@pytest.mark.parametrize(
    ("index_type", "options", "message"),
    [
        ("ivf-pq", {}, "at least 256 passages for an index of type ivf-pq, got 12; use exact"),
        (
            "ivf-sq",
            {"nlist": 1000},
            "nlist: expected at most 12, the number of passages, got 1,000",
        ),
        ("rabitq", {"nlist": 13}, "nlist: expected at most 12, the number of passages, got 13"),
        ("rabitq", {"nlist": 4, "nprobe": 5}, "nprobe: expected at most nlist = 4, got 5"),
    ],
)
def test_too_few_passages_for_a_type_or_option_are_said(small_folder, index_type, options, message):
    with pytest.raises(VectorsError, match=message):
        build(small_folder, index_type, options=options)


@pytest.mark.parametrize("index_type", [name for name in INDEX_TYPES if name != "ivf-pq"])
def test_a_dozen_passages_make_an_index_that_finds_each(small_folder, index_type):
    index, _ = build_index(small_folder, out=small_folder.path.parent / "i", index_type=index_type)
    found = index.search(small_folder.gather(np.arange(12)), depth=1)
    assert found.ids == [[f"d{row}"] for row in range(12)]


@pytest.mark.parametrize("name", GRAPH_OPTIONS)
def test_the_smallest_value_of_a_graph_option_builds_and_searches(small_folder, name):
    least = OPTIONS[name].min
    assert build(small_folder, "hnsw", options={name: least})["options"] == {name: least}


@pytest.mark.parametrize(
    ("index_type", "setting"),
    [("hnsw", {"seed": 7}), ("exact", {"seed": 7}), ("ivf-sq", {"memory_bytes": 10**9})],
)
def test_settings_without_effect_are_refused(small_folder, index_type, setting):
    with pytest.raises(VectorsError, match=f"{next(iter(setting))} has no effect .* {index_type}"):
        build(small_folder, index_type, **setting)


def test_the_manifest_records_what_was_applied(small_folder):
    assert {"seed", "threads"}.isdisjoint(build(small_folder, "exact", threads=1))
    record = build(small_folder, "ivf-sq", threads=1, options={"lists": 3})
    assert (record["seed"], record["threads"], record["options"]) == (1234, 1, {"nlist": 3})
    assert "seed" not in build(small_folder, "hnsw", threads=1)
