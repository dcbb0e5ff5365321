"""Several tasks answer one line, each in a batch of its own; the answers come together here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from plugin_trainer.data.mixture import with_task
from plugin_trainer.data.texts.broken import BrokenRows
from plugin_trainer.data.texts.tokenized import Padding
from plugin_trainer.errors import DataError
from ptrain_multitask_bert.requests import Request
from ptrain_multitask_bert.tasks import Task

SHEET = "sheet"
"""The entry of a predicted batch that takes its answers."""

EXIT_BLOCK = "exit_block"
"""What a task with exits says of a line beside its heads: after which block it left."""

RESERVED = ("text", "text_pair", "task", "tokens")
"""What no task may be called: the answer to a line has its text beside the answers of the tasks."""


class Sheet:
    """The answers to some lines, as the tasks give them.

    It is full when as many batches have answered as there are.
    """

    def __init__(self, requests: Sequence[Request], *, batches: int) -> None:
        self._left = batches
        self._answers: list[dict[str, Any]] = []
        for request in requests:
            texts = {"text": request.text, "text_pair": request.text_pair}
            self._answers.append({name: text for name, text in texts.items() if text is not None})

    def fill(self, task: str, rows: Sequence[int], answers: Sequence[Mapping[str, Any]]) -> None:
        """Take what a task says of some of the lines."""
        for row, answer in zip(rows, answers, strict=True):
            self._answers[row][task] = answer
        self._left -= 1

    def full(self) -> list[dict[str, Any]]:
        """The answers to all lines, in order, once they are complete; till then none."""
        return [] if self._left else self._answers


def batches_of(
    requests: Sequence[Request], *, tasks: Mapping[str, Task], tokenizer: Any
) -> Iterator[dict[str, Any]]:
    """A batch for each task that answers any of the requests.

    Raises DataError, which tells of all the requests at once that nothing answers, or that a task
    cannot answer which is asked by name.
    """
    chosen = choose(requests, tasks=tasks)
    sheet = Sheet(requests, batches=len(chosen))
    for name, rows in chosen.items():
        task = tasks[name]
        texts, about = task.encode_requests([requests[row] for row in rows], tokenizer=tokenizer)
        pad = Padding(tokenizer.pad_token_id, task.per_token)
        batch = pad([texts[number] for number in range(len(texts))])
        yield with_task({**batch, SHEET: sheet, "rows": rows, "about": about}, name)


def choose(requests: Sequence[Request], *, tasks: Mapping[str, Task]) -> dict[str, list[int]]:
    """The requests that each task answers, by their positions; tasks without one are left out."""
    chosen: dict[str, list[int]] = {name: [] for name in tasks}
    broken = BrokenRows("the input")
    for row, request in enumerate(requests):
        reasons = {name: task.why_not(request) for name, task in tasks.items()}
        if request.tasks is not None:
            able = request.tasks
            refused = [name for name in able if reasons[name]]
        else:
            able = tuple(name for name, reason in reasons.items() if not reason)
            refused = [] if able else list(tasks)
        if refused or not able:
            broken.add(
                DataError(
                    f"{request.at}: the task '{refused[0]}' cannot answer it: {reasons[refused[0]]}"
                    if len(refused) == 1
                    else f"{request.at}: no task can answer it",
                    hint=[f"{name}: {reasons[name]}" for name in refused],
                )
            )
        for name in able:
            chosen[name].append(row)
    broken.check()
    return {name: rows for name, rows in chosen.items() if rows}


def answers_to(
    outputs: Mapping[str, Any], batch: Mapping[str, Any], *, tasks: Mapping[str, Task]
) -> list[dict[str, Any]]:
    """Put down what a task says; with the last task, the answers to all lines."""
    task = tasks[batch["task"]]
    logits: Mapping[str, Tensor] = {
        name: values.detach() for name, values in outputs["logits"].items()
    }
    with torch.no_grad():
        answers = task.answers(logits, batch, batch["about"])
    if EXIT_BLOCK in outputs:
        blocks = outputs[EXIT_BLOCK].tolist()
        answers = [
            {**answer, EXIT_BLOCK: block} for answer, block in zip(answers, blocks, strict=True)
        ]
    sheet: Sheet = batch[SHEET]
    sheet.fill(task.name, batch["rows"], answers)
    return sheet.full()
