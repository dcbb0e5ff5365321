"""The figures of a comparison in tables: cells of text, the most important table first."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ptrain_dactbert.curve.rules import RULES
from ptrain_dactbert.exit_statistics import block_ranges, range_name

Figures = Mapping[str, Any]


@dataclass(frozen=True)
class Table:
    """Rows under headers, and what a reader must know of them."""

    title: str
    headers: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""


def count(number: int, what: str) -> str:
    """ "1 run", "3 runs"."""
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def tables(document: Figures) -> list[Table]:
    """All tables of a comparison, the most important first."""
    made = [
        _at_depth(document),
        _promised(document),
        _baselines(document),
        _differences(document),
        *_timing(document.get("timing")),
        _exits(document["exits"]),
        _runs(document),
    ]
    return [table for table in made if table.rows]


def _at_depth(document: Figures) -> Table:
    recipe = document["recipe"]
    rows = []
    for number, depth in enumerate(document["depths"]):
        for rule, at in recipe["at_depth"].items():
            if (its := at[number]) is not None:
                rows.append([f"{depth:.2f}", RULES[rule], *_rates(its)])
    rows.append([f"{document['num_blocks']:.2f}", "the last block", *_rates(recipe["full"])])
    if "accumulated" in recipe:
        rows.append(["", "all blocks, mixed", *_rates(recipe["accumulated"])])
    return Table(
        "At equal mean blocks",
        ["blocks", "rule", "accuracy", "agrees with last block"],
        rows,
        "Between two settings of a rule each row is given to one of them by chance, so that the "
        "mean is exactly this one. A rule that cannot be brought to a mean is left out there.",
    )


def _rates(its: Figures) -> list[str]:
    return [_with_range(its["accuracy"]), _with_range(its["agreement"])]


def _with_range(figure: Figures) -> str:
    low, high = figure.get("low", figure["min"]), figure.get("high", figure["max"])
    return f"{figure['mean']:.4f} [{low:.4f}, {high:.4f}]"


def _promised(document: Figures) -> Table:
    rows = []
    for exit_, its in document["recipe"]["promised"].items():
        blocks = its["blocks"]
        several = len(document["recipe"]["runs"]) > 1
        spread = f" [{blocks['min']:.2f}, {blocks['max']:.2f}]" if several else ""
        rows.append(
            [
                exit_,
                f"{blocks['mean']:.2f}{spread}",
                _with_range(its["accuracy"]),
                f"{its['agreement']['mean']:.4f}",
                f"{its['own_agreement']['mean']:.4f}",
            ]
        )
    return Table(
        "What --exit promises",
        ["--exit", "blocks", "accuracy", "agrees: last", "own full"],
        rows,
        "Agreement with the last block's answer, and with the answer of the same rule after all "
        "blocks, which lossless never changes.",
    )


def _baselines(document: Figures) -> Table:
    rows = []
    for its in document["baselines"]:
        of = [str(its["num_blocks"]), count(len(its["runs"]), "run")]
        rows.append([its["label"], *of, _with_range(its["full"]["accuracy"])])
        if "accumulated" in its:
            mixed = _with_range(its["accumulated"]["accuracy"])
            rows.append([f"{its['label']}, all blocks mixed", *of, mixed])
    return Table("Baselines, after their last block", ["", "blocks", "of", "accuracy"], rows)


def _differences(document: Figures) -> Table:
    rows = []
    for its in document["differences"]:
        what = "" if its["what"] == "agreement" else f"--exit {its['what']} "
        rows.append(
            [
                f"{what}- {its['minus']}",
                f"{its['blocks']:.2f}" if its["blocks"] else "",
                _points(its["accuracy"]),
                _points(its["agreement"]) if "agreement" in its else "",
            ]
        )
    lacking = any("mean" in its["paired_by"] for its in document["differences"])
    by = " A baseline without a run of the same seed stands as the mean of its runs."
    return Table(
        "Estimated agreement minus others, in points",
        ["difference", "blocks", "accuracy", "agreement"],
        rows,
        "Paired on rows, the mean over the seeds, with its 95 % interval for new rows and these "
        f"seeds: where the interval holds 0 there is nothing to claim.{by if lacking else ''}",
    )


def _points(figure: Figures) -> str:
    mean, low, high = (100 * figure[key] for key in ("mean", "low", "high"))
    return f"{mean:+.2f} [{low:+.2f}, {high:+.2f}]"


def _timing(timing: Figures | None) -> Iterator[Table]:
    if timing is None:
        return
    rows = [
        [
            size,
            name,
            f"{its['blocks']:.2f}",
            f"{its['median_ms']:.2f}",
            f"{its['p95_ms']:.2f}",
            f"{its['ratio']:.3f} [{its['ratio_min']:.3f}, {its['ratio_max']:.3f}]",
        ]
        for size, by_name in timing["batches"].items()
        for name, its in by_name.items()
    ]
    yield Table(
        "Milliseconds a row",
        ["batch", "", "blocks", "median", "p95", "of the total time"],
        rows,
        f"{timing['run']} on {timing['device']}, {count(timing['threads'], 'thread')}, "
        f"{timing['precision']}, batch by batch in turns; real rows, sorted by length in batches "
        "of several; re-batched at the level of the table below, in windows of several batches "
        f"and timed window by window; shares of the unmodified encoder's total time, the median of "
        f"{count(timing['rounds'], 'round')} with the least and the greatest.",
    )


def _exits(exits: Figures) -> Table:
    ranges = block_ranges(len(exits["all"]["histogram"]))
    named = {
        **{f"label {name}": its for name, its in exits["by_label"].items()},
        **{f"{name} tokens": its for name, its in exits["by_length"].items()},
        "all": exits["all"],
    }
    rows = [
        [
            name,
            str(its["count"]),
            f"{its['accuracy']:.3f}",
            f"{its['agreement']:.3f}",
            f"{its['blocks']:.2f}",
            *(
                f"{100 * sum(its['histogram'][first - 1 : last]) / its['count']:.0f}%"
                for first, last in ranges
            ),
        ]
        for name, its in named.items()
    ]
    return Table(
        "Where rows leave, by label and length",
        ["rows", "count", "acc.", "agree", "blocks", *map(range_name, ranges)],
        rows,
        f"{exits['run']} at level {exits['level']:.3g}, {exits['chosen']}: shares of the rows by "
        "block; lengths in quarters of the rows.",
    )


def _runs(document: Figures) -> Table:
    groups = [document["recipe"], *document["baselines"]]
    rows = [
        [
            run["name"],
            str(run["seed"]),
            run["checkpoint"],
            _with_range(run["full"]["accuracy"] if "full" in run else run["accuracy"]),
            run.get("map", ""),
        ]
        for group in groups
        for run in group["runs"]
    ]
    return Table(
        "Runs, after their last block",
        ["run", "seed", "checkpoint", "accuracy", "map"],
        rows,
        "95 % intervals (Wilson) of one model on these rows.",
    )
