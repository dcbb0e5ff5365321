"""What the tests of texts share: files to read."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Write a file and return its path: lines as text, or bytes as they are."""

    def to_file(name: str, content: str | bytes) -> Path:
        path = tmp_path / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return to_file


@pytest.fixture
def jsonl(write: Callable[..., Path]) -> Callable[..., Path]:
    """Write objects as a .jsonl file."""

    def to_file(name: str, *objects: Mapping[str, Any]) -> Path:
        return write(name, "".join(json.dumps(one) + "\n" for one in objects))

    return to_file
