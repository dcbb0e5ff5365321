"""A Hub that cannot be reached, or has not got what was asked for: one message, at once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

pytest.importorskip("datasets")

CLOSED = "http://127.0.0.1:9"
"""Nothing listens at the discard port."""

PROGRAM = """
import json
from plugin_trainer.errors import PtrainError
from ptrain_dactbert.data import TextClassification
from ptrain_dactbert.encoder import pretrained
from ptrain_dactbert.settings import TextClassificationSettings as Settings
said = {}
for key, call in {
    "data_settings.dataset": lambda: TextClassification(Settings(dataset="nobody/films")),
    "data_settings.tokenizer": lambda: TextClassification(Settings(tokenizer="nobody/bert")),
    "model_settings.encoder": lambda: pretrained("nobody/bert"),
}.items():
    try:
        call()
    except PtrainError as error:
        said[key] = [type(error).__name__, error.message, *error.hint]
print(json.dumps(said))
"""

KEYS = ("data_settings.dataset", "data_settings.tokenizer", "model_settings.encoder")


def said(*, environment: Mapping[str, str], cache: Path) -> dict[str, list[str]]:
    """What a fresh process says of each: the libraries read the environment when imported."""
    settings = {"HF_HOME": str(cache), "HF_HUB_DISABLE_TELEMETRY": "1", **environment}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env={**os.environ, **settings},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    # Neither a traceback nor the announcement of another try: each of those is a wait.
    assert "Traceback" not in done.stderr
    assert "Retrying" not in done.stderr
    answers: dict[str, list[str]] = json.loads(done.stdout)
    assert tuple(answers) == KEYS
    return answers


@pytest.mark.parametrize(
    ("environment", "why"),
    [
        ({"HF_ENDPOINT": CLOSED}, "Connection refused"),
        ({"HF_HUB_OFFLINE": "1"}, "HF_HUB_OFFLINE is set"),
    ],
    ids=["closed", "offline"],
)
def test_a_hub_that_does_not_answer_is_one_message(
    environment: Mapping[str, str], why: str, tmp_path: Path
) -> None:
    for key, lines in said(environment=environment, cache=tmp_path).items():
        kind, message, *hint = lines
        assert kind == "DataError"
        assert message.startswith(key)
        assert "could not be had from the Hugging Face Hub" in message
        assert why in message
        assert environment.get("HF_ENDPOINT", "https://huggingface.co") in message
        assert hint[0] == f"it is not in the cache {tmp_path / 'hub'} either"
        assert hint[1].startswith("check the name and be online once")
        assert hint[2].startswith("or give ")


@pytest.fixture
def empty_hub() -> Iterator[str]:
    """The address of a Hub that answers and has nothing."""

    class Answer(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_response(200 if self.path == "/" else 404)
            self.send_header("X-Error-Code", "RepoNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_GET = do_HEAD

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def test_what_the_hub_has_not_got_is_named(empty_hub: str, tmp_path: Path) -> None:
    answers = said(environment={"HF_ENDPOINT": empty_hub}, cache=tmp_path)
    kind, message, *hint = answers["data_settings.dataset"]
    assert kind == "DataError"
    assert message.startswith("data_settings.dataset: there is no data set nobody/films on http")
    assert "check the spelling" in hint[-1]
    for key in KEYS[1:]:
        _, message, *hint = answers[key]
        assert message.startswith(key)
        assert "nobody/bert could not be had" in message
        assert "check the spelling" in hint[-1]
