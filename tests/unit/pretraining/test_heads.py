import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from dptdr.errors import BackboneError, ConfigError
from dptdr.model import Backbone, PromptCall
from dptdr.pretraining.heads import CondenserHead, TiedHead, head_count, own_head
from dptdr.pretraining.saved_heads import (
    HEAD_FILE,
    build_heads,
    read_saved_heads,
    write_saved_heads,
)
from helpers.pretraining import save_lm, small_config
from helpers.tiny import save_tiny, tiny_backbone, token_batch


@pytest.mark.parametrize("architecture", ["bert", "roberta", "electra", "albert", "modernbert",
                                          "distilbert", "deberta-v3", "mpnet"])  # fmt: skip
def test_own_head_scores_as_the_architectures_own_model(tmp_path, architecture):
    folder = save_lm(tmp_path / architecture, architecture)
    whole = transformers.AutoModelForMaskedLM.from_pretrained(folder).eval()
    ids, mask = token_batch()
    backbone = Backbone.load(str(folder))
    head, complete = own_head(backbone)
    assert complete
    with torch.no_grad():
        expected = whole(input_ids=ids, attention_mask=mask).logits[mask > 0]
        states = backbone.injection(PromptCall(), input_ids=ids, attention_mask=mask)
        found = head(states.last_hidden_state[mask > 0])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_own_head_does_not_count_the_encoders_weights(lm):
    backbone = Backbone.load(str(lm))
    head, _ = own_head(backbone)
    own = head.own_parameters()
    assert own
    assert not {id(p) for p in own.values()} & {id(p) for p in backbone.model.parameters()}
    embeddings = backbone.model.get_input_embeddings().weight
    assert head.model.get_output_embeddings().weight is embeddings


def test_head_is_missing_in_an_encoders_checkpoint(plain):
    assert own_head(Backbone.load(str(plain)))[1] is False


def test_head_of_another_shape_in_the_checkpoint_is_refused(tmp_path):
    save_lm(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    name = "cls.predictions.transform.dense.weight"
    save_file(weights | {name: weights[name][:5].clone()}, tmp_path / "model.safetensors")
    said = r"transform\.dense\.weight: expected \(32, 32\), got \(5, 32\)\), .* encoder alone"
    with pytest.raises(BackboneError, match=said):
        own_head(Backbone.load(str(tmp_path)))


def test_architecture_without_a_masked_language_model_has_no_own_head(tmp_path):
    folder = save_tiny(tmp_path / "t5", "t5")
    assert own_head(Backbone.load(str(folder))) == (None, False)


@pytest.mark.parametrize("architecture", ["bert", "albert", "t5"])
def test_new_head_is_tied_to_the_embeddings(architecture):
    backbone = tiny_backbone(architecture)
    head = TiedHead(backbone, seed=0)
    states = torch.randn(3, backbone.dim)
    words = backbone.model.get_input_embeddings().weight
    made = head.norm(torch.nn.functional.gelu(head.dense(states)))
    torch.testing.assert_close(head(states), made @ words.T)
    assert set(head.own_parameters()) == {"bias", "dense.weight", "dense.bias", "norm.weight",
                                          "norm.bias"}  # fmt: skip


def test_condenser_reads_early_tokens_and_the_late_vector():
    head = CondenserHead(dim=8, heads=2, layers=2, seed=0)
    generator = torch.Generator().manual_seed(0)
    early = torch.randn(2, 4, 8, generator=generator)
    vectors = torch.randn(2, 8, generator=generator)
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    made = head(early, vectors=vectors, mask=mask)
    moved = early.clone()
    moved[:, 0] += 5.0
    # The first token's own early state is not read; padding is not either.
    torch.testing.assert_close(head(moved, vectors=vectors, mask=mask), made)
    moved = early.clone()
    moved[1, 2:] += 5.0
    torch.testing.assert_close(head(moved, vectors=vectors, mask=mask)[1, :2], made[1, :2])
    other = head(early, vectors=vectors + 1.0 * torch.arange(8), mask=mask)
    assert float((other - made)[:, 1].detach().abs().min()) > 0.0


def test_head_count_divides_the_width():
    assert [head_count(384, wanted=12), head_count(30, wanted=4), head_count(7, wanted=4)] == [
        12, 3, 1,
    ]  # fmt: skip


def build(source, **settings):
    backbone = Backbone.load(str(source))
    return build_heads(
        backbone, small_config(**settings), objectives=("mlm", "condenser"), frozen=False
    )


def test_kept_heads_are_found_again(tmp_path, plain):
    import shutil

    folder = shutil.copytree(plain, tmp_path / "bert")
    built = build(folder)
    assert (built.mlm, built.condenser) == ("new", "new")
    with torch.no_grad():
        for parameter in built.heads.trained.values():
            parameter.add_(0.5)
    write_saved_heads(folder / HEAD_FILE, built.heads)
    again = build(folder)
    assert (again.mlm, again.condenser) == ("kept", "kept")
    assert again.heads.new == {}
    for name, parameter in again.heads.trained.items():
        assert torch.equal(parameter, built.heads.trained[name])


def test_kept_own_head_is_found_again(tmp_path, lm, plain):
    import shutil

    built = build(lm)
    assert built.mlm == "checkpoint"
    folder = shutil.copytree(plain, tmp_path / "bert")
    write_saved_heads(folder / HEAD_FILE, built.heads)
    assert read_saved_heads(str(folder)).form == {"mlm_kind": "own"}
    again = build(folder)
    assert again.mlm == "kept"
    assert again.heads.mlm.kind == "own"


def test_kept_heads_of_another_shape_are_refused(tmp_path, plain):
    import shutil

    folder = shutil.copytree(plain, tmp_path / "bert")
    write_saved_heads(folder / HEAD_FILE, build(folder, head_layers=1).heads)
    with pytest.raises(BackboneError, match=r"saved heads do not match .*--head-layers"):
        build(folder, head_layers=2)


def test_broken_head_file_is_refused(tmp_path, plain):
    import shutil

    folder = shutil.copytree(plain, tmp_path / "bert")
    (folder / HEAD_FILE).write_bytes(b"no tensors")
    with pytest.raises(BackboneError, match=r"pretraining_head\.safetensors: expected a safetens"):
        build(folder)


def test_early_layer_beyond_the_encoder_is_refused(plain):
    with pytest.raises(ConfigError, match=r"skip_from: expected a layer from 1 to 2 .* got 3"):
        build(plain, skip_from=3)


def test_a_head_file_has_the_same_bytes_each_time(tmp_path, plain):
    heads = build(plain, head_layers=1).heads
    for number in range(6):
        write_saved_heads(tmp_path / str(number), heads)
    assert len({(tmp_path / str(number)).read_bytes() for number in range(6)}) == 1
