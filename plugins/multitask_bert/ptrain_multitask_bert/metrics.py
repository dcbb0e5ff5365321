"""The metrics of a head, by the kind of what it is asked."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torchmetrics import MeanAbsoluteError, MeanMetric, MeanSquaredError, Metric
from torchmetrics.classification import (
    MulticlassAccuracy,
    MulticlassF1Score,
    MulticlassPrecision,
    MulticlassRecall,
    MultilabelAccuracy,
    MultilabelExactMatch,
    MultilabelF1Score,
    MultilabelPrecision,
    MultilabelRecall,
)
from torchmetrics.regression import PearsonCorrCoef, SpearmanCorrCoef
from torchmetrics.wrappers.abstract import WrapperMetric

from plugin_trainer.data import Fed
from plugin_trainer.data.batches import IGNORED_LABEL
from ptrain_multitask_bert.entity_score import EntityScore
from ptrain_multitask_bert.heads import Head
from ptrain_multitask_bert.relation_score import DirectedF1, relation_types

# B texts, T tokens, C labels

Metrics = dict[str, Metric | Fed]


def metrics_of(head: Head) -> Metrics:
    """The metrics of a head by name.

    single_label  accuracy; precision, recall and f1 averaged over the labels (macro), and
                  f1_weighted by how often each is right
    relation      these, and f1_directed if the labels are directed: that of SemEval-2010 task 8
    multi_label   accuracy over all single decisions, exact over whole texts; precision, recall and
                  f1 averaged over the labels (macro), and f1_micro over all decisions
    tokens        accuracy over the words; precision, recall and f1 of whole entities
    regression    mse, mae, pearson, spearman
    """
    return MAKERS[head.kind](head)


def of_labels(head: Head) -> Metrics:
    """Metrics of one label a text."""
    asked: dict[str, Any] = {"num_classes": len(head.labels), "ignore_index": IGNORED_LABEL}
    return {
        "accuracy": MulticlassAccuracy(**asked, average="micro"),
        "precision": MulticlassPrecision(**asked, average="macro"),
        "recall": MulticlassRecall(**asked, average="macro"),
        "f1": MulticlassF1Score(**asked, average="macro"),
        "f1_weighted": MulticlassF1Score(**asked, average="weighted"),
    }


def of_relations(head: Head) -> Metrics:
    """Metrics of one label for two spans."""
    metrics = of_labels(head)
    if relation_types(head.labels):
        metrics["f1_directed"] = DirectedF1(head.labels)
    return metrics


def of_label_sets(head: Head) -> Metrics:
    """Metrics of any number of labels a text; all see probabilities."""
    asked: dict[str, Any] = {
        "num_labels": len(head.labels),
        "threshold": head.threshold,
        "ignore_index": IGNORED_LABEL,
    }
    metrics = {
        "accuracy": MultilabelAccuracy(**asked, average="micro"),
        "exact": MultilabelExactMatch(**asked),
        "precision": MultilabelPrecision(**asked, average="macro"),
        "recall": MultilabelRecall(**asked, average="macro"),
        "f1": MultilabelF1Score(**asked, average="macro"),
        "f1_micro": MultilabelF1Score(**asked, average="micro"),
    }
    return {name: Fed(metric, Probabilities(head.name)) for name, metric in metrics.items()}


def of_tokens(head: Head) -> Metrics:
    """Metrics of tags: of words, and of whole entities."""
    accuracy = MulticlassAccuracy(
        num_classes=len(head.labels), ignore_index=IGNORED_LABEL, average="micro"
    )
    return {
        "accuracy": Fed(accuracy, Tokens(head.name)),
        "precision": EntityScore(head.labels, "precision"),
        "recall": EntityScore(head.labels, "recall"),
        "f1": EntityScore(head.labels, "f1"),
    }


def of_numbers(head: Head) -> Metrics:
    """Metrics of a number a text."""
    del head
    with warnings.catch_warnings():
        # That it keeps a number a row in memory: two, to be exact, beside the texts themselves.
        warnings.simplefilter("ignore", UserWarning)
        spearman = SpearmanCorrCoef()
    return {
        "mse": Known(MeanSquaredError()),
        "mae": Known(MeanAbsoluteError()),
        "pearson": Known(PearsonCorrCoef()),
        "spearman": Known(spearman),
    }


def exit_metrics() -> dict[str, Fed]:
    """Metrics of a task with exits: where its texts left, and how often with the same answer."""
    outputs = {
        "mean_exit_block": "exit_block",
        "exit_agreement": "exit_agrees",
        "last_block_agreement": "last_block_agrees",
    }
    return {name: Fed(MeanMetric(), PerText(output)) for name, output in outputs.items()}


MAKERS: Mapping[str, Callable[[Head], Metrics]] = {
    "single_label": of_labels,
    "relation": of_relations,
    "multi_label": of_label_sets,
    "tokens": of_tokens,
    "regression": of_numbers,
}


# ------------------------------------------------------------------------------------- feeding


@dataclass(frozen=True)
class Probabilities:
    """Feeds the probabilities of a multi_label head and its labels.

    torchmetrics takes logits that all happen to lie between 0 and 1 for probabilities.
    """

    head: str

    def __call__(self, outputs: Mapping[str, Any], batch: Any) -> tuple[Tensor, Tensor]:
        """[B, C] of probabilities, [B, C] of 0, 1 and -100."""
        labels_BC = batch[f"labels_{self.head}"]
        unknown_BC = labels_BC.isnan()
        return (
            torch.sigmoid(outputs["logits"][self.head].float()),
            labels_BC.masked_fill(unknown_BC, IGNORED_LABEL).long(),
        )


@dataclass(frozen=True)
class Tokens:
    """Feeds the best tag of each token and its label, in one row."""

    head: str

    def __call__(self, outputs: Mapping[str, Any], batch: Any) -> tuple[Tensor, Tensor]:
        """[B * T] of tags, [B * T] of labels."""
        best_BT = outputs["logits"][self.head].argmax(dim=-1)
        return best_BT.flatten(), batch[f"labels_{self.head}"].flatten()


@dataclass(frozen=True)
class PerText:
    """Feeds what an evaluation says of the exit of each text."""

    name: str

    def __call__(self, outputs: Mapping[str, Any], batch: Any) -> tuple[Tensor]:
        """[B]."""
        del batch
        return (outputs[self.name].float(),)


class Known(WrapperMetric):  # type: ignore[misc]
    """A metric that sees only the rows whose label is known, and is not a number without any."""

    def __init__(self, metric: Metric) -> None:
        super().__init__()
        self.metric = metric
        self.add_state("count", default=torch.tensor(0), dist_reduce_fx="sum")

    count: Tensor

    def update(self, values_B: Tensor, labels_B: Tensor) -> None:
        """Take in one batch; a label that is NaN is not known."""
        known_B = ~labels_B.isnan()
        self.count += known_B.sum()
        if known_B.any():
            self.metric.update(values_B[known_B].float(), labels_B[known_B].float())

    def compute(self) -> Tensor:
        """The metric over all known rows."""
        if self.count == 0:
            return torch.tensor(torch.nan)
        value: Tensor = self.metric.compute()
        return value

    def reset(self) -> None:
        """Forget everything."""
        super().reset()
        self.metric.reset()
