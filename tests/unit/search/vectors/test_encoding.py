import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from dptdr.errors import OutputError, VectorsError
from dptdr.io.resume import claim
from dptdr.records import Document, Passage
from dptdr.search.vectors.documents import Source
from dptdr.search.vectors.encoding import EncodeSettings, encode_folder, partial_path
from dptdr.search.vectors.folder import VectorFolder

PASSAGES = [Passage(f"d{n}", f"word{n} " * (1 + n * 7 % 5), f"t{n}") for n in range(23)]
SMALL = EncodeSettings(shard_size=5)
SOURCE = Source(fingerprint="data-1", data="some/data", count=23)


def matrix(folder):
    return np.concatenate([block for _, block in folder.blocks()])


def folder_bytes(path):
    return {
        str(file.relative_to(path)): file.read_bytes()
        for file in sorted(path.rglob("*"))
        if file.is_file()
    }


def test_every_passage_has_its_vector_id_and_text_in_corpus_order(encoder, tmp_path):
    folder = encode_folder(encoder, PASSAGES, out=tmp_path / "v", source=SOURCE, settings=SMALL)
    assert folder.count == 23
    assert list(folder.all_ids()) == [passage.id for passage in PASSAGES]
    expected = encoder.encode_passages([passage.content for passage in PASSAGES])
    assert matrix(folder).tolist() == expected.tolist()
    assert [document.passage for document in folder.documents([22, 0])] == [
        PASSAGES[22],
        PASSAGES[0],
    ]
    assert not partial_path(tmp_path / "v").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["v"]


def test_the_manifest_says_what_made_the_vectors(encoder, tmp_path):
    encode_folder(encoder, PASSAGES, out=tmp_path / "v", source=SOURCE, settings=SMALL)
    manifest = json.loads((tmp_path / "v" / "manifest.json").read_text())
    assert manifest["complete"] is True
    assert manifest["count"] == 23
    assert manifest["dim"] == 16
    assert manifest["passage_fingerprint"] == "passage-b1-p1"
    assert manifest["backbone_fingerprint"] == "backbone-b1"
    assert manifest["data_fingerprint"] == "data-1"
    assert [shard["rows"] for shard in manifest["shards"]] == [5, 5, 5, 5, 3]


def test_a_part_of_another_dtype_or_configuration_is_refused_when_parts_are_joined(
    make_encoder, tmp_path
):
    def halves(name, part, *, encoder, dtype="float32"):
        settings = EncodeSettings(shard_size=5, part=part, parts=2, dtype=dtype)
        return encode_folder(
            encoder, PASSAGES, out=tmp_path / name, source=SOURCE, settings=settings
        )

    encoder, changed = make_encoder(), make_encoder()
    encoder.backbone_probe, changed.backbone_probe = (1.0, 2.0), (1.0, 4.0)
    assert halves("a", 0, encoder=encoder) is None
    for name, other, dtype, words in (
        ("b", encoder, "float16", "this shard has float16 vectors, expected float32"),
        ("c", changed, "float32", "encodes differently; check whether config.json was changed"),
    ):
        assert halves(name, 1, encoder=other, dtype=dtype) is None
        shutil.copytree(partial_path(tmp_path / "a"), partial_path(tmp_path / f"{name}-joined"))
        shards = partial_path(tmp_path / f"{name}-joined") / "shards"
        shutil.copytree(partial_path(tmp_path / name) / "shards", shards, dirs_exist_ok=True)
        with pytest.raises(VectorsError, match=words):
            halves(f"{name}-joined", 0, encoder=encoder)
        assert not (tmp_path / f"{name}-joined").exists()


def test_progress_ends_at_the_number_of_passages(encoder, tmp_path):
    seen = []
    encode_folder(
        encoder,
        PASSAGES,
        out=tmp_path / "v",
        source=SOURCE,
        settings=SMALL,
        on_progress=lambda done, total: seen.append((done, total)),
    )
    assert seen[-1] == (23, 23)
    assert seen == sorted(seen)


def test_a_stop_in_the_middle_loses_no_vector_and_repeats_no_finished_shard(make_encoder, tmp_path):
    def stops_after(count):
        for number, passage in enumerate(PASSAGES):
            if number == count:
                raise KeyboardInterrupt
            yield passage

    first = make_encoder()
    with pytest.raises(KeyboardInterrupt):
        encode_folder(first, stops_after(13), out=tmp_path / "v", source=SOURCE, settings=SMALL)
    assert not (tmp_path / "v").exists()
    second = make_encoder()
    folder = encode_folder(second, PASSAGES, out=tmp_path / "v", source=SOURCE, settings=SMALL)
    assert len(first.encoded) == 10
    assert len(second.encoded) == 13
    whole = encode_folder(
        make_encoder(), PASSAGES, out=tmp_path / "w", source=SOURCE, settings=SMALL
    )
    assert folder_bytes(folder.path) == folder_bytes(whole.path)


KILLED = """
    import os, signal, sys
    sys.path.insert(0, {here!r})
    from helpers.encoders import HashEncoder
    from dptdr.search.vectors.documents import Source
    from dptdr.search.vectors.encoding import EncodeSettings, encode_folder
    from pathlib import Path
    from dptdr.records import Passage

    left = {operations}

    def count(event, arguments):
        global left
        if event in ("open", "os.rename") and ".partial" in str(arguments[0]):
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)
    passages = [Passage(f"d{{n}}", f"word{{n}}") for n in range(200)]
    encode_folder(
        HashEncoder(), passages, out=Path({out!r}), source=Source(fingerprint="f"),
        settings=EncodeSettings(shard_size=8),
    )
"""


def test_kill_minus_nine_loses_and_doubles_nothing(make_encoder, tmp_path):
    here, out = str(Path(__file__).parents[3]), str(tmp_path / "v")
    for operations in (23, 60):
        code = textwrap.dedent(KILLED).format(here=here, out=out, operations=operations)
        done = subprocess.run([sys.executable, "-c", code], check=False)
        assert done.returncode == -signal.SIGKILL
        assert not (tmp_path / "v").exists()
    passages = [Passage(f"d{n}", f"word{n}") for n in range(200)]
    settings = EncodeSettings(shard_size=8)
    last = make_encoder()
    resumed = encode_folder(
        last, passages, out=tmp_path / "v", source=Source(fingerprint="f"), settings=settings
    )
    whole = encode_folder(
        make_encoder(),
        passages,
        out=tmp_path / "w",
        source=Source(fingerprint="f"),
        settings=settings,
    )
    assert 0 < len(last.encoded) <= 184
    assert folder_bytes(resumed.path) == folder_bytes(whole.path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["v", "w"]


def test_parts_done_anywhere_give_the_bytes_of_one_process(make_encoder, tmp_path):
    results = [
        encode_folder(
            make_encoder(),
            PASSAGES,
            out=tmp_path / "v",
            source=SOURCE,
            settings=EncodeSettings(shard_size=5, part=part, parts=3),
        )
        for part in (2, 0, 1)
    ]
    assert results[:2] == [None, None]
    whole = encode_folder(
        make_encoder(), PASSAGES, out=tmp_path / "w", source=SOURCE, settings=SMALL
    )
    assert folder_bytes(results[2].path) == folder_bytes(whole.path)


def test_an_unfinished_folder_says_how_to_go_on(encoder, tmp_path):
    encode_folder(
        encoder,
        PASSAGES,
        out=tmp_path / "v",
        source=SOURCE,
        settings=EncodeSettings(shard_size=5, part=0, parts=2),
    )
    with pytest.raises(VectorsError, match=r"incomplete .*rerun the same `dptdr encode`"):
        VectorFolder(tmp_path / "v")


def test_a_finished_folder_is_returned_without_encoding(make_encoder, tmp_path, capsys):
    encode_folder(make_encoder(), PASSAGES, out=tmp_path / "v", source=SOURCE)
    again = make_encoder()
    assert encode_folder(again, PASSAGES, out=tmp_path / "v", source=SOURCE).count == 23
    assert again.encoded == []
    assert capsys.readouterr().err == f"{tmp_path / 'v'}: complete, nothing to do\n"


def begin(encoder, out, **settings):
    encode_folder(
        encoder,
        PASSAGES,
        out=out,
        source=SOURCE,
        settings=EncodeSettings(shard_size=5, part=0, parts=2, **settings),
    )


def test_another_prompt_may_not_go_on_and_both_fingerprints_are_named(make_encoder, tmp_path):
    begin(make_encoder(), tmp_path / "v")
    with pytest.raises(
        OutputError, match="passage_fingerprint: was 'passage-b1-p1', is 'passage-b1-p2'"
    ):
        begin(make_encoder(prompt="p2"), tmp_path / "v")


def test_a_finished_folder_of_another_prompt_is_left_alone(make_encoder, tmp_path):
    encode_folder(make_encoder(), PASSAGES, out=tmp_path / "v", source=SOURCE)
    before = folder_bytes(tmp_path / "v")
    with pytest.raises(OutputError, match="cannot resume: these settings differ"):
        encode_folder(make_encoder(prompt="p2"), PASSAGES, out=tmp_path / "v", source=SOURCE)
    assert folder_bytes(tmp_path / "v") == before


def test_a_folder_is_overwritten_only_when_told_and_only_as_a_whole(make_encoder, tmp_path):
    out = tmp_path / "v"
    encode_folder(make_encoder(), PASSAGES, out=out, source=SOURCE, settings=SMALL)
    other = make_encoder(prompt="p2")
    given = {"out": out, "source": SOURCE, "overwrite": True}
    half = EncodeSettings(shard_size=5, part=0, parts=2)
    with pytest.raises(VectorsError, match="only to all parts at once, got one of 2"):
        encode_folder(other, PASSAGES, settings=half, **given)
    for added in (out / "notes.txt", out / "shards" / "notes.txt"):
        added.write_text("mine")
        with pytest.raises(OutputError, match=r"would be lost \(.*notes.txt\)"):
            encode_folder(other, PASSAGES, settings=SMALL, **given)
        renewed = {"out": out, "source": SOURCE, "reuse": VectorFolder(out)}
        with pytest.raises(OutputError, match=r"would be lost \(.*notes.txt\)"):
            encode_folder(other, PASSAGES, settings=SMALL, **renewed)
        added.unlink()
    folder = encode_folder(other, PASSAGES, settings=SMALL, **given)
    assert folder.manifest.origin.passage_fingerprint == "passage-b1-p2"
    assert len(other.encoded) == 23


def test_shards_of_another_prompt_are_never_mixed_in(make_encoder, tmp_path):
    for name, prompt, part in (("a", "p1", 0), ("b", "p2", 1)):
        half = EncodeSettings(shard_size=5, part=part, parts=2)
        encoder = make_encoder(prompt=prompt)
        encode_folder(encoder, PASSAGES, out=tmp_path / name, source=SOURCE, settings=half)
    # As machines are told to join their parts.
    shutil.copytree(
        tmp_path / "b.partial" / "shards", tmp_path / "a.partial" / "shards", dirs_exist_ok=True
    )
    with pytest.raises(VectorsError, match="encoded with a different prompt, backbone or dtype"):
        encode_folder(make_encoder(), PASSAGES, out=tmp_path / "a", source=SOURCE, settings=SMALL)
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("stops", [VectorsError, KeyboardInterrupt])
def test_a_folder_comes_back_if_overwriting_it_fails(make_encoder, tmp_path, stops):
    out = tmp_path / "v"
    encode_folder(make_encoder(), PASSAGES, out=out, source=SOURCE, settings=SMALL)
    before = folder_bytes(out)

    def broken():
        yield from PASSAGES[:7]
        raise stops("no more")

    with pytest.raises(stops):
        encode_folder(
            make_encoder(prompt="p2"),
            broken(),
            out=out,
            source=SOURCE,
            settings=SMALL,
            overwrite=True,
        )
    assert folder_bytes(out) == before
    assert not (tmp_path / ".v.replaced").exists()


@pytest.mark.parametrize("file", ["00000.npy", "00000.ids.npy", "00000.jsonl"])
def test_a_damaged_shard_of_unfinished_work_is_refused_and_made_again(make_encoder, tmp_path, file):
    first = EncodeSettings(shard_size=5, part=0, parts=2)
    last = EncodeSettings(shard_size=5, part=1, parts=2)

    def encode(settings):
        out = tmp_path / "v"
        return encode_folder(make_encoder(), PASSAGES, out=out, source=SOURCE, settings=settings)

    assert encode(first) is None
    damaged = partial_path(tmp_path / "v") / "shards" / file
    content = bytearray(damaged.read_bytes())
    content[-1] ^= 1
    damaged.write_bytes(content)
    with pytest.raises(VectorsError, match=rf"{file}: missing or damaged; delete .*00000.json"):
        encode(last)
    (damaged.parent / "00000.json").unlink()
    assert encode(last) is None
    encode(first).verify()


def test_two_processes_never_fill_the_same_part(make_encoder, tmp_path):
    given = {"out": tmp_path / "v", "source": SOURCE, "settings": SMALL}
    with (
        claim(tmp_path / "v", mark="manifest.json"),
        pytest.raises(OutputError, match=f"v: being written by process {os.getpid()} on"),
    ):
        encode_folder(make_encoder(), PASSAGES, **given)


def test_other_data_or_settings_may_not_go_on(make_encoder, tmp_path):
    begin(make_encoder(), tmp_path / "v")
    with pytest.raises(OutputError, match="data_fingerprint: was 'data-1', is 'data-2'"):
        encode_folder(
            make_encoder(),
            PASSAGES,
            out=tmp_path / "v",
            source=Source(fingerprint="data-2"),
            settings=SMALL,
        )
    with pytest.raises(OutputError, match="dtype: was 'float32', is 'float16'"):
        begin(make_encoder(), tmp_path / "v", dtype="float16")
    changed = [PASSAGES[0]._replace(text="other"), *PASSAGES[1:]]
    with pytest.raises(VectorsError, match=r"expected the passages of shard 0, got different ones"):
        encode_folder(make_encoder(), changed, out=tmp_path / "v", source=SOURCE, settings=SMALL)


def test_an_id_that_stands_twice_is_refused_even_in_another_shard(encoder, tmp_path):
    doubled = [*PASSAGES, Passage("d2", "again")]
    with pytest.raises(VectorsError, match="duplicate passage id 'd2'"):
        encode_folder(encoder, doubled, out=tmp_path / "v", source=SOURCE, settings=SMALL)
    with pytest.raises(VectorsError, match="duplicate passage id 'd0'"):
        encode_folder(encoder, [PASSAGES[0]] * 2, out=tmp_path / "u", source=SOURCE)


def test_a_vector_with_nan_names_the_passage(make_encoder, tmp_path):
    class Broken(make_encoder):
        def encode_passages(self, texts, *, on_progress=None):
            vectors = super().encode_passages(texts)
            vectors[3, 2] = np.nan
            return vectors

    with pytest.raises(VectorsError, match="vector of passage 'd3' contains NaN"):
        encode_folder(Broken(), PASSAGES, out=tmp_path / "v", source=SOURCE)
    assert not (tmp_path / "v").exists()


def test_a_vector_that_half_precision_cannot_hold_is_refused(make_encoder, tmp_path):
    class Large(make_encoder):
        def encode_passages(self, texts, *, on_progress=None):
            return super().encode_passages(texts) * np.float32(1e6)

    with pytest.raises(VectorsError, match="'d0' overflows float16; use float32"):
        encode_folder(
            Large(),
            PASSAGES,
            out=tmp_path / "v",
            source=SOURCE,
            settings=EncodeSettings(dtype="float16"),
        )


def test_an_encoder_of_another_dimension_than_it_says_is_refused(make_encoder, tmp_path):
    encoder = make_encoder()
    produce = encoder.encode_passages
    encoder.encode_passages = lambda texts, *, on_progress=None: produce(texts)[:, :4]
    with pytest.raises(VectorsError, match=r"expected 23 vectors of dimension 16.*\(23, 4\)"):
        encode_folder(encoder, PASSAGES, out=tmp_path / "v", source=SOURCE)


def test_an_empty_corpus_is_refused(encoder, tmp_path):
    with pytest.raises(VectorsError, match="at least one passage"):
        encode_folder(encoder, [], out=tmp_path / "v", source=SOURCE)


def test_a_full_disk_keeps_what_was_finished(make_encoder, tmp_path, monkeypatch):
    import dptdr.search.vectors.shards as module

    real = module.atomic_file
    calls = []

    def full(path):
        calls.append(path)
        if len(calls) > 6:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(path)

    monkeypatch.setattr(module, "atomic_file", full)
    with pytest.raises(OutputError, match=r"v.partial: .*No space left.*make room, then run again"):
        encode_folder(make_encoder(), PASSAGES, out=tmp_path / "v", source=SOURCE, settings=SMALL)
    monkeypatch.undo()
    again = make_encoder()
    folder = encode_folder(again, PASSAGES, out=tmp_path / "v", source=SOURCE, settings=SMALL)
    assert folder.count == 23
    assert len(again.encoded) == 18


def test_renewal_encodes_only_what_changed(make_encoder, tmp_path):
    out = tmp_path / "v"
    old = encode_folder(make_encoder(), PASSAGES, out=out, source=SOURCE, settings=SMALL)
    changed = [PASSAGES[4]._replace(text="fresh"), Passage("new", "new text"), *PASSAGES[6:]]
    again = make_encoder()
    renewed = encode_folder(
        again, changed, out=out, source=Source(fingerprint="data-2"), settings=SMALL, reuse=old
    )
    assert again.encoded == ["t4 fresh", "new text"]
    direct = encode_folder(
        make_encoder(),
        changed,
        out=tmp_path / "w",
        source=Source(fingerprint="data-2"),
        settings=SMALL,
    )
    assert folder_bytes(renewed.path) == folder_bytes(direct.path)


def test_renewal_by_another_prompt_encodes_everything(make_encoder, tmp_path):
    out = tmp_path / "v"
    old = encode_folder(make_encoder(), PASSAGES, out=out, source=SOURCE, settings=SMALL)
    other = make_encoder(prompt="p2")
    renewed = encode_folder(other, PASSAGES, out=out, source=SOURCE, settings=SMALL, reuse=old)
    assert len(other.encoded) == 23
    assert renewed.manifest.origin.passage_fingerprint == "passage-b1-p2"


def test_documents_keep_their_metadata(encoder, tmp_path):
    folder = encode_folder(
        encoder,
        [Document(PASSAGES[0], {"lang": "en"}), PASSAGES[1]],
        out=tmp_path / "v",
        source=SOURCE,
    )
    assert [dict(metadata) for _, metadata in folder.all_documents()] == [{"lang": "en"}, {}]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"shard_size": 0}, "shard size of at least 1 passage, got 0"),
        ({"part": 2, "parts": 2}, "expected a part from 0 to 1 of 2, got 2"),
    ],
)
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises(VectorsError, match=message):
        EncodeSettings(**settings)
