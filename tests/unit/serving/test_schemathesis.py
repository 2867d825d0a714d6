"""The OpenAPI document against the server: what it promises is what comes."""

import subprocess
import sys
from pathlib import Path

import pytest

from helpers.serving import WebServer

PROGRAM = Path(sys.executable).with_name("schemathesis")


@pytest.mark.skipif(
    not PROGRAM.exists(),
    reason="SKIPPED LOUDLY: the OpenAPI document is not tried, schemathesis is not installed",
)
def test_every_reply_is_as_the_document_says(tmp_path):
    pytest.importorskip("fastapi")
    # A schema cannot express what a task was trained for (dimensions) and what a limit allows.
    options = "--max-examples=4 --exclude-checks=positive_data_acceptance --seed=1 --no-color"
    with WebServer.start(tmp_path) as web, web.listening() as address:
        ended = subprocess.run(
            [
                PROGRAM,
                "run",
                f"{address}/openapi.json",
                *options.split(),
                "--phases=examples,coverage,fuzzing",
            ],
            capture_output=True,
            text=True,
            timeout=200,
            check=False,
            cwd=tmp_path,
        )
    assert ended.returncode == 0, ended.stdout[-5000:] + ended.stderr[-2000:]
    operations = sum(len(methods) for methods in web.app.openapi()["paths"].values())
    assert f"Tested: {operations}\n" in ended.stdout, ended.stdout
