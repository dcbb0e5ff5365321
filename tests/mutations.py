"""Faults of one line each, put in by turns: the suite must notice every one.

    python tests/mutations.py [NAME ...]

Runs the tests of the part where the fault is, which `make test` runs too, and names the first that
fails. Changes the working tree while it runs, and puts it back.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]


class Mutation(NamedTuple):
    """A line of a file, what is put in its place, and the tests of that part."""

    file: str
    line: str
    fault: str
    tests: tuple[str, ...]


CORE, CPP, PLUGINS = "plugin_trainer/", "csrc/", "plugins/"
MUTATIONS = {
    "the average stands still": Mutation(
        CORE + "training/optim/update.py",
        "self._ema.update()",
        "pass",
        ("tests/training/test_update.py",),
    ),
    "NumPy's stream is not restored": Mutation(
        CORE + "training/seeding.py",
        "np.random.set_state((kind, np.array(keys, dtype=np.uint32), position, has_gauss, gauss))",
        "pass",
        ("tests/training/test_fit.py",),
    ),
    "NaN may be the best": Mutation(
        CORE + "training/checkpointing/best.py",
        "if not math.isfinite(value):",
        "if False:",
        ("tests/training/test_best.py",),
    ),
    "the last evaluation is left out": Mutation(
        CORE + "training/loop.py",
        "metrics = _evaluate(run) if run.evaluated_at != run.progress.step else {}",
        "metrics = {}",
        ("tests/training/test_loop.py",),
    ),
    "the folder of a checkpoint is not synced": Mutation(
        CORE + "training/checkpointing/store.py",
        "fsync_folder(place.parent)",
        "pass",
        ("tests/training/test_checkpoints.py",),
    ),
    "every task draws the same": Mutation(
        CORE + "data/order.py",
        "return derive_seed(self.seed, self.task, epoch, position, *rank)",
        "return derive_seed(self.seed, epoch, position, *rank)",
        ("tests/data/test_order.py",),
    ),
    "a round robin gives too much": Mutation(
        CORE + "data/mixing.py",
        "yield live.repeat(quota - done)",
        "yield live.repeat(quota)",
        ("tests/data/test_mixing.py",),
    ),
    "every process evaluates the same batches": Mutation(
        CORE + "data/dealt.py",
        "own = first + self.share.rank",
        "own = first",
        ("tests/data/test_dealt.py",),
    ),
    "AdamW without its second bias correction": Mutation(
        CPP + "core/step_spans.inl",
        "square_root(v) * root_correction + eps",
        "square_root(v) + eps",
        ("tests/ops/test_step.py",),
    ),
    "a norm forgets what is left over": Mutation(
        CPP + "core/norm_spans.inl",
        "sums[i - whole] += wide * wide;",
        "sums[i - whole] = wide * wide;",
        ("tests/ops/test_norm.py",),
    ),
    "the CUDA norm is its square": Mutation(
        CPP + "cuda/norm.cu",
        "*norm = sqrt(sum);",
        "*norm = sum;",
        (
            "tests/csrc/test_cmake_build.py::test_the_kernels_build_without_warnings_and_pass_their_tests",
        ),
    ),
    "a damaged library is loaded": Mutation(
        CORE + "ops/building/cache.py",
        "if library.stat().st_size != about.size or sha256_of(library) != about.sha256:",
        "if library.stat().st_size != about.size:",
        ("tests/ops/test_builder.py",),
    ),
    "two plugins of one name are one": Mutation(
        CORE + "registry/resolution.py",
        "if len(found) > 1:",
        "if len(found) > 2:",
        ("tests/registry/test_failures.py",),
    ),
    "hidden plugins are seen": Mutation(
        CORE + "registry/discovery.py",
        'return listed is None or name in {part.strip() for part in listed.split(",")}',
        "return True",
        ("tests/registry/test_discovery.py",),
    ),
    "a new entry point is not seen": Mutation(
        CORE + "registry/discovery.py",
        "yield entry.path, about.st_mtime_ns, about.st_size",
        "yield entry.path, 0, 0",
        ("tests/registry/test_discovery.py",),
    ),
    "the worst trial wins": Mutation(
        CORE + "tuning/studies.py",
        'sign = 1 if self.objectives[by].mode == "min" else -1',
        'sign = -1 if self.objectives[by].mode == "min" else 1',
        ("tests/tuning/test_study.py",),
    ),
    "a second process takes a folder in use": Mutation(
        CORE + "run_folder.py",
        "LOCK_EX | fcntl.LOCK_NB",
        "LOCK_SH | fcntl.LOCK_NB",
        ("tests/training/test_run_folder.py",),
    ),
    "rows without a label count": Mutation(
        PLUGINS + "dactbert/ptrain_dactbert/classifier.py",
        "normalizer=labels_B.ne(IGNORED).sum(),",
        "normalizer=labels_B.ge(IGNORED).sum(),",
        ("plugins/dactbert/tests/test_classifier.py",),
    ),
    "the least likely tag is scored": Mutation(
        PLUGINS + "multitask_bert/ptrain_multitask_bert/metrics.py",
        'best_BT = outputs["logits"][self.head].argmax(dim=-1)',
        'best_BT = outputs["logits"][self.head].argmin(dim=-1)',
        ("plugins/multitask_bert/tests/test_metrics.py",),
    ),
    "the target network follows at every step": Mutation(
        PLUGINS + "reinforcement/ptrain_reinforcement/q_network.py",
        "if step % self.settings.target_every_steps:",
        "if not step:",
        ("plugins/reinforcement/tests",),
    ),
    "MLflow is asked with its own patience": Mutation(
        PLUGINS + "mlflow/ptrain_mlflow/store.py",
        "free = [name for name in values if name not in os.environ or name in _ours]",
        "free = [name for name in values if name not in os.environ]",
        ("plugins/mlflow/tests/test_trouble.py",),
    ),
}


def main() -> int:
    unnoticed = []
    for name in sys.argv[1:] or MUTATIONS:
        caught = first_failure(MUTATIONS[name])
        print(f"{name:48} {caught or 'NOT NOTICED'}", flush=True)
        unnoticed += [] if caught else [name]
    return int(bool(unnoticed))


def first_failure(mutation: Mutation) -> str:
    path = ROOT / mutation.file
    whole = path.read_text(encoding="utf-8")
    assert whole.count(mutation.line) == 1, f"{mutation.file}: {mutation.line}"
    path.write_text(whole.replace(mutation.line, mutation.fault), encoding="utf-8")
    try:
        command = [sys.executable, "-m", "pytest", "-x", *mutation.tests]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    finally:
        path.write_text(whole, encoding="utf-8")
    found = re.search(r"^(?:FAILED|ERROR) (\S+)", done.stdout, re.MULTILINE)
    return found[1] if found else ""


if __name__ == "__main__":
    sys.exit(main())
