"""In whatever order outputs are made, killed and overwritten, nothing is lost or mixed up."""

import contextlib

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from dptdr.errors import OutputError
from dptdr.io.atomic import atomic_folder
from dptdr.io.resume import claim, recorded_result

SETTINGS = st.sampled_from(["small", "large"])
PLACES = st.sampled_from(["notes.txt", "parts/notes.txt", "deep/er/notes.txt", "mark.json.bak"])


class _Killed(BaseException):
    """Simulates a process that dies."""


class Outputs(RuleBasedStateMachine):
    """One output folder, beside a model of what must be true of it."""

    @initialize(target=None)
    def begin(self):
        self.out = self.root / "out"
        self.complete = None
        self.unfinished = None
        self.mine = {}

    def make(self, size, *, overwrite, dies):
        """Run a stage; return whether it found the output complete."""
        with claim(self.out, mark="mark.json") as output:
            if output.begin({"size": size}, overwrite=overwrite):
                return True
            if dies == "before":
                raise _Killed
            with atomic_folder(self.out) as folder:
                (folder / "mark.json").write_text(size)
                (folder / "parts").mkdir()
                for number in range(2 if size == "small" else 5):
                    (folder / "parts" / str(number)).write_text(size)
                if dies == "while":
                    raise _Killed
            output.finish({"made": size})
        return False

    @rule(size=SETTINGS, overwrite=st.booleans(), dies=st.sampled_from([None, "before", "while"]))
    def run(self, size, overwrite, dies):
        there = self.complete is not None
        try:
            found = self.make(size, overwrite=overwrite, dies=dies)
        except OutputError:
            # Refused for a reason: other settings, or something would be lost.
            other = {self.complete, self.unfinished} - {None, size}
            assert (not overwrite and other) or self.mine
            return
        except _Killed:
            self.unfinished = size
            return
        if found:
            assert there
            assert self.complete == size
            assert not overwrite
            return
        assert not self.mine, "replaced beside somebody's files"
        # An overwriting run that was killed may go on without being told again.
        assert overwrite or self.complete in (None, size) or self.unfinished == size
        self.complete, self.unfinished = size, None

    @precondition(lambda self: self.complete is not None)
    @rule(place=PLACES)
    def somebody_adds_a_file(self, place):
        path = self.out / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("mine")
        self.mine[place] = "mine"

    @precondition(lambda self: self.mine)
    @rule()
    def somebody_removes_their_files(self):
        for place in self.mine:
            path = self.out / place
            path.unlink()
            with contextlib.suppress(OSError):
                path.parent.rmdir()
                path.parent.parent.rmdir()
        self.mine = {}

    @invariant()
    def nothing_is_lost_or_mixed(self):
        if not hasattr(self, "out"):
            return
        for place, content in self.mine.items():
            assert (self.out / place).read_text() == content
        if self.complete is None:
            assert not self.out.exists()
            return
        assert (self.out / "mark.json").read_text() == self.complete
        parts = [path for path in (self.out / "parts").iterdir() if path.name.isdigit()]
        assert len(parts) == (2 if self.complete == "small" else 5)
        assert {path.read_text() for path in parts} == {self.complete}
        result = recorded_result(self.out)
        assert result in (None, {"made": self.complete})
        left = {path.name for path in self.root.iterdir()} - {"out", ".out.made.json"}
        assert not left, f"{left} left beside the output"


def test_outputs_keep_what_is_not_theirs_and_are_whole(tmp_path_factory):
    class Here(Outputs):
        def __init__(self):
            super().__init__()
            self.root = tmp_path_factory.mktemp("law")

    machine = Here.TestCase
    machine.settings = settings(
        max_examples=60,
        stateful_step_count=12,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    machine().runTest()
