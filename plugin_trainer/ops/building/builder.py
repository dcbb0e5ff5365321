"""Finds the library for these sources and this machine in a cache, or builds it there.

Many processes may ask at once, and any of them may be killed at any moment: one builds in a private
folder under a lock that dies with it, the others wait, and a library appears by one rename.
"""

from __future__ import annotations

import hashlib
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from plugin_trainer.ops.building import cache as caching
from plugin_trainer.ops.building import memo
from plugin_trainer.ops.building.cache import About, Entry, read_entry, write_entry
from plugin_trainer.ops.building.locking import LockTimeout, lock
from plugin_trainer.ops.building.prebuilt import find_prebuilt
from plugin_trainer.ops.building.sources import Sources, find_sources
from plugin_trainer.ops.building.toolchain import (
    Toolchain,
    Unavailable,
    find_toolchain,
    target_digest,
)

_LOCK_TIMEOUT_S = 600.0


@dataclass(frozen=True)
class Obtained:
    """A library that is loaded now.

    path    the file
    origin  "prebuilt", "cached" or "built"
    reason  why this one, in words
    """

    path: Path
    origin: str
    reason: str


@dataclass(frozen=True)
class Wanted:
    """What a library for this process must be.

    sources    to build it from
    what       digest of sources, flags and target
    toolchain  that builds it here, or None
    lacking    why there is no toolchain
    """

    sources: Sources
    what: str
    toolchain: Toolchain | None
    lacking: str

    @property
    def cuda(self) -> bool:
        """Whether it would get CUDA kernels."""
        return self.toolchain is not None and self.toolchain.cuda

    def entry_name(self) -> str:
        """The name of its folder in a cache."""
        assert self.toolchain is not None
        return f"{self._stem(cuda=self.cuda)}-{self.toolchain.digest()[:16]}"

    def ready_in(self, cache: Path) -> list[Path]:
        """The folders of a cache to look for it in. Without a compiler anybody's will do."""
        if self.toolchain is not None:
            return [cache / self.entry_name()]
        return [
            folder
            for cuda in ((True, False) if torch.version.cuda else (False, True))
            for folder in sorted(cache.glob(f"{self._stem(cuda=cuda)}-*/"))
        ]

    def _stem(self, *, cuda: bool) -> str:
        return f"{self.what[:16]}-{'cuda' if cuda else 'cpu'}"


def wanted() -> Wanted:
    """What this process needs. Raises Unavailable if the package has no sources."""
    sources = find_sources()
    if sources is None:
        raise Unavailable("this copy of plugin_trainer carries no sources of the kernels")
    what = hashlib.sha256(f"{sources.digest} {target_digest()}".encode()).hexdigest()
    try:
        toolchain, lacking = find_toolchain(torch_cuda=torch.version.cuda), ""
    except Unavailable as error:
        toolchain, lacking = None, str(error)
    return Wanted(sources, what, toolchain, lacking)


def obtain(
    *,
    load: Callable[[str], None],
    may_build: bool = True,
    force: bool = False,
    retry: bool = False,
    carried: bool = True,
    say: Callable[[str], None] | None = None,
) -> Obtained:
    """Load the library that the package carries, or one from a cache, or build it there.

    load       loads a file into this process; raises OSError if it cannot
    may_build  False: only look
    force      build though there is one
    retry      build though it failed a moment ago
    carried    whether the one in the package may be used
    say        takes one line about what takes long; stderr by default

    Raises Unavailable with the reason.
    """
    needs = wanted()
    found, passed_over = None, ""
    if carried and not force:
        found, passed_over = _load_prebuilt(needs, load)
    try:
        found = found or _from_cache(
            needs,
            load=load,
            may_build=may_build,
            force=force,
            retry=retry or force,
            say=say or _to_stderr,
        )
    except Unavailable as error:
        raise Unavailable(f"{error}; {passed_over}" if passed_over else str(error)) from error
    origin = "prebuilt" if found.origin == "prebuilt" else "cached"
    programs = needs.toolchain.programs if needs.toolchain is not None else ()
    memo.remember(memo.Memo(str(found.path), origin, tuple(map(str, programs))))
    return replace(found, reason=f"{found.reason}; {passed_over}") if passed_over else found


def _load_prebuilt(needs: Wanted, load: Callable[[str], None]) -> tuple[Obtained | None, str]:
    entry, passed_over = find_prebuilt(needs.what, cuda=needs.cuda)
    if entry is None:
        return None, passed_over
    try:
        load(str(entry.library))
    except OSError as error:
        return None, f"the one in the package cannot be loaded: {error}"
    return Obtained(entry.library, "prebuilt", memo.REASONS["prebuilt"]), ""


def _from_cache(
    needs: Wanted,
    *,
    load: Callable[[str], None],
    may_build: bool,
    force: bool,
    retry: bool,
    say: Callable[[str], None],
) -> Obtained:
    troubles = []
    # The second cache is for want of the first, and not what somebody else has left there.
    for cache in caching.caches():
        if not force:
            for folder in needs.ready_in(cache):
                if (found := _load_ready(folder, load)) is not None:
                    return found
        try:
            if needs.toolchain is None or not may_build:
                caching.check_writable(cache)
                raise Unavailable(_why_not_ready(cache, needs))
            return _build_in(
                cache, needs, needs.toolchain, load=load, force=force, retry=retry, say=say
            )
        except (OSError, LockTimeout) as error:
            troubles.append(f"{cache} cannot be used: {error}")
    raise Unavailable("; ".join(troubles) or "there is no folder to build in")


def _why_not_ready(cache: Path, needs: Wanted) -> str:
    if needs.toolchain is None:
        return needs.lacking
    folder = cache / needs.entry_name()
    failure = caching.recent_failure(folder)
    return "the kernels have not been built yet" if failure is None else _in_words(failure, folder)


def _load_ready(folder: Path, load: Callable[[str], None]) -> Obtained | None:
    entry = read_entry(folder)
    if entry is None:
        return None
    try:
        load(str(entry.library))
    except OSError:
        return None
    return Obtained(entry.library, "cached", memo.REASONS["cached"])


def _build_in(
    cache: Path,
    needs: Wanted,
    toolchain: Toolchain,
    *,
    load: Callable[[str], None],
    force: bool,
    retry: bool,
    say: Callable[[str], None],
) -> Obtained:
    folder = cache / needs.entry_name()
    cache.mkdir(parents=True, exist_ok=True)
    with lock(
        cache / "lock",
        timeout_s=_LOCK_TIMEOUT_S,
        waiting=lambda: say("waiting for another process that builds the kernels"),
        done=lambda: not force and read_entry(folder) is not None,
    ) as owned:
        if not force and (found := _load_ready(folder, load)) is not None:
            return found
        if not owned:
            raise Unavailable(f"{folder / caching.LIBRARY} cannot be loaded")
        caching.sweep(cache)
        if not retry and (failure := caching.recent_failure(folder)) is not None:
            raise Unavailable(_in_words(failure, folder))
        entry = _build(folder, needs, toolchain, say=say)
    return Obtained(entry.library, "built", memo.REASONS["built"])


def _build(
    folder: Path, needs: Wanted, toolchain: Toolchain, *, say: Callable[[str], None]
) -> Entry:
    from plugin_trainer.ops.building import compiling

    if compiling.is_loaded():
        raise Unavailable("this process has loaded other kernels already")
    private = caching.private_folder(folder.parent)
    try:
        say(f"building the kernels, once: about {30 if toolchain.cuda else 5} s")
        try:
            library = compiling.compile_and_load(needs.sources, toolchain, private)
        except compiling.BuildFailed as error:
            if "No space left on device" in error.output:
                raise OSError("there is no space left on the device") from error
            if "Killed" not in error.output:  # for want of memory, which the next try may find
                caching.write_failure(folder, str(error), error.output)
            raise Unavailable(_in_words(str(error), folder)) from error
        about = About(
            sha256=caching.sha256_of(library),
            size=library.stat().st_size,
            what=needs.what,
            cuda=toolchain.cuda,
            compiler=compiling.compiler_version(toolchain),
            torch=str(torch.__version__),
        )
        entry = write_entry(library, folder, about)
        caching.forget_failure(folder)
        # It is the file that this process has loaded; torch knows it by where it lay then.
        torch.ops.loaded_libraries.discard(str(library))
        torch.ops.loaded_libraries.add(str(entry.library))
        return entry
    finally:
        shutil.rmtree(private, ignore_errors=True)


def _in_words(failure: str, folder: Path) -> str:
    return f"the kernels could not be built: {failure}\nthe whole log: {caching.log_of(folder)}"


def _to_stderr(line: str) -> None:
    print(f"ptrain: {line}", file=sys.stderr, flush=True)
