"""Opening somebody's run folder runs none of their code: a file that must not come into being."""

from __future__ import annotations

import json
import shutil
import sys
import tomllib
from pathlib import Path

import pytest
import tomli_w
import torch

import plugin_trainer
from plugin_trainer.cli.main import main
from plugin_trainer.configuration.admission import admit, code_named
from plugin_trainer.errors import PtrainError, UntrustedRun
from plugin_trainer.model_store import Store
from plugin_trainer.ownership import is_own, key_file
from plugin_trainer.settings.layers import Layer, read_toml

TOY = """
    import torch
    from torch.utils.data import DataLoader, TensorDataset
    from plugin_trainer import DataSpec, ModelSpec

    PTRAIN_API = 1

    def ptrain_models():
        return [ModelSpec(name="net", target="toy:net", default=True)]

    def ptrain_data():
        return [DataSpec(name="rows", target="toy:Rows", default=True)]

    def net():
        return torch.nn.Linear(4, 2)

    class Rows:
        def train(self):
            return DataLoader(TensorDataset(torch.ones(8, 4), torch.arange(8) % 2), 4)

        validation = train

        def predict(self, lines):
            yield torch.ones(len(lines), 4)

        def decode(self, outputs, batch):
            return [{} for _ in batch]
"""

EVIL = """
    from pathlib import Path

    Path({marker!r}).touch()
    PTRAIN_API = 1

    class Thing:
        def __init__(self, *args, **kwargs):
            pass

        def __call__(self, *args, **kwargs):
            pass
"""


@pytest.fixture
def here(installed, monkeypatch, tmp_path):
    """A run of an installed plugin, made by somebody else, and code of theirs beside it."""
    installed.install("toy", hooks=TOY, package="toy_package", target="toy")
    installed.write(installed.folder / "toy.py", TOY)
    monkeypatch.syspath_prepend(str(installed.folder))
    marker = tmp_path / "it-ran"
    installed.write("evil.py", EVIL.replace("{marker!r}", repr(str(marker))))
    monkeypatch.syspath_prepend(str(installed.cwd))
    for module in ("evil", "toy"):  # of a test before
        monkeypatch.delitem(sys.modules, module, raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "theirs"))
    command = [
        "run",
        "--plugin",
        "toy",
        "--set",
        "loss=CrossEntropyLoss",
        "--set",
        "length=2 steps",
    ]
    assert main([*command, "--set", "callbacks=['-progress_bar']", "--out", "run"]) == 0
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "ours"))
    return marker


NAMES = {
    "model": 'model = "evil:Thing"',
    "data": 'data = "evil:Thing"',
    "loss": 'loss = "evil:Thing"',
    "optimizer": 'optimizer = {name = "evil:Thing"}',
    "schedule": 'schedule = {name = "evil:Thing"}',
    "callback": 'callbacks = ["evil:Thing"]',
    "plugin path": 'plugins = ["./evil.py"]',
    "plugin module": 'plugins = ["toy", "evil"]',
    "a plugin's setting": 'data_settings = {environment = "evil:Thing"}',
}


def rewrite(line):
    """Give the run file this line in place of its own."""
    path = Path("run/run.toml")
    path.write_text(tomli_w.dumps({**read_toml(path).values, **tomllib.loads(line)}))


COMMANDS = {
    "evaluate": ["evaluate", "run"],
    "predict": ["predict", "run", "input.txt"],
    "calibrate": ["calibrate", "run"],
    "show": ["config", "show", "run/run.toml"],
    "check": ["config", "check", "run/run.toml"],
    "resume": ["run", "--resume", "run"],
}


@pytest.mark.parametrize("line", NAMES.values(), ids=NAMES.keys())
@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS.keys())
def test_no_command_runs_what_a_folder_of_somebody_else_names(here, capsys, command, line):
    Path("input.txt").write_text("a\n")
    rewrite(line)
    assert main(command) == 2
    error = capsys.readouterr().err
    assert "names code that is not installed, and was not made by you" in error
    assert "--trust" in error and "evil" in error
    assert not here.exists()


@pytest.mark.parametrize("line", NAMES.values(), ids=NAMES.keys())
def test_neither_do_load_run_and_models_of_the_store(here, line):
    rewrite(line)
    with pytest.raises(UntrustedRun, match="was not made by you"):
        plugin_trainer.load_run("run")
    store = Store("models")
    store.register("run", name="m")
    with pytest.raises(UntrustedRun):
        store.load("m")
    assert not here.exists()


@pytest.mark.parametrize("command", [COMMANDS["check"], COMMANDS["resume"]])
def test_a_folder_without_its_record_is_not_taken_for_ones_own(here, command):
    rewrite(NAMES["loss"])
    Path("run/run.json").unlink()
    assert main(command) == 2
    assert not here.exists()


def test_a_run_of_installed_parts_is_opened_whoever_made_it(here):
    assert main(["evaluate", "run"]) == 0
    assert not is_own(Path("run"))


@pytest.mark.parametrize(
    "how", [["--trust"], ["--set", "loss=evil:Thing"]], ids=["trust", "named again"]
)
def test_it_is_loaded_where_the_user_says_so(here, how):
    rewrite(NAMES["loss"])
    main(["evaluate", "run", *how])
    assert here.exists()


def test_a_resume_that_names_the_plugin_again_has_the_runs_own_settings(
    here, installed, monkeypatch, tmp_path, capsys
):
    toy = str(installed.folder / "toy.py")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "theirs"))
    chosen = ("loss=CrossEntropyLoss", "length=2 steps", "seed=7", "callbacks=['-progress_bar']")
    settings = [part for setting in chosen for part in ("--set", setting)]
    assert main(["run", "--plugin", toy, *settings, "--out", "theirs"]) == 0
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "ours"))
    assert main(["run", "--resume", "theirs"]) == 2
    capsys.readouterr()
    assert main(["run", "--resume", "theirs", "--plugin", toy]) == 0
    assert "theirs is finished already" in capsys.readouterr().out


def test_ones_own_runs_are_opened_until_their_run_file_is_changed(here, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "theirs"))
    run_file = Layer("run.toml", {"loss": "evil:Thing"})
    assert is_own(Path("run"))
    admit(Path("run"), run_file)
    shutil.copytree("run", "elsewhere")
    assert is_own(Path("elsewhere"))
    rewrite(NAMES["loss"])
    assert not is_own(Path("run"))
    with pytest.raises(UntrustedRun):
        admit(Path("run"), read_toml(Path("run/run.toml")))


@pytest.mark.parametrize("signature", [None, "", "0" * 64, 5, ["x"], {}])
def test_a_signature_is_not_guessed(here, monkeypatch, tmp_path, signature):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "theirs"))
    path = Path("run/run.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), "signature": signature}))
    assert not is_own(Path("run"))


def test_the_key_is_the_users_alone(here, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "theirs"))
    assert key_file().stat().st_mode & 0o777 == 0o600
    assert len(key_file().read_text()) == 64
    assert "signature" in json.loads(Path("run/run.json").read_text())


def test_a_run_trains_where_no_key_can_be_kept_and_says_what_that_means(
    here, monkeypatch, tmp_path, capsys
):
    blocked = tmp_path / "blocked"
    blocked.write_text("")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(blocked))
    command = ["run", "--plugin", "toy", "--set", "length=2 steps", "--out", "second"]
    assert main([*command, "--set", "loss=torch.nn:CrossEntropyLoss"]) == 0
    assert "opening this run later needs --trust" in capsys.readouterr().err
    assert not is_own(Path("second"))


def test_what_names_code_is_found_wherever_it_stands():
    values = {
        "plugins": ["dactbert", "./x.py", "some.module"],
        "model": "dactbert/classifier",
        "callbacks": ["-progress_bar", "+a.b:C"],
        "length": "3 epochs",
        "data_settings": {"tasks": {"x": {"env": "worlds:Corridor", "train": "C:\\a.csv"}}},
    }
    found = [name for _, name in code_named(values)]
    assert found == ["./x.py", "some.module", "+a.b:C", "worlds:Corridor"]


def test_a_folder_in_hugging_face_format_brings_no_code_either(tmp_path, monkeypatch):
    transformers = pytest.importorskip("transformers")
    from plugin_trainer.data.texts import encoders, tokenizers

    marker = tmp_path / "it-ran"
    folder = tmp_path / "encoder"
    config = transformers.BertConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8,
        vocab_size=10,
    )  # fmt: skip
    transformers.BertModel(config).save_pretrained(folder)
    about = json.loads((folder / "config.json").read_text())
    about["auto_map"] = {"AutoConfig": "evil.Thing", "AutoModel": "evil.Thing"}
    about["model_type"] = "evil"
    (folder / "config.json").write_text(json.dumps(about))
    tokenizer = {"auto_map": {"AutoTokenizer": ["evil.Thing", None]}, "tokenizer_class": "Thing"}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    (folder / "evil.py").write_text(f"from pathlib import Path\nPath({str(marker)!r}).touch()\n")
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    for load in (
        lambda: encoders.pretrained(str(folder)),
        lambda: encoders.from_folder(folder),
        lambda: tokenizers.pretrained_tokenizer(str(folder)),
        lambda: tokenizers.saved_tokenizer(folder),
    ):
        with pytest.raises((PtrainError, ValueError, KeyError)):
            load()
    assert not marker.exists()
    assert torch.is_grad_enabled()
