import gzip
import json
from pathlib import Path

import pytest

from dptdr.errors import DataError
from dptdr.io import jsonarray
from dptdr.io.jsonarray import array_elements, is_json_array

VALUES = [
    {"a": ['é \u2028 \\ " ]}', 1.5]},
    "text, [",
    [],
    12345,
    None,
    {"b": "\U0001f600" * 9},
    -1e-7,
]


@pytest.fixture(params=[1, 2, 7, 64, 1 << 20])
def chunk(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(jsonarray, "_CHUNK_BYTES", request.param)
    return request.param


@pytest.mark.parametrize("indent", [None, 4])
@pytest.mark.parametrize("ascii_only", [True, False])
def test_elements_and_their_bytes_are_found_wherever_chunks_end(
    tmp_path: Path, chunk: int, indent: int | None, ascii_only: bool
):
    path = tmp_path / "array.json"
    text = json.dumps(VALUES, indent=indent, ensure_ascii=ascii_only)
    path.write_bytes(b"\xef\xbb\xbf \r\n" + text.encode() + b"\n")

    elements = list(array_elements(path))

    content = path.read_bytes()
    assert [element.value for element in elements] == VALUES
    assert [json.loads(content[e.start : e.end]) for e in elements] == VALUES
    assert [e.line for e in elements] == [content[: e.start].count(b"\n") + 1 for e in elements]


def test_a_packed_array_is_read_too(tmp_path: Path):
    path = tmp_path / "array.json.gz"
    path.write_bytes(gzip.compress(json.dumps(VALUES).encode()))

    assert is_json_array(path)
    assert [element.value for element in array_elements(path)] == VALUES


def test_an_empty_array_has_no_elements(tmp_path: Path, chunk: int):
    (tmp_path / "a.json").write_text(" [ \n ] ")

    assert list(array_elements(tmp_path / "a.json")) == []


def test_an_array_that_is_cut_short_gives_what_is_whole_and_then_says_so(
    tmp_path: Path, chunk: int
):
    text = json.dumps([{"a": 1}, {"b": "some text"}], indent=1)
    path = tmp_path / "cut.json"
    for length in range(text.index("b") + 1, len(text)):
        path.write_text(text[:length])
        elements = array_elements(path)
        assert next(elements).value == {"a": 1}
        with pytest.raises(DataError, match=r"cut.json, line \d: the file ends inside the array"):
            list(elements)


def test_a_fault_in_the_middle_is_named_with_its_line(tmp_path: Path, chunk: int):
    path = tmp_path / "bad.json"
    path.write_text('[{"a": 1},\n {"b": 2},\n {"c": nonsense ' + "x" * 100 + "}]")

    with pytest.raises(DataError, match=r"bad.json, line 3: expected JSON, Expecting value"):
        list(array_elements(path))


def test_what_is_no_array_or_no_unicode_is_an_error(tmp_path: Path):
    path = tmp_path / "x.json"
    path.write_text('{"a": 1}')
    assert not is_json_array(path)
    with pytest.raises(DataError, match=r"line 1: expected a JSON array starting with \["):
        list(array_elements(path))
    path.write_bytes(b'["\xff"]')
    with pytest.raises(DataError, match="line 1: expected UTF-8 text"):
        list(array_elements(path))


def test_the_buffer_does_not_grow_with_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(jsonarray, "_CHUNK_BYTES", 1000)
    path = tmp_path / "long.json"
    path.write_text(json.dumps([{"number": number} for number in range(5000)]))
    sizes: list[int] = []
    fill = jsonarray._Reader.fill

    def watched(self: jsonarray._Reader, size: int) -> None:
        fill(self, size)
        sizes.append(len(self.text))

    monkeypatch.setattr(jsonarray._Reader, "fill", watched)

    assert sum(1 for _ in array_elements(path)) == 5000
    assert len(sizes) > 50
    assert max(sizes) < 3000
