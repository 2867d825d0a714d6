import json

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dptdr.data.training_files import GroupFile, read_records
from dptdr.errors import DataError
from dptdr.io.atomic import read_json
from dptdr.io.jsonkeys import RepeatedKey, check_keys
from dptdr.io.lines import parse_object

WORDS = "expected each key of a JSON object once, got 'text' twice"


@pytest.mark.parametrize(
    "line",
    [
        '{"text": "a", "text": "b"}',
        '{"text" : "a","text":"a"}',
        '{"x": [{"text": 1, "b": {}, "text": 1}]}',
        '{"x": "a\\": b", "text":1, "te\\u0078t"\t:2}',
    ],
)
def test_a_line_with_a_key_twice_is_refused_by_name(tmp_path, line):
    path = tmp_path / "corpus.jsonl"
    path.write_text('{"query": "a", "positives": ["p"]}\n' + line)
    with pytest.raises(DataError, match=f"corpus.jsonl, line 2: {WORDS}"):
        list(read_records(path))
    with pytest.raises(DataError, match=f"corpus.jsonl, line 2: {WORDS}"):
        GroupFile(path)[1]


def test_an_array_and_a_whole_file_with_a_key_twice_are_refused_by_name(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('[{"question": "a"},\n {"b": {"text": 1, "text": 2}}]')
    with pytest.raises(DataError, match=f"a.json, line 2: {WORDS}"):
        list(read_records(path))
    with pytest.raises(DataError, match=f"a.json: {WORDS}"):
        read_json(path)


def test_a_log_of_training_with_a_key_twice_is_damaged(tmp_path):
    from dptdr.errors import TrainingError
    from dptdr.training.checkpoints import RunFolder

    folder = RunFolder(tmp_path)
    folder.log_path.write_text('{"kind": "dev", "step": 1, "step": 2}\n')
    with pytest.raises(TrainingError, match="line 1: the record is damaged"):
        folder.records()


VALUES = st.recursive(
    st.none() | st.text('":, \\'),
    lambda inner: st.lists(inner) | st.dictionaries(st.text('":, \\'), inner),
)


@given(st.dictionaries(st.text('":, \\'), VALUES), st.sampled_from([(",", ":"), (" , ", " : ")]))
def test_objects_without_a_key_twice_are_taken_whatever_their_strings(value, separators):
    text = json.dumps(value, separators=separators).encode()
    check_keys(text, orjson.loads(text))
    if value:
        key = next(iter(value))
        twice = text[:-1] + f", {json.dumps(key)}:0}}".encode()
        with pytest.raises(RepeatedKey):
            check_keys(twice, orjson.loads(twice))


def test_deep_values_are_one_error_or_none(tmp_path):
    deep = b'{"a": ' + b"[" * 1000 + b"]" * 1000 + b"}"
    parse_object(deep, path=tmp_path, number=1)
    with pytest.raises(DataError):
        parse_object(deep[:-1] + b', "a": 1}', path=tmp_path, number=1)
