"""Tasks in other tools: each embeds both sides as we do."""

import asyncio

import numpy as np
import pytest

import dptdr
from dptdr.config.methods import DeepPromptConfig
from dptdr.errors import BackboneError, ConfigError
from dptdr.io.beir import write_beir
from dptdr.model import Backbone, Encoder, Limits, MethodFactory, save_task
from dptdr.records import Passage, Query
from helpers.tasks import tiny_data
from helpers.tiny import save_tiny

# These packages bring pytest plugins and deprecations of their own.
pytestmark = pytest.mark.filterwarnings("ignore")
REASON = "the extra 'integrations' is not installed"
PASSAGES = ["the red boat of the river", "cat", "dog run in the garden"]


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    """An untied task: whoever embeds passages as queries is found out."""
    folder = tmp_path_factory.mktemp("integrations")
    backbone = Backbone.load(str(save_tiny(folder / "tiny")))
    config = DeepPromptConfig(prompt_length=3, sharing="untied", random_scale=2.0)
    method = MethodFactory().build("deep-prompt", backbone, config, seed=0)
    limits = Limits(max_query_tokens=12, max_passage_tokens=20)
    save_task(folder / "task", Encoder(backbone, method=method, limits=limits))
    return dptdr.load(folder / "task", device="cpu")


def close(found, expected):
    np.testing.assert_allclose(np.array(found), expected, atol=1e-5)


def test_langchain_embeds_each_side(task):
    pytest.importorskip("langchain_core", reason=REASON)
    from langchain_core.vectorstores import InMemoryVectorStore

    from dptdr.integrations.langchain import DptdrEmbeddings

    embeddings = DptdrEmbeddings(task)

    close(embeddings.embed_documents(PASSAGES), task.encode_passages(PASSAGES))
    close(embeddings.embed_query("red boat"), task.encode_queries(["red boat"])[0])
    loaded = DptdrEmbeddings(task.path)
    close(loaded.embed_query("red boat"), task.encode_queries(["red boat"])[0])
    store = InMemoryVectorStore.from_texts(PASSAGES, embeddings)
    (best,) = store.similarity_search("red boat", k=1)
    # LangChain's store compares by cosine.
    passages, query = task.encode_passages(PASSAGES), task.encode_queries(["red boat"])[0]
    assert (
        best.page_content
        == PASSAGES[int(np.argmax(passages @ query / np.linalg.norm(passages, axis=1)))]
    )


def test_llama_index_embeds_each_side(task):
    pytest.importorskip("llama_index.core", reason=REASON)
    from dptdr.integrations.llama_index import DptdrEmbedding

    embedding = DptdrEmbedding(task)

    close(embedding.get_text_embedding_batch(PASSAGES), task.encode_passages(PASSAGES))
    close(embedding.get_query_embedding("red boat"), task.encode_queries(["red boat"])[0])
    close(embedding.get_text_embedding("cat"), task.encode_passages(["cat"])[0])
    asked = asyncio.run(embedding.aget_query_embedding("red boat"))
    close(asked, task.encode_queries(["red boat"])[0])
    # What tells two models apart in LlamaIndex' caches.
    facts = embedding.to_dict()
    assert facts["class_name"] == "DptdrEmbedding"
    assert task.passage_fingerprint[:12] in facts["model_name"]
    bare = dptdr.load(task.path).backbone
    other = DptdrEmbedding(Encoder(bare, name=task.name))
    assert other.to_dict()["model_name"] != facts["model_name"]


def test_haystack_pipeline_embeds_each_side_and_can_be_saved(task, monkeypatch):
    monkeypatch.setenv("HAYSTACK_TELEMETRY_ENABLED", "False")
    haystack = pytest.importorskip("haystack", reason=REASON)
    from dptdr.integrations.haystack import DptdrDocumentEmbedder, DptdrTextEmbedder

    pipeline = haystack.Pipeline()
    pipeline.add_component("documents", DptdrDocumentEmbedder(str(task.path)))
    pipeline.add_component("query", DptdrTextEmbedder(str(task.path)))
    again = haystack.Pipeline.from_dict(
        pipeline.to_dict(), allowed_modules=["dptdr.integrations.haystack"]
    )

    documents = [haystack.Document(content=text) for text in PASSAGES]
    found = again.run({"documents": {"documents": documents}, "query": {"text": "red boat"}})

    close(
        [document.embedding for document in found["documents"]["documents"]],
        task.encode_passages(PASSAGES),
    )
    close(found["query"]["embedding"], task.encode_queries(["red boat"])[0])


def test_haystack_embedders_take_a_path_and_name_a_missing_device(task, monkeypatch):
    monkeypatch.setenv("HAYSTACK_TELEMETRY_ENABLED", "False")
    pytest.importorskip("haystack", reason=REASON)
    from dptdr.integrations.haystack import DptdrTextEmbedder

    embedder = DptdrTextEmbedder(task.path)
    assert embedder.to_dict()["init_parameters"]["task"] == str(task.path)
    close(embedder.run("red boat")["embedding"], task.encode_queries(["red boat"])[0])
    with pytest.raises(BackboneError, match="expected an available device, got 'gpu7'"):
        DptdrTextEmbedder(task.path, device="gpu7").run("red boat")


def test_mteb_refuses_a_text_where_a_batch_belongs(task):
    pytest.importorskip("mteb", reason=REASON)
    from dptdr.integrations.mteb import MtebModel

    with pytest.raises(ConfigError, match="expected batches with lists of texts"):
        MtebModel(task).encode([{"text": "boat"}], hf_split="test", hf_subset="default")


def test_mteb_excludes_a_querys_own_passage_as_evaluate_does(task, tmp_path):
    mteb = pytest.importorskip("mteb", reason=REASON)
    from dptdr.integrations.mteb import LocalRetrieval, MtebModel

    texts = {"a": "red boat", "b": "boat red", "7": "old house", "c": "house old", "d": "moon"}
    passages = [Passage(name, text) for name, text in texts.items()]
    # An own passage, and a number that is the id of another passage.
    queries = [Query("a", "red boat"), Query("7", "the moon")]
    write_beir(
        tmp_path / "data",
        passages=passages,
        queries=queries,
        qrels={"test": {"a": {"b": 1}, "7": {"7": 1}}},
        meta={},
    )
    report = dptdr.evaluate(tmp_path / "data", task, progress=False)
    local = LocalRetrieval(tmp_path / "data")
    (result,) = mteb.evaluate(
        MtebModel(task), local, cache=None, show_progress_bar=False
    ).task_results
    found = result.scores["test"][0]["ndcg_at_10"]
    assert found == pytest.approx(report.measures["nDCG@10"], abs=1e-5)
    local.load_data()
    assert local.ignore_identical_ids
    assert local.dataset["default"]["test"]["queries"]["id"] == ["a", "query:7"]


def test_mteb_measures_what_evaluate_does(task, tmp_path):
    mteb = pytest.importorskip("mteb", reason=REASON)
    from dptdr.integrations.mteb import LocalRetrieval, MtebModel

    data = tiny_data(tmp_path / "tiny-data", test=20)
    expected = dptdr.evaluate(data, task, progress=False).measures["nDCG@10"]

    for model in (MtebModel(task), task.to_sentence_transformer()):
        (result,) = mteb.evaluate(
            model, LocalRetrieval(data), cache=None, show_progress_bar=False
        ).task_results
        found = result.scores["test"][0]["ndcg_at_10"]
        # mteb rounds to five digits.
        assert found == pytest.approx(expected, abs=1e-5)
    assert 0.0 < expected < 1.0
