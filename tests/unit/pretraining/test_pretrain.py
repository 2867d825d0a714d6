import hashlib
import json

import pytest
import torch

from dptdr.config.methods import DeepPromptConfig
from dptdr.errors import BackboneError, ConfigError, OutputError, TrainingError
from dptdr.io.beir import BeirFolder, write_beir
from dptdr.model import Backbone, Encoder, Pooling, load_task
from dptdr.pretraining import objective as room
from dptdr.pretraining.pretrain import pretrain
from dptdr.pretraining.run import chosen_objectives
from dptdr.pretraining.saved_heads import HEAD_FILE
from dptdr.pretraining.saving import save_backbone
from dptdr.records import Passage
from helpers.pretraining import small_config
from helpers.tiny import tiny_model, tiny_tokenizer
from helpers.train_worker import MinutePerStep

PROMPT = DeepPromptConfig(prompt_length=3)
ALL = ("mlm", "condenser", "contrastive")


def run(corpus, out, source, *, keep_head=False, prompt=None, progress=None, options=None, **given):
    return pretrain(
        BeirFolder(corpus),
        out,
        backbone=Backbone.load(str(source)),
        config=small_config(**given),
        keep_head=keep_head,
        prompt=prompt,
        progress=progress,
        **(options or {}),
    )


def digest(folder):
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return {
        str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in files
    }


@pytest.fixture(scope="module")
def whole(tmp_path_factory, corpus, plain):
    """A finished run on a whole encoder, heads kept."""
    out = tmp_path_factory.mktemp("whole") / "adapted"
    before = digest(plain)
    result = run(corpus, out, plain, keep_head=True, max_steps=12)
    assert digest(plain) == before
    return result


def test_held_out_losses_fall(whole):
    best = whole.history[whole.best_step]
    for name in ALL:
        assert best[f"loss of {name}"] < whole.bare[f"loss of {name}"]


def test_new_head_is_warmed_up_first_and_said(whole):
    assert (whole.mlm_head, whole.condenser_head) == ("new", "new")
    assert len(whole.head_warmup) == 2


def test_result_has_a_new_fingerprint_and_the_same_pooling(whole, plain):
    before, after = Backbone.load(str(plain)), Backbone.load(str(whole.out))
    assert after.fingerprint == whole.fingerprint != before.fingerprint
    assert after.pooling == before.pooling
    facts = json.loads((whole.out / "pretraining.json").read_text(encoding="utf-8"))
    assert facts["fingerprint"] == whole.fingerprint
    assert facts["backbone_fingerprint"] == before.fingerprint
    assert facts["objectives"] == list(ALL)


def test_continuing_takes_the_kept_heads(tmp_path, corpus, whole):
    result = run(corpus, tmp_path / "further", whole.out, max_steps=2)
    assert (result.mlm_head, result.condenser_head) == ("kept", "kept")
    assert result.head_warmup == ()
    assert not (tmp_path / "further" / HEAD_FILE).exists()


class Stopped(Exception):
    """Raised by a watcher in place of a kill."""


@pytest.mark.parametrize("prompt", [None, PROMPT], ids=["whole", "prompt"])
def test_resumed_run_leaves_the_same_bytes(tmp_path, corpus, plain, prompt):
    given = {"prompt": prompt, "objectives": ALL, "max_steps": 5}
    run(corpus, tmp_path / "one" / "out", plain, **given)
    clock = MinutePerStep()

    def stop(now):
        clock.step(now)
        if now.step == 4:
            raise Stopped

    with pytest.raises(Stopped):
        run(
            corpus,
            tmp_path / "two" / "out",
            plain,
            progress=stop,
            options={"clock": clock},
            **given,
        )
    state = tmp_path / "two" / "out.pretraining" / "last" / "state.json"
    assert json.loads(state.read_text(encoding="utf-8"))["step"] == 4
    run(corpus, tmp_path / "two" / "out", plain, **given)
    assert digest(tmp_path / "one" / "out") == digest(tmp_path / "two" / "out")


def test_a_finished_run_is_returned_at_once(corpus, plain, whole, capsys):
    before = digest(whole.out)
    steps = []
    again = run(corpus, whole.out, plain, keep_head=True, max_steps=12, progress=steps.append)
    assert again == whole
    assert steps == []
    assert digest(whole.out) == before
    assert "complete, nothing to do" in capsys.readouterr().err
    with pytest.raises(OutputError, match="keep_head: was True, is False"):
        run(corpus, whole.out, plain, max_steps=12)


def test_kill_in_the_warm_up_changes_nothing(tmp_path, corpus, plain, monkeypatch):
    given = {"objectives": ("mlm",), "max_steps": 2, "head_warmup_steps": 3}
    run(corpus, tmp_path / "one" / "out", plain, **given)
    original = room.PretrainingObjective.warm_up

    def stop(self, step):
        if step == 2:
            raise Stopped
        return original(self, step)

    monkeypatch.setattr(room.PretrainingObjective, "warm_up", stop)
    with pytest.raises(Stopped):
        run(corpus, tmp_path / "two" / "out", plain, **given)
    monkeypatch.setattr(room.PretrainingObjective, "warm_up", original)
    run(corpus, tmp_path / "two" / "out", plain, **given)
    assert digest(tmp_path / "one" / "out") == digest(tmp_path / "two" / "out")


def test_damaged_heads_of_a_warm_up_are_refused(tmp_path, corpus, plain, monkeypatch):
    given = {"objectives": ("mlm",), "max_steps": 2, "head_warmup_steps": 3}
    original = room.PretrainingObjective.backward

    def stop(self, step):
        raise Stopped

    monkeypatch.setattr(room.PretrainingObjective, "backward", stop)
    with pytest.raises(Stopped):
        run(corpus, tmp_path / "out", plain, **given)
    monkeypatch.setattr(room.PretrainingObjective, "backward", original)
    heads = tmp_path / "out.pretraining" / "heads.safetensors"
    content = bytearray(heads.read_bytes())
    content[-1] ^= 1
    heads.write_bytes(content)
    with pytest.raises(BackboneError, match="damaged: their checksum"):
        run(corpus, tmp_path / "out", plain, **given)


def test_resuming_with_other_settings_is_refused(tmp_path, corpus, lm):
    run(corpus, tmp_path / "out", lm, objectives=("mlm",), max_steps=1)
    with pytest.raises(OutputError, match=r"cannot resume: .*mlm_probability: was 0\.15, is 0\.3"):
        run(corpus, tmp_path / "out", lm, objectives=("mlm",), max_steps=1, mlm_probability=0.3)
    options = {"overwrite": True}
    given = {"objectives": ("mlm",), "max_steps": 1, "mlm_probability": 0.3, "options": options}
    assert run(corpus, tmp_path / "out", lm, **given).best_step == 1


def test_prompt_run_leaves_a_task_and_the_encoder_as_it_was(tmp_path, corpus, lm):
    backbone = Backbone.load(str(lm))
    before = {name: tensor.clone() for name, tensor in backbone.model.state_dict().items()}
    result = pretrain(
        BeirFolder(corpus),
        tmp_path / "task",
        backbone=backbone,
        config=small_config(max_steps=6),
        prompt=PROMPT,
    )
    assert result.objectives == ("mlm", "contrastive")
    assert result.mlm_head == "checkpoint"
    for name, tensor in backbone.model.state_dict().items():
        assert torch.equal(tensor, before[name])
    encoder = load_task(tmp_path / "task", backbone=backbone)
    bare = Encoder(backbone).encode_queries(["river stone"])
    assert abs(encoder.encode_queries(["river stone"]) - bare).max() > 1e-3
    assert encoder.backbone_fingerprint == result.fingerprint == backbone.fingerprint


def test_new_heads_of_a_prompt_run_stay_after_their_warm_up(tmp_path, corpus, plain, monkeypatch):
    seen = []
    original = room.PretrainingObjective.backward

    def spy(self, step):
        seen.append([p.detach().clone() for p in self.heads.new.values()])
        return original(self, step)

    monkeypatch.setattr(room.PretrainingObjective, "backward", spy)
    objectives = ("mlm", "contrastive")
    run(corpus, tmp_path / "task", plain, prompt=PROMPT, objectives=objectives, max_steps=3)
    assert len(seen[0]) == 5
    for first, last in zip(seen[0], seen[-1], strict=True):
        assert torch.equal(first, last)


def test_default_objectives_fit_what_is_trained(plain, lm):
    config = small_config()
    headless, headed = Backbone.load(str(plain)), Backbone.load(str(lm))
    assert chosen_objectives(config, headless, prompt_only=False) == ALL
    assert chosen_objectives(config, headless, prompt_only=True) == ("contrastive",)
    assert chosen_objectives(config, headed, prompt_only=True) == ("mlm", "contrastive")
    asked = small_config(objectives=("contrastive", "mlm"))
    assert chosen_objectives(asked, headless, prompt_only=True) == ("mlm", "contrastive")


def test_temperature_of_normalised_encoders_is_not_that_of_others(tmp_path, corpus, plain):
    normalised = Backbone(
        tiny_model(), tiny_tokenizer(), name=str(plain), pooling=Pooling(normalise=True,
                                                                         max_tokens=64)
    )  # fmt: skip
    made = [
        pretrain(
            BeirFolder(corpus),
            tmp_path / str(number),
            backbone=backbone,
            config=small_config(max_steps=1, eval_steps=0.0, objectives=("contrastive",)),
        ).temperature
        for number, backbone in enumerate((normalised, Backbone.load(str(plain))))
    ]
    assert made == [0.05, 1.0]


def test_writing_over_the_backbone_is_refused(corpus, plain):
    with pytest.raises(ConfigError, match=r"this is the source backbone; choose another"):
        run(corpus, plain, plain)


def test_writing_over_something_else_is_refused(tmp_path, corpus, plain):
    (tmp_path / "thesis.txt").write_text("dear", encoding="utf-8")
    with pytest.raises(OutputError, match=r"contains unrelated files \(no pretraining\.json"):
        run(corpus, tmp_path, plain)
    assert (tmp_path / "thesis.txt").read_text(encoding="utf-8") == "dear"


def test_corpus_of_single_spans_is_refused_for_contrast(tmp_path, plain):
    write_beir(
        tmp_path / "d",
        passages=[Passage(f"p{n}", "red boat") for n in range(30)],
        queries=[],
        qrels={},
        meta={},
    )
    with pytest.raises(
        TrainingError, match=r"needs documents with two different spans, .* --objectives mlm"
    ):
        run(tmp_path / "d", tmp_path / "out", plain)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("pool", "normalise", "prefixes"),
    [("cls", False, ("", "")), ("mean", True, ("query: ", "passage: ")), ("last", False, ("", ""))],
)
def test_saved_encoder_keeps_its_pooling(tmp_path, pool, normalise, prefixes):
    pooling = Pooling(
        pool=pool,
        normalise=normalise,
        max_tokens=48,
        query_prefix=prefixes[0],
        passage_prefix=prefixes[1],
    )
    backbone = Backbone(tiny_model(), tiny_tokenizer(), name="tiny", pooling=pooling)
    save_backbone(tmp_path / "b", backbone, facts={})
    modes = {file.stat().st_mode for file in (tmp_path / "b").iterdir() if file.is_file()}
    assert len(modes) == 1
    again = Backbone.load(str(tmp_path / "b"))
    assert again.pooling == pooling
    assert again.fingerprint == backbone.fingerprint


def test_sentence_transformers_makes_the_same_vectors(whole):
    import sentence_transformers

    texts = ["red boat on the river", "who runs fast"]
    expected = Encoder(Backbone.load(str(whole.out))).encode_passages(texts)
    found = sentence_transformers.SentenceTransformer(str(whole.out), device="cpu").encode(texts)
    assert abs(found - expected).max() < 1e-5
