"""What run.json says of a run's surroundings: plugins, packages, git, machine."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import socket
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import torch

import plugin_trainer
from plugin_trainer.configuration import Configuration
from plugin_trainer.ops import library
from plugin_trainer.training.distributed.init import launch_id
from plugin_trainer.training.distributed.sharding import class_of
from plugin_trainer.training.run import Run
from plugin_trainer.training.setup.code_state import code_of, code_of_plugin, parts_of
from plugin_trainer.training.setup.given_objects import describe_loss, model_repr

_PACKAGES = (
    "torch",
    "numpy",
    "safetensors",
    "torchmetrics",
    "transformers",
    "tokenizers",
    "gymnasium",
)


def surroundings(configuration: Configuration, run: Run) -> dict[str, Any]:
    """Everything around a run that its outcome may depend on."""
    device = run.device
    return {
        "ptrain": plugin_trainer.__version__,
        "command": sys.argv,
        "launch": launch_id(),
        "plugins": plugins_of(configuration),
        "code": {
            "model": code_of(class_of(module) for module in run.model.modules()),
            "data": code_of(parts_of(run.data)),
            "loss": code_of(parts_of(run.forward.criterion)),
            **_given_objects(configuration, run),
        },
        "content": run.stream.content,
        "packages": packages(),
        "python": platform.python_version(),
        "machine": {
            "host": socket.gethostname(),
            "system": platform.platform(),
            "device": str(device),
            "accelerator": torch.cuda.get_device_name(device) if device.type == "cuda" else "",
            "processes": run.world.size,
            "strategy": run.together.name if run.together is not None else "",
            "threads": torch.get_num_threads(),
            "precision": run.precision.name,
            "guard": type(run.guard).__name__,
            "step": run.update.name,
            "kernels": library.status().reason,
        },
        "git": git_state(Path.cwd()),
    }


def _given_objects(configuration: Configuration, run: Run) -> dict[str, str]:
    """What `fit` was given in place of settings: of what the model is made, and which loss."""
    given = {}
    if configuration.model is None:
        given["model_repr"] = model_repr(run.model)
    if run.forward.criterion is not None and not run.settings.loss:
        given["loss_repr"] = describe_loss(run.forward.criterion)
    return given


def plugins_of(configuration: Configuration) -> list[dict[str, str]]:
    """Each active plugin: name, version, and where it came from."""
    return [
        {
            "name": plugin.name,
            "version": plugin.source.version,
            "distribution": plugin.source.distribution,
            "origin": plugin.source.origin,
            "path": plugin.source.path,
            "code": "" if plugin.source.origin == "core" else code_of_plugin(plugin.module),
        }
        for plugin in configuration.catalog.plugins
    ]


@cache  # of what this process has imported, whatever is installed meanwhile; 16 ms
def packages() -> dict[str, str]:
    """The versions of the packages that matter to a result, as far as they are installed."""
    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def git_state(folder: Path) -> dict[str, Any] | None:
    """The commit of the folder's repository and whether it has changes; None outside of one."""
    if "GIT_DIR" not in os.environ and not any(
        (above / ".git").exists() for above in (folder, *folder.parents)
    ):
        return None  # without starting a process
    command = ["git", "--no-optional-locks", "status", "--porcelain=v2", "--branch"]
    try:
        done = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    first, *more = done.stdout.splitlines()
    commit = first.removeprefix("# branch.oid ")
    if commit == "(initial)":
        return None
    return {"commit": commit, "changed": any(not line.startswith("#") for line in more)}
