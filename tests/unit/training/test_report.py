"""The page of a training run."""

import base64
import json
import re
import struct

import pytest

from dptdr.errors import TrainingError

IDENTITY = {
    "method": "deep-prompt",
    "max_steps": 4,
    "max_grad_norm": 1.0,
    "dev_measure": "nDCG@10",
    "method_settings": {"prompt_length": 2},
    "data": {"data": "<tiny>"},
}


def run_folder(path, *, steps=4, health=True, layers=3, checkpoints=True, ffn=False):
    import torch

    from dptdr.training.checkpoints import RunFolder

    folder = RunFolder(path)
    folder.begin(IDENTITY)
    folder.log({"kind": "bare", "step": 0, "nDCG@10": 0.5, "RR@10": 0.4})
    for step in range(1, steps + 1):
        record = {"kind": "step", "step": step, "loss": 1.0 / step, "gradient_norm": 0.5}
        norms = [0.1 * (layer + 1) for layer in range(layers)]
        folder.log({**record, "seconds": 0.25, "layer_gradient_norms": norms})
        if step % 2 == 0:
            folder.log({"kind": "dev", "step": step, "nDCG@10": 0.6 - step / 100, "RR@10": 0.5})
            if checkpoints:
                state = {"shared": torch.ones(layers, 2, 2, 2, 4)}
                if ffn:
                    state |= {
                        f"shared.ffn_{n}": torch.ones(layers, 5, 8) for n in ("keys", "values")
                    }
                    state["shared.ffn_biases"] = torch.ones(layers, 5)
                folder.save_checkpoint(step, state)
    if health:
        mass = {"query": [[0.001, 0.002], [0.5, 0.3], [0.95, 0.99]], "passage": [[0.2, 0.2]] * 3}
        folder.log({"kind": "health", "step": 0, "attention_mass": mass})
        folder.log({"kind": "health", "step": 2, "attention_mass": mass})
    return path


def pictures(page):
    found = re.findall(r"data:image/png;base64,([^']+)'", page)
    return [struct.unpack(">II", base64.b64decode(data)[16:24]) for data in found]


def test_page_holds_curves_norms_and_attention_and_needs_no_other_file(tmp_path):
    from dptdr.training.report import write_report

    out = tmp_path / "page" / "report.html"
    write_report(run_folder(tmp_path / "code.training"), out)
    page = out.read_text(encoding="utf-8")
    assert "<h1>Training of code</h1>" in page
    assert "<th>dev nDCG@10, bare backbone</th><td>0.5000</td>" in page
    assert "<th>dev nDCG@10, step 2 (chosen)</th><td>0.5800</td>" in page
    assert "<th>seconds per step, median</th><td>0.250</td>" in page
    assert "&lt;tiny&gt;" in page
    sizes = pictures(page)
    assert len(sizes) == 3
    assert all(width > 300 and height > 200 for width, height in sizes)
    assert not re.search(r"(src|href)='(?!data:)", page)


def test_page_of_feed_forward_rows_alone_shows_their_norms_and_shares(tmp_path):
    from dptdr.training.report import write_report

    out = tmp_path / "report.html"
    folder = run_folder(tmp_path / "code.training", health=False, ffn=True)
    log = folder / "log.jsonl"
    share = {"query": [0.0, 0.125, 0.5], "passage": [0.0, 0.25, 0.5]}
    record = {"kind": "health", "step": 4, "feed_forward_share": share}
    log.write_text(log.read_text() + json.dumps(record) + "\n")
    write_report(folder, out)
    page = out.read_text(encoding="utf-8")
    assert "<td>query, step 4</td><td>0.0%</td><td>12.5%</td><td>50.0%</td>" in page
    heights = [height for _, height in pictures(page)]
    assert len(heights) == 2, "curves, and norms of both kinds of rows"


def test_remarks_name_layers_that_ignore_the_prompt_or_see_nothing_else():
    from dptdr.training.report import remarks

    mass = {"query": [[0.001, 0.002], [0.5, 0.3], [0.95, 0.99]]}
    assert remarks({"attention_mass": mass}) == [
        "query: every head of layers 0 gives the prompt less than 1%; these rows have "
        "almost no effect.",
        "query: every head of layers 2 gives the prompt more than 90%; little attention "
        "is left for the text.",
        "query: 46% of all attention goes to the prompt.",
    ]


def test_page_of_a_method_without_prompt_holds_the_curves_alone(tmp_path):
    from dptdr.training.report import write_report

    folder = run_folder(tmp_path / "r.training", health=False, layers=0, checkpoints=False)
    write_report(folder, tmp_path / "report.html")
    assert len(pictures((tmp_path / "report.html").read_text(encoding="utf-8"))) == 1


def test_page_of_a_run_before_its_first_evaluation_holds_the_loss(tmp_path):
    from dptdr.training.report import write_report

    folder = run_folder(tmp_path / "r.training", steps=1, health=False)
    write_report(folder, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "1 of 4" in page
    assert "(chosen)" not in page


def test_folder_without_steps_is_refused(tmp_path):
    from dptdr.training.report import write_report

    with pytest.raises(TrainingError, match="the run has not completed a step yet"):
        write_report(run_folder(tmp_path / "r", steps=0, health=False), tmp_path / "report.html")
    with pytest.raises(TrainingError, match=r"expected a training run with a run\.json"):
        write_report(tmp_path / "nothing", tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()
