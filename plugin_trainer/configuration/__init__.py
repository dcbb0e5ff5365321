"""From what was typed to a run whose parts are all named and settings all checked; no torch yet.

plugins_named    the tables -> the plugins that they name, as far as these can be used
sources          recipe, run file, --set -> one table, and the catalog of those plugins
draft            the table, the catalog, and what is found wrong with them
choosing         what is named -> the offer, with its settings; torch_schedules and callbacks beside
checking         all of it -> a Configuration, or every mistake at once
unfinished       what can be told of a run that is not complete or not right
"""

from plugin_trainer.configuration.checking import configure
from plugin_trainer.configuration.chosen import Choice, Configuration
from plugin_trainer.configuration.problems import in_one_line, in_order, problem_at
from plugin_trainer.configuration.sources import read_recipe, read_run_file
from plugin_trainer.configuration.torch_schedules import torch_schedules
from plugin_trainer.configuration.unfinished import callbacks_in, open_to_explain, used_unasked

__all__ = [
    "Choice",
    "Configuration",
    "callbacks_in",
    "configure",
    "in_one_line",
    "in_order",
    "open_to_explain",
    "problem_at",
    "read_recipe",
    "read_run_file",
    "torch_schedules",
    "used_unasked",
]
