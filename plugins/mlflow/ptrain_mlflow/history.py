"""Know which points of a run's log an MLflow store has, and which of them contradict the log.

MLflow never forgets a point and cannot replace one. A run that was killed at step 80 and goes on
from its checkpoint of step 60 makes steps 61 to 80 a second time: they stay in MLflow as they were
first logged. A resume that is exact makes the same numbers again, and there is nothing to tell;
where one does not, `differing` has what differs.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ptrain_mlflow.log_file import Line
from ptrain_mlflow.naming import name_for

if TYPE_CHECKING:
    from mlflow.entities import Metric, Run
    from mlflow.tracking import MlflowClient

# These depend on the clock, so that no resume repeats them.
_TIMED = ("seconds/", "samples_per_second", "tokens_per_second")


Point = tuple[str, int]  # a metric and a step


@dataclass(frozen=True)
class Difference:
    """A number that was made again and came out otherwise."""

    name: str
    step: int
    there: float
    here: float

    def __str__(self) -> str:
        return f"{self.name} at step {self.step}: {self.there:.6g} there, {self.here:.6g} here"


@dataclass
class History:
    """What a store had of a run's metrics when this process came to it.

    resumed_from  the step that the run goes on from; None for a run that has ended, whose log holds
                  everything there is
    last          of each metric, its last step
    behind        of the steps after `resumed_from`, every point's value
    newest        of each metric, the last point that this process has sent
    differing     what the log has otherwise, as far as it has been looked at
    """

    resumed_from: int | None
    last: Mapping[str, int]
    behind: Mapping[Point, float] = field(default_factory=dict)
    newest: dict[str, Metric] = field(default_factory=dict)
    differing: dict[Point, Difference] = field(default_factory=dict)

    @property
    def steps_behind(self) -> str:
        """The steps that a process logged and did not live to save: "steps 61 to 80 stand"."""
        steps = sorted({step for _, step in self.behind})
        if len(steps) < 2:
            return f"step {steps[0]} stands" if steps else ""
        return f"steps {steps[0]} to {steps[-1]} stand"

    def new_metrics(self, lines: Iterable[Line]) -> list[Metric]:
        """The points of some lines that the store does not have."""
        from mlflow.entities import Metric

        metrics, newest = [], dict(self.newest)
        for line in lines:
            # A point that is sent twice, for nobody heard that it had arrived, has the same time
            # both times: by that MLflow knows it again.
            milliseconds = round(1000 * line.time_s)
            for name, value in line.metrics.items():
                metric = Metric(name_for(name), value, milliseconds, line.step)
                # The last step may have two lines, and a learning rate in each of them.
                is_repeated = _same_point(metric, newest.get(metric.key))
                if not is_repeated and self._is_new(metric.key, line.step, value):
                    newest[metric.key] = metric
                    metrics.append(metric)
        return metrics

    def arrived(self, metrics: Iterable[Metric]) -> None:
        """Note what has been sent."""
        self.newest.update({metric.key: metric for metric in metrics})

    def _is_new(self, key: str, step: int, value: float) -> bool:
        # Points are sent in the order of the log: what is missing is missing at the end.
        if step > self.last.get(key, -1):
            return True
        if self.resumed_from is None or step <= self.resumed_from:
            return False
        there = self.behind.get((key, step))
        if there is None:
            return True
        if not math.isfinite(there):
            return math.isfinite(value)  # what failed the run then has gone well this time
        if there != value and not key.startswith(_TIMED):
            self.differing[key, step] = Difference(key, step, there, value)
        return False


def _same_point(metric: Metric, other: Metric | None) -> bool:
    return other is not None and (metric.step, metric.value) == (other.step, other.value)


def read_history(client: MlflowClient, run: Run, *, resumed_from: int | None) -> History:
    """Ask the store; for single points only where a process was killed between checkpoints."""
    last = {metric.key: metric.step for metric in run.data.to_proto().metrics}
    if resumed_from is None:
        return History(None, last)
    behind = {
        (metric.key, metric.step): metric.value
        for key, step in last.items()
        if step > resumed_from
        for metric in client.get_metric_history(run.info.run_id, key)
        if metric.step > resumed_from
    }
    return History(resumed_from, last, behind)
