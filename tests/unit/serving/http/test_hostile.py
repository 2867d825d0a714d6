"""Clients that mean harm: floods, foreign pages, slow senders, bundles that lie."""

import asyncio
import contextlib
import json
import os
import socket
from urllib.parse import urlsplit

import pytest

pytest.importorskip("fastapi")

from helpers.serving import WebServer, task_encoder


@pytest.fixture(scope="module")
def web(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hostile")
    with WebServer.start(folder, receive_seconds=0.5, max_connections=5) as server:
        yield server


@pytest.fixture
def client(web):
    return web.client


def message(reply, status):
    assert reply.status_code == status, reply.text[:500]
    return reply.json()["error"]["message"]


def test_without_a_key_the_body_is_not_even_received(tmp_path):
    keys = tmp_path / "keys.toml"
    keys.write_text(f"[[key]]\nname='a'\nsha256='{'0' * 64}'\nscopes=['use']\n")
    web = WebServer(tmp_path, keys_file=keys, requests_per_second=0.001, burst_requests=3)
    sent = []

    async def receive():
        raise AssertionError("the body was asked for before the key")

    async def send(event):
        sent.append(event)

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/v1/embeddings",
        "headers": [(b"content-type", b"application/json")],
        "query_string": b"",
        "client": ("10.0.0.1", 1),
    }
    for _ in range(4):
        asyncio.run(web.app(dict(scope), receive, send))

    statuses = [event["status"] for event in sent if event["type"] == "http.response.start"]
    # Guesses are counted too.
    assert statuses == [401, 401, 401, 429]


@pytest.mark.parametrize(
    "body",
    [
        {"model": "one", "input": [1.0] * 15_000},
        {"model": "one", "input": ["x", *[1] * 40_000]},
        {"model": "one", "input": "x", **{f"unknown{n}": n for n in range(5_000)}},
        {"model": "one", "input": "x", "u" * 90_000: 1},
        {"model": "one", "input": "x", "\ud800": 1},
    ],
    ids=["kind", "mixed", "many fields", "a long field", "a surrogate"],
)
def test_what_is_wrong_many_times_is_said_once_and_shortly(client, body):
    headers = {"content-type": "application/json"}
    reply = client.post(
        "/v1/embeddings", content=json.dumps(body, separators=(",", ":")), headers=headers
    )

    assert len(message(reply, 422)) < 400


def test_nested_json_is_unreadable(client):
    content = b'{"model": ' + b"[" * 40_000
    headers = {"content-type": "application/json"}
    assert client.post("/v1/embeddings", content=content, headers=headers).status_code in (400, 422)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"host": "evil.example"}, 403),
        ({"host": "127.0.0.1.evil.example:8000"}, 403),
        ({"host": "127.0.0.1:8000"}, 404),
        ({"host": "[::1]:8000"}, 404),
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"origin": "http://localhost:3000"}, 403),
        ({"origin": "http://localhost"}, 404),
        ({"origin": "http://[::1"}, 403),
        ({"host": "LOCALHOST:8000", "origin": "http://localhost:8000"}, 404),
        ({"sec-fetch-site": "cross-site"}, 403),
        ({"sec-fetch-site": "same-site"}, 403),
        ({"sec-fetch-site": "same-origin"}, 404),
        ({"host": "127.0.0.1:8000", "origin": "http://127.0.0.1:9999"}, 403),
        ({"host": "127.0.0.1:8000", "origin": "http://127.0.0.1"}, 403),
        ({"host": "127.0.0.1:8000", "origin": "http://127.0.0.1:8000"}, 404),
        ({"host": "[::1]:8000", "origin": "http://[::1]:9999"}, 403),
        (
            {
                "host": "localhost:8000",
                "origin": "http://localhost:8000",
                "sec-fetch-site": "same-site",
            },
            403,
        ),
    ],
)
def test_an_open_server_refuses_other_sites_pages(client, headers, status):
    reply = client.post("/v1/tasks/none/rollback", headers=headers)
    message(reply, status)
    assert reply.json()["error"]["type"] == ("cross_site" if status == 403 else "unknown_task")
    if headers.keys() == {"host"}:
        assert client.get("/health", headers=headers).status_code == (403 if status == 403 else 200)


def test_names_that_the_operator_allows_are_ours(tmp_path):
    with WebServer.start(tmp_path, hosts=("search.example",), tasks=(), indexes=()) as web:
        for host, origin, status in (
            ("search.example", "https://search.example", 404),
            ("search.example:8000", "http://search.example:8000", 404),
            ("search.example:8000", "http://search.example:9999", 403),
            # Behind a proxy that replaces the host.
            ("127.0.0.1:8000", "https://search.example", 404),
            ("127.0.0.1:8000", "https://else.example", 403),
        ):
            headers = {"host": host, "origin": origin}
            reply = web.client.post("/v1/tasks/none/rollback", headers=headers)
            assert reply.status_code == status, headers


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b'{"model": "one", "model": "two", "input": "x"}', "got 'model' twice"),
        (b'{"model": "one", "input": "x", "more": {"a": 1, "a": 2}}', "got 'a' twice"),
        ('{"model": "one", "input": "x"}'.encode("utf-16"), "expected a JSON body in UTF-8"),
        ('{"model": "one", "input": "x"}'.encode("utf-32-le"), "JSON"),
        (b'{"model": "one", "input": "caf\xe9"}', "expected a JSON body in UTF-8"),
    ],
)
def test_bodies_that_can_be_read_in_two_ways_are_refused(client, content, words):
    headers = {"content-type": "application/json"}
    reply = client.post("/v1/embeddings", content=content, headers=headers)
    assert words in reply.json()["error"]["message"]
    assert reply.status_code in (400, 422)


@pytest.mark.parametrize("query", ["versoin=1", "version=1&version=2", "version=1&force="])
def test_unknown_query_parameters_change_nothing(client, query):
    before = client.get("/v1/tasks").json()
    said = message(client.delete(f"/v1/tasks/one?{query}"), 422)
    assert "expected each of (version) at most once" in said
    message(client.post(f"/v1/tasks/one/rollback?{query}"), 422)
    assert client.get("/v1/tasks").json() == before


def test_two_lengths_of_a_body_are_one_too_many(client):
    headers = {
        "content-length": "4",
        "transfer-encoding": "chunked",
        "content-type": "application/json",
    }
    reply = client.post("/v1/embeddings", content=b"{}", headers=headers)
    assert "got both" in message(reply, 400)
    assert reply.headers["connection"] == "close"


def read_all(connection):
    connection.settimeout(20)
    found = b""
    with contextlib.suppress(OSError):
        while piece := connection.recv(65536):
            found += piece
    return found


def test_who_sends_too_much_gets_the_answer_not_a_reset(tmp_path):
    half = b"x" * 60_000
    head = b"POST /v1/embeddings HTTP/1.1\r\nhost: localhost\r\ncontent-length: 120000\r\n\r\n"
    with WebServer.start(tmp_path, max_body_kb=100) as web, web.listening() as address:
        where = urlsplit(address)
        for _ in range(10):
            with socket.create_connection((where.hostname, where.port)) as client:
                for piece in (head, half, half):
                    client.sendall(piece)
                assert b" 413 " in read_all(client)


def test_slow_clients_are_sent_away_and_keep_nobody_out(web):
    with web.listening() as address:
        where = urlsplit(address)
        place = (where.hostname, where.port)
        head = b"POST /v1/embeddings HTTP/1.1\r\nhost: localhost\r\n"
        with socket.create_connection(place) as half:
            half.sendall(head)
            assert read_all(half) == b""
        with socket.create_connection(place) as slow:
            slow.sendall(head + b"content-type: application/json\r\ncontent-length: 99\r\n\r\n{")
            assert b"408" in read_all(slow).split(b"\r\n")[0]
        with contextlib.ExitStack() as stack:
            held = [stack.enter_context(socket.create_connection(place)) for _ in range(30)]
            for connection in held:
                connection.sendall(b"GET /hea")
            with socket.create_connection(place) as honest:
                honest.sendall(b"GET /health HTTP/1.0\r\nhost: localhost\r\n\r\n")
                assert b"200 OK" in read_all(honest)


def lying_bundle(web, name, **values):
    from dptdr.model.bundle import save_task

    folder = web.folder / "tasks" / name
    save_task(folder, task_encoder(web.backbone, seed=11))
    manifest = folder / "task.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | values))
    return folder


@pytest.mark.parametrize(
    "values",
    [
        {"measures": {"\ud800": 1.0}},
        {"measures": {"x" * 2_000: 1.0}},
        {"measures": {"nDCG@10": [[[1.0]]]}},
        {"measures": {"nDCG@10": float("nan")}},
        {"measures": {"nDCG@10": 10**400}},
        {"measures": {"nDCG@10": "high"}},
        {"measures": {f"m{n}": 1.0 for n in range(300)}},
        {"training": {"matryoshka": "abc"}},
        {"backbone_probe": None},
        {"backbone_probe": 3},
        {"backbone_probe": True},
        {"trained_parameters": 10**30},
        {"trained_parameters": -1},
        {"weights_file": "w" * 5_000},
    ],
    ids=str,
)
def test_a_bundle_that_cannot_be_shown_is_not_added(web, client, values):
    lying_bundle(web, "lying", **values)
    before = client.get("/v1/tasks").json()

    said = message(client.post("/v1/tasks", json={"task": "lying", "bundle": "lying"}), 422)

    assert "task.json" in said
    assert len(said) <= 1010
    assert client.get("/v1/tasks").json() == before


def test_a_length_in_the_settings_alone_is_refused_before_it_is_made(web, client, monkeypatch):
    folder = lying_bundle(web, "long")
    values = json.loads((folder / "task.json").read_text())
    values["settings"]["prompt_length"] = 1_000_000
    (folder / "task.json").write_text(json.dumps(values))
    # What would make them.
    monkeypatch.setattr("dptdr.model.methods.DeepPrompt", None)

    said = message(client.post("/v1/tasks", json={"task": "long", "bundle": "long"}), 422)

    assert "prompt_length: expected 0 to 4096 rows, got 1000000" in said


def test_a_bundle_with_a_pipe_is_refused_at_once(web, client):
    folder = lying_bundle(web, "piped")
    (folder / "task.json").unlink()
    os.mkfifo(folder / "task.json")
    said = message(client.post("/v1/tasks", json={"task": "piped", "bundle": "piped"}), 422)
    assert "expected a task bundle with a task.json" in said


def test_links_and_folders_of_the_machine_stay_hidden(web, client):
    secret = web.folder / "secret.json"
    secret.write_text('{"format_version": "hidden value"}')
    folder = lying_bundle(web, "linked")
    (folder / "task.json").unlink()
    (folder / "task.json").symlink_to(secret)
    said = message(client.post("/v1/tasks", json={"task": "x", "bundle": "linked"}), 409)
    assert "hidden" not in said
    assert "got a link" in said
    (web.folder / "tasks" / "alias").symlink_to(web.folder / "tasks" / "fresh")
    message(client.post("/v1/tasks", json={"task": "x", "bundle": "alias"}), 409)

    for bundle in ("damaged", "foreign", "empty"):
        said = client.post("/v1/tasks", json={"task": "x", "bundle": bundle}).text
        assert str(web.folder) not in said
    assert str(web.folder) not in client.get("/info").text


def test_metrics_forget_removed_tasks(client):
    client.post("/v1/tasks", json={"task": "brief", "bundle": "fresh"})
    client.post("/v1/embeddings", json={"model": "brief", "input": "x"})
    assert 'task="brief"' in client.get("/metrics").text
    client.delete("/v1/tasks/brief")
    assert 'task="brief"' not in client.get("/metrics").text


def test_history_and_version_numbers_stay_small(client):
    client.post("/v1/tasks", json={"task": "busy", "bundle": "fresh", "version": "9" * 64})
    made = client.put("/v1/tasks/busy", json={"bundle": "fresh"}).json()
    assert made["default"] == "1"
    for _ in range(15):
        for version in ("9" * 64, "1"):
            client.put("/v1/tasks/busy/default", json={"version": version})
    assert len(client.get("/v1/tasks/busy").json()["history"]) == 20
    client.delete("/v1/tasks/busy")


def test_a_dead_servers_temporary_folder_goes_with_the_next_start(tmp_path, monkeypatch):
    import subprocess
    import sys
    import tempfile

    from dptdr.io.temporary import temporary_folder

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    for pid in (dead.pid, os.getpid()):
        (tmp_path / f"dptdr-serve-{pid}-abc").mkdir()

    with temporary_folder("serve") as made:
        left = {path.name for path in tmp_path.iterdir()}

    assert left == {made.name, f"dptdr-serve-{os.getpid()}-abc"}
