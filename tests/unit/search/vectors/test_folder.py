import json

import numpy as np
import pytest

from dptdr.errors import NoSuchField, VectorsError
from dptdr.records import Document, Passage
from dptdr.search.vectors.documents import Filter, Source
from dptdr.search.vectors.encoding import EncodeSettings, encode_folder
from dptdr.search.vectors.folder import VectorFolder


@pytest.fixture
def folder(encoder, tmp_path):
    documents = [
        Document(Passage(f"d{n}", f"word{n}"), {"lang": "en" if n % 3 else "de"}) for n in range(11)
    ]
    return encode_folder(
        encoder,
        documents,
        out=tmp_path / "v",
        source=Source(fingerprint="f"),
        settings=EncodeSettings(shard_size=4),
    )


def test_rows_are_gathered_in_the_order_asked_for(folder):
    whole = np.concatenate([block for _, block in folder.blocks()])
    rows = np.array([10, 0, 5, 5, 3])
    assert folder.gather(rows).tolist() == whole[rows].tolist()
    assert folder.ids(rows) == ["d10", "d0", "d5", "d5", "d3"]
    assert folder.gather(np.array([], dtype=np.int64)).shape == (0, 16)


def test_blocks_cover_all_rows_once(folder):
    assert [(start, len(block)) for start, block in folder.blocks(3)] == [
        (0, 3), (3, 1), (4, 3), (7, 1), (8, 3),
    ]  # fmt: skip


def test_filters_give_the_rows_that_pass_all(folder):
    assert folder.rows_where([Filter("lang", ("de",))]).tolist() == [0, 3, 6, 9]
    assert folder.rows_where([Filter("lang", ("de",)), Filter("lang", ("en",))]).tolist() == []


def test_a_filter_by_a_field_that_no_passage_has_names_those_there_are(folder):
    with pytest.raises(NoSuchField, match=r"^no passage has the metadata field 'lagn'.*: lang$"):
        folder.rows_where([Filter("lang", ("de",)), Filter("lagn", ("de",))])


def test_a_row_beyond_the_end_is_an_index_error(folder):
    with pytest.raises(IndexError, match="number below 11, got 11"):
        folder.documents([11])


def test_a_whole_folder_passes_verification(folder):
    seen = []
    folder.verify(lambda done, total: seen.append((done, total)))
    assert seen[-1] == (12, 12)


def test_a_shard_cut_short_is_named(folder):
    shard = folder.path / "shards" / "00001.npy"
    size = shard.stat().st_size
    with shard.open("r+b") as handle:
        handle.truncate(size - 8)
    with pytest.raises(VectorsError, match=rf"00001.npy: expected {size} bytes, got {size - 8}"):
        VectorFolder(folder.path)


def test_a_changed_byte_is_found_by_the_checksum(folder):
    shard = folder.path / "shards" / "00002.npy"
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    with pytest.raises(VectorsError, match=r"00002.npy: expected SHA-256 .*is damaged"):
        VectorFolder(folder.path).verify()


def test_a_missing_shard_is_named(folder):
    (folder.path / "shards" / "00000.ids.npy").unlink()
    with pytest.raises(VectorsError, match=r"00000.ids.npy: listed in the manifest but missing"):
        VectorFolder(folder.path)


def test_no_folder_says_how_to_make_one(tmp_path):
    with pytest.raises(VectorsError, match="create one with `dptdr encode`"):
        VectorFolder(tmp_path / "nothing")


def change(folder, **fields):
    path = folder.path / "manifest.json"
    manifest = json.loads(path.read_text())
    for name, value in fields.items():
        if value is None:
            del manifest[name]
        else:
            manifest[name] = value
    path.write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"format": "zip"}, "field 'format': expected 'dptdr-vectors', got the text 'zip'"),
        ({"format_version": 9}, "expected a version up to 1, got the number 9"),
        ({"count": 12}, "expected 11, the total over all shards, got the number 12"),
        ({"dtype": "int8"}, "expected float32 or float16, got the text 'int8'"),
        ({"passage_fingerprint": None}, "field 'passage_fingerprint': expected a string, got null"),
        ({"shards": [{"index": 0}]}, "field 'vectors': expected an object, got null"),
    ],
)
def test_a_manifest_that_does_not_fit_names_the_field(folder, fields, message):
    change(folder, **fields)
    with pytest.raises(VectorsError, match=message):
        VectorFolder(folder.path)


def test_a_manifest_of_another_dimension_than_the_vectors_is_found(folder):
    change(folder, dim=8)
    with pytest.raises(VectorsError, match=r"4 vectors of dimension 8, got .*shape \(4, 16\)"):
        list(VectorFolder(folder.path).blocks())


def test_broken_json_names_the_line(folder):
    (folder.path / "manifest.json").write_text('{\n"format": oops\n}')
    with pytest.raises(VectorsError, match=r"manifest.json, line 2: expected JSON"):
        VectorFolder(folder.path)


def test_doubled_ids_in_two_shards_are_found(folder):
    for suffix in ("ids.npy",):
        source = folder.path / "shards" / f"00000.{suffix}"
        (folder.path / "shards" / f"00001.{suffix}").write_bytes(source.read_bytes())
    manifest = json.loads((folder.path / "manifest.json").read_text())
    manifest["shards"][1]["ids"]["sha256"] = manifest["shards"][0]["ids"]["sha256"]
    (folder.path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(VectorsError, match="duplicate passage id 'd0'"):
        VectorFolder(folder.path).verify()


def test_a_pinned_folder_goes_on_after_another_took_its_place(folder, tmp_path):
    import shutil

    opened = VectorFolder(folder.path)
    opened.pin()
    shutil.rmtree(folder.path)
    assert opened.ids(np.array([7])) == ["d7"]
    assert opened.documents([7])[0].passage.text == "word7"
    assert opened.gather(np.array([7])).shape == (1, 16)


def test_a_folder_that_a_kill_left_aside_is_brought_back(folder):
    folder.path.rename(folder.path.with_name(".v.old"))
    assert VectorFolder(folder.path).count == 11


def test_too_few_open_files_are_reported(folder, monkeypatch):
    import resource

    monkeypatch.setattr(resource, "getrlimit", lambda _: (64, 128))
    with pytest.raises(VectorsError, match=r"268 open files, but .*allows 128.*--shard-size"):
        folder.pin()
