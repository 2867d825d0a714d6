"""Indexes that come and go while requests run."""

import dataclasses
import itertools
import shutil
import threading

import httpx
import pytest

pytest.importorskip("fastapi")

from dptdr.model.bundle import load_task
from helpers.serving import WebServer, write_bundle


@pytest.fixture(scope="module")
def web(tmp_path_factory):
    """A server of one task, with a second version and indexes in its tasks folder."""
    with WebServer.start(tmp_path_factory.mktemp("indexes")) as server:
        tasks = server.folder / "tasks"
        write_bundle(tasks / "next", server.backbone, seed=8)
        server.encoders = {
            name: load_task(tasks / name, backbone=server.backbone) for name in ("one", "next")
        }
        server.write_index(tasks / "next-index", server.encoders["next"], bm25=True)
        server.write_index(tasks / "one-again", server.encoders["one"])
        yield server


def search(web, **more):
    return web.client.post("/v1/search", json={"task": "one", "text": "zebra", "k": 3, **more})


def best(web, name):
    """The best hits of a task's own encoder."""
    encoder = web.encoders[name]
    vectors = encoder.encode_passages([passage.content for passage in web.passages])
    order = (-(vectors @ encoder.encode_queries(["zebra"])[0])).argsort(kind="stable")[:3]
    return [web.passages[place].id for place in order]


def refused(reply, kind, words):
    assert reply.status_code in (404, 409, 422), reply.text
    error = reply.json()["error"]
    assert error["type"] == kind
    assert words in error["message"]


def test_a_version_comes_with_its_index_and_no_search_fails_meanwhile(web):
    # Which index belongs to which version; any other pair would be neither old nor new.
    right = {
        ("one@1", "one-index"): best(web, "one"),
        ("one@1", "one-again"): best(web, "one"),
        ("one@2", "next-index"): best(web, "next"),
    }
    stop, wrong, seen = threading.Event(), [], set()

    def ask(address):
        with httpx.Client(base_url=address, timeout=60) as client:
            while not stop.is_set():
                body = {"task": "one", "text": "zebra", "k": 3}
                reply = client.post("/v1/search", json=body).json()
                pair = reply.get("task"), reply.get("index")
                seen.add(pair)
                if right.get(pair) != [hit["id"] for hit in reply.get("hits", [])]:
                    wrong.append(reply)

    with web.listening() as address:
        askers = [threading.Thread(target=ask, args=(address,)) for _ in range(3)]
        for asker in askers:
            asker.start()
        try:
            body = {"bundle": "next", "index": "next-index"}
            steps = itertools.cycle(
                [
                    lambda c: c.put("/v1/tasks/one", json=body | {"version": "2"}),
                    lambda c: c.post("/v1/tasks/one/rollback"),
                    lambda c: c.post("/v1/indexes", json={"task": "one", "index": "one-again"}),
                    lambda c: c.put("/v1/tasks/one/default", json={"version": "2"}),
                    lambda c: c.put("/v1/tasks/one/default", json={"version": "1"}),
                    lambda c: c.delete("/v1/tasks/one", params={"version": "2"}),
                ]
            )
            with httpx.Client(base_url=address, timeout=60) as client:
                for step in itertools.islice(steps, 18):
                    assert step(client).status_code in (200, 204)
        finally:
            stop.set()
            for asker in askers:
                asker.join()

    assert wrong == []
    assert ("one@2", "next-index") in seen
    (version,) = web.client.get("/v1/tasks/one").json()["versions"]
    assert version["index"] == "one-again"


def test_an_index_built_with_bm25_is_hybrid_without_a_flag(web):
    assert web.client.get("/info").json()["hybrid"] is False
    refused(search(web, mode="hybrid"), "refused", "dptdr index --bm25")
    new = {"task": "hybrid", "bundle": "next", "index": "next-index"}
    assert web.client.post("/v1/tasks", json=new).json()["searchable"] is True

    found = search(web, task="hybrid", mode="hybrid").json()

    assert web.client.get("/info").json()["hybrid"] is True
    assert "next-index" in web.client.get("/info").json()["indexes"]
    # Only one passage holds the word.
    assert (found["index"], found["hits"][0]["id"]) == ("next-index", "p5")
    web.client.delete("/v1/tasks/hybrid")


@pytest.mark.parametrize(
    ("body", "kind", "words"),
    [
        ({"task": "one", "index": "next-index"}, "wrong_prompt", "refresh the index"),
        ({"task": "one", "index": "fresh"}, "index", "expected an index folder"),
        ({"task": "one", "index": "../one-index"}, "refused", "got a path"),
        ({"task": "one", "index": "missing"}, "refused", "no such folder"),
        ({"task": "none", "index": "one-again"}, "unknown_task", "unknown task 'none'"),
        ({"task": "one", "index": "one-again", "version": "9"}, "unknown_task", "no version '9'"),
        ({"task": "backbone", "index": "one-again"}, "refused", "has no index of its own"),
    ],
)
def test_an_index_that_does_not_fit_is_refused_and_nothing_changes(web, body, kind, words):
    before = search(web).json()["hits"]

    refused(web.client.post("/v1/indexes", json=body), kind, words)
    if body["task"] == "one" and "version" not in body:
        new = {"bundle": "one", "index": body["index"]}
        refused(web.client.put("/v1/tasks/one", json=new), kind, words)

    assert search(web).json()["hits"] == before
    assert len(web.client.get("/v1/tasks/one").json()["versions"]) == 1


def test_a_worker_that_starts_later_refuses_what_took_an_indexs_place(web):
    from dptdr.serving.tasks.registry import TaskRegistry

    registry = web.runtime.registry
    here = web.folder / "tasks" / "moving"
    web.write_index(here, web.encoders["next"])
    new = {"task": "moving", "bundle": "next", "index": "moving"}
    assert web.client.post("/v1/tasks", json=new).status_code == 201
    shutil.rmtree(here)
    web.write_index(here, web.encoders["one"])

    def start():
        made = TaskRegistry(registry.forward, state=registry.catalogue.folder)
        made.indexes = type(registry.indexes)(dim=32, folder=registry.indexes.folder)
        made.catalogue.file.touch()
        return made

    later = start()
    assert "has changed since it was added" in later.resolve("moving").index_error
    assert "moving@1, index" in later.broken
    # What is open goes on; the other worker's vectors are not touched by the broken index.
    assert search(web, task="moving").json()["index"] == "moving"
    shutil.rmtree(here)
    web.write_index(here, web.encoders["next"])
    assert web.client.post("/v1/indexes", json=new | {"bundle": None}).status_code == 422
    again = {"task": "moving", "index": "moving"}
    assert web.client.post("/v1/indexes", json=again).status_code == 200
    assert later.resolve("moving").index.name == "moving"
    web.client.delete("/v1/tasks/moving")


@pytest.mark.parametrize("later", [False, True], ids=["final", "tasks-folder"])
def test_an_index_that_no_task_can_search_is_refused_or_named_at_the_start(tmp_path, capsys, later):
    from dptdr.errors import WrongPrompt

    server = WebServer(tmp_path, tasks=())
    server.write_index(tmp_path / "other", server.encoder("two"))
    tasks = (("one", tmp_path / "tasks" / "one"),)
    folder = tmp_path / "tasks" if later else None
    given = (("one", tmp_path / "one-index"), ("", tmp_path / "other"))
    settings = dataclasses.replace(
        server.runtime.settings, tasks=tasks, tasks_folder=folder, indexes=given
    )
    runtime = type(server.runtime)(settings)

    if later:
        runtime.load()
        runtime.stop()
        assert "warning: index 'other': expected passage vectors" in capsys.readouterr().err
    else:
        with pytest.raises(WrongPrompt, match="index 'other': expected passage vectors of a"):
            runtime.load()


def test_a_worker_that_starts_later_refuses_another_index_in_the_place_of_a_given_one(tmp_path):
    from dptdr.errors import VectorsError
    from dptdr.serving.startup import server_settings

    server = WebServer(tmp_path)
    with server_settings([tmp_path / "tasks" / "one"], indexes=[tmp_path / "one-index"]) as given:
        shutil.rmtree(tmp_path / "one-index")
        server.write_index(tmp_path / "one-index", server.encoder("one"), bm25=True)
        with pytest.raises(VectorsError, match="one-index: replaced since the server started"):
            type(server.runtime)(given).load()


def test_a_worker_that_replaces_another_takes_the_tasks_as_they_are(tmp_path):
    from dptdr.serving.startup import server_settings

    server = WebServer(tmp_path)
    tasks = tmp_path / "tasks"
    given = [f"{name}={tasks / bundle}" for name, bundle in (("a", "one"), ("b", "one"))]
    with server_settings(
        given, backbone=str(server.place), state_folder=tmp_path / "kept"
    ) as first:
        workers = [type(server.runtime)(first) for _ in range(2)]
        workers[0].load()
        workers[0].registry.remove("b")
        shutil.rmtree(tasks / "one")
        write_bundle(tasks / "one", server.backbone, seed=8)

        workers[1].load()

        for worker in workers:
            assert set(worker.registry.tasks()) == {"a"}
            assert set(worker.registry.tasks()["a"].versions) == {"1"}
            worker.stop()
    with server_settings(
        given, backbone=str(server.place), state_folder=tmp_path / "kept"
    ) as again:
        later = type(server.runtime)(again)
        later.load()
        assert {name: t.record.default for name, t in later.registry.tasks().items()} == {
            "a": "2",
            # What was version 1 before its removal was another bundle.
            "b": "2",
        }
        later.stop()
