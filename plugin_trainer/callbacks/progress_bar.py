"""Show how far a run is: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from plugin_trainer.callbacks.evaluation_bar import EvaluationBar
from plugin_trainer.callbacks.settings import ProgressBarSettings
from plugin_trainer.outcome import StepOutcome

if TYPE_CHECKING:
    from plugin_trainer.training.result import Result
    from plugin_trainer.training.run import Run

# As wide as the terminal: of 80 columns, the numbers leave the bar itself 10 to 20.
_BAR = "{desc}{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}]{postfix}"


class ProgressBar:
    """Epoch, steps done, time left, loss, samples per second; of lines, the learning rate too.

    Reads no tensor of its own.

    The loss is that of the last log line, so that showing it makes the device wait no more often.
    Once nobody reads it any more (the pipe or the terminal is closed), it shows nothing.
    """

    def __init__(self, settings: ProgressBarSettings) -> None:
        mode = settings.mode if sys.stderr is not None else "off"  # closed from the start
        if mode == "auto":
            mode = "bar" if sys.stderr.isatty() else "lines"
        self._mode = mode
        self._bar: Any = None
        self._epoch = -1  # that is shown
        self._evaluation = EvaluationBar()

    def ptrain_run_start(self, run: Run) -> None:
        """Draw the bar where the run stands."""
        if self._mode == "bar":
            with self._shown():
                self._bar = tqdm(
                    total=run.plan.total_steps,
                    initial=run.progress.step,
                    bar_format=_BAR,
                    dynamic_ncols=True,
                    leave=True,
                    file=sys.stderr,
                )

    def ptrain_step_end(self, run: Run, outcome: StepOutcome) -> None:
        """Move on by one step."""
        if self._bar is not None:
            try:
                if run.progress.epoch != self._epoch:
                    self._epoch = run.progress.epoch
                    self._bar.set_description(f"epoch {self._epoch + 1}", refresh=False)
                self._bar.update(1)
            except OSError:
                self._lose()

    def ptrain_evaluation_batch_end(self, run: Run, split: str, weights: str) -> None:
        """Show below it how far an evaluation is."""
        if self._mode == "bar":
            self._evaluation.ptrain_evaluation_batch_end(run, split, weights)

    def ptrain_evaluation_end(self) -> None:
        """Take that away."""
        self._evaluation.close()

    def ptrain_log(self, run: Run, metrics: MutableMapping[str, float]) -> None:
        """Show the newest numbers."""
        with self._shown():
            numbers = short(metrics, rate=self._mode == "lines")
            self._show(run, numbers, evaluation_line(run, metrics))

    def _show(self, run: Run, numbers: str, scores: str) -> None:
        if self._bar is not None:
            if numbers:
                self._bar.set_postfix_str(numbers, refresh=False)
            if scores:
                self._bar.write(scores, file=sys.stderr)
        elif self._mode == "lines":
            if numbers:
                step = f"step {run.progress.step}/{run.plan.total_steps}"
                print(f"{step}  {numbers}", file=sys.stderr)
            if scores:
                print(scores, file=sys.stderr)

    def ptrain_run_end(self, run: Run, result: Result) -> None:
        """Leave the bar as it is and go to the next line."""
        self._close()

    def ptrain_run_failed(self, run: Run, error: BaseException) -> None:
        """Leave the bar as it is and go to the next line."""
        self._close()

    def _close(self) -> None:
        self._evaluation.close()
        if self._bar is not None:
            with self._shown():
                self._bar.close()
            self._bar = None

    @contextmanager
    def _shown(self) -> Iterator[None]:
        """Let what cannot be shown inside be the last."""
        try:
            yield
        except OSError:
            self._lose()

    def _lose(self) -> None:
        self._mode = "off"
        self._evaluation.lose()
        if self._bar is not None:
            self._bar.disable = True  # or it would draw itself once more when it is forgotten
        self._bar = None


def short(metrics: MutableMapping[str, float], *, rate: bool) -> str:
    """The numbers of a training log line that a person watches.

    rate  the learning rate too
    """
    parts = []
    if "train/loss" in metrics:
        parts.append(f"loss {metrics['train/loss']:.4g}")
    if rate and "train/loss" in metrics and "learning_rate" in metrics:
        parts.append(f"lr {metrics['learning_rate']:.2e}")
    if metrics.get("samples_per_second"):
        parts.append(f"{metrics['samples_per_second']:.0f} samples/s")
    return "  ".join(parts)


def evaluation_line(run: Run, metrics: MutableMapping[str, float]) -> str:
    """One evaluation, what decides the best one first, wrapped to fit 80 columns."""
    decisive = {best.watch for best in run.best.values()}
    scores = [
        (name, value)
        for name, value in metrics.items()
        if name.partition("/")[0] in ("val", "val_ema")
    ]
    if not scores:
        return ""
    lines = [f"step {run.progress.step}:"]
    for name, value in sorted(scores, key=lambda score: score[0] not in decisive):
        entry = f" {name} {value:.4g}"
        if len(lines[-1]) + len(entry) > 78:
            lines.append("  ")
        lines[-1] += entry
    return "\n".join(lines)
