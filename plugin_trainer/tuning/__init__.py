"""Searching for settings with Optuna: many runs of one run file, each with values of its own.

ranges, checking   what is searched, and whether it can be
objectives         what a trial is worth, from its evaluations
storage            Optuna's database, and errors that tell no password
studies            a study read back: its stages, trials and winner; without torch
beginning          a study made, or gone on with if nothing about it has changed
claims             who works on which trial, and whose worker is gone
trial, worker      one trial as a run; one process that takes trial after trial
search             all stages, all workers, signals
telling            what is printed

Optuna is imported only when a study is opened. It is the extra `tune`.
"""
