"""A few steps of a real run are recorded: traces that load, tables that name the operators."""

from __future__ import annotations

import gzip
import json
import re
import sys
import warnings
from pathlib import Path

import pytest
import torch
from torch.profiler import ProfilerActivity

from plugin_trainer.callbacks.hooks import ptrain_callbacks
from plugin_trainer.callbacks.profiler import Profiler, _short, _table
from plugin_trainer.callbacks.settings import ProfilerSettings
from plugin_trainer.errors import PtrainError, SettingsError, TrainingFailed
from plugin_trainer.ops import library
from tests import forkserver

QUIET = ("-progress_bar", "-tensorboard")
HEADER = ("calls", "CPU", "ms", "CPU", "%")


@pytest.fixture
def profiled(fit, tmp_path):
    """A run of 12 steps without evaluations that records steps 3 and 4, unless told otherwise."""

    def run(*, callbacks=(), profiler=(), **settings):
        small = {"skip_first": 1, "wait": 0, "warmup": 1, "active": 2, **dict(profiler)}
        return fit(
            callbacks=[*QUIET, "profiler", *callbacks],
            callback_settings={"profiler": small},
            **{"length": "12 steps", "validation": None, "save": "100 steps", **settings},
        )

    return run


@pytest.fixture
def files(tmp_path):
    """The names of the files that the profiler wrote."""

    def names(out="run"):
        return sorted(path.name for path in (tmp_path / out / "profiler").iterdir())

    return names


@pytest.fixture
def trace(tmp_path):
    """A trace: how often each operator is in it, and the numbers of its ProfilerSteps."""

    def read(step, *, out="run"):
        path = tmp_path / out / "profiler" / f"step-{step:08d}.trace.json"
        return events_of(json.loads(path.read_text(encoding="utf-8")))

    return read


def events_of(loaded):
    names = [event.get("name", "") for event in loaded["traceEvents"]]
    steps = {int(name.partition("#")[2]) for name in names if name.startswith("ProfilerStep#")}
    return names, sorted(steps)


class After:
    """Does something once a step is done."""

    def __init__(self, step, what):
        self.step = step
        self.what = what

    def ptrain_step_end(self, run):
        if run.progress.step == self.step:
            self.what(run)


def fail(run):
    raise ValueError("broken")


def test_a_window_is_a_trace_of_those_steps_and_a_table(profiled, files, trace, tmp_path):
    profiled(profiler={"rows": 200})
    assert files() == ["step-00000004.trace.json", "step-00000004.txt"]
    names, steps = trace(4)
    assert steps == [3, 4]
    assert names.count("aten::linear") == names.count("aten::addmm") == 2
    optimizer = "FusedAdamW" if library.find() is not None else "AdamW"
    assert names.count(f"Optimizer.step#{optimizer}.step") == 2
    table = (tmp_path / "run/profiler/step-00000004.txt").read_text()
    assert table.startswith("steps 3 to 4, by self_cpu_time_total\n")
    assert "aten::addmm" in table and "AddmmBackward0" in table
    assert "Self CPU time total" in table  # torch's own table


def test_left_alone_it_records_steps_14_to_16(fit, files, trace):
    fit(callbacks=[*QUIET, "profiler"], length="20 steps", validation=None)
    assert files() == ["step-00000016.trace.json", "step-00000016.txt"]
    assert trace(16)[1] == [14, 15, 16]


def test_every_cycle_writes_a_window_of_its_own(profiled, files, trace):
    profiled(profiler={"repeat": 2})
    assert [name for name in files() if name.endswith(".json")] == [
        "step-00000004.trace.json",
        "step-00000007.trace.json",
    ]
    assert trace(4)[1] == [3, 4] and trace(7)[1] == [6, 7]


def test_repeat_0_goes_on_to_the_end_of_the_run(profiled, trace, files):
    profiled(profiler={"repeat": 0, "skip_first": 0, "warmup": 0, "active": 4}, length="10 steps")
    assert len(files()) == 6
    assert [trace(step)[1] for step in (4, 8, 10)] == [[1, 2, 3, 4], [5, 6, 7, 8], [9, 10]]


def test_each_step_is_told_to_torch_once_and_none_after_the_last_window(profiled, monkeypatch):
    told = []
    step = torch.profiler.profile.step
    monkeypatch.setattr(
        torch.profiler.profile, "step", lambda self: (told.append(self.step_num), step(self))
    )
    profiled()
    assert told == [1, 2, 3]  # and what ends step 4 is the stop


def test_after_the_last_window_nothing_of_it_is_kept(fit):
    callback = Profiler(ProfilerSettings(skip_first=1, wait=0, warmup=1, active=2))
    kept = []
    look = [After(step, lambda run: kept.append(callback._profiler)) for step in (3, 4, 5)]
    fit(callbacks=[*QUIET, callback, *look])
    assert [profiler is None for profiler in kept] == [False, True, True]


def test_the_report_says_where_the_files_are_and_what_took_the_time(profiled, tmp_path):
    report = profiled(profiler={"repeat": 2}).reports["profiler"].splitlines()
    assert report[0] == "steps 6 to 7, by self_cpu_time_total"
    assert report[1].split() == ["operator", "(its", "own", "time,", "memory)", *HEADER]
    operators, own = report[2:7], report[7]
    times = [float(row[40:50]) for row in operators]
    assert times == sorted(times, reverse=True) and times[-1] > 0
    assert own.startswith("in no operator") and "in no operator" not in str(operators)
    folder = tmp_path / "run" / "profiler"
    assert str(folder / "step-00000007.txt") in report
    assert str(folder / "step-00000007.trace.json") in report
    assert report[-1] == "2 windows were written, this one last"


def test_a_run_that_ends_before_the_first_window_says_so(fit, files):
    report = fit(callbacks=[*QUIET, "profiler"], length="6 steps").reports["profiler"]
    assert report.startswith("nothing was recorded: the first window is at step 14, and the run en")
    assert files() == []


def test_the_table_for_a_terminal_has_80_columns(profiled, tmp_path):
    profiled(profiler={"memory": True})
    table = (tmp_path / "run/profiler/step-00000004.txt").read_text()
    narrow = table.partition("\n----")[0].splitlines()
    assert len(narrow) > 20 and max(map(len, narrow)) <= 80


def test_on_a_device_the_table_has_its_time_too_and_leaves_the_kernels_out():
    class Event:
        def __init__(self, key, device_type, device_us):
            self.key = key
            self.device_type = device_type
            self.count = 123_456
            self.self_cpu_time_total = 1e6
            self.self_device_time_total = device_us
            self.self_device_memory_usage = 2**35

    host, device = torch.autograd.DeviceType.CPU, torch.autograd.DeviceType.CUDA
    operators = [Event("aten::mm", host, 1e6), Event("aten::a_rather_long_name_it_is", host, 3e6)]
    kernels = [Event("ampere_sgemm", device, 4e6)]
    text = _table([*operators, *kernels], order="self_device_time_total", rows=9, memory=True)
    header, *rows = text.splitlines()
    assert header.endswith("calls    CPU ms CPU % device ms     %      MiB")
    assert [row.split()[0] for row in rows] == ["aten::a_rather_long_name_it_is", "aten::mm"]
    assert rows[1].split()[1:] == ["123456", "1000.000", "50.0", "1000.000", "25.0", "32768.00"]


def test_long_names_of_operators_can_still_be_told_apart():
    forward = "aten::_scaled_dot_product_flash_attention_for_cpu"
    short = [_short(name) for name in (forward, f"{forward}_backward")]
    assert short == ["aten::_scale...attention_for_cpu", "aten::_scale..._for_cpu_backward"]


def test_memory_is_recorded_where_asked_for(profiled, tmp_path, trace):
    profiled(profiler={"memory": True, "sort_by": "self_cpu_memory_usage"})
    text = (tmp_path / "run/profiler/step-00000004.txt").read_text()
    assert float(re.search(r"^peak memory of the process: ([\d.]+) MiB$", text, re.M)[1]) > 50
    assert "MiB" in text and "Self CPU Mem" in text and "by self_cpu_memory_usage" in text
    assert "[memory]" in trace(4)[0]


def test_shapes_are_recorded_where_asked_for(profiled, tmp_path):
    profiled(profiler={"record_shapes": True})
    assert (
        "[[2], [4, 4], [4, 2], [], []]" in (tmp_path / "run/profiler/step-00000004.txt").read_text()
    )  # the shapes of aten::addmm


def test_stacks_are_recorded_where_asked_for(profiled, trace):
    profiled(profiler={"with_stack": True})
    assert any("training/step.py" in name for name in trace(4)[0])


def test_a_name_that_torch_lost_costs_the_table_and_not_the_trace(profiled, files, monkeypatch):
    lost = UnicodeDecodeError("utf-8", b"\xb8", 0, 1, "invalid start byte")
    monkeypatch.setattr(torch.profiler.profile, "key_averages", raises(lost))
    report = profiled(profiler={"with_stack": True}).reports["profiler"]
    assert report.startswith("steps 3 to 4: no table, for torch lost a function's name")
    assert files() == ["step-00000004.trace.json", "step-00000004.txt"]


def test_a_trace_can_be_compressed(profiled, files, tmp_path):
    profiled(profiler={"compress": True})
    assert files() == ["step-00000004.trace.json.gz", "step-00000004.txt"]
    with gzip.open(tmp_path / "run/profiler/step-00000004.trace.json.gz", "rt") as file:
        assert events_of(json.load(file))[1] == [3, 4]


def test_rows_folder_and_order_can_be_chosen(profiled, tmp_path):
    profiled(profiler={"rows": 2, "folder": "deep/er", "sort_by": "count"})
    text = (tmp_path / "run/deep/er/step-00000004.txt").read_text()
    table = text.partition("\n\n")[2].partition("\n\n")[0]
    assert text.startswith("steps 3 to 4, by count") and len(table.splitlines()) == 4


def test_time_on_a_device_is_time_on_the_host_where_there_is_none(profiled, tmp_path):
    profiled(profiler={"sort_by": "device_time_total"})
    text = (tmp_path / "run/profiler/step-00000004.txt").read_text()
    assert text.startswith("steps 3 to 4, by cpu_time_total")


# --------------------------------------------------------------------------- how a run may end


def test_a_run_stopped_in_a_window_leaves_what_was_recorded(profiled, trace, files):
    stop = After(3, lambda run: run.request_stop("enough"))
    result = profiled(callbacks=[stop], profiler={"active": 5})
    assert result.status == "stopped early" and "step 3, by" in result.reports["profiler"]
    assert files() == ["step-00000003.trace.json", "step-00000003.txt"]
    assert 3 in trace(3)[1]


def test_a_run_that_fails_in_a_window_leaves_what_was_recorded(profiled, trace, files):
    class Fails:
        def ptrain_forward(self, run):
            if run.progress.step == 4:
                torch.ones(2).cosh()
                fail(run)

    with pytest.raises(TrainingFailed, match="broken"):
        profiled(callbacks=[Fails()], profiler={"active": 5})
    assert files() == ["step-00000005.trace.json", "step-00000005.txt"]
    names, steps = trace(5)
    assert steps == [3, 4, 5] and "aten::cosh" in names
    assert not torch.autograd._profiler_enabled()


@pytest.mark.parametrize("step", [1, 8])
def test_a_run_that_fails_outside_a_window_leaves_nothing_running(profiled, files, step):
    with pytest.raises(TrainingFailed):
        profiled(callbacks=[After(step, fail)])
    assert len(files()) == (2 if step == 8 else 0)
    assert not torch.autograd._profiler_enabled()


def test_a_run_that_fails_is_reported_as_it_failed_though_the_trace_cannot_be_written(
    profiled, tmp_path, monkeypatch
):
    monkeypatch.setattr(torch.profiler.profile, "export_chrome_trace", raises(OSError("full")))
    with (
        pytest.raises(TrainingFailed, match="broken"),
        pytest.warns(UserWarning, match="could not be written: OSError: full"),
    ):
        profiled(callbacks=[After(3, fail)])
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "failed"


def test_ending_twice_is_ending_once(fit, files):
    callback = Profiler(ProfilerSettings(skip_first=1, wait=0, warmup=1, active=9))

    class Again:
        def ptrain_run_end(self, run, result):
            callback.ptrain_run_failed(run, ValueError())
            callback.ptrain_run_end(run, result)

    fit(callbacks=[*QUIET, callback, Again()], validation=None)
    assert len(files()) == 2


def test_a_resumed_run_goes_on_and_overwrites_nothing(profiled, files, trace):
    stop = After(6, lambda run: run.interrupt("Ctrl-C", signal=2))
    profiled(callbacks=[stop])
    profiled(resume="auto")
    assert [name for name in files() if name.endswith(".json")] == [
        "step-00000004.trace.json",
        "step-00000010.trace.json",
    ]
    assert trace(10)[1] == [9, 10]


def test_a_step_made_and_recorded_again_gets_a_file_of_its_own(profiled, files, tmp_path):
    folder = tmp_path / "made" / "profiler"
    folder.mkdir(parents=True)
    (folder / "step-00000004.trace.json").write_text("from before")
    profiled(profiler={"folder": str(folder)})
    assert files("made") == [
        "step-00000004-2.trace.json",
        "step-00000004-2.txt",
        "step-00000004.trace.json",
    ]
    assert (folder / "step-00000004.trace.json").read_text() == "from before"


# --------------------------------------------------------------------------------- evaluations


def test_of_an_evaluation_in_a_window_only_the_first_batch_is_recorded(profiled, trace, rows):
    kinds = []

    class Mark:
        def ptrain_evaluation_batch_end(self, run):
            kinds.append(torch.autograd._profiler_enabled())

    profiled(
        callbacks=[Mark()], profiler={"active": 4}, validation=rows, evaluate="4 steps",
    )  # fmt: skip
    assert kinds[:3] == [False] * 3  # the callback of the profiler comes first
    before, after = trace(4), trace(6)
    assert 3 in before[1] and 4 in before[1] and after[1] == [5, 6]
    # Two training steps and one batch of three; then two training steps.
    assert (before[0].count("aten::addmm"), after[0].count("aten::addmm")) == (3, 2)


@pytest.fixture
def rows():
    """Three batches to evaluate on."""
    from torch.utils.data import DataLoader, TensorDataset

    return DataLoader(TensorDataset(torch.randn(12, 4), torch.ones(12).long()), batch_size=4)


@pytest.mark.parametrize("repeat", [0, 9])
def test_the_evaluation_that_ends_a_run_is_no_part_of_a_window(profiled, trace, rows, repeat):
    profiled(profiler={"repeat": repeat}, validation=rows, evaluate="never", length="6 steps")
    names, steps = trace(6)
    assert steps == [6] and names.count("aten::addmm") == 1


def test_an_evaluation_that_fails_in_a_window_leaves_the_steps_before_it(
    profiled, files, rows, capfd
):
    class Fails:
        def ptrain_evaluation_batch_end(self, run):
            fail(run)

    with pytest.raises(TrainingFailed):
        profiled(callbacks=[Fails()], validation=rows, evaluate="3 steps")
    assert files() == ["step-00000003.trace.json", "step-00000003.txt"]
    assert capfd.readouterr().err == ""  # torch says there if it is stopped twice


# ------------------------------------------------------------------------------- what it costs


def test_training_is_the_same_to_the_last_bit_with_it_and_without(profiled, fit, tmp_path, rows):
    settings = {"length": "12 steps", "evaluate": "4 steps", "validation": rows}
    every = {"memory": True, "record_shapes": True, "with_stack": True, "repeat": 0}
    with_it = profiled(profiler=every, **settings)
    without = fit(callbacks=QUIET, out="without", **settings)
    for name, weight in with_it.model.state_dict().items():
        assert torch.equal(weight, without.model.state_dict()[name])
    assert losses(tmp_path / "run") == losses(tmp_path / "without")


def losses(folder):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    known = ("train/loss", "val/loss", "train/grad_norm")
    return [[json.loads(line).get(name) for name in known] for line in lines]


IMPORTS = """
import sys, torch, plugin_trainer
from torch.utils.data import TensorDataset

data = TensorDataset(torch.randn(8, 4), torch.ones(8).long())
for callbacks in ([], ["profiler"]):
    plugin_trainer.fit(
        torch.nn.Linear(4, 2), data, loss=torch.nn.functional.cross_entropy, length="1 epoch",
        callbacks=["-progress_bar", "-tensorboard", *callbacks], out=f"run {len(callbacks)}",
    )
    print("plugin_trainer.callbacks.profiler" in sys.modules)
"""


@pytest.mark.process
def test_a_run_without_it_does_not_import_it(tmp_path):
    done = forkserver.run(
        [sys.executable, "-c", IMPORTS], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.stdout.split() == ["False", "True"], done.stderr


def test_it_is_offered_and_no_part_of_a_run_that_does_not_ask():
    (offer,) = [spec for spec in ptrain_callbacks() if spec.name == "profiler"]
    assert not offer.default


def test_it_prints_nothing_and_warns_of_nothing(profiled, capfd):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        profiled(profiler={"repeat": 0, "warmup": 0})
    assert capfd.readouterr() == ("", "")


# ---------------------------------------------------------------------------- what can go wrong


def raises(error):
    def call(*args, **kwargs):
        raise error

    return call


def test_another_profiler_around_the_run_stops_it_before_its_first_step(profiled):
    with (
        torch.profiler.profile(activities=[ProfilerActivity.CPU]) as other,
        pytest.raises(PtrainError, match="another profiler is active in this process") as caught,
    ):
        profiled()
    assert caught.value.hint[0].startswith("end that one first")
    other.key_averages()  # it is whole


def test_another_profiler_that_comes_later_switches_this_one_off_and_stays_whole(profiled, files):
    other = torch.profiler.profile(activities=[ProfilerActivity.CPU])
    start, stop = After(1, lambda run: other.start()), After(8, lambda run: other.stop())
    with pytest.warns(UserWarning, match="another profiler is active in this process"):
        result = profiled(callbacks=[start, stop], profiler={"skip_first": 3})
    assert result.status == "finished" and files() == []
    assert "another profiler is active" in result.reports["profiler"]
    (addmm,) = [event for event in other.key_averages() if event.key == "aten::addmm"]
    assert addmm.count == 7


def test_a_run_that_ends_while_another_profiler_is_active_leaves_that_one_whole(profiled):
    other = torch.profiler.profile(activities=[ProfilerActivity.CPU])

    def begin(run):
        other.start()
        run.request_stop("enough")

    profiled(callbacks=[After(1, begin)])
    torch.ones(2).cosh()
    other.stop()
    assert "aten::cosh" in {event.key for event in other.key_averages()}


def test_a_folder_that_cannot_be_written_stops_the_run_before_its_first_step(profiled, tmp_path):
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(PtrainError, match="the profiler cannot write to") as caught:
        profiled(profiler={"folder": str(tmp_path / "taken")})
    assert caught.value.hint[0] == "choose another with callback_settings.profiler.folder"


def test_a_trace_that_cannot_be_written_costs_the_profile_and_not_the_run(profiled, files):
    import shutil

    remove = After(3, lambda run: shutil.rmtree(run.folder / "profiler"))
    with pytest.warns(UserWarning, match="the profile of steps 3 to 4 could not be written"):
        result = profiled(callbacks=[remove], profiler={"repeat": 0})
    assert result.status == "finished" and result.step == 12
    assert "could not be written: FileNotFoundError" in result.reports["profiler"]


def test_a_trace_that_is_cut_short_is_noticed(profiled, monkeypatch):
    export = torch.profiler.profile.export_chrome_trace

    def cut(self, path):
        export(self, path)
        whole = Path(path).read_bytes()
        Path(path).write_bytes(whole[: len(whole) // 2])

    monkeypatch.setattr(torch.profiler.profile, "export_chrome_trace", cut)
    with pytest.warns(UserWarning, match="is cut short; is the disk full"):
        profiled()


@pytest.mark.parametrize(
    "wrong",
    [
        {"skip_first": -1},
        {"wait": -1},
        {"warmup": -1},
        {"active": 0},
        {"repeat": -1},
        {"rows": 0},
        {"sort_by": "self_cpu_time"},
        {"sort_by": "self_cpu_memory_usage"},
        {"actve": 1},
    ],
)
def test_settings_out_of_range_are_refused(profiled, wrong):
    with pytest.raises(SettingsError):
        profiled(profiler=wrong)


def test_the_callback_may_be_given_as_an_object(fit, tmp_path):
    settings = ProfilerSettings(skip_first=0, wait=0, warmup=0, active=1)
    result = fit(callbacks=[*QUIET, Profiler(settings)], length="2 steps")
    assert result.reports["profiler"].startswith("step 1, by")
