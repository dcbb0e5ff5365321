"""Errors for those who call from Python: what a hint would type on the command line, in Python."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from plugin_trainer.errors import PtrainError
from plugin_trainer.registry.blame import SEE_DEBUG

_VALUE = r"""("[^"]*"|'[^']*'|[^\s,;()]+)"""
_KEY = r"""('[^']*'|[\w./-]+)"""


@contextmanager
def hints_in_python() -> Iterator[None]:
    """Rewrite the options that an error inside names as arguments."""
    try:
        yield
    except PtrainError as error:
        error.message = in_python(error.message)
        # Python shows the traceback by itself.
        error.hint = tuple(in_python(line) for line in error.hint if line != SEE_DEBUG)
        raise


def in_python(text: str) -> str:
    """The text with each option of `ptrain run` as the argument of `fit` or `load_run`."""
    text = re.sub(rf"--allow {_KEY}(?: --allow {_KEY})*", _allowed, text)
    text = re.sub(rf"--set ([\w.]+)={_VALUE}", _set, text)
    text = re.sub(r"--plugin ([^\s,;()]+)", r'plugins=["\1"]', text)
    text = re.sub(r"--overwrite\b", "overwrite=True", text)
    text = re.sub(r"--resume auto\b", 'resume="auto"', text)
    text = re.sub(r"--(resume|out) ([A-Z]+)\b", r"out=\2", text)
    return re.sub(r"--(out|resume|allow)\b", r"\1=", text)


def _allowed(match: re.Match[str]) -> str:
    keys = re.findall(rf"--allow {_KEY}", match[0])
    quoted = [key if key.startswith("'") else f'"{key}"' for key in keys]
    return f"allow=[{', '.join(quoted)}]"


def _set(match: re.Match[str]) -> str:
    """--set optimizer.name=SGD as optimizer={"name": "SGD"}."""
    *outer, last = match[1].split(".")
    is_python = re.fullmatch(r"""["'].*|[\d.eE_+-]+|\.\.\.""", match[2])
    value = match[2] if is_python else f'"{match[2]}"'
    if not outer:
        return f"{last}={value}"
    for name in reversed([*outer[1:], last]):
        value = f'{{"{name}": {value}}}'
    return f"{outer[0]}={value}"
