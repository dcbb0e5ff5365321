"""Whether this user made a run or a study: it bears a hash that only the user's key can make."""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import os
import secrets
from pathlib import Path

import click

from plugin_trainer.files import read_object

_KEY = "run-folders.key"


def signature(text: str) -> str:
    """The keyed hash of a run file, or of what a study is; empty where no key can be kept."""
    key = _key(make=True)
    return _hash(key, text) if key else ""


def is_own(folder: Path) -> bool:
    """Whether the run folder was made, and its run.toml not changed since, by who has the key."""
    try:
        text = (folder / "run.toml").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return False
    return is_signed(text, read_object(folder / "run.json").get("signature"))


def is_signed(text: str, given: object) -> bool:
    """Whether a signature is this user's of this text."""
    key = _key(make=False)
    if not key or not isinstance(given, str):
        return False
    return hmac.compare_digest(given.encode(), _hash(key, text).encode())


def key_file() -> Path:
    """Where the key lies: in the user's own configuration folder."""
    return Path(click.get_app_dir("plugin_trainer")) / _KEY


def _hash(key: bytes, text: str) -> str:
    return hmac.new(key, text.encode(), hashlib.sha256).hexdigest()


def _key(*, make: bool) -> bytes:
    """The key; empty if there is none and none can be made."""
    path = key_file()
    try:
        if make and not path.exists():
            _make_key(path)
        return path.read_bytes()
    except OSError:
        return b""


def _make_key(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.touch(mode=0o600)
    try:
        beside.write_text(secrets.token_hex(32))
        # Not a rename: of two processes that make a key at once, the first one's stays.
        with contextlib.suppress(FileExistsError):
            path.hardlink_to(beside)
    finally:
        beside.unlink()
