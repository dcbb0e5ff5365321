"""Writes the parts of the documentation that come from the code: run with --check to compare only.

    python docs/make.py

A page has such a part between two comments: <!-- begin NAME --> and <!-- end NAME -->.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable
from pathlib import Path

from plugin_trainer import hookspecs
from plugin_trainer.callbacks import settings as callback_settings
from plugin_trainer.outcome import StepOutcome
from plugin_trainer.settings import schedules, schema, tuning
from plugin_trainer.settings.describe import describe

DOCS = Path(__file__).parent


def settings_table(cls: type) -> str:
    """One row a key: name, default, meaning."""
    rows = ["| key | default | meaning |", "|---|---|---|"]
    for key in describe(cls):
        default = f"`{key.default}`" if key.default else ("required" if key.required else "")
        rows.append(f"| `{key.key}` | {default} | {key.meaning} |")
    return "\n".join(rows)


def hook_reference() -> str:
    """Every hook: signature, and what its docstring says."""
    parts = []
    for name, function in vars(hookspecs).items():
        if not name.startswith("ptrain_"):
            continue
        arguments = ", ".join(inspect.signature(function).parameters)
        options = function.ptrain_spec
        answer = " (the first answer counts)" if options["firstresult"] else ""
        text = inspect.cleandoc(function.__doc__ or "")
        parts.append(f"### `{name}({arguments})`{answer}\n\n{text}")
    return "\n\n".join(parts)


def map_of_a_run() -> str:
    """The diagram at the top of hookspecs."""
    docstring = inspect.cleandoc(hookspecs.__doc__ or "")
    diagram = docstring.partition("\n\n")[2].partition("\n\nA plugin is")[0]
    return f"```text\n{inspect.cleandoc(diagram)}\n```"


def outcome() -> str:
    """The fields of a StepOutcome."""
    fields = inspect.cleandoc(StepOutcome.__doc__ or "").partition("\n\n")[2]
    return f"```text\n{fields}\n```"


PARTS: dict[str, Callable[[], str]] = {
    "outcome": outcome,
    "run": lambda: settings_table(schema.RunSettings),
    "optimizer": lambda: settings_table(schema.OptimizerSettings),
    "groups": lambda: settings_table(schema.GroupSettings),
    "schedule": lambda: settings_table(schema.ScheduleSettings),
    "ema": lambda: settings_table(schema.EmaSettings),
    "best": lambda: settings_table(schema.BestSettings),
    "parallel": lambda: settings_table(schema.ParallelSettings),
    "mixture": lambda: settings_table(schema.MixtureSettings),
    "tune": lambda: settings_table(tuning.TuneSettings),
    "range": lambda: settings_table(tuning.RangeSettings),
    "objective": lambda: settings_table(tuning.ObjectiveSettings),
    "stage": lambda: settings_table(tuning.StageSettings),
    "compile": lambda: settings_table(schema.CompileSettings),
    "limit_batches": lambda: settings_table(schema.LimitSettings),
    "init_from": lambda: settings_table(schema.InitSettings),
    "decay": lambda: settings_table(schedules.DecaySettings),
    "early_stopping": lambda: settings_table(callback_settings.EarlyStoppingSettings),
    "early_exit": lambda: settings_table(callback_settings.EarlyExitSettings),
    "progress_bar": lambda: settings_table(callback_settings.ProgressBarSettings),
    "tensorboard": lambda: settings_table(callback_settings.TensorBoardSettings),
    "profiler": lambda: settings_table(callback_settings.ProfilerSettings),
    "map": map_of_a_run,
    "hooks": hook_reference,
}


def filled_in(text: str) -> str:
    """The page with every generated part as the code has it now."""

    def part(match: re.Match[str]) -> str:
        name = match["name"]
        return f"<!-- begin {name} -->\n{PARTS[name]()}\n<!-- end {name} -->"

    return re.sub(
        r"<!-- begin (?P<name>\w+) -->.*?<!-- end (?P=name) -->", part, text, flags=re.DOTALL
    )


def main() -> int:
    """Fill in every page, or say which pages are not as the code has it."""
    stale = []
    for page in sorted(DOCS.glob("*.md")):
        text = page.read_text(encoding="utf-8")
        if (new := filled_in(text)) != text:
            stale.append(page.name)
            if "--check" not in sys.argv:
                page.write_text(new, encoding="utf-8")
    if stale and "--check" in sys.argv:
        print(f"not as the code has it: {', '.join(stale)}; run: python docs/make.py")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
