"""``dptdr serve`` as users start it: processes, signals, ports."""

import signal
import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip("fastapi")

import httpx

from helpers.server_process import PROGRAM, running_server


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A tiny backbone, two bundles for it, one for another."""
    from dptdr.model import Backbone
    from helpers.serving import write_bundle
    from helpers.tiny import save_tiny

    folder = tmp_path_factory.mktemp("serve")
    backbone = Backbone.load(str(save_tiny(folder / "tiny")))
    write_bundle(folder / "tasks" / "one", backbone, seed=1)
    write_bundle(folder / "tasks" / "two", backbone, seed=2)
    other = Backbone.load(str(save_tiny(folder / "other", seed=5)))
    write_bundle(folder / "tasks" / "foreign", other, seed=3)
    return folder


def expected(place, task, texts):
    from dptdr.model.bundle import load_task

    return load_task(place / "tasks" / task).encode_queries(texts)


def failing(*arguments):
    ended = subprocess.run(
        [*PROGRAM, *map(str, arguments)], capture_output=True, text=True, check=False, timeout=120
    )
    return ended.returncode, ended.stderr.strip().splitlines()[-1]


def test_serve_answers_and_finishes_what_it_took(place):
    from helpers.serving import wait_for

    tasks = place / "tasks"
    with running_server(
        tasks / "one", f"second={tasks / 'two'}", "--tasks-folder", tasks, "--drain", "5"
    ) as server:
        texts = ["the red boat", "a dog"]
        made = server.vectors("one", texts)
        np.testing.assert_allclose(made, expected(place, "one", texts), atol=2e-5)
        made = server.vectors("second:query", texts)
        np.testing.assert_allclose(made, expected(place, "two", texts), atol=2e-5)
        refused = server.post("/v1/tasks", {"task": "x", "bundle": "foreign"})
        assert refused.json()["error"]["type"] == "wrong_backbone"

        server.process.send_signal(signal.SIGTERM)
        # Draining: balancers are sent away, those who come all the same are answered.
        wait_for(lambda: httpx.get(server.address + "/health").status_code == 503)
        assert server.vectors("one", texts).shape == (2, 32)
        assert server.process.wait(30) == 0
    said = "".join(server.lines)
    # Each phase is named, the first one before torch is imported.
    phases = ["starting", "loading the encoder", "checking 2 tasks", "checking vectors"]
    assert [said.index(phase) for phase in phases] == sorted(said.index(p) for p in phases)
    assert said.startswith("starting ...")
    assert '"event": "stopped"' in said
    assert "red boat" not in "".join(server.lines)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["{tasks}/none"], "expected a task bundle"),
        ([], "expected at least one task, or --backbone"),
        (
            ["{tasks}/one", "--layout", "round"],
            "--layout: expected one of packed, padded, got 'round'",
        ),
        (
            ["{tasks}/one", "--keys", "/none.toml"],
            "/none.toml: expected a file with API keys, got no file",
        ),
        (["{tasks}/one", "{tasks}/one"], "duplicate task name 'one'"),
        (["{tasks}/one", "--max-body", "0"], "--max-body: expected at least 1, got 0"),
        (["{tasks}/one", "--state", "{tasks}/one/task.json"], "cannot be written"),
    ],
)
def test_serve_bad_input_is_an_error_before_anything_starts(place, arguments, words):
    from typer.testing import CliRunner

    from dptdr.cli.app import build_app
    from dptdr.errors import DptdrError

    given = [argument.format(tasks=place / "tasks") for argument in arguments]
    ended = CliRunner().invoke(build_app(), ["serve", *given])

    # main() turns these into one line and exit code 2.
    assert isinstance(ended.exception, DptdrError)
    assert words in str(ended.exception)


def test_settings_from_python_are_checked_like_options(place):
    from dptdr.errors import DptdrError
    from dptdr.serving.startup import server_settings

    tasks = place / "tasks"
    given = {"tasks_folder": str(tasks), "state_folder": str(place / "made" / "state")}
    with server_settings([tasks / "one"], host="MyHost", workers=2, **given) as found:
        assert (found.tasks_folder, found.tasks) == (tasks, (("one", tasks / "one"),))
        assert found.state_folder.is_dir()
        assert (found.hosts, found.open_administration) == (("myhost",), False)
        assert found.worker_threads >= 1
    for wrong, words in (
        ({"workers": "two"}, "workers: expected int, got 'two'"),
        ({"wrokers": 2}, "wrokers: unknown setting"),
        ({"onnx": "/none"}, "/none: expected a folder"),
        ({"onnx": str(tasks), "layout": "packed"}, "layout: has no effect with onnx"),
        ({"indexes": ["=x"]}, "expected FOLDER or NAME=FOLDER, got '=x'"),
        ({"indexes": ["one="]}, "expected FOLDER or NAME=FOLDER, got 'one='"),
        ({"state_folder": tasks / "one"}, r"one: contains unrelated files \(no catalogue.json"),
        ({"hybrid": True}, "hybrid: has no effect without an index"),
        ({"indexes": ["zz=x"]}, "indexes: expected one of the tasks one before '=', got 'zz'"),
        ({"threads": 100_000}, "threads: expected .*1,?024"),
        ({"burst_requests": 3}, "burst_requests: has no effect without a rate limit"),
        (
            {"keys_file": str(tasks), "allowed_hosts": ["x"]},
            "allowed_hosts: has no effect with keys",
        ),
    ):
        with pytest.raises(DptdrError, match=words), server_settings([tasks / "one"], **wrong):
            pass


def test_serve_workers_that_cannot_load_end_the_server_with_the_reason(place):
    tasks = place / "tasks"
    code, line = failing(tasks / "one", tasks / "foreign", "--port", "0", "--workers", "2")
    assert code == 2
    assert "expected a task for backbone" in line


def test_serve_help_needs_no_torch():
    code = (
        "import sys; from typer.testing import CliRunner; from dptdr.cli.app import build_app;"
        "r = CliRunner().invoke(build_app(), ['serve', '--help']); print(r.output);"
        "sys.exit(int('torch' in sys.modules) or r.exit_code)"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
    for option in ("--index", "--workers", "--keys", "--tasks-folder", "--drain-seconds"):
        assert option in ended.stdout
