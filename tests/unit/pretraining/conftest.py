import pytest


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    from helpers.pretraining import topic_corpus

    return topic_corpus(tmp_path_factory.mktemp("corpus") / "topics")


@pytest.fixture(scope="session")
def plain(tmp_path_factory):
    """A tiny BERT without a masked-language head in its checkpoint."""
    from helpers.tiny import save_tiny

    return save_tiny(tmp_path_factory.mktemp("plain") / "bert")


@pytest.fixture(scope="session")
def lm(tmp_path_factory):
    """A tiny BERT with a masked-language head."""
    from helpers.pretraining import save_lm

    return save_lm(tmp_path_factory.mktemp("lm") / "bert")


@pytest.fixture(scope="session")
def mean(tmp_path_factory):
    """A tiny BERT that pools by the mean over tokens, as its folder says."""
    from dptdr.pretraining.saving import save_backbone
    from helpers.tiny import tiny_backbone

    folder = tmp_path_factory.mktemp("mean") / "bert"
    save_backbone(folder, tiny_backbone(pool="mean"), facts={})
    return folder
