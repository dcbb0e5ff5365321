"""A Hub that cannot be reached, or has not got what was asked for: one message, at once."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import urlsplit

import pytest

datasets = pytest.importorskip("datasets")

CLOSED = "http://127.0.0.1:9"
"""Nothing listens at the discard port."""

PROGRAM = """
import json, sys
from plugin_trainer.data.texts.encoders import pretrained
from plugin_trainer.errors import PtrainError
from ptrain_dactbert.data import TextClassification
from ptrain_dactbert.settings import TextClassificationSettings as Settings
for kind, name, options in json.loads(sys.argv[1]):
    try:
        if kind == "encoder":
            said = [str(pretrained(name))]
        elif kind == "tokenizer":
            said = [TextClassification(Settings(tokenizer=name)).describe()]
        else:
            said = [TextClassification(Settings(dataset=name, **options)).describe()]
    except PtrainError as error:
        said = [type(error).__name__, error.message, *error.hint]
    print(json.dumps(said))
"""

Call = tuple[str, str, dict[str, Any]]

NOWHERE: dict[str, Call] = {
    "data_settings.dataset": ("dataset", "nobody/nothing", {}),
    "data_settings.tokenizer": ("tokenizer", "nobody/nothing", {}),
    "model_settings.encoder": ("encoder", "nobody/nothing", {}),
}
FILMS: Call = ("dataset", "nobody/films", {})
STREAMED: Call = ("dataset", "nobody/films", {"streaming": True})
TAGGED: Call = ("dataset", "nobody/films", {"revision": "main"})


def said(*calls: Call, environment: Mapping[str, str], cache: Path) -> list[list[str]]:
    """What a fresh process says to each: the libraries read the environment when imported."""
    settings = {"HF_HOME": str(cache), "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_XET": "1"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(calls)],
        env={**os.environ, **settings, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    # Neither a traceback nor the announcement of another try: each of those is a wait.
    assert "Traceback" not in done.stderr
    assert "Retrying" not in done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_a_hub_that_must_not_be_asked_is_one_message(tmp_path: Path) -> None:
    environment = {"HF_HUB_OFFLINE": "1"}
    answers = said(*NOWHERE.values(), environment=environment, cache=tmp_path)
    one_message_each(answers, "HF_HUB_OFFLINE is set", environment, tmp_path)


def one_message_each(
    answers: list[list[str]], why: str, environment: Mapping[str, str], cache: Path
) -> None:
    for key, (kind, message, *hint) in zip(NOWHERE, answers, strict=True):
        assert kind == "DataError"
        assert message.startswith(key)
        assert "could not be had from the Hugging Face Hub" in message
        assert why in message
        assert environment.get("HF_ENDPOINT", "https://huggingface.co") in message
        assert hint[0] == f"it is not in the cache {cache / 'hub'} either"
        assert hint[1].startswith("check the name and be online once")
        assert hint[2].startswith("or give ")


COMMIT = "a" * 40


class Hub(BaseHTTPRequestHandler):
    """The parts of the Hub that are asked for one public data set, nobody/films."""

    files: ClassVar[dict[str, bytes]] = {}

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        resolved = re.fullmatch("/datasets/nobody/films/resolve/[^/]+/(.+)", path)
        if path == "/":
            self.answer(b"")
        elif resolved and resolved[1] in self.files:
            self.answer(self.files[resolved[1]])
        elif resolved:
            self.answer(b"", status=404, error="EntryNotFound")
        elif path.startswith("/api/datasets/nobody/films/tree/"):
            tree = [
                {"type": "file", "path": name, "size": len(held), "oid": digest(held)}
                for name, held in self.files.items()
            ]
            self.answer(json.dumps(tree).encode())
        elif path.startswith("/api/datasets/nobody/films"):
            siblings = [{"rfilename": name} for name in self.files]
            about = {"id": "nobody/films", "sha": COMMIT, "siblings": siblings, "tags": []}
            self.answer(json.dumps(about).encode())
        else:
            self.answer(b"", status=404, error="RepoNotFound")

    do_HEAD = do_GET

    def answer(self, body: bytes, *, status: int = 200, error: str = "") -> None:
        self.send_response(status)
        if error:
            self.send_header("X-Error-Code", error)
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{digest(body)}"')
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def digest(body: bytes) -> str:
    return hashlib.sha1(body).hexdigest()


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a Hub that has one data set and nothing else."""
    rows = {"sentence": ["good", "dull", "fine"], "label": [1, 0, 1]}
    table = datasets.Dataset.from_dict(rows)
    table.cast_column("label", datasets.ClassLabel(names=["neg", "pos"])).to_parquet(
        tmp_path / "train.parquet"
    )
    card = b"---\nconfigs:\n- config_name: short\n  data_files: train.parquet\n---\n"
    parquet = (tmp_path / "train.parquet").read_bytes()
    monkeypatch.setattr(Hub, "files", {"README.md": card, "train.parquet": parquet})
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_data_set_is_fetched_once_and_needs_no_hub_afterwards(hub: str, tmp_path: Path) -> None:
    online, offline = {"HF_ENDPOINT": hub}, {"HF_ENDPOINT": CLOSED}
    wrong: Call = ("dataset", "nobody/films", {"subset": "shot"})
    fetched, streamed, tagged, refused, *unknown = said(
        FILMS, STREAMED, TAGGED, wrong, *NOWHERE.values(), environment=online, cache=tmp_path
    )
    assert fetched == tagged == ["3 train; labels neg, pos"]
    assert streamed == ["streamed train; labels neg, pos"]
    assert refused == [
        "DataError",
        "data_settings.subset: nobody/films has no subset 'shot'; did you mean short?",
        "subsets: short",
    ]
    cached, streamed, tagged, *missing = said(
        FILMS, STREAMED, TAGGED, *NOWHERE.values(), environment=offline, cache=tmp_path
    )
    assert cached == fetched
    assert streamed == ["streamed train; labels neg, pos"]
    assert tagged[1].startswith("data_settings.revision: nobody/films could not be had")
    one_message_each(missing, "Connection refused", offline, tmp_path)
    what_the_hub_has_not_got_is_named(unknown, hub)


def what_the_hub_has_not_got_is_named(answers: list[list[str]], hub: str) -> None:
    kind, message, *hint = answers[0]
    assert kind == "DataError"
    assert message.startswith(
        f"data_settings.dataset: there is no data set nobody/nothing on {hub}"
    )
    assert "check the spelling" in hint[-1]
    for key, (_, message, *hint) in zip(list(NOWHERE)[1:], answers[1:], strict=True):
        assert message.startswith(key)
        assert "nobody/nothing could not be had" in message
        assert "check the spelling" in hint[-1]
