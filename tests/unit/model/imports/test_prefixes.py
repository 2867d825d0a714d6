import json

import pytest
import safetensors.torch
import torch

from dptdr.config.methods import DeepPromptConfig
from dptdr.errors import BundleError
from dptdr.model import Backbone, Encoder, Limits, load_task, read_manifest, save_task
from dptdr.model.imports.authors import import_authors
from dptdr.model.imports.peft import export_peft, import_peft
from dptdr.model.imports.prefixes import matrix_of_rows, rows_of_matrix
from dptdr.model.methods import DeepPromptMethod
from helpers.authors import authors_vectors, save_authors
from helpers.tiny import save_tiny, tiny_tokenizer

# PEFT asks a name that transformers is about to drop.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")

LIMITS = Limits(max_query_tokens=12, max_passage_tokens=16)
TEXTS = ["the red car", "who does build the old house in the garden", "a"]


def expected(state, texts):
    tokenizer = tiny_tokenizer()
    vectors = []
    for text in texts:
        ids = torch.tensor([tokenizer(text)["input_ids"]])
        vectors.append(authors_vectors(state, ids, torch.ones_like(ids))[0])
    return torch.stack(vectors)


def test_rows_and_matrix_are_inverse_and_hold_key_then_value_of_each_layer(tiny_bert):
    geometry = tiny_bert.geometry
    width = geometry.layers * 2 * geometry.heads * geometry.head_dim
    matrix = torch.arange(5.0 * width).reshape(5, width)
    rows = rows_of_matrix(matrix, geometry=geometry)
    assert torch.equal(matrix_of_rows(rows), matrix)
    # Prompt row 3, layer 1, value (1), head 2, number 5: layer 1 starts at 64, its values at 96.
    assert rows[1, 1, 2, 3, 5] == matrix[3, 64 + 32 + 2 * 8 + 5]


@pytest.mark.parametrize("projection", [0, 7])
def test_tied_checkpoint_gives_the_vectors_of_its_own_program(tmp_path, projection):
    state = save_authors(tmp_path / "authors", projection=projection)[""]
    done = import_authors(tmp_path / "authors", tmp_path / "out", limits=LIMITS)
    encoder = load_task(done.task)
    settings = read_manifest(done.task).settings
    assert (settings["sharing"], settings["position"]) == ("tied", "shifted")
    want = expected(state, TEXTS)
    for made in (encoder.encode_queries(TEXTS), encoder.encode_passages(TEXTS)):
        torch.testing.assert_close(torch.from_numpy(made), want, atol=2e-5, rtol=1e-4)
    assert done.task_bytes < done.checkpoint_bytes


def test_untied_checkpoint_gives_each_side_its_own_prompt_on_one_backbone(tmp_path):
    states = save_authors(tmp_path / "authors", untied=True, beginning="")
    done = import_authors(tmp_path / "authors", tmp_path / "out", limits=LIMITS)
    encoder = load_task(done.task)
    assert read_manifest(done.task).settings["sharing"] == "untied"
    queries, passages = (
        expected(states["query_model"], TEXTS),
        expected(states["passage_model"], TEXTS),
    )
    assert (queries - passages).abs().max() > 0.1
    for made, want in (
        (encoder.encode_queries(TEXTS), queries),
        (encoder.encode_passages(TEXTS), passages),
    ):
        torch.testing.assert_close(torch.from_numpy(made), want, atol=2e-5, rtol=1e-4)


def test_imported_backbone_is_a_plain_folder_without_the_prompt(tmp_path):
    save_authors(tmp_path / "authors")
    import_authors(tmp_path / "authors", tmp_path / "out", limits=LIMITS)
    config = json.loads((tmp_path / "out" / "backbone" / "config.json").read_text())
    weights = safetensors.torch.load_file(tmp_path / "out" / "backbone" / "model.safetensors")
    assert "pre_seq_len" not in config
    assert not any("prefix" in name for name in weights)
    bare = Backbone.load(str(tmp_path / "out" / "backbone"))
    assert bare.pooling.pool == "cls"
    assert read_manifest(tmp_path / "out" / "task").backbone_fingerprint == bare.fingerprint


def broken(folder, change):
    path = folder / "pytorch_model.bin"
    state = torch.load(path, weights_only=True)
    change(state)
    torch.save(state, path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("prefix_encoder.embedding.weight"), "the checkpoint has no deep prompt"),
        (lambda s: s.pop("roberta.encoder.layer.1.output.dense.bias"), "does not match a roberta"),
        (
            lambda s: s.update({"prefix_encoder.embedding.weight": torch.zeros(4, 100)}),
            r"expected a prompt of shape \[prompt, 128\]",
        ),
        (lambda s: s.update({"prefix_encoder.other": torch.zeros(1)}), "prefix_encoder.trans"),
        (lambda s: s.update({"head.weight": torch.zeros(1)}), "unexpected .*head.weight"),
    ],
)
def test_checkpoint_of_another_layout_is_refused_and_nothing_written(tmp_path, change, message):
    save_authors(tmp_path / "authors")
    broken(tmp_path / "authors", change)
    with pytest.raises(BundleError, match=message):
        import_authors(tmp_path / "authors", tmp_path / "out", limits=LIMITS)
    assert not (tmp_path / "out").exists()


def test_folders_with_two_different_encoders_are_refused(tmp_path):
    save_authors(tmp_path / "authors", untied=True)
    broken(
        tmp_path / "authors" / "passage_model",
        lambda s: s["roberta.encoder.layer.0.output.dense.bias"].add_(1.0),
    )
    with pytest.raises(
        BundleError, match="expected the encoder in query_model, got 1 different weights"
    ):
        import_authors(tmp_path / "authors", tmp_path / "out", limits=LIMITS)


def test_pickled_code_missing_tokenizer_and_long_texts_are_refused(tmp_path):
    save_authors(tmp_path / "authors")
    with pytest.raises(BundleError, match="expected texts of at most 58 tokens"):
        import_authors(
            tmp_path / "authors",
            tmp_path / "out",
            limits=Limits(max_query_tokens=12, max_passage_tokens=60),
        )
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "authors" / name).unlink()
    with pytest.raises(BundleError, match="--tokenizer"):
        import_authors(tmp_path / "authors", tmp_path / "out", limits=LIMITS)
    # A pickle that calls a function instead of holding tensors.
    (tmp_path / "authors" / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    with pytest.raises(BundleError, match="expected a file with weights only"):
        import_authors(tmp_path / "authors", tmp_path / "out", limits=LIMITS)


def peft_vectors(folder, adapter, texts, *, pool="cls"):
    import peft
    import transformers

    model = transformers.AutoModel.from_pretrained(folder).eval()
    tuned = peft.PeftModel.from_pretrained(model, adapter).eval()
    tokenizer = tiny_tokenizer()
    vectors = []
    for text in texts:
        ids = torch.tensor([tokenizer(text)["input_ids"]])
        with torch.no_grad():
            states = tuned(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state
        vectors.append(states[0, 0] if pool == "cls" else states[0].mean(0))
    return torch.stack(vectors)


@pytest.mark.parametrize("architecture", ["bert", "roberta"])
@pytest.mark.parametrize("projection", [False, True])
def test_peft_adapter_gives_the_vectors_that_peft_computes(tmp_path, architecture, projection):
    import peft
    import transformers

    folder = save_tiny(tmp_path / "encoder", architecture)
    model = transformers.AutoModel.from_pretrained(folder).eval()
    torch.manual_seed(0)
    settings = peft.PrefixTuningConfig(
        task_type="FEATURE_EXTRACTION",
        num_virtual_tokens=5,
        prefix_projection=projection,
        encoder_hidden_size=9 if projection else None,
    )
    tuned = peft.get_peft_model(model, settings)
    with torch.no_grad():
        for parameter in tuned.prompt_encoder.parameters():
            parameter.normal_(std=0.4)
    tuned.save_pretrained(tmp_path / "adapter")
    done = import_peft(tmp_path / "adapter", tmp_path / "task", backbone=str(folder), limits=LIMITS)
    made = torch.from_numpy(load_task(done.task).encode_passages(TEXTS))
    want = peft_vectors(folder, tmp_path / "adapter", TEXTS)
    torch.testing.assert_close(made, want, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("field", ["num_layers", "num_attention_heads", "token_dim"])
def test_an_adapter_of_another_geometry_is_refused(tmp_path, field):
    folder = save_tiny(tmp_path / "encoder", "bert")
    backbone, _ = saved_task(tmp_path / "task", folder, position="shifted")
    export_peft(tmp_path / "task", tmp_path / "adapter", backbone=backbone)
    config = tmp_path / "adapter" / "adapter_config.json"
    settings = json.loads(config.read_text())
    config.write_text(json.dumps(settings | {field: 2 * settings[field]}))
    with pytest.raises(BundleError, match=rf"{field}.*expected {settings[field]}.*got"):
        import_peft(tmp_path / "adapter", tmp_path / "new", backbone=str(folder), limits=LIMITS)
    assert not (tmp_path / "new").exists()


def saved_task(path, folder, *, ffn_length=0, **settings):
    backbone = Backbone.load(str(folder))
    config = DeepPromptConfig(
        prompt_length=4,
        ffn_length=ffn_length,
        initialisation="random",
        random_scale=0.5,
        **settings,
    )
    encoder = Encoder(backbone, method=DeepPromptMethod(backbone, config, seed=3), limits=LIMITS)
    save_task(path, encoder)
    return backbone, encoder


def test_exported_untied_task_gives_the_same_vectors_in_peft_and_comes_back(tmp_path):
    folder = save_tiny(tmp_path / "encoder", "roberta")
    backbone, encoder = saved_task(tmp_path / "task", folder, sharing="untied", position="shifted")
    adapters = export_peft(tmp_path / "task", tmp_path / "peft", backbone=backbone)
    assert [adapter.name for adapter in adapters] == ["query", "passage"]
    for adapter, vectors in zip(
        adapters, (encoder.encode_queries(TEXTS), encoder.encode_passages(TEXTS)), strict=True
    ):
        torch.testing.assert_close(
            peft_vectors(folder, adapter, TEXTS), torch.from_numpy(vectors), atol=2e-5, rtol=1e-4
        )
    back = import_peft(adapters[1], tmp_path / "back", backbone=str(folder), limits=LIMITS)
    assert back.manifest.passage_fingerprint == encoder.passage_fingerprint


def test_export_refuses_what_peft_cannot_say(tmp_path):
    folder = save_tiny(tmp_path / "encoder")
    backbone, _ = saved_task(tmp_path / "plain", folder)
    with pytest.raises(BundleError, match="--accept-shift"):
        export_peft(tmp_path / "plain", tmp_path / "peft", backbone=backbone)
    assert not (tmp_path / "peft").exists()
    assert export_peft(
        tmp_path / "plain", tmp_path / "peft", backbone=backbone, accept_shift=True
    ) == [tmp_path / "peft"]
    saved_task(tmp_path / "shifted", folder, position="shifted")
    with pytest.raises(BundleError, match="shifted already; omit --accept-shift"):
        export_peft(tmp_path / "shifted", tmp_path / "x", backbone=backbone, accept_shift=True)
    saved_task(tmp_path / "ffn", folder, position="shifted", ffn_length=2)
    with pytest.raises(BundleError, match="does not support the task's 2 feed-forward rows"):
        export_peft(tmp_path / "ffn", tmp_path / "x", backbone=backbone, accept_shift=True)


def test_adapter_of_another_kind_or_size_is_refused(tmp_path):
    folder = save_tiny(tmp_path / "encoder")
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    settings = {"peft_type": "LORA", "base_model_name_or_path": str(folder)}
    (adapter / "adapter_config.json").write_text(json.dumps(settings))
    with pytest.raises(BundleError, match="expected PREFIX_TUNING, got 'LORA'"):
        import_peft(adapter, tmp_path / "t", backbone=None, limits=LIMITS)
    (adapter / "adapter_config.json").write_text(json.dumps({"peft_type": "PREFIX_TUNING"}))
    with pytest.raises(BundleError, match="--backbone"):
        import_peft(adapter, tmp_path / "t", backbone=None, limits=LIMITS)
    for name in (5, ["a"], {"a": 1}):
        named = {"peft_type": "PREFIX_TUNING", "base_model_name_or_path": name}
        (adapter / "adapter_config.json").write_text(json.dumps(named))
        with pytest.raises(BundleError, match="field 'base_model_name_or_path': expected the"):
            import_peft(adapter, tmp_path / "t", backbone=None, limits=LIMITS)
    (adapter / "adapter_config.json").write_text(json.dumps({"peft_type": "PREFIX_TUNING"}))
    rows = torch.full((3, 7), torch.nan).to(torch.float8_e4m3fn)
    safetensors.torch.save_file({"prompt_embeddings": rows}, adapter / "adapter_model.safetensors")
    with pytest.raises(BundleError, match="expected finite floating-point rows"):
        import_peft(adapter, tmp_path / "t", backbone=str(folder), limits=LIMITS)
    safetensors.torch.save_file(
        {"prompt_embeddings": torch.zeros(3, 7)}, adapter / "adapter_model.safetensors"
    )
    with pytest.raises(BundleError, match="expected a prompt of"):
        import_peft(adapter, tmp_path / "t", backbone=str(folder), limits=LIMITS)
    assert not (tmp_path / "t").exists()
