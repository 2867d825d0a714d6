"""Pooling by hand, and what sentence-transformers folders say about it."""

import json

import pytest
import torch

from dptdr.errors import BackboneError
from dptdr.model import Pooling
from dptdr.model.pooling import pool_states, read_pooling, transformer_folder

STATES = torch.tensor(
    [
        [[1.0, 2.0], [3.0, 4.0], [5.0, 9.0]],
        [[3.0, 4.0], [0.0, 8.0], [100.0, 100.0]],
    ]
)
RIGHT = torch.tensor([[1, 1, 1], [1, 1, 0]])


@pytest.mark.parametrize(
    ("pool", "expected"),
    [
        ("cls", [[1.0, 2.0], [3.0, 4.0]]),
        ("mean", [[3.0, 5.0], [1.5, 6.0]]),
        ("last", [[5.0, 9.0], [0.0, 8.0]]),
    ],
)
def test_pooling_by_hand_with_padding_on_the_right(pool, expected):
    vectors = pool_states(STATES, RIGHT, pooling=Pooling(pool=pool))
    assert vectors.tolist() == expected


@pytest.mark.parametrize(
    ("pool", "expected"),
    [
        ("cls", [[1.0, 2.0], [0.0, 8.0]]),
        ("mean", [[3.0, 5.0], [50.0, 54.0]]),
        ("last", [[5.0, 9.0], [100.0, 100.0]]),
    ],
)
def test_pooling_by_hand_with_padding_on_the_left(pool, expected):
    left = torch.tensor([[1, 1, 1], [0, 1, 1]])
    assert pool_states(STATES, left, pooling=Pooling(pool=pool)).tolist() == expected


@pytest.mark.parametrize("pool", ["cls", "mean", "last"])
def test_text_without_any_token_gives_numbers_not_nan(pool):
    nothing = torch.zeros(2, 3, dtype=torch.long)
    assert torch.isfinite(pool_states(STATES, nothing, pooling=Pooling(pool=pool))).all()


def test_normalised_vectors_have_length_one():
    vectors = pool_states(STATES, RIGHT, pooling=Pooling(pool="cls", normalise=True))
    torch.testing.assert_close(vectors[1], torch.tensor([0.6, 0.8]))


def test_bfloat16_states_are_pooled_in_float32():
    ones = torch.full((1, 1000, 1), 1.0, dtype=torch.bfloat16)
    ones[0, 0] = 1.0078125
    vectors = pool_states(ones, torch.ones(1, 1000, dtype=torch.long), pooling=Pooling())
    assert vectors.dtype == torch.float32
    assert vectors.item() == pytest.approx(1 + 0.0078125 / 1000, abs=1e-7)


def folder(tmp_path, *, modules=None, pooling=None, settings=None, prompts=None, inside=""):
    """A sentence-transformers folder as older releases write it."""
    if modules is None:
        modules = [
            ("sentence_transformers.models.Transformer", inside),
            ("sentence_transformers.models.Pooling", "1_Pooling"),
        ]
    write(tmp_path / "modules.json", [{"type": kind, "path": path} for kind, path in modules])
    if pooling is not None:
        write(tmp_path / "1_Pooling" / "config.json", pooling)
    if settings is not None:
        write(tmp_path / inside / "sentence_bert_config.json", settings)
    if prompts is not None:
        write(tmp_path / "config_sentence_transformers.json", {"prompts": prompts})
    return tmp_path


def write(path, value):
    path.parent.mkdir(exist_ok=True, parents=True)
    path.write_text(value if isinstance(value, str) else json.dumps(value))


def read(path, *, decoder=False):
    return read_pooling(path, model_max_tokens=512, decoder=decoder)


OLD_MEAN = {
    "word_embedding_dimension": 384,
    "pooling_mode_cls_token": False,
    "pooling_mode_mean_tokens": True,
    "pooling_mode_max_tokens": False,
    "pooling_mode_mean_sqrt_len_tokens": False,
}


def test_plain_folder_pools_by_cls_or_for_decoders_by_the_last_token(tmp_path):
    assert read(tmp_path) == Pooling(pool="cls", max_tokens=512)
    assert read(tmp_path, decoder=True) == Pooling(pool="last", max_tokens=512)


def test_old_layout_is_read(tmp_path):
    path = folder(tmp_path, pooling=OLD_MEAN, settings={"max_seq_length": 256})
    assert read(path) == Pooling(pool="mean", max_tokens=256)


def test_oldest_layout_with_the_encoder_in_a_folder_inside_is_read(tmp_path):
    path = folder(
        tmp_path, pooling=OLD_MEAN, settings={"max_seq_length": 128}, inside="0_Transformer"
    )
    assert read(path) == Pooling(pool="mean", max_tokens=128)
    assert transformer_folder(path) == tmp_path / "0_Transformer"


def test_new_layout_is_read(tmp_path):
    path = folder(
        tmp_path,
        modules=[
            ("sentence_transformers.base.modules.transformer.Transformer", ""),
            ("sentence_transformers.sentence_transformer.modules.pooling.Pooling", "1_Pooling"),
            ("sentence_transformers.base.modules.normalize.Normalize", "2_Normalize"),
        ],
        pooling={"embedding_dimension": 32, "pooling_mode": "lasttoken", "include_prompt": True},
        settings={"transformer_task": "feature-extraction"},
        prompts={"query": "search: ", "document": "text: ", "passage": "never: "},
    )
    assert read(path) == Pooling(
        pool="last",
        normalise=True,
        max_tokens=512,
        query_prefix="search: ",
        passage_prefix="text: ",
    )
    assert transformer_folder(path) == tmp_path


def test_length_limit_never_exceeds_the_positions(tmp_path):
    path = folder(tmp_path, pooling=OLD_MEAN, settings={"max_seq_length": 9999})
    assert read(path).max_tokens == 512


@pytest.mark.parametrize("name", ["passage", "corpus"])
def test_passage_prefix_goes_by_several_names(tmp_path, name):
    path = folder(tmp_path, pooling=OLD_MEAN, prompts={name: "p: "})
    assert (read(path).query_prefix, read(path).passage_prefix) == ("", "p: ")


def test_released_package_reads_what_sentence_transformers_writes(tmp_path):
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules.transformer import Transformer
    from sentence_transformers.sentence_transformer.modules.pooling import Pooling as TheirPooling

    from dptdr.model import Backbone
    from helpers.tiny import save_tiny

    encoder = Transformer(str(save_tiny(tmp_path / "plain")))
    theirs = SentenceTransformer(
        modules=[encoder, TheirPooling(32, pooling_mode="cls")],
        prompts={"query": "who ", "document": "is "},
        device="cpu",
    )
    theirs.save(str(tmp_path / "saved"))
    ours = Backbone.load(str(tmp_path / "saved"))
    assert ours.pooling == Pooling(
        pool="cls", max_tokens=64, query_prefix="who ", passage_prefix="is "
    )
    texts = ["red car", "the old house of the river stone"]
    for side, encode in (("query", theirs.encode_query), ("passage", theirs.encode_document)):
        vectors = ours.vectors(ours.pad(ours.tokenize(texts, side=side)))
        torch.testing.assert_close(
            vectors, encode(texts, convert_to_tensor=True), rtol=1e-5, atol=1e-5
        )


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"modules": [("a.Transformer", ""), ("a.Dense", "2_Dense")]}, "got 'Dense'"),
        ({"pooling": OLD_MEAN | {"pooling_mode_max_tokens": True}}, "expected exactly one of CLS"),
        ({"pooling": {"pooling_mode": "max"}}, "got max"),
        ({"pooling": {"pooling_mode": "weightedmean"}}, "got weightedmean"),
        ({"pooling": "{"}, r"config.json, line 1: expected JSON, .* is damaged"),
        ({"pooling": []}, "expected a JSON object"),
        ({}, "1_Pooling/config.json: no such file"),
        ({"pooling": OLD_MEAN, "settings": {"do_lower_case": True}}, "'do_lower_case'"),
        (
            {
                "pooling": {"pooling_mode": "mean", "include_prompt": False},
                "prompts": {"query": "q"},
            },
            "include_prompt false",
        ),
    ],
)
def test_what_dptdr_does_not_do_is_refused_by_name(tmp_path, change, said):
    with pytest.raises(BackboneError, match=said):
        read(folder(tmp_path, **change))


def test_modules_file_of_another_shape_is_refused(tmp_path):
    write(tmp_path / "modules.json", [{"type": "x"}])
    with pytest.raises(BackboneError, match="list of modules with 'type' and 'path'"):
        read(tmp_path)
