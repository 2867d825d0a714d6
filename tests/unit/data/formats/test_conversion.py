from pathlib import Path

import pytest

from dptdr.data.formats.conversion import convert
from dptdr.errors import DataError
from dptdr.io.beir import BeirFolder, write_beir
from dptdr.records import Passage, Query


def test_a_beir_folder_is_checked_and_written_anew(tmp_path: Path):
    passages = [Passage("0", "zero \x85"), Passage("a", "x", "T")]
    write_beir(
        tmp_path / "in",
        passages=passages,
        queries=[Query("q", "what")],
        qrels={"dev": {"q": {"a": 1}}},
        meta={"licence": "none"},
    )

    done = convert(str(tmp_path / "in"), format="beir", out=tmp_path / "out")

    assert list(BeirFolder(tmp_path / "out").passages()) == passages
    assert BeirFolder(tmp_path / "out").fingerprint() == BeirFolder(tmp_path / "in").fingerprint()
    assert done.checks == ()


def test_an_id_twice_is_refused(tmp_path: Path):
    write_beir(
        tmp_path / "in",
        passages=[Passage("a", "1"), Passage("a", "2")],
        queries=[],
        qrels={},
        meta={},
    )

    with pytest.raises(DataError, match=r"corpus.jsonl, line 2, .*duplicate passage id 'a'"):
        convert(str(tmp_path / "in"), format="beir", out=tmp_path / "out")


def test_progress_is_told(tmp_path: Path):
    write_beir(
        tmp_path / "in",
        passages=(Passage(str(n), "x") for n in range(4500)),
        queries=[],
        qrels={},
        meta={},
    )
    told: list[tuple[int, int]] = []

    convert(
        str(tmp_path / "in"),
        format="beir",
        out=tmp_path / "out",
        on_progress=lambda done, total: told.append((done, total)),
    )

    assert told == [(2000, 2000), (4000, 4000)]
