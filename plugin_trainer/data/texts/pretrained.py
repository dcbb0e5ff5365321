"""What a setting names is a folder in Hugging Face format or a Hub id; both are read quietly."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers.utils import logging as transformers_logging

from plugin_trainer.data.texts import hub
from plugin_trainer.errors import PtrainError

HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")


def is_folder_path(name: str) -> bool:
    """Whether a name means a folder: a mistyped path must never become a download.

    `models/minilm` is spelled like a Hub id; it means a folder where `models` is one.
    """
    path = Path(name).expanduser()
    return (
        name.startswith((".", "/", "~"))
        or "\\" in name
        or HUB_ID.fullmatch(name) is None
        or path.exists()
        or ("/" in name and path.parent.is_dir())
    )


def locate(name: str, *, key: str) -> str:
    """The folder or Hub id that a setting names, as transformers takes it.

    key  the dotted setting, for the message. Raises PtrainError for a folder that is not there.
    """
    if not is_folder_path(name):
        return name
    path = Path(name).expanduser()
    if not path.is_dir():
        raise PtrainError(
            f"{key}: there is no folder {name}",
            hint=f"looked at {path.absolute()}; give a folder in Hugging Face format or a Hub id",
        )
    return str(path)


def unreadable(name: str, *, key: str, what: str, error: Exception) -> PtrainError:
    """The error for a folder or Hub id that transformers could not load."""
    first_line = str(error).strip().partition("\n")[0]
    if is_folder_path(name):
        return PtrainError(
            f"{key}: {name} holds no {what} that transformers can load",
            hint=(
                first_line,
                "Hugging Face format means config.json, weights and tokenizer files",
            ),
        )
    return PtrainError(
        f"{key}: {name} could not be had from the Hugging Face Hub",
        hint=(
            first_line,
            "check the spelling and the connection, or give a folder (./name) that holds it",
        ),
    )


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Without transformers' loading bars and report: what matters of it is checked here."""
    hf_logging: Any = transformers_logging  # half of it has no annotations
    level, bars = hf_logging.get_verbosity(), hf_logging.is_progress_bar_enabled()
    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
    try:
        yield
    finally:
        hf_logging.set_verbosity(level)
        if bars:
            hf_logging.enable_progress_bar()


@contextmanager
def reading(name: str, *, key: str, what: str) -> Iterator[dict[str, Any]]:
    """Read a folder or Hub id in it, quietly, with these options for `from_pretrained`.

    Where the Hub does not answer only its cache is read. Raises PtrainError, which names the
    setting `key`, for what cannot be had.
    """
    why = "" if is_folder_path(name) else hub.why_unreachable()
    try:
        with quiet_transformers():
            # transformers would ask, and run what the folder brings.
            options = {"trust_remote_code": False}
            yield {**options, "local_files_only": True} if why else options
    except (OSError, ValueError, KeyError) as error:
        if why:
            instead = "a folder (./name) that holds it"
            raise hub.unreachable(name, key=key, why=why, instead=instead) from error
        raise unreadable(name, key=key, what=what, error=error) from error
