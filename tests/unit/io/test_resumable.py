"""The state of a file that is written in blocks."""

import json

import pytest

from dptdr.errors import NegativesError
from dptdr.io.resumable import FORMAT, ResumableFile


@pytest.mark.parametrize(("state", "found"), [({"format": 1}, "1"), ([], "a list")])
def test_the_state_of_another_version_is_refused_with_the_way_out(tmp_path, state, found):
    (tmp_path / "state.json").write_text(json.dumps(state), encoding="utf-8")
    expected = rf"state\.json: unsupported resume file \(expected format {FORMAT}, got {found}\)"
    with pytest.raises(NegativesError, match=rf"{expected}; use --overwrite to start over"):
        ResumableFile(tmp_path)
