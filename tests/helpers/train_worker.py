"""Training in processes of their own, to be killed or to be one of several.

Run as ``python train_worker.py kill SETTINGS.json`` or, by torchrun, with ``several``.
"""

import json
import os
import random
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch

from dptdr.config.methods import config_from
from dptdr.config.training import TrainingConfig
from dptdr.io.beir import BeirFolder
from dptdr.model import Backbone
from dptdr.training.distributed import process_group
from dptdr.training.preparation import load_data
from dptdr.training.train import train_task


def train(settings, out, **options):
    """One call of train_task, from plain values."""
    config = TrainingConfig(**settings["config"])
    name, method = config_from(settings["method"], settings["method_settings"])
    negatives = settings.get("negatives")
    return train_task(
        load_data(
            BeirFolder(settings["data"]),
            config,
            negatives=None if negatives is None else Path(negatives),
        ),
        Path(out),
        backbone=Backbone.load(settings["backbone"]),
        method_name=name,
        method_config=method,
        config=config,
        **options,
    )


class MinutePerStep:
    """A clock by which each step takes a minute, so that the state is saved after every one."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now

    def step(self, _):
        self.now += 60.0


def kill_again_and_again(settings):
    """Start training, kill it at one of its file operations, again, until it comes to its end."""
    generator = random.Random(settings["kill_seed"])
    for kills in range(settings["kills"] + 1):
        child = os.fork()
        if child == 0:
            torch.set_num_threads(1)
            if kills < settings["kills"]:
                kill_at(generator.randint(10, 50), below=str(Path(settings["out"]).parent))
            clock = MinutePerStep()
            train(settings, settings["out"], clock=clock, progress=clock.step)
            os._exit(0)
        generator.random()
        status = os.waitpid(child, 0)[1]
        if status == 0:
            print(json.dumps({"kills": kills}))
            return
        if status != signal.SIGKILL:
            sys.exit(f"training ended with {status}")


def kill_at(number, *, below):
    """Kill this process at the given file operation below a folder: any place within a step."""
    left = number

    def count(event, arguments):
        nonlocal left
        if event.startswith(("open", "os.")) and below in str(arguments[0]):
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)


def several(settings):
    """Be one of several processes: gradients of all methods, one NaN, then a whole training."""
    from safetensors.torch import save_file

    from helpers.training import METHODS, gradients, made_groups, made_method

    torch.set_num_threads(1)
    out = Path(settings["out"])
    with process_group("cpu") as world:
        found = {}
        for name in METHODS:
            method = made_method(name)
            for chunk in (0, 3):
                loss, gradient = gradients(
                    method,
                    shared_groups(),
                    world=world,
                    mini_batch_size=chunk or None,
                    batch_size=7,
                )
                found[f"{name} {chunk}"] = torch.cat([gradient, torch.tensor([loss]).double()])
        method = made_method("deep-prompt")
        groups = made_groups(4, scores=True)
        groups[0] = groups[0]._replace(positive_scores=(float("nan"),) * 2)
        loss, _ = gradients(
            method, groups, world=world, distillation="margin-mse", negatives_per_query=2
        )
        found["nan"] = torch.tensor([loss])
        save_file(found, out / f"gradients-{world.rank}.safetensors")
        result = train(settings, out / "task")
        (out / f"result-{world.rank}").write_text(str(result is None), encoding="utf-8")


def shared_groups():
    """Groups whose positives are negatives of others: processes must know of each other's."""
    from helpers.training import made_groups

    groups = made_groups(7)
    groups[2] = groups[2]._replace(negatives=groups[5].positives)
    groups[5] = groups[5]._replace(positives=(*groups[5].positives, groups[0].positives[0]))
    groups[6] = groups[6]._replace(query=groups[1].query)
    return groups


if __name__ == "__main__":
    given = json.loads(Path(sys.argv[2]).read_text(encoding="utf-8"))
    {"kill": kill_again_and_again, "several": several}[sys.argv[1]](given)
