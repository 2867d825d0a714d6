"""What clients leave unsaid, and the addresses for those that cannot say it."""

import numpy as np
import pytest

pytest.importorskip("fastapi")

from helpers.serving import WebServer


@pytest.fixture(scope="module")
def web(tmp_path_factory):
    """A server with one tied and one untied task."""
    with WebServer.start(tmp_path_factory.mktemp("clients")) as server:
        yield server


def same(made, expected):
    made, expected = (v / np.linalg.norm(v, axis=-1, keepdims=True) for v in (made, expected))
    np.testing.assert_allclose(made, expected, atol=2e-5)


def message(reply, status=422):
    assert reply.status_code == status, reply.text
    return reply.json()["error"]["message"]


def test_a_request_without_a_task_never_gets_the_bare_encoder(web):
    for path in ("/embed", "/v1/embeddings", "/embeddings"):
        name = "inputs" if path == "/embed" else "input"
        said = message(web.client.post(path, json={name: "a dog"}))
        assert "specify one of 'one', 'two', or 'backbone'" in said
    compared = {"source_sentence": "a dog", "sentences": ["a cat"]}
    assert "names no task" in message(web.client.post("/similarity", json={"inputs": compared}))
    bare = web.client.post("/embed", json={"inputs": "a dog", "task": "backbone"}).json()
    same(bare, web.bare.encode_queries(["a dog"]))


def test_paths_that_name_a_task_or_a_side_are_suggested_and_work(web):
    said = message(web.client.post("/embed", json={"inputs": "a dog"}))
    assert said.endswith("for the bare encoder, or use the path /tasks/NAME/...")
    said = message(web.client.post("/tasks/two/embed", json={"inputs": "a dog"}))
    assert "task 'two' encodes queries and passages differently" in said
    assert said.endswith("or use the paths /tasks/two:query and /tasks/two:passage")
    for side in ("query", "passage"):
        reply = web.client.post(f"/tasks/two:{side}/embed", json={"inputs": "a dog"})
        assert reply.status_code == 200


def test_a_request_without_a_task_means_the_only_one(tmp_path):
    only = (("one", tmp_path / "tasks" / "one"),)
    with WebServer.start(tmp_path, tasks=only, indexes=()) as web:
        made = web.client.post("/embed", json={"inputs": ["a dog"]}).json()
        same(made, web.encoder("one").encode_queries(["a dog"]))
        web.client.delete("/v1/tasks/one")
        # A server that lost its tasks does not fall back to the encoder in silence.
        assert "names no task" in message(web.client.post("/embed", json={"inputs": "a dog"}))


def test_a_server_of_the_bare_encoder_alone_answers_with_it(tmp_path):
    with WebServer.start(tmp_path, tasks=(), tasks_folder=None, indexes=()) as web:
        same(
            web.client.post("/embed", json={"inputs": "a dog"}).json(),
            web.bare.encode_queries(["a dog"]),
        )


@pytest.mark.parametrize(
    ("path", "body", "side"),
    [
        ("/tasks/two:passage/embed", {"inputs": "a dog"}, "passage"),
        ("/tasks/two:query", {"inputs": "a dog"}, "query"),
        ("/tasks/two", {"inputs": "a dog", "prompt_name": "passage"}, "passage"),
        ("/tasks/two@1:query/embed", {"inputs": "a dog"}, "query"),
        ("/embed", {"inputs": "a dog", "task": "two", "prompt_name": "query"}, "query"),
        ("/embed", {"inputs": "a dog", "task": "two:passage"}, "passage"),
    ],
)
def test_each_task_has_an_address_and_each_side_a_name(web, path, body, side):
    encoder = web.encoder("two")
    encode = encoder.encode_queries if side == "query" else encoder.encode_passages
    same(web.client.post(path, json=body).json(), encode(["a dog"]))


@pytest.mark.parametrize(
    ("path", "model", "more"),
    [
        ("/tasks/two:passage/v1/embeddings", "text-embedding-3-small", {}),
        ("/tasks/two/embeddings", "any:passage", {}),
        ("/tasks/two/v1/embeddings", "any", {"input_type": "document"}),
        ("/v1/embeddings", "two", {"input_type": "search_document"}),
    ],
)
def test_an_openai_client_reaches_a_task_that_it_cannot_name(web, path, model, more):
    body = {"model": model, "input": ["a dog"], **more}
    made = web.client.post(path, json=body).json()["data"][0]["embedding"]
    same(made, web.encoder("two").encode_passages(["a dog"])[0])


def test_a_side_that_makes_a_difference_is_not_guessed(web):
    for reply in (
        web.client.post("/tasks/two", json={"inputs": "x"}),
        web.client.post("/v1/embeddings", json={"model": "two", "input": "x"}),
    ):
        assert "use 'two:query' or 'two:passage'" in message(reply)
    # A tied task has one side only; no passage is cut where a query would be.
    long = "the red boat " * 30
    made = web.client.post("/v1/embeddings", json={"model": "one", "input": long}).json()
    same(made["data"][0]["embedding"], web.encoder("one").encode_passages([long])[0])


def test_token_ids_are_decoded_where_they_are_this_encoders(web):
    forward = web.runtime.registry.forward
    ids = [list(e.ids) for e in forward.tokens(["the red boat", "a dog"], side="query")]
    for given, texts in ((ids, ["the red boat", "a dog"]), (ids[0], ["the red boat"])):
        reply = web.client.post("/v1/embeddings", json={"model": "one", "input": given})
        made = np.array([item["embedding"] for item in reply.json()["data"]])
        same(made, web.encoder("one").encode_passages(texts))
    # Special tokens may occur only where this encoder puts them.
    inside = [*ids[0][:2], 0, *ids[0][2:]]
    for foreign in ([[791, 100257]], [[0, 0, 0]], [inside]):
        body = {"model": "one", "input": foreign}
        assert "check_embedding_ctx_length" in message(web.client.post("/v1/embeddings", json=body))


def test_similarity_tokenize_and_models_as_others_have_them(web):
    texts = ["a dog", "the red boat", "a dog"]
    inputs = {"source_sentence": texts[0], "sentences": texts[1:]}
    vectors = web.encoder("one").encode_passages(texts)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    made = web.client.post("/similarity", json={"inputs": inputs, "task": "one"}).json()
    np.testing.assert_allclose(made, vectors[1:] @ vectors[0], atol=2e-5)

    (tokens,) = web.client.post("/tasks/one/tokenize", json={"inputs": "a dog"}).json()
    assert [t["id"] for t in tokens] == web.backbone.tokenize(["a dog"], side="query")[0]
    assert [t["special"] for t in tokens] == [True, False, False, True]
    assert [(t["start"], t["stop"]) for t in tokens if not t["special"]] == [(0, 1), (2, 5)]
    body = {"inputs": ["a dog"], "task": "one", "add_special_tokens": False}
    assert len(web.client.post("/tokenize", json=body).json()[0]) == 2

    assert web.client.get("/v1/models/two:passage").json()["id"] == "two:passage"
    for name in ("none", "one@9", "one:both"):
        message(web.client.get(f"/v1/models/{name}"), 404)


def test_long_texts_lose_the_end_that_the_client_says(web):
    words = ["the ", "of ", "a "]
    text = "".join(words[n % 3] for n in range(100))
    limit = web.encoder("one").limits.max_passage_tokens
    body = {"inputs": text, "task": "one", "truncation_direction": "Left"}

    made = web.client.post("/embed", json=body).json()

    kept = "".join(words[n % 3] for n in range(100 - (limit - 2), 100))
    same(made, web.encoder("one").encode_passages([kept]))
    right = web.client.post("/embed", json=body | {"truncation_direction": "Right"}).json()
    assert not np.allclose(made, right, atol=1e-3)


def test_huggingface_inference_client(web, monkeypatch):
    hub = pytest.importorskip("huggingface_hub")
    # The server is on this machine.
    monkeypatch.setattr(hub.constants, "is_offline_mode", lambda: False)
    with web.listening() as address:
        made = hub.InferenceClient(f"{address}/tasks/two:passage").feature_extraction("a dog")
    same(made, web.encoder("two").encode_passages(["a dog"]))
