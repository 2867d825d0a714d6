"""Keys and rates over HTTP, and a server that is not ready."""

import hashlib
import threading
import time

import httpx
import pytest

pytest.importorskip("fastapi")

from helpers.serving import Held, WebServer, wait_for


def key_file(folder):
    lines = []
    for name, scopes, more in (
        ("reader", '["use"]', 'tasks = ["one"]'),
        ("operator", '["use", "administer"]', "requests_per_second = 1000"),
        ("slow", '["use"]', "requests_per_second = 0.5"),
        # Another key of that name.
        ("quick", '["use"]', "requests_per_second = 1000"),
    ):
        digest = hashlib.sha256(name.encode()).hexdigest()
        name = "slow" if name == "quick" else name
        lines.append(f'[[key]]\nname = "{name}"\nsha256 = "{digest}"\nscopes = {scopes}\n{more}\n')
    path = folder / "keys.toml"
    path.write_text("\n".join(lines))
    return path


@pytest.fixture(scope="module")
def web(tmp_path_factory):
    folder = tmp_path_factory.mktemp("access")
    options = {"keys_file": key_file(folder), "burst_requests": 2, "open_administration": False}
    with WebServer.start(folder, **options) as server:
        yield server


def post(web, path, body, key=None, header="authorization"):
    value = {"authorization": f"Bearer {key}", "x-api-key": key}[header]
    headers = {header: value} if key else {}
    return web.client.post(path, json=body, headers=headers)


def kind(reply):
    return reply.status_code, reply.json()["error"]["type"]


ASK = {"model": "one", "input": "the cat"}


def test_without_a_key_only_health_and_the_page_answer(web):
    assert kind(post(web, "/v1/embeddings", ASK)) == (401, "no_key")
    assert kind(post(web, "/v1/embeddings", ASK, "wrong")) == (401, "no_key")
    reply = web.client.get("/metrics")
    assert kind(reply) == (401, "no_key")
    assert reply.headers["www-authenticate"] == "Bearer"
    for path in ("/info", "/v1/tasks", "/v1/models", "/v1/tasks/one"):
        assert kind(web.client.get(path)) == (401, "no_key")
    assert web.client.get("/health").status_code == 200
    assert web.client.get("/").status_code == 200


@pytest.mark.parametrize("header", ["authorization", "x-api-key"])
def test_a_key_reaches_its_tasks_only(web, header):
    assert post(web, "/v1/embeddings", ASK, "reader", header).status_code == 200
    other = post(web, "/v1/embeddings", ASK | {"model": "two"}, "reader", header)
    assert kind(other) == (403, "not_allowed")
    # Whether a task exists is not told to those who may not touch it.
    hidden = post(web, "/v1/embeddings", ASK | {"model": "none"}, "reader", header)
    assert kind(hidden) == (403, "not_allowed")


@pytest.mark.parametrize("coding", ["utf-8", "latin-1"])
def test_a_key_may_have_letters_of_any_kind(tmp_path, coding):
    file = tmp_path / "letters.toml"
    digest = hashlib.sha256("schlüssel".encode()).hexdigest()
    file.write_text(f'[[key]]\nname = "k"\nsha256 = "{digest}"\nscopes = ["use"]\n')
    with WebServer.start(tmp_path, keys_file=file) as server:
        secret = "schlüssel".encode(coding)
        for headers in ({"X-API-Key": secret}, {"Authorization": b"Bearer " + secret}):
            assert server.client.get("/info", headers=headers).status_code == 200
        assert server.client.get("/info", headers={"X-API-Key": b"\xff"}).status_code == 401


def test_an_empty_bearer_does_not_hide_the_other_header(web):
    for bearer in ("Bearer", "Bearer "):
        headers = {"Authorization": bearer, "X-API-Key": "operator"}
        assert web.client.get("/v1/models", headers=headers).status_code == 200


def test_head_answers_as_get_without_a_body(web):
    with web.listening() as address:
        for path, status in (("/health", 200), ("/", 200), ("/info", 401), ("/v1/search", 405)):
            reply = httpx.head(address + path)
            assert (reply.status_code, reply.content) == (status, b"")


def test_lists_show_what_the_key_reaches(web):
    headers = {"x-api-key": "reader"}
    models = web.client.get("/v1/models", headers=headers).json()["data"]
    tasks = web.client.get("/v1/tasks", headers=headers).json()["tasks"]
    assert [item["id"] for item in models] == ["one"]
    assert [item["task"] for item in tasks] == ["one"]
    assert web.client.get("/info", headers=headers).json()["tasks"] == 1
    assert kind(web.client.get("/v1/tasks/two", headers=headers)) == (403, "not_allowed")


def test_only_administrators_change_tasks(web):
    new = {"task": "new", "bundle": "fresh"}
    assert kind(post(web, "/v1/tasks", new, "reader")) == (403, "not_allowed")
    reader = {"x-api-key": "reader"}
    for method, path, body in (
        ("PUT", "/v1/tasks/one", {"bundle": "fresh"}),
        ("DELETE", "/v1/tasks/one", None),
        ("POST", "/v1/tasks/one/rollback", None),
        ("PUT", "/v1/tasks/one/default", {"version": "1"}),
        ("POST", "/v1/self-check", None),
    ):
        reply = web.client.request(method, path, json=body, headers=reader)
        assert kind(reply) == (403, "not_allowed"), path
    assert post(web, "/v1/tasks", new, "operator").status_code == 201
    removed = web.client.delete("/v1/tasks/new", headers={"x-api-key": "operator"})
    assert removed.status_code == 204


def test_a_keys_own_rate_counts(web):
    replies = [post(web, "/v1/embeddings", ASK, "slow") for _ in range(3)]

    assert [reply.status_code for reply in replies] == [200, 200, 429]
    assert kind(replies[2]) == (429, "rate")
    assert replies[2].headers["retry-after"] == "2"
    # Whatever is asked counts, also what would be refused later.
    for method, path in (
        ("POST", "/v1/embeddings"),
        ("GET", "/v1/tasks"),
        ("GET", "/metrics"),
        ("POST", "/v1/self-check"),
    ):
        reply = web.client.request(method, path, headers={"x-api-key": "slow"})
        assert reply.status_code == 429, path
    for key in ("operator", "quick"):
        many = [post(web, "/v1/embeddings", ASK, key).status_code for _ in range(5)]
        assert many == [200] * 5


def test_the_log_names_the_key_never_shows_it(web):
    web.log.clear()
    post(web, "/v1/embeddings", ASK, "operator")
    assert web.log[0]["key"] == "operator"


def test_a_task_rate_counts_over_all_keys(tmp_path):
    options = {"task_requests_per_second": 0.1, "burst_requests": 2}
    with WebServer.start(tmp_path, **options) as web:
        statuses = [post(web, "/v1/embeddings", ASK).status_code for _ in range(3)]
        assert statuses == [200, 200, 429]
        assert post(web, "/v1/embeddings", ASK | {"model": "two:query"}).status_code == 200


def test_an_open_server_on_an_outside_address_lets_nobody_change_tasks(tmp_path):
    with WebServer.start(tmp_path, open_administration=False) as web:
        assert post(web, "/v1/embeddings", ASK).status_code == 200
        new = {"task": "new", "bundle": "fresh"}
        assert kind(post(web, "/v1/tasks", new)) == (403, "not_allowed")


def test_a_server_without_tasks_folder_takes_no_tasks(tmp_path):
    with WebServer.start(tmp_path, tasks_folder=None) as web:
        reply = post(web, "/v1/tasks", {"task": "new", "bundle": "fresh"})
        assert kind(reply) == (409, "refused")
        assert "--tasks-folder" in reply.json()["error"]["message"]


def test_while_starting_and_draining_the_answer_is_503(tmp_path, monkeypatch):
    gate = threading.Event()
    server = WebServer(tmp_path)
    real = server.runtime.load
    monkeypatch.setattr(server.runtime, "load", lambda: (gate.wait(30), real()))
    with server.client:
        for reply in (server.client.get("/health"), post(server, "/v1/embeddings", ASK)):
            assert kind(reply) == (503, "not_ready")
            assert reply.headers["retry-after"] == "1"
        gate.set()
        server.wait()
        assert post(server, "/v1/embeddings", ASK).status_code == 200
        server.runtime.draining = True
        assert kind(server.client.get("/health")) == (503, "not_ready")
        # Those who come all the same are still answered, until the server stops.
        assert post(server, "/v1/embeddings", ASK).status_code == 200


def test_a_full_queue_is_429_and_a_late_answer_504(tmp_path):
    with WebServer.start(tmp_path, queue_tokens=30, batch_tokens=8, timeout_seconds=0.3) as web:
        late = []

        def ask(texts):
            return post(web, "/v1/embeddings", ASK | {"input": texts})

        with Held(web.runtime.engine) as held:
            threads = [
                threading.Thread(target=ask, args=("moon",)),
                threading.Thread(target=lambda: late.append(ask(["the big old dog"] * 2))),
            ]
            threads[0].start()
            held.entered.wait(60)
            threads[1].start()
            wait_for(lambda: web.runtime.engine.waiting_tokens == 12)
            full = ask(["the big old dog"] * 8)
            time.sleep(0.4)
            held.release.set()
            for thread in threads:
                thread.join()

    assert kind(full) == (429, "queue_full")
    assert int(full.headers["retry-after"]) >= 1
    assert kind(late[0]) == (504, "too_late")


def test_more_tokens_than_one_request_may_bring_are_422_and_harm_nobody(tmp_path):
    with WebServer.start(tmp_path, max_tokens=12) as web:
        many = post(web, "/v1/embeddings", ASK | {"input": ["the big old dog"] * 4})
        few = post(web, "/v1/embeddings", ASK | {"input": ["the big old dog"] * 2})

        assert kind(many) == (422, "too_many_tokens")
        assert "at most 12 tokens per request, got 24" in many.json()["error"]["message"]
        assert few.status_code == 200
        assert web.runtime.engine.waiting_tokens == 0


def test_a_server_that_cannot_load_says_why(tmp_path):
    server = WebServer(tmp_path, tasks=(("bad", tmp_path / "tasks" / "damaged"),))
    with server.client:
        deadline = time.monotonic() + 30
        while server.runtime.failure is None and time.monotonic() < deadline:
            time.sleep(0.02)
        assert "SHA-256" in str(server.runtime.failure)
        assert server.client.get("/health").status_code == 503
