"""Who gets a trial: whatever other workers do between the look at a trial and the claim."""

from __future__ import annotations

import socket

import optuna
import pytest

from plugin_trainer.tuning.claims import WORKER, Claims, Place

from .studies_made import make_study, trial


@pytest.mark.parametrize("left", ["no more", "one"])
def test_a_trial_that_its_worker_ends_at_that_moment_is_passed_over(here, monkeypatch, left):
    folder = make_study("s", [trial(state="waiting")] if left == "one" else [])
    url = f"sqlite:///{folder}/study.db"
    study = optuna.load_study(study_name="s", storage=url)
    study.enqueue_trial({})
    ended = study.get_trials()[-1]
    place = Place.make(folder)
    worker = {"place": place.id, "copy": 0, "host": socket.gethostname(), "process": 1, "token": ""}
    study._storage.set_trial_system_attr(ended._trial_id, WORKER, worker)
    study._storage.set_trial_state_values(ended._trial_id, optuna.trial.TrialState.RUNNING)
    claims = Claims(study, place, folder, url=url, prepare=lambda trial: None)
    look = claims._tries

    def meanwhile(chosen, run_folder):
        if chosen.number == ended.number:
            study.tell(ended.number, 1.0)
        return look(chosen, run_folder)

    monkeypatch.setattr(claims, "_tries", meanwhile)
    claim = claims.next(total=10)
    assert study.get_trials()[ended.number].state.name == "COMPLETE"
    if left == "no more":
        assert claim is None
    else:
        with claim:
            assert claim.number != ended.number
