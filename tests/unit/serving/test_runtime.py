import pytest

pytest.importorskip("fastapi", reason="the extra 'serve' is not installed")

from dptdr.serving.runtime import Runtime
from helpers.serving import WebServer


def test_a_restart_keeps_what_was_changed_at_run_time_and_says_so(tmp_path, capsys):
    with WebServer.start(tmp_path) as server:
        client = server.client
        assert client.put("/v1/tasks/one", json={"bundle": "fresh"}).json()["default"] == "2"
        assert client.delete("/v1/tasks/two").status_code == 204
        expected = client.post("/embed", json={"task": "one", "inputs": "a"}).json()

        # While the first one runs, which must not be changed by it.
        again = Runtime(server.runtime.settings)
        again.load()
        try:
            served = again.registry.tasks()
            assert {name: task.record.default for name, task in served.items()} == {"one": "2"}
        finally:
            again.stop()
        assert client.post("/embed", json={"task": "one", "inputs": "a"}).json() == expected
        assert client.get("/v1/tasks").json()["tasks"][0]["history"] == ["1"]
    said = capsys.readouterr().err
    assert (
        "task 'one': the state's default version 2 is kept; the bundle given is version 1\n"
        "task 'two' was removed; add it with POST /v1/tasks, or start with another state folder, "
        "to serve it again\n"
    ) in said


def test_a_server_without_a_tasks_folder_starts_after_a_task_with_an_index_was_removed(tmp_path):
    with WebServer.start(tmp_path, tasks_folder=None) as server:
        assert server.client.delete("/v1/tasks/one").status_code == 204
        again = Runtime(server.runtime.settings)
        again.load()
        again.stop()
        assert again.registry.tasks().keys() == {"two"}
