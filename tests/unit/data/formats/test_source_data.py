from pathlib import Path

from dptdr.data.formats.source_data import UniqueIds, find_file, plain_name


def test_ids_are_remembered_as_written_whether_numbers_or_not():
    ids = UniqueIds()
    written = [
        "0",
        "00",
        "7",
        "07",
        "8",
        "1073741823",
        "1073741824",
        "99999999999",
        "a",
        "",
        "٣",
        "-1",
    ]

    assert [ids.add(text) for text in written] == [True] * len(written)
    assert [ids.add(text) for text in written] == [False] * len(written)
    assert all(text in ids for text in written)
    assert not [text for text in ("1", "6", "9", "000", "b", 7, "2000000") if text in ids]


def test_many_numbers_take_little_memory():
    ids = UniqueIds()
    for number in range(0, 400_000, 40):
        ids.add(str(number))

    assert len(ids._bits) < 70_000
    assert not ids._others


def test_a_file_is_found_packed_or_not(tmp_path: Path):
    (tmp_path / "b.tsv.gz").touch()

    assert find_file(tmp_path, "a.tsv", "b.tsv") == tmp_path / "b.tsv.gz"
    assert find_file(tmp_path, "c.tsv") is None
    assert plain_name(tmp_path / "b.tsv.gz") == "b.tsv"
