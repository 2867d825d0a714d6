"""The programs of docs/integrations.md run, each with a task and a data folder at hand."""

import importlib.util
import re
from pathlib import Path

import pytest

from helpers.tasks import tiny_data
from helpers.tiny import save_tiny

PAGE = Path(__file__).resolve().parents[2] / "docs" / "integrations.md"
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
PACKAGES = ("sentence_transformers", "mteb", "langchain_core", "llama_index", "haystack")

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    from dptdr.config.methods import DeepPromptConfig
    from dptdr.model import Backbone, Encoder, MethodFactory, save_task

    folder = tmp_path_factory.mktemp("page")
    backbone = Backbone.load(str(save_tiny(folder / "tiny")))
    config = DeepPromptConfig(prompt_length=3)
    method = MethodFactory().build("deep-prompt", backbone, config, seed=0)
    save_task(folder / "TASK", Encoder(backbone, method=method))
    tiny_data(folder / "DATA")
    return folder


def test_the_page_has_programs_for_every_tool():
    assert all(any(package in block for block in BLOCKS) for package in PACKAGES[1:])


@pytest.mark.parametrize("block", BLOCKS, ids=range(len(BLOCKS)))
def test_programs_run(place, monkeypatch, capsys, block):
    for package in PACKAGES:
        if package in block and importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed")
    monkeypatch.chdir(place)
    monkeypatch.setenv("HAYSTACK_TELEMETRY_ENABLED", "False")

    exec(compile(block, str(PAGE), "exec"), {"__name__": "page"})

    assert capsys.readouterr().out.strip()
