"""Workers killed, stopped and interrupted in mid-trial: who goes on with what, and from where."""

from __future__ import annotations

import itertools
import signal
import sqlite3
import subprocess
import time
from collections import Counter
from pathlib import Path

import pytest

from plugin_trainer.files import read_json
from plugin_trainer.tuning.studies import open_study

pytestmark = [pytest.mark.slow, pytest.mark.process]


def wait_for(file: Path, process: subprocess.Popen[str]) -> None:
    while not file.exists():
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.05)


def gaps(here, name: str) -> list[tuple[int, int]]:
    """Where in a run folder the next step made was not the one after, as (step, next step)."""
    steps = here.steps_of(name)
    return [(one, other) for one, other in itertools.pairwise(steps) if other != one + 1]


def test_a_killed_trial_goes_on_from_its_checkpoint_with_its_own_parameters(here):
    assert here.tune("run.toml", "--study", "s", "--trials", "1") == 0
    process = here.start("--study", "s", "--trials", "3", BOWL_KILL="0001:5")
    assert process.wait() == -signal.SIGKILL
    killed = open_study("s").stages[0].trials[1]
    assert killed.state == "killed"
    assert [*killed.reports] == [1, 2]
    assert here.tune("--study", "s") == 0
    [stage] = open_study("s").stages
    assert [trial.state for trial in stage.trials] == ["finished"] * 3
    assert stage.trials[1].params == killed.params
    # Step 5 was made, but not kept: the checkpoint is that of step 4.
    assert here.steps_of("0001") == [1, 2, 3, 4, 5, 5, 6]
    assert [*stage.trials[1].reports] == [1, 2, 3]
    assert {**stage.trials[1].reports, **killed.reports} == stage.trials[1].reports


def test_workers_that_are_killed_leave_their_trials_to_those_that_take_their_places(here):
    kills = ["0000:3", "0001:3"]
    process = here.start(
        "run.toml", "--study", "s", "--trials", "4", "--workers", "2", BOWL_KILL=",".join(kills)
    )
    told, _ = process.communicate()
    assert process.returncode == 0, told
    assert "a worker was killed by SIGKILL" in told
    [stage] = open_study("s").stages
    assert [trial.state for trial in stage.trials] == ["finished"] * 4, told
    # Nobody began a trial that another had begun, and only the killed ones made a step again.
    killed = [kill.partition(":")[0] for kill in kills]
    for name in ("0000", "0001", "0002", "0003"):
        assert gaps(here, name) == ([(3, 3)] if name in killed else [])
        processes = {pid for folder, _, pid in here.diary() if folder == name}
        assert len(processes) == (2 if name in killed else 1)
    assert len({pid for _, _, pid in here.diary()}) >= 2


def test_an_interrupted_study_stops_all_workers_with_a_checkpoint_each(here):
    process = here.start(
        "run.toml", "--study", "s", "--trials", "3", "--workers", "2", BOWL_WAIT="0000:3,0001:3"
    )
    for mark in ("WAIT-0000:3", "WAIT-0001:3"):
        wait_for(here.folder / mark, process)
    process.send_signal(signal.SIGINT)
    told, _ = process.communicate()
    assert process.returncode == 130, told
    assert "Traceback" not in told
    assert "go on with it:   ptrain tune --study s" in told
    states = Counter(trial.state for trial in open_study("s").stages[0].trials)
    assert states == {"killed": 2, "waiting": 1}
    for name in ("0000", "0001"):
        about = read_json(here.folder / "studies/s/trials" / name / "run.json")
        assert (about["status"], about["step"]) == ("interrupted", 3)
    assert here.tune("--study", "s") == 0
    assert [trial.state for trial in open_study("s").stages[0].trials] == ["finished"] * 3
    for trial in range(3):
        assert here.steps_of(f"{trial:04}") == [1, 2, 3, 4, 5, 6]


def test_workers_end_when_the_process_that_started_them_is_killed(here):
    process = here.start(
        "run.toml", "--study", "s", "--trials", "2", "--workers", "2", BOWL_WAIT="0000:3,0001:3"
    )
    for mark in ("WAIT-0000:3", "WAIT-0001:3"):
        wait_for(here.folder / mark, process)
    process.kill()
    told, _ = process.communicate()  # to the end of the last that writes there
    assert "interrupted after step 3" in told
    assert here.steps_of("0000") == here.steps_of("0001") == [1, 2, 3]


def test_a_study_joined_from_another_process_makes_no_trial_twice(here):
    first = here.start("run.toml", "--study", "s", "--trials", "4", BOWL_WAIT="0000:1")
    wait_for(here.folder / "WAIT-0000:1", first)
    assert here.tune("run.toml", "--study", "s") == 0  # does all but the one that waits
    states = [trial.state for trial in open_study("s").stages[0].trials]
    assert states == ["running", "finished", "finished", "finished"]
    (here.folder / "go").touch()
    told, _ = first.communicate()
    assert first.returncode == 0, told
    [stage] = open_study("s").stages
    assert [trial.state for trial in stage.trials] == ["finished"] * 4
    assert Counter(here.steps_of("0000")) == Counter(range(1, 7))
    assert len(here.diary()) == 24


def test_a_worker_that_hangs_loses_its_trial_and_notices_when_it_comes_back(here):
    silent = ["--set", "tune.heartbeat=1"]
    hanging = here.start("run.toml", "--study", "s", "--trials", "2", *silent, BOWL_STOP="0000:3")
    wait_for(here.folder / "STOP-0000:3", hanging)
    deadline = time.time() + 60
    while open_study("s").stages[0].trials[0].state != "killed":
        assert time.time() < deadline
        time.sleep(0.2)
    params = open_study("s").stages[0].trials[0].params
    other = here.start("--study", "s")
    told, _ = other.communicate()
    assert other.returncode == 0, told
    # It goes on in a copy of the run folder, from the checkpoint of step 2.
    assert here.steps_of("0000-2") == [3, 4, 5, 6]
    hanging.send_signal(signal.SIGCONT)
    late, _ = hanging.communicate()
    assert hanging.returncode == 0, late
    assert "trial 0 was taken over by another worker" in late
    [stage] = open_study("s").stages
    assert [trial.state for trial in stage.trials] == ["finished"] * 2
    assert stage.trials[0].params == params
    assert stage.trials[0].folder.name == "0000-2"
    assert len(stage.trials[0].reports) == 3


def test_a_trial_that_kills_its_process_every_time_fails_in_the_end(here):
    kills = [here.start("run.toml", "--study", "s", "--trials", "2", BOWL_KILL="0000:1")]
    assert kills[0].wait() == -signal.SIGKILL
    for _ in range(2):
        (here.folder / "KILL-0000:1").unlink()
        process = here.start("--study", "s", BOWL_KILL="0000:1")
        assert process.wait() == -signal.SIGKILL
    assert here.tune("--study", "s") == 0
    first, second = open_study("s").stages[0].trials
    assert first.state == "failed"
    assert "killed 3 times after step 0" in first.reason
    assert second.state == "finished"


def test_a_run_that_ended_before_its_word_to_optuna_is_not_trained_again(here):
    # Killed between the end of the run and the end of the trial.
    text = (here.folder / "bowl.py").read_text() + killing_run_end()
    here.write("bowl.py", text)
    process = here.start("run.toml", "--study", "s", "--trials", "1", BOWL_END="kill")
    assert process.wait() == -signal.SIGKILL
    assert open_study("s").stages[0].trials[0].state == "killed"
    assert here.tune("--study", "s") == 0
    [trial] = open_study("s").stages[0].trials
    assert (trial.state, trial.steps, len(trial.reports)) == ("finished", 6, 3)
    assert trial.values[0] == min(trial.reports.values())
    assert here.steps_of("0000") == [1, 2, 3, 4, 5, 6]


def test_a_run_whose_end_is_written_down_is_only_told_to_optuna(here):
    assert here.tune("run.toml", "--study", "s", "--trials", "1") == 0
    [trial] = open_study("s").stages[0].trials
    # As it was between the run's last word and the trial's.
    with sqlite3.connect("studies/s/study.db") as database:
        database.execute("update trials set state = 'RUNNING', datetime_complete = null")
        database.execute("delete from trial_values")
    assert open_study("s").stages[0].trials[0].state == "killed"
    assert here.tune("--study", "s") == 0
    [again] = open_study("s").stages[0].trials
    assert (again.state, again.values, again.steps) == ("finished", trial.values, 6)
    assert len(here.diary()) == 6


def killing_run_end() -> str:
    return (
        "\n\ndef ptrain_run_end(run, result):\n"
        "    if os.environ.get('BOWL_END') == 'kill':\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
    )


def test_trials_of_a_folder_that_is_not_here_are_left_to_those_who_have_it(here, capsys):
    url = f"sqlite:///{here.folder}/shared.db"
    quick = ["--storage", url, "--set", "tune.heartbeat=1"]
    process = here.start("run.toml", "--study", "s", "--trials", "2", *quick, BOWL_KILL="0000:3")
    assert process.wait() == -signal.SIGKILL
    (here.folder / "studies").rename(here.folder / "of another machine")
    time.sleep(2.5)
    assert here.tune("run.toml", "--study", "s", *quick) == 2
    told = capsys.readouterr().err
    assert "the worker of trial 0 is gone, and its run folder is not here" in told
    states = [trial.state for trial in open_study("s", storage=url).stages[0].trials]
    assert states == ["killed", "finished"]
    assert here.tune("--study", "s", "--storage", url, "--restart-lost") == 0
    states = [trial.state for trial in open_study("s", storage=url).stages[0].trials]
    assert states == ["finished"] * 2
    assert here.steps_of("0000") == [1, 2, 3, 1, 2, 3, 4, 5, 6]
