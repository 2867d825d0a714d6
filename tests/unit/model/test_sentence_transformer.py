"""A task's folder as a sentence-transformers model: the vectors are ours."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import dptdr
from dptdr.config.methods import DeepPromptConfig, LoraConfig
from dptdr.errors import ConfigError
from dptdr.model import Encoder, Limits, MethodFactory, load_task, save_task
from helpers.tiny import save_tiny

sentence_transformers = pytest.importorskip(
    "sentence_transformers", minversion="6", reason="the extra 'sentence-transformers' is missing"
)

from dptdr.model.sentence_transformer import to_sentence_transformer  # noqa: E402

QUERIES = ["red car", "how does the moon grow in the garden of the old house", "who", "a boat"]
PASSAGES = ["the old house of the river stone and the red boat of the year", "cat", "dog run"]
LIMITS = Limits(max_query_tokens=6, max_passage_tokens=9)
CASES = {
    "tied": ("deep-prompt", DeepPromptConfig(prompt_length=3)),
    "untied": ("deep-prompt", DeepPromptConfig(prompt_length=3, ffn_length=2, sharing="untied")),
    "query-only": (
        "deep-prompt",
        DeepPromptConfig(prompt_length=3, ffn_length=0, sharing="query-only"),
    ),
    "lora": ("lora", LoraConfig(rank=2)),
}


def save_backbone(folder, *, normalise=True, prefixes=("what is ", "the ")):
    """A tiny encoder as sentence-transformers stores one: with pooling and prefixes."""
    save_tiny(folder, seed=3)
    kinds = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")]
    modules = [
        {"idx": n, "name": str(n), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for n, (path, kind) in enumerate(kinds[: 3 if normalise else 2])
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text('{"pooling_mode_mean_tokens": true}')
    prompts = dict(zip(("query", "document"), prefixes, strict=True))
    (folder / "config_sentence_transformers.json").write_text(json.dumps({"prompts": prompts}))
    return folder


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    folder = save_backbone(tmp_path_factory.mktemp("backbone"), normalise=True)
    return dptdr.model.Backbone.load(str(folder))


def tuned(backbone, case, *, seed=0, name=None):
    method_name, config = CASES[case]
    method = MethodFactory().build(method_name, backbone, config, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in method.trained().values():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.5)
    method.module.eval()
    return Encoder(backbone, method=method, limits=LIMITS, name=name or case)


@pytest.mark.parametrize("case", CASES)
def test_folder_gives_the_vectors_of_the_task(backbone, tmp_path, case):
    save_task(tmp_path / "task", tuned(backbone, case), name=case)
    ours = load_task(tmp_path / "task")

    model = sentence_transformers.SentenceTransformer(
        str(tmp_path / "task"), trust_remote_code=True, device="cpu"
    )

    queries, passages = model.encode_query(QUERIES), model.encode_document(PASSAGES)
    np.testing.assert_allclose(queries, ours.encode_queries(QUERIES), atol=1e-5)
    np.testing.assert_allclose(passages, ours.encode_passages(PASSAGES), atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(queries, axis=1), 1.0, atol=1e-5)
    np.testing.assert_allclose(
        model.similarity(queries, passages).numpy(), queries @ passages.T, atol=1e-6
    )
    # The prompt reaches this side, so that the comparison above means something.
    bare = Encoder(backbone, limits=LIMITS).encode_queries(QUERIES)
    assert np.abs(bare - queries).max() > 1e-2


def test_without_the_flag_the_loaded_task_gives_the_same(backbone, tmp_path):
    save_task(tmp_path / "task", tuned(backbone, "untied"), name="untied")
    with pytest.raises(ValueError, match="trust_remote_code=True"):
        sentence_transformers.SentenceTransformer(str(tmp_path / "task"), device="cpu")

    ours = dptdr.load(tmp_path / "task", device="cpu")
    model = ours.to_sentence_transformer()

    np.testing.assert_allclose(model.encode_query(QUERIES), ours.encode_queries(QUERIES), atol=1e-5)
    assert model.encode_query(QUERIES[0]).shape == (32,)
    assert model.get_embedding_dimension() == 32
    assert model.encode_document(PASSAGES, truncate_dim=8).shape == (3, 8)


def test_an_encoder_packed_for_encoding_gives_the_same(tmp_path):
    folder = save_backbone(tmp_path / "backbone", normalise=False)
    encoder = tuned(dptdr.model.Backbone.load(str(folder)), "tied")
    before = encoder.encode_queries(QUERIES)

    assert encoder.eval() == ""

    model = to_sentence_transformer(encoder)
    np.testing.assert_allclose(model.encode_query(QUERIES), before, atol=1e-4)


def test_a_given_prompt_and_a_lower_limit_replace_the_tasks(backbone):
    ours = tuned(backbone, "tied")
    model = to_sentence_transformer(ours)

    ids = backbone.tokenize(["dog"], side="query", prefix="blue cat ")
    expected = ours.vectors(ids, side="query").detach().numpy()
    np.testing.assert_allclose(model.encode_query(["dog"], prompt="blue cat "), expected, atol=1e-5)
    model.max_seq_length = 4
    assert np.allclose(
        model.encode_query(["red cat dog car"]), model.encode_query(["red tree"]), atol=1e-6
    )


def test_prompt_task_by_row_is_each_task_alone(backbone):
    tasks = [tuned(backbone, "untied", seed=n, name=f"t{n}") for n in range(3)]
    model = to_sentence_transformer(tasks[0], *tasks[1:])
    rows = ["t2", "t0", "t1", "t2"]

    made = model.encode_query(QUERIES, prompt_task=rows, batch_size=3)

    for number, name in enumerate(rows):
        alone = tasks[int(name[1])].encode_queries([QUERIES[number]])[0]
        np.testing.assert_allclose(made[number], alone, atol=1e-5)
    one = model.encode_document(PASSAGES[0], prompt_task="t1")
    np.testing.assert_allclose(one, tasks[1].encode_passages(PASSAGES[:1])[0], atol=1e-5)


def test_prompt_task_reaches_a_model_that_was_loaded_from_its_folder(backbone, tmp_path):
    ours = tuned(backbone, "tied")
    save_task(tmp_path / "task", ours, name="tied")
    model = sentence_transformers.SentenceTransformer(
        str(tmp_path / "task"), trust_remote_code=True, device="cpu"
    )

    made = model.encode_query(QUERIES, prompt_task=["tied"] * 4)

    np.testing.assert_allclose(made, ours.encode_queries(QUERIES), atol=1e-5)


def test_prompt_task_refusals_name_what_there_is(backbone):
    first, second = tuned(backbone, "tied", name="a"), tuned(backbone, "tied", seed=1, name="b")
    model = to_sentence_transformer(first, second)

    with pytest.raises(ConfigError, match="expected one of a, b, got c"):
        model.encode_query(QUERIES, prompt_task="c")
    with pytest.raises(ConfigError, match=r"one per text \(4\), got 2"):
        model.encode_query(QUERIES, prompt_task=["a", "b"])
    with pytest.raises(ConfigError, match="got 'a' twice"):
        to_sentence_transformer(first, first)


def test_a_prompt_of_the_other_side_is_refused(backbone):
    model = to_sentence_transformer(tuned(backbone, "untied"))
    for call in (
        lambda: model.encode("red", task="query", prompt_name="document"),
        lambda: model.encode_query("red", prompt_name="document"),
        lambda: model.encode_document("red", "query"),
    ):
        with pytest.raises(ConfigError, match=r"prompt_name: expected '(query|document)' beside"):
            call()
    with pytest.raises(ConfigError, match=r"prompt_task: expected a task name, .* got 5"):
        model.encode_query("red", prompt_task=5)
    with pytest.raises(ConfigError, match=r"text 2 of 2, .*: expected valid Unicode"):
        model.encode_query(["red", "blue \ud800"])


def test_encode_without_a_side_is_refused_where_the_side_matters(backbone):
    with pytest.raises(ConfigError, match="use encode_query and encode_document"):
        to_sentence_transformer(tuned(backbone, "untied")).encode(PASSAGES)

    ours = tuned(backbone, "untied")
    made = to_sentence_transformer(ours).encode(QUERIES, task="query", prompt_name="query")
    np.testing.assert_allclose(made, ours.encode_queries(QUERIES), atol=1e-5)


@pytest.mark.parametrize("task", ["tied", "untied"])
def test_encode_without_a_side_is_refused_where_prefixes_differ(backbone, task):
    ours = tuned(backbone, task)
    model = to_sentence_transformer(ours)

    with pytest.raises(ConfigError, match="encodes queries and passages differently"):
        model.encode(QUERIES)
    for made in (model.encode_query(QUERIES), model.encode(QUERIES, task="query")):
        np.testing.assert_allclose(made, ours.encode_queries(QUERIES), atol=1e-5)
    # A prompt may still be given as text.
    assert model.encode(QUERIES, prompt="", task="query").shape == (len(QUERIES), 32)


def test_encode_without_a_side_adds_a_prefix_that_both_sides_have(tmp_path):
    folder = save_backbone(tmp_path / "same", prefixes=("the ", "the "))
    ours = tuned(dptdr.model.Backbone.load(str(folder)), "tied")

    made = to_sentence_transformer(ours).encode(PASSAGES)
    np.testing.assert_allclose(made, ours.encode_passages(PASSAGES), atol=1e-5)


def test_other_outputs_than_sentence_embeddings_are_refused(backbone):
    with pytest.raises(ConfigError, match="output_value: expected 'sentence_embedding', got 'tok"):
        to_sentence_transformer(tuned(backbone, "tied")).encode(
            QUERIES, output_value="token_embeddings"
        )


def test_a_task_is_not_cut_at_the_limit_of_another(backbone):
    short, long = tuned(backbone, "tied", name="short"), tuned(backbone, "untied", name="long")
    short.limits = Limits(max_query_tokens=4, max_passage_tokens=5)
    for tasks in ((short, long), (long, short)):
        model = to_sentence_transformer(*tasks)
        for task in tasks:
            made = model.encode_document(PASSAGES, prompt_task=task.name)
            np.testing.assert_allclose(made, task.encode_passages(PASSAGES), atol=1e-5)


@pytest.mark.parametrize("case", ["tied", "lora"])
def test_other_processes_make_the_same_vectors(backbone, case):
    ours = tuned(backbone, case)
    model = to_sentence_transformer(ours)
    made = model.encode_document(PASSAGES, device=["cpu", "cpu"], chunk_size=1)
    np.testing.assert_allclose(made, ours.encode_passages(PASSAGES), atol=1e-5)


def test_prompts_that_only_sentence_transformers_would_know_are_not_saved(backbone, tmp_path):
    model = to_sentence_transformer(tuned(backbone, "tied"))
    model.prompts["query"] = "red "
    with pytest.raises(ConfigError, match="expected those of the task's backbone, got another 'q"):
        model.save(str(tmp_path / "copy"))
    assert not (tmp_path / "copy").exists()


def test_a_saved_copy_keeps_the_limit_and_what_the_task_was_trained_for(backbone, tmp_path):
    training, measures = {"matryoshka": [8], "seed": 3}, {"dev nDCG@10": 0.5}
    save_task(tmp_path / "task", tuned(backbone, "tied"), training=training, measures=measures)
    model = dptdr.load(tmp_path / "task").to_sentence_transformer()
    model.max_seq_length = 4
    model.save(str(tmp_path / "copy"))
    loaded = [
        sentence_transformers.SentenceTransformer(str(tmp_path / "copy"), trust_remote_code=True)
        for _ in range(2)
    ]
    loaded[0].save(str(tmp_path / "again"))

    assert loaded[1].max_seq_length == 4
    np.testing.assert_allclose(
        loaded[1].encode_document(PASSAGES), model.encode_document(PASSAGES), atol=1e-5
    )
    for folder in ("copy", "again"):
        manifest = dptdr.load(tmp_path / folder).manifest
        assert (manifest.training, manifest.measures) == (training, measures)


def test_saving_writes_the_task_and_not_the_backbone(backbone, tmp_path):
    ours = tuned(backbone, "untied")

    to_sentence_transformer(ours).save(str(tmp_path / "saved"))

    (weights,) = (tmp_path / "saved").rglob("*.safetensors")
    assert {name.split(".")[0] for name in load_file(weights)} == {"query", "passage"}
    again = sentence_transformers.SentenceTransformer(
        str(tmp_path / "saved"), trust_remote_code=True, device="cpu"
    )
    np.testing.assert_allclose(
        again.encode_document(PASSAGES), ours.encode_passages(PASSAGES), atol=1e-5
    )


def test_the_folder_states_what_it_requires_and_holds_no_code(backbone, tmp_path):
    save_task(tmp_path / "task", tuned(backbone, "tied"), name="tied")

    config = json.loads((tmp_path / "task" / "config_sentence_transformers.json").read_text())

    assert config["requirements"] == {
        "dptdr": f">={dptdr.__version__}",
        "sentence-transformers": ">=6",
    }
    assert config["prompts"] == {"query": "what is ", "document": "the "}
    assert not list((tmp_path / "task").rglob("*.py"))


def test_information_retrieval_evaluator_scores_as_our_vectors_do(backbone):
    from sentence_transformers.sentence_transformer.evaluation import (
        InformationRetrievalEvaluator,
    )

    ours = tuned(backbone, "untied")
    texts = [*PASSAGES, *QUERIES, "the red car", "a boat of stone", "moon in the garden"]
    relevant = {f"q{n}": {f"p{(3 * n + 1) % len(texts)}"} for n in range(4)}

    evaluator = InformationRetrievalEvaluator(
        queries={f"q{n}": text for n, text in enumerate(QUERIES)},
        corpus={f"p{n}": text for n, text in enumerate(texts)},
        relevant_docs=relevant,
        ndcg_at_k=[10],
        mrr_at_k=[10],
        accuracy_at_k=[10],
        precision_recall_at_k=[10],
        map_at_k=[10],
        name="tiny",
        write_csv=False,
    )
    found = evaluator(to_sentence_transformer(ours))

    scores = ours.encode_queries(QUERIES) @ ours.encode_passages(texts).T
    from dptdr.evaluation import evaluate
    from dptdr.records import Hit

    run = {
        f"q{n}": [Hit(f"p{i}", float(row[i])) for i in np.argsort(-row)[:10]]
        for n, row in enumerate(scores)
    }
    qrels = {query: dict.fromkeys(passages, 1) for query, passages in relevant.items()}
    expected = evaluate(run, qrels, measures=("nDCG@10",)).measures["nDCG@10"]
    assert found["tiny_dot_ndcg@10"] == pytest.approx(expected, abs=1e-6)
    assert 0 < expected < 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"backend": "onnx"}, "backend: expected torch, got 'onnx'"),
        (
            {"model_kwargs": {"attn_implementation": "x"}},
            "expected dtype or backbone, got attn_imp",
        ),
    ],
)
def test_options_without_effect_are_refused(backbone, tmp_path, options, words):
    from dptdr.model.sentence_transformer import TaskModule

    save_task(tmp_path / "task", tuned(backbone, "tied"))
    with pytest.raises(ConfigError, match=words):
        TaskModule.load(str(tmp_path / "task"), **options)
