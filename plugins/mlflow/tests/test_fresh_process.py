"""Whoever does not log pays nothing; whoever does talks to the store and to nobody else."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from plugin_trainer.cli.main import main

pytestmark = pytest.mark.process

HERE = Path(__file__).parent
# By these MLflow would know that it is being tested, and keep quiet for that.
TELLING = ("PYTEST_", "CI", "GITHUB_", "MLFLOW_", "DO_NOT_TRACK")


def run(tmp_path, program):
    """The last line that a program prints, as JSON, run in a process of its own."""
    variables = {k: v for k, v in os.environ.items() if not k.startswith(TELLING)}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        cwd=tmp_path, env={**variables, "PYTHONPATH": str(HERE)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_checking_a_run_that_logs_imports_neither_mlflow_nor_torch(tmp_path):
    (tmp_path / "run.toml").write_text('plugins = ["mlflow"]\n')
    modules = run(
        tmp_path,
        """
        import json, sys
        from plugin_trainer.cli.main import main
        main(["config", "show", "run.toml"])
        print(json.dumps(sorted(sys.modules)))
        """,
    )
    assert "ptrain_mlflow.settings" in modules
    assert not {"mlflow", "sqlalchemy", "alembic", "torch", "ptrain_mlflow.store"} & set(modules)


TRAINING = """
    import json, sys

    spoken_to = []

    def listen(event, arguments):
        if event in ("socket.connect", "socket.getaddrinfo", "socket.sendto"):
            spoken_to.append(f"{event} {arguments[1:]}")

    sys.addaudithook(listen)
    import conftest
    from pathlib import Path

    conftest.train(Path("run"))
    print(json.dumps(spoken_to))
"""


def test_a_run_that_logs_to_its_own_store_speaks_to_nobody(tmp_path, store):
    assert run(tmp_path, TRAINING) == []
    assert len(store.history("train/loss")) == 12


def test_a_dry_run_is_not_logged(tmp_path):
    (tmp_path / "run.toml").write_text(
        'plugins = ["dactbert", "mlflow"]\n[data_settings]\nexamples = 64\n'
        "validation_examples = 50\n"
    )
    assert main(["run", "run.toml", "--dry-run"]) == 0
    assert {path.name for path in tmp_path.iterdir()} == {"run.toml"}
