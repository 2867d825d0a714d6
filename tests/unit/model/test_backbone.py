"""Loading, tokenising, fingerprints and positions of the frozen encoder."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
import transformers

from dptdr.errors import BackboneError
from dptdr.model import Backbone, Encoder, Pooling, backbone
from helpers.prompts import lengths_visible, random_attention
from helpers.tiny import (
    HEADS,
    HIDDEN,
    VOCAB_SIZE,
    save_tiny,
    tiny_backbone,
    tiny_model,
    tiny_tokenizer,
)

TEXTS = [
    "How do bees find their way home?",
    "",
    "A short one",
    "The quick brown fox jumps over the lazy dog while the band plays on. " * 40,
]


def test_minilm_is_what_sentence_transformers_computes(minilm):
    from sentence_transformers import SentenceTransformer

    theirs = SentenceTransformer(str(backbone.resolve("minilm")), device="cpu")
    ours = Encoder(minilm).encode_passages(TEXTS)
    np.testing.assert_allclose(ours, theirs.encode(TEXTS), rtol=0, atol=1e-5)
    assert minilm.dim == 384
    assert minilm.parameter_count == 22_713_216
    assert minilm.pooling == Pooling(pool="mean", normalise=True, max_tokens=256)


def test_minilm_rows_with_different_prompts_equal_each_alone(minilm):
    tokens = minilm.pad(minilm.tokenize(TEXTS[:3], side="query"))
    prompt_lengths = (16, 0, 7)
    together = random_attention(
        minilm.geometry,
        prompt=16,
        texts=3,
        visible=lengths_visible(prompt_lengths, longest=16),
    )
    batch = minilm.vectors(tokens, attention=together)
    for row, prompt in enumerate(prompt_lengths):
        own = together._replace(
            keys=together.keys[:, row : row + 1, :, :prompt],
            values=together.values[:, row : row + 1, :, :prompt],
            visible=None,
        )
        one = minilm.pad(minilm.tokenize([TEXTS[row]], side="query"))
        alone = minilm.vectors(one, attention=own if prompt else None)
        torch.testing.assert_close(batch[row], alone[0], rtol=0, atol=1e-5)
    assert (batch[0] - minilm.vectors(tokens)[0]).abs().max() > 1e-2


def test_loaded_folder_equals_the_model_that_was_saved(tmp_path):
    loaded = Backbone.load(str(save_tiny(tmp_path / "tiny", seed=2)))
    direct = tiny_backbone(seed=2, pool="cls")
    tokens = direct.pad(direct.tokenize(["red car", "the old house"], side="query"))
    assert torch.equal(loaded.vectors(tokens), direct.vectors(tokens))
    assert loaded.pooling == Pooling(pool="cls", max_tokens=64)
    assert loaded.fingerprint == direct.fingerprint
    assert not any(p.requires_grad for p in loaded.model.parameters())
    assert not loaded.model.training


@pytest.mark.parametrize("architecture", ["t5", "qwen3", "roberta", "mpnet", "albert-groups"])
def test_other_architectures_load_from_a_folder(tmp_path, architecture):
    loaded = Backbone.load(str(save_tiny(tmp_path / "tiny", architecture)))
    assert loaded.pooling.pool == ("last" if architecture == "qwen3" else "cls")
    assert loaded.fingerprint == tiny_backbone(architecture, pool=loaded.pooling.pool).fingerprint


def test_encoder_inside_a_folder_of_the_oldest_layout_loads(tmp_path):
    save_tiny(tmp_path / "old" / "0_Transformer")
    modules = [
        {"type": "sentence_transformers.models.Transformer", "path": "0_Transformer"},
        {"type": "sentence_transformers.models.Pooling", "path": "1_Pooling"},
    ]
    (tmp_path / "old" / "modules.json").write_text(json.dumps(modules))
    (tmp_path / "old" / "1_Pooling").mkdir()
    (tmp_path / "old" / "1_Pooling" / "config.json").write_text('{"pooling_mode": "mean"}')
    loaded = Backbone.load(str(tmp_path / "old"))
    assert loaded.fingerprint == tiny_backbone(pool="mean").fingerprint


def test_checkpoint_of_a_language_model_has_one_fingerprint_although_its_pooler_is_random(tmp_path):
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=VOCAB_SIZE, hidden_size=HIDDEN, num_hidden_layers=2, num_attention_heads=HEADS
    )
    transformers.BertForMaskedLM(config).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    torch.manual_seed(1)
    one = Backbone.load(str(tmp_path))
    torch.manual_seed(2)
    other = Backbone.load(str(tmp_path))
    poolers = [b.model.pooler.dense.weight for b in (one, other)]
    assert not torch.equal(*poolers)
    assert one.fingerprint == other.fingerprint


def test_checkpoint_without_all_weights_is_refused(tmp_path):
    save_tiny(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["num_hidden_layers"] = 5
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(
        BackboneError, match=r"32 encoder weights .*missing .*encoder\.layer\.3.* random"
    ):
        Backbone.load(str(tmp_path))


def test_checkpoint_of_another_shape_is_refused_by_name(tmp_path):
    save_tiny(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["intermediate_size"] += 1
    (tmp_path / "config.json").write_text(json.dumps(config))
    said = r"layer\.0\.intermediate\.dense\.bias: expected \(49,\), got \(48,\); .* be random"
    with pytest.raises(BackboneError, match=said):
        Backbone.load(str(tmp_path))


def test_fingerprint_changes_with_weights_tokenizer_and_pooling_only(tmp_path):
    base = tiny_backbone()
    known = {base.fingerprint}

    def new(model=None, tokenizer=None, **pooling):
        made = Backbone(
            model or tiny_model(),
            tokenizer or tiny_tokenizer(),
            name="another name",
            pooling=Pooling(**{"pool": "mean", "max_tokens": 64} | pooling),
        )
        return made.fingerprint

    assert new() in known
    used = tiny_tokenizer()
    used(["red car"], truncation=True, max_length=4, padding="max_length")
    assert new(tokenizer=used) in known, "calls on a tokenizer leave settings in it"
    nudged = tiny_model()
    with torch.no_grad():
        next(nudged.parameters())[0, 0] += 1e-6
    words = tiny_tokenizer()
    words.add_tokens(["zebra"])
    for different in (
        new(model=nudged),
        new(tokenizer=words),
        new(pool="cls"),
        new(normalise=True),
        new(max_tokens=32),
        new(query_prefix="q: "),
    ):
        assert different not in known
        known.add(different)


def test_fingerprint_is_of_the_stored_weights_whatever_type_they_are_used_in(tmp_path):
    folder = str(save_tiny(tmp_path))
    exact = Backbone.load(folder)
    rounded = Backbone.load(folder, dtype="bfloat16")
    assert rounded.model.dtype == torch.bfloat16
    assert rounded.fingerprint == exact.fingerprint


def test_changed_weights_are_seen_once_the_fingerprint_is_forgotten():
    changed = tiny_backbone()
    before = changed.fingerprint
    with torch.no_grad():
        next(changed.model.parameters()).add_(1.0)
    assert changed.fingerprint == before
    changed.forget_fingerprint()
    assert changed.fingerprint != before


def test_texts_are_prefixed_cut_and_padded(tiny_bert):
    prefixed = Backbone(
        tiny_bert.model,
        tiny_bert.tokenizer,
        name="prefixed",
        pooling=Pooling(max_tokens=6, query_prefix="red ", passage_prefix="blue "),
    )
    ids = tiny_bert.tokenizer.convert_tokens_to_ids
    cls, sep, red, blue, car = ids(["[CLS]", "[SEP]", "red", "blue", "car"])
    assert prefixed.tokenize(["car"], side="query") == [[cls, red, car, sep]]
    assert prefixed.tokenize(["car"], side="passage") == [[cls, blue, car, sep]]
    assert prefixed.tokenize(["car " * 9], side="query") == [[cls, red, car, car, car, sep]]
    assert prefixed.tokenize(["car " * 9], side="query", max_tokens=4) == [[cls, red, car, sep]]
    assert len(prefixed.tokenize(["car " * 9], side="query", max_tokens=99)[0]) == 6
    tokens = prefixed.pad([[cls, sep], [cls, red, car, sep]])
    assert tokens.ids.tolist() == [[cls, sep, 0, 0], [cls, red, car, sep]]
    assert tokens.mask.tolist() == [[1, 1, 0, 0], [1, 1, 1, 1]]


def shifted_by_dptdr_code(ids, *, shift, padding_index):
    """Positions as the authors' models count them behind a generation cache of ``shift`` rows."""
    if padding_index is None:
        return torch.arange(shift, shift + ids.shape[1]).expand_as(ids)
    real = ids.ne(padding_index).int()
    return (((torch.cumsum(real, dim=1) + shift) * real) + padding_index).long()


@pytest.mark.parametrize(
    ("architecture", "padding_index"),
    [("bert", None), ("electra", None), ("roberta", 1), ("xlm-roberta", 1), ("mpnet", 1)],
)
def test_shifted_positions_are_those_of_the_authors_code(frozen_tiny, architecture, padding_index):
    tiny = frozen_tiny(architecture)
    ids = torch.tensor([[5, 6, 7, 8], [9, 5, padding_index or 0, padding_index or 0]])
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    tokens = backbone.Tokens(ids, mask)
    expected = shifted_by_dptdr_code(ids, shift=3, padding_index=padding_index)
    assert torch.equal(tiny.shifted_positions(tokens, shift=3), expected)
    prompt = random_attention(tiny.geometry, prompt=3)
    vectors = tiny.vectors(tokens, attention=prompt, position_shift=3)
    unshifted = tiny.vectors(tokens, attention=prompt)
    assert (vectors - unshifted).abs().max() > 1e-2
    zero = tiny.shifted_positions(tokens, shift=0)
    by_itself = tiny.model(input_ids=ids, attention_mask=mask).last_hidden_state
    explicit = tiny.model(input_ids=ids, attention_mask=mask, position_ids=zero).last_hidden_state
    torch.testing.assert_close(explicit[mask > 0], by_itself[mask > 0])


def test_shifted_positions_beyond_the_encoder_are_an_error_that_says_so(frozen_tiny):
    tiny = frozen_tiny("bert")
    tokens = tiny.pad([[5] * 70])
    assert tiny.shifted_positions(tokens, shift=10).max() == 79
    with pytest.raises(BackboneError, match=r"70 tokens shifted by 11 needs position 80.* has 80"):
        tiny.vectors(tokens, position_shift=11)
    tiny = frozen_tiny("roberta")
    assert tiny.shifted_positions(tiny.pad([[5] * 70]), shift=8).max() == 79
    with pytest.raises(BackboneError, match="use shorter texts, a shorter prompt, or"):
        tiny.vectors(tiny.pad([[5] * 70]), position_shift=9)


@pytest.mark.parametrize("architecture", ["t5", "deberta-v3"])
def test_shift_where_positions_mean_nothing_is_refused(frozen_tiny, architecture):
    tiny = frozen_tiny(architecture)
    with pytest.raises(BackboneError, match="needs an encoder that accepts absolute positions"):
        tiny.vectors(tiny.pad([[5, 6]]), position_shift=3)


def test_last_token_pooling_of_a_decoder_ignores_padding(frozen_tiny):
    tiny = tiny_backbone("qwen3", pool="last")
    states = tiny.model(input_ids=torch.tensor([[5, 6, 7]])).last_hidden_state
    tokens = tiny.pad([[5, 6, 7], [5, 6, 7, 8, 9]])
    torch.testing.assert_close(tiny.vectors(tokens)[0], states[0, 2], rtol=1e-5, atol=1e-5)


UNKNOWN = """
from dptdr.errors import BackboneError
from dptdr.model import Backbone
try:
    Backbone.load("nobody/no-such-encoder")
except BackboneError as error:
    print(error)
"""


def test_unknown_name_without_a_network_is_one_clear_error(tmp_path):
    run = subprocess.run(
        [sys.executable, "-c", UNKNOWN],
        capture_output=True,
        text=True,
        check=False,
        env={"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "PATH": "/usr/bin:/bin"},
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith("cannot load backbone 'nobody/no-such-encoder': ")
    assert "expected 'minilm', a folder with a Hugging Face encoder" in run.stdout
    assert run.stdout.count("\n") == 1


@pytest.mark.parametrize("name", ["./none", "/no/such/folder", "~/none", "a/b/c"])
def test_missing_folder_is_named(name):
    with pytest.raises(BackboneError, match="no such folder"):
        Backbone.load(name)


def test_folder_without_an_encoder_is_named(tmp_path):
    with pytest.raises(BackboneError, match=r"cannot load backbone .*: .*expected 'minilm'"):
        Backbone.load(str(tmp_path))


def test_damaged_weights_are_one_clear_error(tmp_path):
    file = save_tiny(tmp_path) / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(BackboneError, match="cannot load backbone"):
        Backbone.load(str(tmp_path))


def test_unknown_number_type_is_named():
    with pytest.raises(BackboneError, match="dtype 'int3': expected one of float32, bfloat16"):
        Backbone.load("minilm", dtype="int3")


def test_missing_minilm_package_is_named(monkeypatch):
    monkeypatch.setattr(backbone.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(BackboneError, match=r"install 'dptdr\[minilm\]'"):
        Backbone.load("minilm")


def test_slow_tokenizer_is_refused(tmp_path, monkeypatch):
    save_tiny(tmp_path)

    class Slow:
        is_fast = False

    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", lambda *_, **__: Slow())
    with pytest.raises(BackboneError, match=r"expected a fast tokenizer \(tokenizer.json\)"):
        Backbone.load(str(tmp_path))


def test_a_device_that_is_not_there_and_an_empty_name_are_one_error(tmp_path):

    with pytest.raises(BackboneError, match="expected an available device, got 'gpu7'"):
        Backbone.load(str(save_tiny(tmp_path / "bert")), device="gpu7")
    for name in ("", " "):
        with pytest.raises(BackboneError, match="expected the name or the folder of a backbone"):
            Backbone.load(name)
