import json
import shutil

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


@pytest.mark.parametrize("name", ["\u6f22" * 100, "\xe9" * 200])
@pytest.mark.parametrize("field", ["bundle", "index"])
def test_a_name_too_long_for_the_file_system_is_one_error_that_names_the_field(
    tmp_path, name, field
):
    with WebServer.start(tmp_path) as server:
        body = {"bundle": "fresh", "index": "one-index", field: name}
        requests = [("POST", "/v1/tasks", body | {"task": "new"}), ("PUT", "/v1/tasks/one", body)]
        if field == "index":
            requests.append(("POST", "/v1/indexes", {"task": "one", "index": name}))
        for method, path, sent in requests:
            reply = server.client.request(method, path, json=sent)
            assert reply.status_code == 409
            message = reply.json()["error"]["message"]
            assert message == f"{field} '{name[:100]}': cannot be opened (File name too long)"


@pytest.mark.parametrize("name", ["\u6f22" * 100, "a\0b", "\ud800", "../x", "gone"])
def test_a_name_in_the_catalogue_that_cannot_be_opened_stops_nothing(tmp_path, name):
    with WebServer.start(tmp_path) as server:
        file = tmp_path / "state" / "catalogue.json"
        values = json.loads(file.read_text())
        values["tasks"]["one"]["indexes"] = {"1": [name, "x"]}
        file.write_text(json.dumps(values))

        again = Runtime(server.runtime.settings)
        again.load()
        again.stop()
        assert again.registry.tasks().keys() == {"one", "two"}
        for task in ("one", "two:query"):
            reply = server.client.post("/v1/embeddings", json={"model": task, "input": "a"})
            assert reply.status_code == 200
        assert server.client.get("/v1/tasks").json()["broken"].keys() == {"one@1, index"}


def test_an_index_that_is_back_is_searched_again(tmp_path, monkeypatch):
    with WebServer.start(tmp_path) as server:
        client, place = server.client, tmp_path / "tasks" / "one-index"
        server.write_index(place, server.encoder("one"))
        assert client.post("/v1/indexes", json={"task": "one", "index": "one-index"}).is_success
        shutil.move(place, tmp_path / "away")
        later = Runtime(server.runtime.settings)
        later.load()
        later.stop()
        registry = later.registry
        assert registry.resolve("one").index is None
        shutil.move(tmp_path / "away", place)
        assert registry.resolve("one").index is None
        monkeypatch.setattr(registry, "_retry_at", 0.0)
        assert registry.resolve("one").index is not None
        assert registry.broken == {}
