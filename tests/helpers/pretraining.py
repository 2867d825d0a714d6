"""Small pieces of pretraining: corpora of made-up topics, tokenizers of each kind, objectives.

Run as ``python pretraining.py SETTINGS.json`` it is two processes that work together.
"""

import json
import os
import socket
import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from dptdr.config.methods import DeepPromptConfig, EmptyConfig
from dptdr.config.pretraining import OBJECTIVE_NAMES, PretrainingConfig
from dptdr.io.beir import BeirFolder, write_beir
from dptdr.model import Backbone, MethodFactory
from dptdr.pretraining.document_sampling import Documents, Reader
from dptdr.pretraining.objective import PretrainingObjective
from dptdr.pretraining.saved_heads import build_heads
from dptdr.records import Passage
from helpers.tasks import WORDS
from helpers.tiny import tiny_model, tiny_tokenizer

SMALL = {
    "max_steps": 4,
    "batch_size": 6,
    "span_tokens": 20,
    "min_span_tokens": 5,
    "eval_steps": 0.5,
    "dev_documents": 5,
    "mini_batch_size": 4,
    "learning_rate": 1e-2,
}

SENTENCES = [
    "The river, it seems, wasn't built; people (2,000 of them) paint its old stones!",
    "Unbelievably slow trains re-cross the gardens of naïve seafarers.",
    "hello world hello words worldly wordings and misunderstandings",
]


def small_config(**settings):
    """Settings for tiny encoders."""
    return PretrainingConfig(**(SMALL | settings))


def topic_corpus(path, *, documents=60, least=3, most=60, seed=0):
    """A BEIR folder without queries: each document repeats four words of its own."""
    generator = np.random.default_rng(seed)
    passages = []
    for number in range(documents):
        topic = [WORDS[(5 * number + n) % len(WORDS)] for n in range(4)]
        length = int(generator.integers(least, most))
        words = [topic[int(n)] for n in generator.integers(4, size=length)]
        passages.append(Passage(f"p{number}", " ".join(words)))
    write_beir(path, passages=passages, queries=[], qrels={}, meta={})
    return path


def wrapped(tokenizer, *, mask="<mask>"):
    """A fast tokenizer with BERT's places for special tokens."""
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>",
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in ("<s>", "</s>")],
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=64,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<pad>",
        **({"mask_token": mask} if mask else {}),
    )


SPECIAL = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]


def byte_level_tokenizer():
    """Byte-level BPE, as RoBERTa's."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=330,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    return wrapped(tokenizer)


def sentencepiece_tokenizer():
    """SentencePiece's unigram model, as XLM-R's."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=120, special_tokens=SPECIAL, unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    return wrapped(tokenizer)


def save_lm(folder, architecture="bert", *, seed=0):
    """A tiny masked-language model with its own head, as a Hugging Face folder."""
    config = tiny_model(architecture).config
    torch.manual_seed(seed)
    model = transformers.AutoModelForMaskedLM.from_config(config)
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def made_objective(data, source, *, prompt=None, world=None, objectives=OBJECTIVE_NAMES, **given):
    """An objective on a tiny encoder's folder, for a copy of it all or for a prompt alone."""
    config = small_config(**given)
    backbone = Backbone.load(str(source))
    documents = Documents(BeirFolder(data), config)
    masks = bool({"mlm", "condenser"} & set(objectives))
    factory = MethodFactory(query_texts=WORDS[:8], passage_texts=WORDS[8:16])
    if prompt is None:
        method = factory.build("full", backbone, EmptyConfig(), seed=0)
    else:
        method = factory.build("deep-prompt", backbone, DeepPromptConfig(**prompt), seed=0)
        method.module.train()
    built = build_heads(
        method.backbone,
        config,
        objectives=objectives,
        frozen=prompt is not None,
    )
    return PretrainingObjective(
        method,
        Reader(backbone, documents, config, masks=masks),
        built.heads,
        config,
        objectives=objectives,
        temperature=1.0,
        world=world,
    )


def gradient_of(objective, *, step=0):
    """The loss of a step and the gradient of all parameters as one vector."""
    parameters = objective.parameters()
    for parameter in parameters.values():
        parameter.grad = None
    stats = objective.backward(step)
    parts = [
        torch.zeros_like(p).reshape(-1) if p.grad is None else p.grad.reshape(-1)
        for _, p in sorted(parameters.items())
    ]
    return stats, torch.cat(parts).double()


def relative_error(found, expected):
    return float((found - expected).norm() / expected.norm())


CASES = {
    "full": {"mini_batch_size": 3, "batch_size": 5},
    "prompt": {
        "mini_batch_size": 3,
        "batch_size": 5,
        "prompt": {"prompt_length": 3, "dropout": 0.3},
    },
    "query-only": {
        "mini_batch_size": None,
        "batch_size": 5,
        "prompt": {"prompt_length": 3, "sharing": "query-only"},
    },
}


def several(settings):
    """Be one of several processes: leave the gradient of each case."""
    from safetensors.torch import save_file

    from dptdr.training.distributed import process_group

    torch.set_num_threads(1)
    with process_group("cpu") as world:
        found = {}
        for name, case in CASES.items():
            made = made_objective(settings["data"], settings["lm"], world=world, **case)
            stats, gradient = gradient_of(made)
            found[name] = torch.cat([gradient, torch.tensor([stats.loss]).double()])
        save_file(found, Path(settings["out"]) / f"gradients-{world.rank}.safetensors")


def two_ranks():
    """Become two processes, as torchrun would start them; return the other one's id, or 0."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    # Before torch starts threads, which a fork would lose.
    other = os.fork()
    os.environ["RANK"] = "0" if other else "1"
    return other


if __name__ == "__main__":
    other = two_ranks()
    several(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
    if other and os.waitpid(other, 0)[1]:
        sys.exit("the second process failed")
