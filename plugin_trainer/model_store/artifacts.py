"""Files kept by what is in them: each once, under its SHA-256, never changed after it is there."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from plugin_trainer.files import fsync_file, fsync_folder, sha256_of
from plugin_trainer.model_store.errors import StoreError

_SHA256 = re.compile(r"[0-9a-f]{64}")
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class Artifact:
    """A kept file: the hash of its content, and its size in bytes."""

    sha256: str
    size: int


@dataclass(frozen=True)
class Cleaned:
    """How many files that no version has were deleted, and how many bytes they were."""

    files: int = 0
    size: int = 0


class Artifacts:
    """The kept files of one store.

    Who adds or reads files holds the lock with others (`held`); who deletes holds it alone. So a
    file that is found here stays until the version that wants it is written down.
    """

    def __init__(self, store: Path) -> None:
        self._store = store
        self._folder = store / "artifacts"
        self._staging = store / ".staging"

    def path_of(self, artifact: Artifact) -> Path:
        """Where a file is kept."""
        return self._folder / artifact.sha256[:2] / artifact.sha256

    @contextmanager
    def held(self, *, alone: bool = False, wait: bool = True) -> Iterator[bool]:
        """Hold the lock, with others or alone; yields False if it is not to be waited for and not
        free. It goes with the process, however that ends.
        """
        lock = self._open_lock()
        if lock is None:
            yield True  # where nobody may write, nobody deletes
            return
        kind = fcntl.LOCK_EX if alone else fcntl.LOCK_SH
        try:
            try:
                fcntl.flock(lock, kind if wait else kind | fcntl.LOCK_NB)
                got = True
            except BlockingIOError:
                got = False
            yield got
        finally:
            fcntl.flock(lock, fcntl.LOCK_UN)  # also where a forked process still has it open
            os.close(lock)

    def _open_lock(self) -> int | None:
        path = self._store / ".lock"
        try:
            return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except OSError:
            with suppress(FileNotFoundError):
                return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            return None

    # ---------------------------------------------------------------------------------- adding

    @contextmanager
    def staging(self) -> Iterator[Path]:
        """A folder to make files in, on the disk of the store. Only with the lock held."""
        if not self._folder.is_dir():
            self._folder.mkdir(exist_ok=True)
            fsync_folder(self._store)
        self._staging.mkdir(exist_ok=True)
        folder = Path(tempfile.mkdtemp(dir=self._staging))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def adopt(self, path: Path) -> Artifact:
        """Take a staged file over. Only with the lock held. Raises OSError if the disk refuses.

        A kept file that is no longer what its name says is replaced.
        """
        artifact = Artifact(sha256_of(path), path.stat().st_size)
        place = self.path_of(artifact)
        if self.damage_of(artifact):
            fsync_file(path)
            path.chmod(0o444)
            place.parent.mkdir(exist_ok=True)
            path.replace(place)
            fsync_folder(place.parent)
            fsync_folder(self._folder)
        return artifact

    # --------------------------------------------------------------------------------- reading

    def damage_of(self, artifact: Artifact) -> str:
        """What is wrong with a kept file; empty if it is whole."""
        place = self.path_of(artifact)
        try:
            size = place.stat().st_size
            if size != artifact.size:
                return f"it has {size} bytes in place of {artifact.size}"
            return "" if sha256_of(place) == artifact.sha256 else "its hash does not fit"
        except FileNotFoundError:
            return "it is missing"
        except OSError as error:
            return f"it cannot be read: {error.strerror}"

    def copy(self, artifact: Artifact, to: Path) -> None:
        """Copy a kept file. Raises StoreError if it is not whole; OSError if the disk refuses."""
        digest = hashlib.sha256()
        try:
            source = self.path_of(artifact).open("rb")
        except OSError as error:
            raise StoreError(f"{self.path_of(artifact)} cannot be read: {error.strerror}") from None
        to.parent.mkdir(parents=True, exist_ok=True)
        with source, to.open("wb") as copy:
            while chunk := source.read(_CHUNK_BYTES):
                digest.update(chunk)
                copy.write(chunk)
            copy.flush()
            os.fsync(copy.fileno())
        if digest.hexdigest() != artifact.sha256:
            raise StoreError(f"{self.path_of(artifact)} is damaged: its hash does not fit")

    # -------------------------------------------------------------------------------- cleaning

    def has_leftovers(self) -> bool:
        """Whether another process is adding or deleting files, or was killed when it did."""
        try:
            return any(self._staging.iterdir())
        except (FileNotFoundError, NotADirectoryError):  # it may go away at any moment
            return False

    def leave_word(self) -> None:
        """Let it be known that there is something to clean. Only with the lock held."""
        self._staging.mkdir(exist_ok=True)
        (self._staging / "removing").touch()

    def clean(self, *, wanted: Collection[str]) -> Cleaned:
        """Delete the files that no version has, and what killed processes left. Only with the lock
        held alone since before `wanted` was read: the hashes of the files that some version has.
        """
        files = size = 0
        for path in self._folder.glob("??/*"):
            if _SHA256.fullmatch(path.name) and path.name not in wanted:
                size += path.stat().st_size
                files += 1
                path.unlink()
                with suppress(OSError):  # another file has the same first letters
                    path.parent.rmdir()
        # Last: until then it is what tells the next process that something was left.
        shutil.rmtree(self._staging, ignore_errors=True)
        return Cleaned(files, size)


def disk_said(error: OSError, what: str) -> StoreError:
    """An error of the disk while something was written, in words."""
    at = f" ({error.filename})" if error.filename else ""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    return StoreError(
        f"{what} cannot be written: {error.strerror or error}{at}",
        hint="make room, then try again: nothing of it is there" if full else "choose another",
    )
