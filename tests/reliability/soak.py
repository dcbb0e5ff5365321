"""Runs the toy again and again, does to it whatever can happen, and compares what survives.

    python tests/reliability/soak.py --minutes 20 --seed 0 [--report FILE] [--verbose]

Each run has settings drawn at random and is started with `--resume auto` until it ends. Meanwhile
it is killed at random times and at exact moments, sent SIGTERM, SIGINT and two of them, starved of
disk, and its newest checkpoint is damaged. Each survivor must equal, bit by bit, a run with the
same settings to which nothing happened. Exits 1 if one differs or cannot go on.

Disk faults fill a small disk of the run's own, where one may be mounted; elsewhere no file may grow
beyond a limit.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests import forkserver

HERE = Path(__file__).parent
# A run that does not end after so many starts is one that does not get on.
MOST_STARTS = 40
ROOM_KB = 120_000  # more than all the checkpoints of the largest run
KILLED, FAILED, REFUSED, DONE = -9, 1, 2, 0


def _module(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, HERE / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


class Wrong(Exception):
    """Something that must not happen."""


@dataclass
class Soak:
    """The state of a soak: its luck, what it has done, what was wrong.

    root     where its runs are
    rounds   how many runs there were
    usual_seconds  what a run with the settings at hand takes if it is left alone
    """

    luck: random.Random
    root: Path
    common: Any
    verbose: bool
    mounts: bool
    counts: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    twins: dict[str, Path] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    rounds: int = 0
    usual_seconds: float = 1.0

    def say(self, line: str) -> None:
        if self.verbose:
            print(line, flush=True)

    # --------------------------------------------------------------------------------- a round

    def __post_init__(self) -> None:
        # Few enough that twins are shared.
        self.pool = [self._drawn() for _ in range(24)]

    def _drawn(self) -> dict[str, Any]:
        """Settings of a run."""
        pick = self.luck.choice
        return {
            **self.common.SETTINGS,
            "length": "4 epochs",
            "data_settings.workers": pick([0, 0, 2]),
            "accumulate": pick([1, 1, 3]),
            "ema.decay": pick([0.9, None]),
            "schedule.name": pick(["cosine", "linear"]),
            "evaluate": pick(["3 steps", "1 epoch", "never"]),
            "save": pick(["1 steps", "2 steps", "5 steps"]),
            "keep": pick([1, 2, "all"]),
            "log": pick(["1 steps", "4 steps"]),
            "best.mode": pick(["min", "max"]),
            "model_settings.ballast_mb": pick([0, 0, 1]),
        }

    def round(self) -> None:
        """One run, from its first start to its end, and the comparison."""
        self.rounds += 1
        settings = self.luck.choice(self.pool)
        with self._folder(f"run-{self.rounds}") as folder:
            run = folder / "run"
            try:
                whole = self._twin(settings)
                for attempt in range(MOST_STARTS):
                    if self._start_and_hurt(run, settings, calm=attempt > MOST_STARTS // 2):
                        break
                    self._check(run)
                    if self.luck.random() < 0.15:
                        self._damage(run)
                else:
                    raise Wrong(f"has not ended after {MOST_STARTS} starts")
                self._compare(run, whole)
                self.counts["survivors equal"] += 1
                self.say(f"run {self.rounds}: equals its twin")
            except Wrong as error:
                self._note(error, run, settings)

    def _compare(self, run: Path, whole: Path) -> None:
        try:
            found = self.common.differences(whole, run) + self.common.leftovers(run)
        except Exception as error:
            raise Wrong(f"it has ended, but cannot be read: {error!r}") from error
        if found:
            raise Wrong(f"differs from its twin: {', '.join(found)}")

    def _note(self, error: Wrong, run: Path, settings: dict[str, Any]) -> None:
        kept = self.root.parent / f"{self.root.name}-run-{self.rounds}"
        shutil.copytree(run.parent, kept, dirs_exist_ok=True)
        changed = {k: v for k, v in settings.items() if v != self.common.SETTINGS.get(k)}
        self.wrong.append(f"run {self.rounds}: {error}; kept in {kept}; {json.dumps(changed)}")
        self.counts["survivors different"] += 1
        print(self.wrong[-1], flush=True)

    def _twin(self, settings: dict[str, Any]) -> Path:
        key = json.dumps(settings, sort_keys=True)
        if key not in self.twins:
            place = self.root / f"twin-{len(self.twins)}"
            place.mkdir()
            started = time.monotonic()
            process = self._start(place / "run", settings)
            if process.wait() != DONE:
                raise Wrong(f"its twin exited with {process.returncode}: {process.text}")
            self.twins[key] = place / "run"
            self.seconds[key] = time.monotonic() - started
            self.say(f"twin {len(self.twins)}")
        self.usual_seconds = self.seconds[key]
        return self.twins[key]

    # ------------------------------------------------------------------------------ what is done

    def _start(self, run: Path, settings: dict[str, Any], **options: Any) -> Any:
        chosen = {key: value for key, value in settings.items() if value is not None}
        fault = options.pop("fault", None)
        if fault:
            options["variables"] = {"PTRAIN_FAULT": json.dumps(fault)}
        output = run.parent / "output.txt"
        output.unlink(missing_ok=True)
        return forkserver.Process(
            *self.common.run_command(run, chosen), output=options.pop("output", output), **options
        )

    def _start_and_hurt(self, run: Path, settings: dict[str, Any], *, calm: bool) -> bool:
        """Start the run and do something to it; whether it has come to its end."""
        harm = "nothing" if calm else self.luck.choice(HARMS)
        resumed = (run / "run.toml").is_file()
        self.counts["starts"] += 1
        self.counts["resumes"] += resumed
        process, expected = getattr(self, f"_{harm}")(run, settings)
        code = process.wait()
        self.say(f"run {self.rounds}: {harm}: exit {code}")
        if code not in expected:
            raise Wrong(f"after {harm} it exited with {code}:\n{process.text}")
        text = process.text
        if harm not in ("nothing", "disk"):
            # What hits Python itself, or a worker whose run was killed, is none of the run's doing.
            text, ignored, trace = text.partition("Exception ignored in")
            self.counts["signals swallowed"] += bool(ignored) and "signals.py" in trace
            before, _, trace = text.partition("Traceback")
            text = text if "plugin_trainer/" in trace else before
        for forbidden in ("Traceback", "internal error", "resuming is not exact"):
            if forbidden in text:
                raise Wrong(f"after {harm} it said:\n{process.text}")
        return code == DONE

    def _nothing(self, run: Path, settings: dict[str, Any]) -> tuple[Any, set[int]]:
        # A Python of its own from time to time, which is what everybody else starts.
        return self._start(run, settings, cold=self.luck.random() < 0.1), {DONE}

    def _kill(self, run: Path, settings: dict[str, Any]) -> tuple[Any, set[int]]:
        process = self._start(run, settings)
        self._wait_a_while(process)
        self._send(process, signal.SIGKILL, "kills")
        return process, {DONE, KILLED}

    def _kill_while_saving(self, run: Path, settings: dict[str, Any]) -> tuple[Any, set[int]]:
        step, operation = self._step(run) + self.luck.randint(1, 6), self.luck.randint(1, 24)
        fault = {"at": f"file:{step}:{operation}", "do": "kill"}
        process = self._start(run, settings, fault=fault)
        if process.wait() == KILLED:
            self.counts["kills"] += 1
            self.counts["kills while saving"] += 1
        return process, {DONE, KILLED}

    def _signal(self, run: Path, settings: dict[str, Any]) -> tuple[Any, set[int]]:
        number = self.luck.choice([signal.SIGTERM, signal.SIGINT])
        process = self._start(run, settings)
        self._wait_a_while(process)
        self._send(process, number, "signals")
        # Before the run is put together nobody answers: SIGTERM ends the process by itself.
        return process, {DONE, 128 + number, -number}

    def _two_signals(self, run: Path, settings: dict[str, Any]) -> tuple[Any, set[int]]:
        numbers = [self.luck.choice([signal.SIGTERM, signal.SIGINT]) for _ in range(2)]
        process = self._start(run, settings)
        self._wait_a_while(process)
        for number in numbers:
            self._send(process, number, "signals")
            time.sleep(self.luck.uniform(0, 0.02))
        self.counts["double signals"] += 1
        codes = {code for number in numbers for code in (128 + number, -number)}
        return process, {DONE, *codes}

    def _disk(self, run: Path, settings: dict[str, Any]) -> tuple[Any, set[int]]:
        self.counts["disk faults"] += 1
        if not self.mounts:
            limit = self.luck.randint(200, 30_000)
            process = self._start(run, settings, largest_file=limit)
            process.wait()
            return process, {DONE, FAILED, REFUSED}
        filler = run.parent / "filler"
        left = self.luck.randint(0, 400) * 1024
        output = self.root / f"output-{self.rounds}.txt"
        output.unlink(missing_ok=True)
        with filler.open("wb") as file:
            free = shutil.disk_usage(run.parent).free
            os.posix_fallocate(file.fileno(), 0, max(1, free - left))
        process = self._start(run, settings, output=output)
        process.wait()
        filler.unlink()
        return process, {DONE, FAILED, REFUSED}

    def _wait_a_while(self, process: Any) -> None:
        deadline = time.monotonic() + self.luck.uniform(0, self.usual_seconds)
        while time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.002)

    def _send(self, process: Any, number: int, counted: str) -> None:
        if process.poll() is None:
            process.signal(number, group=number == signal.SIGINT)
            self.counts[counted] += 1

    def _step(self, run: Path) -> int:
        from plugin_trainer.training.checkpointing.store import CheckpointStore

        found, _ = CheckpointStore(run).newest_sound()
        return found.step if found else 0

    def _check(self, run: Path) -> None:
        """What must hold between two starts: no line of metrics is far ahead of the checkpoints."""
        if (run / "checkpoints").is_dir() and any((run / "checkpoints").glob("step-*")):
            try:
                step = self._step(run)
            except Exception as error:
                raise Wrong(f"looking for a checkpoint failed: {error!r}") from error
            if step == 0:
                raise Wrong("it has checkpoints, and none of them is sound")

    def _damage(self, run: Path) -> None:
        """Damage the newest checkpoint, if a sound one is left to fall back to."""
        checkpoints = sorted(filter(_is_sound, (run / "checkpoints").glob("step-*")))
        if len(checkpoints) < 2:
            return
        file = self.luck.choice(sorted(checkpoints[-1].iterdir()))
        how = self.luck.choice(["flip", "truncate", "delete"])
        content = bytearray(file.read_bytes())
        if how == "flip" and content and file.name != "manifest.json":
            content[self.luck.randrange(len(content))] ^= 1 << self.luck.randrange(8)
            file.write_bytes(content)
        elif how == "truncate" and content:
            file.write_bytes(content[: self.luck.randrange(len(content))])
        else:
            file.unlink()
        self.counts["corruptions"] += 1
        self.say(f"run {self.rounds}: {how} {checkpoints[-1].name}/{file.name}")

    # ------------------------------------------------------------------------------------ disks

    @contextmanager
    def _folder(self, name: str) -> Iterator[Path]:
        """A folder for a run; a disk of its own where that may be."""
        folder = self.root / name
        folder.mkdir()
        if self.mounts:
            _mount(folder)
        try:
            yield folder
        finally:
            if self.mounts:
                subprocess.run(["umount", "--lazy", str(folder)], check=True)
            shutil.rmtree(folder, ignore_errors=True)


HARMS = (
    *("nothing", "kill", "kill", "kill_while_saving", "kill_while_saving"),
    *("signal", "two_signals", "disk"),
)


def _is_sound(checkpoint: Path) -> bool:
    from plugin_trainer.errors import CheckpointError
    from plugin_trainer.training.checkpointing.store import verify

    try:
        verify(checkpoint)
    except CheckpointError:
        return False
    return True


def _mount(folder: Path) -> None:
    command = ["mount", "-t", "tmpfs", "-o", f"size={ROOM_KB}k", "tmpfs", str(folder)]
    subprocess.run(command, check=True, capture_output=True)


def _may_mount(root: Path) -> bool:
    place = root / "mount"
    place.mkdir()
    try:
        _mount(place)
    except (OSError, subprocess.CalledProcessError):
        return False
    subprocess.run(["umount", str(place)], check=True)
    return True


def summary(soak: Soak, *, seconds: float, seed: int) -> str:
    """What was done and what came of it."""
    order = (
        *("starts", "resumes", "kills", "kills while saving"),
        *("signals", "double signals", "signals swallowed"),
        *("disk faults", "corruptions", "survivors equal", "survivors different"),
    )
    lines = [f"{'seed':20} {seed}", f"{'minutes':20} {seconds / 60:.1f}"]
    lines += [f"{'runs':20} {soak.rounds}", f"{'twins':20} {len(soak.twins)}"]
    lines += [f"{name:20} {soak.counts[name]}" for name in order]
    return "\n".join([*lines, *soak.wrong])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--report", type=Path, help="a file for the summary")
    parser.add_argument("--folder", type=Path, help="where runs are kept; left out, in memory")
    parser.add_argument("--verbose", action="store_true", help="a line for each event")
    given = parser.parse_args()
    memory = Path("/dev/shm")
    where = given.folder or (memory if memory.is_dir() else None)
    root = Path(tempfile.mkdtemp(prefix="soak-", dir=where))
    started = time.monotonic()
    soak = Soak(
        luck=random.Random(given.seed),
        root=root,
        common=_module("conftest"),
        verbose=given.verbose,
        mounts=_may_mount(root),
    )
    try:
        while time.monotonic() - started < 60 * given.minutes:
            soak.round()
    finally:
        shutil.rmtree(root, ignore_errors=True)
    text = summary(soak, seconds=time.monotonic() - started, seed=given.seed)
    print(text)
    if given.report:
        given.report.write_text(text + "\n")
    return 1 if soak.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
