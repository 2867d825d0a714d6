"""Every route with every kind of key: whatever a key can cause to be read lies within its tasks."""

import hashlib

import pytest

pytest.importorskip("fastapi")

from dptdr.serving.http.access import ACCESS
from helpers.serving import WebServer

KEYS = {
    "use-mine": (["use"], ["one", "one-*"]),
    "administer-mine": (["use", "administer"], ["one", "one-*"]),
    "administer-only-mine": (["administer"], ["one", "one-*"]),
    "use-all": (["use"], ["*"]),
    "administer-all": (["use", "administer"], ["*"]),
}

BODIES = {
    "/v1/embeddings": {"input": "x", "model": "{task}:query"},
    "/embeddings": {"input": "x", "model": "{task}:query"},
    "/embed": {"inputs": "x", "task": "{task}:query"},
    "/similarity": {
        "inputs": {"source_sentence": "x", "sentences": ["y"]},
        "task": "{task}:query",
    },
    "/tokenize": {"inputs": "x", "task": "{task}:query"},
    "/embed_all": {"inputs": "x", "task": "{task}"},
    "/rerank": {"query": "x", "texts": ["y"]},
    "/v1/search": {"text": "x", "task": "{task}"},
    "/v1/indexes": {"task": "{task}", "index": "{bundle}"},
    "/v1/tasks": {"task": "{task}", "bundle": "{bundle}"},
}


@pytest.fixture(scope="module")
def web(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tenancy")
    lines = []
    for name, (scopes, tasks) in KEYS.items():
        digest = hashlib.sha256(name.encode()).hexdigest()
        lines.append(f"[[key]]\nname='{name}'\nsha256='{digest}'\nscopes={scopes}\ntasks={tasks}\n")
    (folder / "keys.toml").write_text("".join(lines))
    with WebServer.start(folder, keys_file=folder / "keys.toml") as server:
        yield server


def body_of(path, task, bundle):
    if path.startswith("/tasks/{task}"):
        rest = path.removeprefix("/tasks/{task}") or "/embed"
        body = dict(BODIES[rest])
        body.pop("task", None)
        return body | ({"prompt_name": "query"} if "inputs" in body else {"input_type": "query"})
    found = BODIES.get(path)
    if found is not None:
        marks = {"task": task, "bundle": bundle}
        return {k: v.format(**marks) if isinstance(v, str) else v for k, v in found.items()}
    if path.endswith("default"):
        return {"version": "1"}
    return {"bundle": bundle} if path == "/v1/tasks/{task}" else None


def names_a_task(route):
    method, path = route
    if path == "/embed_all":
        # Refused whatever its body says.
        return False
    return "{" in path or (method == "POST" and "{task}" in str(BODIES.get(path)))


CASES = [
    (route, task)
    for route in ACCESS
    for task in (["one", "two", "backbone", "none"] if names_a_task(route) else [""])
]


@pytest.mark.parametrize("key", [None, *KEYS])
def test_a_key_reaches_its_own_and_nothing_else(web, key):
    wrong = []
    for route, task in CASES:
        method, path = route
        bundle = "nowhere" if task == "two" else "one-nowhere"
        status = web.client.request(
            method,
            path.format(task=task, model=task),
            json=body_of(path, task, bundle=bundle),
            headers={"x-api-key": key} if key else {},
            params={"version": "none"} if method == "DELETE" else None,
        ).status_code
        if expected(ACCESS[route], names_a_task(route), task, key) != refusal(status):
            wrong.append((key, method, path, task, status))

    assert wrong == []


def refusal(status):
    return status if status in (401, 403) else None


def expected(needs, has_task, task, key):
    """Return 401 or 403 where the key must be refused."""
    if needs.scope is None:
        return None
    if key is None:
        return 401
    scopes, tasks = KEYS[key]
    whole = tasks == ["*"]
    allowed = needs.scope in scopes and (whole or not needs.all_tasks)
    if has_task:
        allowed = allowed and (whole or task == "one")
    return None if allowed else 403


def test_a_key_cannot_take_another_tenants_bundle(web):
    mine = {"x-api-key": "administer-mine"}
    for path, body in (
        ("/v1/tasks", {"task": "one-steal", "bundle": "untied"}),
        ("/v1/tasks", {"task": "one-steal", "bundle": "one", "index": "two-index"}),
        ("/v1/indexes", {"task": "one", "index": "two-index"}),
    ):
        reply = web.client.post(path, json=body, headers=mine)
        assert reply.status_code == 403
        assert "has no access to bundle" in reply.json()["error"]["message"]
    assert web.client.get("/v1/tasks/one-steal", headers=mine).status_code == 404


def test_lists_and_counts_are_those_of_the_keys_tasks(web):
    everything = {"x-api-key": "administer-all"}
    for task in ("one", "two:query"):
        body = {"model": task, "input": "x"}
        assert web.client.post("/v1/embeddings", json=body, headers=everything).status_code == 200
    mine = {"x-api-key": "use-mine"}

    shown = web.client.get("/metrics", headers=mine).text
    assert 'task="one"' in shown
    assert "two" not in shown
    assert "dptdr_batches_total" not in shown
    assert "dptdr_batches_total" in web.client.get("/metrics", headers=everything).text
    assert web.client.get("/info", headers=mine).json()["indexes"] == ["one-index"]
    names = web.client.get("/info", headers=everything).json()["indexes"]
    assert names == ["one-index", "bare-index"]
    assert [t["id"] for t in web.client.get("/v1/models", headers=mine).json()["data"]] == ["one"]


def test_an_index_is_searched_only_for_the_task_it_was_given_for(web):
    # The bare encoder has the vectors of 'bare-index', which was given for any task.
    headers = {"x-api-key": "use-all"}
    served = web.runtime.registry.indexes.given[1]
    body = {"task": "backbone", "text": "x"}
    assert web.client.post("/v1/search", json=body, headers=headers).status_code == 200
    served.task = "two"
    try:
        assert web.client.post("/v1/search", json=body, headers=headers).status_code == 409
    finally:
        served.task = ""


def test_a_limited_key_does_not_search_an_index_given_for_no_task(web):
    served = web.runtime.registry.indexes.given[0]
    task, body = served.task, {"task": "one", "text": "x"}
    statuses = {}
    try:
        for given in ("one", ""):
            served.task = given
            for key in ("use-mine", "use-all"):
                reply = web.client.post("/v1/search", json=body, headers={"x-api-key": key})
                statuses[given, key] = reply.status_code
        info = web.client.get("/info", headers={"x-api-key": "use-mine"}).json()
    finally:
        served.task = task

    assert statuses == {
        ("one", "use-mine"): 200,
        ("one", "use-all"): 200,
        ("", "use-mine"): 409,
        ("", "use-all"): 200,
    }
    assert info["indexes"] == []
