import base64
import json

import numpy as np
import pytest
import torch
import transformers

pytest.importorskip("fastapi")

from helpers.serving import Held, WebServer, wait_for
from helpers.tiny import VOCABULARY, tiny_tokenizer


@pytest.fixture(scope="module")
def web(tmp_path_factory):
    """An open server with two tasks, a search index and a tasks folder."""
    with WebServer.start(tmp_path_factory.mktemp("web"), hybrid=True) as server:
        yield server


@pytest.fixture
def client(web):
    return web.client


def embed(client, model, texts, **more):
    reply = client.post("/v1/embeddings", json={"model": model, "input": texts, **more})
    assert reply.status_code == 200, reply.text
    return reply.json()


def error(reply, status, kind):
    assert reply.status_code == status, reply.text
    found = reply.json()["error"]
    assert found["type"] == kind, found
    assert found["request_id"] == reply.headers["x-request-id"]
    return found["message"]


def test_health_and_info(client, web):
    assert client.get("/health").json() == {"status": "ok"}
    info = client.get("/info").json()
    assert info["model_sha"] == web.backbone.fingerprint
    assert (info["dim"], info["layout"], info["keys"]) == (32, "packed", False)


@pytest.mark.parametrize("side", ["query", "passage"])
@pytest.mark.parametrize("task", ["one", "two"])
def test_embeddings_equal_the_tasks_own_encoder(client, web, task, side):
    texts = ["the red boat", "", "why does the river run fast and cross the garden"]

    made = embed(client, f"{task}:{side}", texts)

    encoder = web.encoder(task)
    encode = encoder.encode_queries if side == "query" else encoder.encode_passages
    vectors = np.array([item["embedding"] for item in made["data"]])
    np.testing.assert_allclose(vectors, encode(texts), atol=2e-5)
    assert made["model"] == f"{task}@1"
    assert [item["index"] for item in made["data"]] == [0, 1, 2]
    assert made["usage"]["total_tokens"] == sum(map(len, web.backbone.tokenize(texts, side=side)))


def test_embeddings_base64_and_float_are_the_same_numbers(client):
    plain = embed(client, "one", "the red boat")["data"][0]["embedding"]
    coded = embed(client, "one", ["the red boat"], encoding_format="base64")

    numbers = np.frombuffer(base64.b64decode(coded["data"][0]["embedding"]), dtype="<f4")
    np.testing.assert_allclose(numbers, plain, atol=1e-6)


def test_embeddings_of_the_bare_backbone_by_name(client, web):
    made = embed(client, "backbone", ["the red boat"])["data"][0]["embedding"]

    expected = web.bare.encode_queries(["the red boat"])[0]
    np.testing.assert_allclose(made, expected, atol=2e-5)


def test_embeddings_shorter_vectors_only_where_trained(client, web):
    full = embed(client, "two:query", ["the cat"])["data"][0]["embedding"]
    short = embed(client, "two:query", ["the cat"], dimensions=8)["data"][0]["embedding"]

    # This encoder does not normalise, so training compared the plain first dimensions.
    np.testing.assert_allclose(short, full[:8], atol=1e-5)
    body = {"inputs": "the cat", "task": "two:query", "dimensions": 8}
    for normalize, length in ((False, np.linalg.norm(full[:8])), (True, 1.0)):
        (made,) = client.post("/embed", json=body | {"normalize": normalize}).json()
        np.testing.assert_allclose(
            made, np.array(full[:8]) * length / np.linalg.norm(full[:8]), atol=1e-5
        )
    assert len(embed(client, "one", ["the cat"], dimensions=32)["data"][0]["embedding"]) == 32
    for model, dimensions in (("one", 8), ("two:query", 9), ("backbone", 8)):
        body = {"model": model, "input": "x", "dimensions": dimensions}
        message = error(client.post("/v1/embeddings", json=body), 422, "invalid")
        assert "train with --matryoshka" in message


def test_embed_as_text_embeddings_inference(client, web):
    reply = client.post("/embed", json={"inputs": ["the red boat", "a dog"], "task": "one"})

    expected = web.encoder("one").encode_queries(["the red boat", "a dog"])
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(reply.json(), expected, atol=2e-5)
    body = {"inputs": "a dog", "normalize": False, "task": "backbone"}
    bare = client.post("/embed", json=body).json()
    np.testing.assert_allclose(bare, web.bare.encode_queries(["a dog"]), atol=2e-5)


def test_embed_refuses_long_texts_when_told_not_to_cut(client):
    long = "the " * 100
    body = {"inputs": ["short", long], "truncate": False, "task": "one"}
    message = error(client.post("/embed", json=body), 422, "invalid")
    assert "text 1: expected at most 64 tokens" in message
    # A text of exactly the limit is whole; one token more is not.
    limit = body | {"inputs": "the " * 62}
    assert client.post("/embed", json=limit).status_code == 200
    over = client.post("/embed", json=body | {"inputs": "the " * 63})
    assert "got 65" in error(over, 422, "invalid")
    assert client.post("/embed", json=body | {"truncate": True}).status_code == 200
    assert client.post("/embed", json=body | {"inputs": ["short"]}).status_code == 200


@pytest.mark.parametrize(
    ("body", "status", "kind", "words"),
    [
        ({"model": "none", "input": "x"}, 404, "unknown_task", "unknown task 'none'"),
        ({"model": "one@9", "input": "x"}, 404, "unknown_task", "no version '9'; available: 1"),
        ({"model": "one:both", "input": "x"}, 422, "invalid", "'task:query' or 'task:passage'"),
        ({"model": "one", "input": []}, 422, "invalid", "non-empty list"),
        ({"model": "one", "input": [1.5]}, 422, "invalid", "texts, token ids"),
        ({"model": "one", "input": ["x", 1]}, 422, "invalid", "texts, token ids"),
        ({"model": "one", "input": [99999]}, 422, "invalid", "check_embedding_ctx_length=False"),
        ({"model": "one", "input": [[]]}, 422, "invalid", "non-empty lists of token ids"),
        ({"model": "two", "input": "x"}, 422, "invalid", "'two:query' or 'two:passage'"),
        ({"input": "x"}, 422, "invalid", "specify one of 'one', 'two'"),
        ({"model": "one:query", "input": "x", "input_type": "passage"}, 422, "invalid", "both"),
        ({"model": "one"}, 422, "invalid", "Field required"),
        ({"model": "one", "input": "x", "dimensions": "8"}, 422, "invalid", "valid integer"),
        ({"model": "one", "input": "x", "dimensions": True}, 422, "invalid", "valid integer"),
        ({"model": "one", "input": "x", "inputs": "y"}, 422, "invalid", "unknown field"),
        ({"model": "one", "input": "x" * 501}, 422, "invalid", "at most 500 characters, got 501"),
        ({"model": "one", "input": ["x"] * 33}, 422, "invalid", "1 to 32 texts, got 33"),
    ],
)
def test_embeddings_refuses_what_cannot_be(client, body, status, kind, words):
    assert words in error(client.post("/v1/embeddings", json=body), status, kind)


@pytest.mark.parametrize(
    ("content", "status", "kind"),
    [
        (b'{"model": "one", "input": "\xff\xfe"}', 400, "unreadable"),
        (b"{", 422, "invalid"),
        (b"[]", 422, "invalid"),
        (rb'{"model": "one", "input": "\ud800"}', 422, "invalid"),
        (b'{"model": "one", "input": "' + b"x" * 1_000_000 + b'"}', 413, "too_large"),
    ],
)
def test_embeddings_refuses_broken_bodies(client, content, status, kind):
    headers = {"content-type": "application/json"}
    error(client.post("/v1/embeddings", content=content, headers=headers), status, kind)


def test_a_byte_order_mark_and_a_missing_content_type(client):
    body = json.dumps({"model": "one", "input": "a dog"}).encode()
    headers = {"content-type": "application/json"}
    assert client.post("/v1/embeddings", content=b"\xef\xbb\xbf" + body, headers=headers).is_success
    # As `curl -d` sends it.
    form = {"content-type": "application/x-www-form-urlencoded"}
    message = error(client.post("/v1/embeddings", content=body, headers=form), 422, "invalid")
    assert message == (
        "Content-Type: expected application/json, got 'application/x-www-form-urlencoded'"
    )


def test_a_streamed_body_is_stopped_when_it_grows_too_long(client):
    def pieces():
        for _ in range(100):
            yield b" " * 5_000

    headers = {"content-type": "application/json"}
    reply = client.post("/v1/embeddings", content=pieces(), headers=headers)
    assert "at most 100,000 bytes" in error(reply, 413, "too_large")


def test_unknown_routes_and_methods_have_the_same_shape(client):
    error(client.get("/nothing"), 404, "no_such_route")
    error(client.get("/v1/embeddings"), 405, "method")


@pytest.mark.parametrize(
    ("path", "field", "given", "words"),
    [
        ("/tasks/one/v1/embeddings", "model", "text-embedding-3-small", None),
        ("/tasks/one/v1/embeddings", "model", "one:query", None),
        ("/tasks/one@1/v1/embeddings", "model", "one", None),
        ("/tasks/one/v1/embeddings", "model", "two", "expected task 'one' of the path, got 'two'"),
        ("/tasks/one/embed", "task", "backbone", "expected task 'one' of the path"),
        ("/tasks/one/embed", "task", "one@2", "expected task 'one' of the path, got 'one@2'"),
        ("/tasks/one:query/embed", "task", "one:passage", "either 'query' or 'passage', got both"),
    ],
)
def test_a_task_in_the_body_never_contradicts_the_path(client, path, field, given, words):
    texts = "inputs" if path.endswith("/embed") else "input"
    reply = client.post(path, json={field: given, texts: "boat"})
    if words is None:
        assert reply.status_code == 200, reply.text
    else:
        assert words in error(reply, 422, "invalid")


def test_search_finds_what_the_index_holds(client, web):
    reply = client.post("/v1/search", json={"task": "one", "text": "the red boat", "k": 3})

    found = reply.json()
    assert reply.status_code == 200, reply.text
    vectors = web.encoder("one").encode_passages([p.content for p in web.passages])
    scores = vectors @ web.encoder("one").encode_queries(["the red boat"])[0]
    order = np.argsort(-scores)[:3]
    assert [hit["id"] for hit in found["hits"]] == [web.passages[i].id for i in order]
    assert [hit["rank"] for hit in found["hits"]] == [1, 2, 3]
    np.testing.assert_allclose([h["score"] for h in found["hits"]], scores[order], rtol=1e-4)
    assert found["hits"][0]["text"] == web.passages[order[0]].text
    assert found["encode_milliseconds"] > 0


def test_search_hybrid_prefers_what_both_sides_find(client):
    body = {"task": "one", "text": "zebra", "k": 5, "mode": "hybrid"}

    found = client.post("/v1/search", json=body).json()

    assert found["mode"] == "hybrid"
    # Only one passage holds the word, so BM25 lifts it above all that only vectors find.
    assert found["hits"][0]["id"] == "p5"
    assert found["hits"][0]["score"] > 0.5 / 61


def test_search_takes_a_fusion_and_refuses_what_contradicts_it(client):
    body = {"task": "one", "text": "zebra", "k": 12}

    scaled = client.post("/v1/search", json=body | {"fusion": "min-max"}).json()

    assert scaled["mode"] == "hybrid"
    assert 0.5 < scaled["hits"][0]["score"] <= 1.0
    assert {hit["id"] for hit in scaled["hits"]} == {f"p{n}" for n in range(12)}
    odd = {"fusion": "rrf", "filters": ["kind=odd"]}
    found = client.post("/v1/search", json=body | odd).json()
    assert {hit["id"] for hit in found["hits"]} == {f"p{n}" for n in range(1, 12, 2)}
    both = client.post("/v1/search", json=body | {"fusion": "rrf", "mode": "dense"})
    assert "expected mode 'hybrid'" in error(both, 422, "invalid")
    error(client.post("/v1/search", json=body | {"fusion": "sum"}), 422, "invalid")


def test_search_filters_by_metadata(client):
    body = {"task": "one", "text": "boat", "k": 50, "filters": ["kind=odd"]}
    found = client.post("/v1/search", json=body).json()

    assert {hit["id"] for hit in found["hits"]} == {f"p{i}" for i in range(1, 12, 2)}
    bad = client.post("/v1/search", json=body | {"filters": ["kind"]})
    assert "filters.0: String should match pattern" in error(bad, 422, "invalid")
    misspelt = client.post("/v1/search", json=body | {"filters": ["kin=odd"]})
    assert "available: kind" in error(misspelt, 400, "no_such_field")


def test_search_refuses_an_index_of_other_vectors(client):
    body = {"task": "two", "text": "boat"}
    assert "no index matches two@1" in error(client.post("/v1/search", json=body), 409, "refused")
    too_many = client.post("/v1/search", json={"task": "one", "text": "boat", "k": 1001})
    assert "k: expected 1 to 1,000" in error(too_many, 422, "invalid")


def test_search_a_query_only_task_searches_the_bare_index(web, client):
    # 'three' is in the tasks folder; its passages are the bare backbone's.
    client.post("/v1/tasks", json={"task": "three", "bundle": "query-only"})

    found = client.post("/v1/search", json={"task": "three", "text": "boat", "k": 2}).json()

    assert found["index"] == "bare-index"
    assert len(found["hits"]) == 2
    client.delete("/v1/tasks/three")


def test_tasks_add_replace_roll_back_remove(client, web):
    added = client.post("/v1/tasks", json={"task": "new", "bundle": "fresh"})
    assert added.status_code == 201
    assert added.json()["versions"][0]["query_fingerprint"] == web.fresh.query_fingerprint
    first = embed(client, "new", ["a dog"])["data"][0]["embedding"]
    expected = web.fresh.encode_queries(["a dog"])[0]
    np.testing.assert_allclose(first, expected, atol=2e-5)

    body = {"task": "new", "bundle": "fresh"}
    assert "already exists" in error(client.post("/v1/tasks", json=body), 409, "task_exists")
    replaced = client.put("/v1/tasks/new", json={"bundle": "untied", "version": "b"}).json()
    assert (replaced["default"], replaced["history"]) == ("b", ["1"])
    second = embed(client, "new:query", ["a dog"])
    assert second["model"] == "new@b"
    assert embed(client, "new@1", ["a dog"])["data"][0]["embedding"] == pytest.approx(first)

    assert client.post("/v1/tasks/new/rollback").json()["default"] == "1"
    assert client.put("/v1/tasks/new/default", json={"version": "b"}).json()["default"] == "b"
    refused = client.delete("/v1/tasks/new", params={"version": "b"})
    assert "is the default" in error(refused, 409, "refused")
    assert client.delete("/v1/tasks/new", params={"version": "1"}).status_code == 204
    assert [v["version"] for v in client.get("/v1/tasks/new").json()["versions"]] == ["b"]
    assert client.delete("/v1/tasks/new").status_code == 204
    for name in ("new", "one@1", "backbone", "backbone@0"):
        error(client.get(f"/v1/tasks/{name}"), 404, "unknown_task")


@pytest.mark.parametrize(
    ("bundle", "status", "kind", "words"),
    [
        ("../one", 409, "refused", "got a path"),
        ("/etc", 409, "refused", "got a path"),
        ("..", 409, "refused", "got a path"),
        ("link", 409, "refused", "got a path"),
        ("missing", 409, "refused", "no such folder"),
        ("empty", 422, "broken_bundle", "expected a task bundle"),
        ("damaged", 422, "broken_bundle", "SHA-256"),
        ("foreign", 409, "wrong_backbone", "another|fingerprint"),
    ],
)
def test_tasks_bundles_come_only_whole_and_from_the_tasks_folder(
    client, bundle, status, kind, words
):
    import re

    before = client.get("/v1/tasks").json()
    reply = client.post("/v1/tasks", json={"task": "bad", "bundle": bundle})

    assert re.search(words, error(reply, status, kind))
    assert client.get("/v1/tasks").json() == before


def test_models_and_tasks_are_listed(client):
    models = [item["id"] for item in client.get("/v1/models").json()["data"]]
    assert models == ["backbone", "one", "two"]
    tasks = {item["task"]: item for item in client.get("/v1/tasks").json()["tasks"]}
    assert tasks["one"]["searchable"] is True
    assert tasks["two"]["searchable"] is False
    assert tasks["two"]["versions"][0]["sharing"] == "untied"


def test_self_check_passes(client):
    report = client.post("/v1/self-check").json()

    assert report["passed"] is True
    assert report["tasks"] >= 3
    assert report["difference"] <= 1e-5


def test_metrics_count_texts_and_tokens_per_task(client):
    def counted(name):
        for line in client.get("/metrics").text.splitlines():
            if line.startswith(f'dptdr_{name}{{task="one"}}'):
                return float(line.split()[-1])
        return 0.0

    before = counted("task_texts_total"), counted("task_tokens_total")
    embed(client, "one", ["the cat", "a dog"])

    assert counted("task_texts_total") == before[0] + 2
    assert counted("task_tokens_total") == before[1] + 8
    text = client.get("/metrics").text
    assert 'dptdr_requests_total{route="/v1/embeddings",status="200"}' in text
    assert "dptdr_self_checks_total" in text


def test_logs_hold_facts_but_no_text(client, web):
    web.log.clear()
    secret = "unspeakable river of gold"
    embed(client, "one", [secret])
    client.post("/v1/search", json={"task": "one", "text": secret})
    client.post("/v1/embeddings", json={"model": "one", "input": secret, "bad": secret})

    assert [entry["status"] for entry in web.log] == [200, 200, 422]
    assert web.log[0]["task"] == "one@1"
    assert web.log[0]["texts"] == 1
    assert len(web.log[0]["request_id"]) == 32
    assert "unspeakable" not in json.dumps(web.log)


def test_request_ids_are_taken_over_if_they_are_harmless(client):
    kept = client.get("/health", headers={"x-request-id": "abc-123"})
    assert kept.headers["x-request-id"] == "abc-123"
    changed = client.get("/health", headers={"x-request-id": "a b\tc"})
    assert len(changed.headers["x-request-id"]) == 32


def test_page_is_one_file_without_outside_resources(client):
    reply = client.get("/")

    assert reply.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in reply.headers["content-security-policy"]
    assert "http://" not in reply.text.replace("http://www.w3.org/2000/svg", "")
    assert "https://" not in reply.text


def test_docs_page_is_one_file_too(client):
    reply = client.get("/docs")

    assert reply.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in reply.headers["content-security-policy"]
    assert "//" not in reply.text


def test_embed_all_is_refused_because_tasks_have_one_vector_per_text(client):
    for path in ("/embed_all", "/tasks/one/embed_all"):
        reply = client.post(path, json={"inputs": "x"})
        assert "one vector per text" in error(reply, 422, "invalid")


def test_rerank_as_text_embeddings_inference(client, web, monkeypatch):
    body = {"query": "a dog", "texts": ["a", "the red boat", "dog"]}
    assert "--cross-encoder" in error(client.post("/rerank", json=body), 409, "refused")
    monkeypatch.setattr(web.runtime, "scorer", lambda query, texts: [-1000.0, 0.0, 2.0])

    assert client.post("/rerank", json=body).json() == [
        {"index": 2, "score": pytest.approx(0.880797)},
        {"index": 1, "score": 0.5},
        {"index": 0, "score": 0.0},
    ]
    more = {"raw_scores": True, "return_text": True}
    found = client.post("/rerank", json=body | more).json()
    assert found[0] == {"index": 2, "score": 2.0, "text": "dog"}
    assert found[2]["score"] == -1000.0
    broken = client.post(
        "/rerank",
        content=json.dumps(body | {"texts": ["\ud800"]}),
        headers={"content-type": "application/json"},
    )
    assert "text 0:" in error(broken, 422, "invalid")
    error(client.post("/rerank", json=body | {"truncate": False}), 422, "invalid")
    monkeypatch.setattr(web.runtime, "scorer", lambda query, texts: [float("nan")] * 3)
    assert "finite" in error(client.post("/rerank", json=body), 409, "refused")
    monkeypatch.setattr(web.runtime, "reranking", 8)
    error(client.post("/rerank", json=body), 429, "queue_full")


def test_rerank_with_a_cross_encoder(tmp_path):
    sentence_transformers = pytest.importorskip("sentence_transformers")
    model = tmp_path / "cross-encoder"
    torch.manual_seed(0)
    config = {"vocab_size": len(VOCABULARY), "hidden_size": 16, "num_attention_heads": 2}
    config |= {"num_hidden_layers": 2, "intermediate_size": 32, "num_labels": 1}
    transformers.BertForSequenceClassification(transformers.BertConfig(**config)).save_pretrained(
        model
    )
    tiny_tokenizer().save_pretrained(model)
    texts = ["a dog", "the red boat", "why does the river run"]
    expected = sentence_transformers.CrossEncoder(str(model)).predict([("a cat", t) for t in texts])
    with WebServer.start(tmp_path / "web", cross_encoder=str(model)) as server:
        found = server.client.post("/rerank", json={"query": "a cat", "texts": texts}).json()
    assert [hit["index"] for hit in found] == np.argsort(-expected).tolist()
    scores = [hit["score"] for hit in sorted(found, key=lambda hit: hit["index"])]
    np.testing.assert_allclose(scores, expected, atol=1e-5)
    assert len(set(scores)) == 3


def test_openapi_document_describes_every_route(client):
    document = client.get("/openapi.json").json()

    assert set(document["paths"]) == {
        "/health",
        "/info",
        "/metrics",
        "/v1/models",
        "/v1/models/{model}",
        *(
            before + path
            for before in ("", "/tasks/{task}")
            for path in ("/v1/embeddings", "/embeddings", "/embed", "/similarity", "/tokenize")
        ),
        "/embed_all",
        "/tasks/{task}/embed_all",
        "/rerank",
        "/v1/indexes",
        "/tasks/{task}",
        "/v1/search",
        "/v1/tasks",
        "/v1/tasks/{task}",
        "/v1/tasks/{task}/rollback",
        "/v1/tasks/{task}/default",
        "/v1/self-check",
    }
    for path in document["paths"].values():
        for operation in path.values():
            assert operation["description"]
            assert "429" in operation["responses"]


def test_a_bug_is_a_500_with_a_number_and_a_trace_in_the_log(web, monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("secret detail")

    monkeypatch.setattr(web.runtime.engine, "submit", broken)
    web.log.clear()
    reply = web.client.post("/v1/embeddings", json={"model": "one", "input": "x"})

    message = error(reply, 500, "bug")
    assert "secret detail" not in message
    assert "secret detail" in web.log[0]["error"]
    assert "broken" in web.log[0]["trace"]


def test_openai_client_package(web):
    openai = pytest.importorskip("openai")
    with web.listening() as address:
        client = openai.OpenAI(base_url=f"{address}/v1", api_key="any", max_retries=0)

        made = client.embeddings.create(model="one:passage", input=["the red boat", "a dog"])
        plain = client.embeddings.create(model="one", input="a dog", encoding_format="float")

        expected = web.encoder("one").encode_passages(["the red boat", "a dog"])
        np.testing.assert_allclose([d.embedding for d in made.data], expected, atol=2e-5)
        assert made.usage.prompt_tokens == 9
        assert len(plain.data[0].embedding) == 32
        assert "one" in [model.id for model in client.models.list()]
        with pytest.raises(openai.NotFoundError, match="unknown task 'none'"):
            client.embeddings.create(model="none", input="x")
        with pytest.raises(openai.UnprocessableEntityError):
            client.embeddings.create(model="one", input=[])


def test_a_client_that_hangs_up_leaves_the_queue(web):
    import socket
    from urllib.parse import urlsplit

    engine = web.runtime.engine
    body = json.dumps({"model": "one", "input": ["the cat"] * 8}).encode()
    web.log.clear()
    with web.listening() as address, Held(engine) as held:
        where = urlsplit(address)
        first = web.post_in_thread(address, {"model": "one", "input": "first"})
        held.entered.wait(60)
        with socket.create_connection((where.hostname, where.port)) as connection:
            connection.sendall(
                b"POST /v1/embeddings HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json"
                b"\r\ncontent-length: " + str(len(body)).encode() + b"\r\n\r\n" + body
            )
            wait_for(lambda: engine.waiting_tokens == 32)

        wait_for(lambda: engine.waiting_tokens == 0)
        wait_for(lambda: any(entry["status"] == 499 for entry in web.log))
        held.release.set()
        first.join()
    assert web.log[-1]["status"] == 200
