"""From a checked configuration to a run that can be trained: the one place that knows every
part.
"""

from __future__ import annotations

import shutil
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler

from plugin_trainer.cadence import Span, recurrence, whole_steps
from plugin_trainer.configuration import Choice, Configuration
from plugin_trainer.configuration.admission import code_named
from plugin_trainer.data.content import content_of
from plugin_trainer.data.evaluated import METHODS, evaluation_loaders, given_by
from plugin_trainer.data.mixing import Mixing
from plugin_trainer.data.order import derive_seed
from plugin_trainer.data.seeds import seed_everything
from plugin_trainer.data.sources import ROWS, check_batch_size
from plugin_trainer.data.stream import TrainStream, training_stream
from plugin_trainer.errors import (
    Problem,
    PtrainError,
    ResumeError,
    RunFolderError,
    SettingsError,
)
from plugin_trainer.files import os_errors
from plugin_trainer.ownership import key_file, signature
from plugin_trainer.registry.blame import SEE_DEBUG, hint_for
from plugin_trainer.registry.building import build, import_target
from plugin_trainer.run_assets import seal, sound_assets
from plugin_trainer.run_folder import RUNS, RunFolder, is_run, new_folder
from plugin_trainer.settings import BestSettings, RunSettings
from plugin_trainer.settings.render import to_toml
from plugin_trainer.training import step as engine
from plugin_trainer.training.checkpointing.best import Best
from plugin_trainer.training.checkpointing.store import CheckpointStore
from plugin_trainer.training.distributed.buffers import same_weights
from plugin_trainer.training.distributed.init import join
from plugin_trainer.training.distributed.read_only import SeenFolder, SeenStore
from plugin_trainer.training.distributed.sharding import LocalShards, is_sharded
from plugin_trainer.training.distributed.strategies import (
    differing_from_one_process,
    make_together,
    split_over,
)
from plugin_trainer.training.distributed.world import ALONE, World
from plugin_trainer.training.hooks import RunHooks
from plugin_trainer.training.metrics.evaluation_metrics import check_metrics
from plugin_trainer.training.metrics.task_shares import TaskShares
from plugin_trainer.training.model.criterion import Criterion, build_criterion
from plugin_trainer.training.model.forward import Forward
from plugin_trainer.training.model.given_model import (
    give_buffers_memory,
    initialize_lazy,
    unwrapped,
)
from plugin_trainer.training.model.model_options import checkpoint_activations, compiled
from plugin_trainer.training.model.model_state import check_saves_what_it_trains
from plugin_trainer.training.optim.ema import Ema
from plugin_trainer.training.optim.guard import build_guard
from plugin_trainer.training.optim.optimizers import build_optimizer, freeze
from plugin_trainer.training.optim.precision import pick_precision
from plugin_trainer.training.optim.schedules import Schedule, falls_at
from plugin_trainer.training.optim.update import build_update
from plugin_trainer.training.run import Cadence, Plan, Run
from plugin_trainer.training.setup.environment import surroundings
from plugin_trainer.training.setup.initial_weights import start_from
from plugin_trainer.training.setup.own_streams import why_inexact
from plugin_trainer.training.setup.resume import (
    Resumption,
    find_resumption,
    has_saved,
    open_folder,
    refuse_overwriting,
)
from plugin_trainer.training.setup.resume_plan import plan_of
from plugin_trainer.training.snapshots import read, restore

Resume = Literal["never", "auto"]


class AlreadyDone(Exception):
    """The run to be resumed has ended by itself; there is nothing left to do."""

    def __init__(self, folder: Path, about: Mapping[str, Any]) -> None:
        super().__init__(str(folder))
        self.folder = folder
        self.about = about


def assemble(
    configuration: Configuration,
    *,
    out: Path | None = None,
    resume: Resume = "never",
    overwrite: bool = False,
    allow: Sequence[str] = (),
    notify: Callable[[str], None] = lambda line: None,
    model: nn.Module | None = None,
    data: Any = None,
    criterion: Criterion | None = None,
    callbacks: Sequence[object] = (),
) -> Run:
    """Build every part of a run and, if it is to be resumed, put its last checkpoint back.

    out        the run folder; left out, one is made under runs/
    resume     "auto" goes on with what the folder holds; "never" refuses a folder that holds a run
    overwrite  delete the run that the folder holds
    allow      settings that may differ from those the run was started with
    notify     is given lines for the user: what was restored, what differs
    model, data, criterion, callbacks   objects made elsewhere, in place of or beside the configured
                                        ones

    The run folder is held when this returns. Raises PtrainError, or AlreadyDone.
    """
    world = join()
    with world.telling():
        folder, disk, resuming = _open(
            configuration, world, out=out, resume=resume, overwrite=overwrite
        )
        try:
            notify = notify if world.is_first else lambda line: None
            run = _build(
                configuration, world=world, disk=disk, resuming=resuming, model=model, data=data,
                criterion=criterion, callbacks=callbacks, notify=notify,
            )  # fmt: skip
            _begin_or_go_on(
                run, configuration, resuming=resuming, overwrite=overwrite, allow=allow,
                notify=notify,
            )  # fmt: skip
            return run
        except BaseException as error:
            if out is None and not configuration.settings.name and not is_run(folder):
                shutil.rmtree(folder, ignore_errors=True)  # made here, nothing was begun in it
            else:
                _keep_traceback(disk, error)
            disk.release()
            raise


def _keep_traceback(disk: RunFolder, error: BaseException) -> None:
    """Put the traceback of what nobody foresaw into the run folder, and say where it is."""
    if isinstance(error, PtrainError) and SEE_DEBUG in error.hint:
        path = disk.add_traceback("".join(traceback.format_exception(error)))
        if path is not None:
            known = [line for line in error.hint if line != SEE_DEBUG]
            error.hint = (*known, f"the traceback is in {path}")


def _open(
    configuration: Configuration,
    world: World,
    *,
    out: Path | None,
    resume: Resume,
    overwrite: bool,
) -> tuple[Path, RunFolder, bool]:
    """The run folder, held by the first process, and whether it holds something to resume."""
    if not world.is_first:
        seen: tuple[Path, bool] = world.from_first(None)
        return seen[0], SeenFolder(seen[0]), seen[1]
    if overwrite and resume == "auto":
        raise ResumeError(
            "a run is either resumed or overwritten",
            hint="give --resume auto or --overwrite, not both",
        )
    folder = _folder(configuration, out=out, named=resume == "auto" or overwrite)
    if overwrite:
        refuse_overwriting(folder)
    disk = open_folder(folder, occupied=resume == "auto" or overwrite)
    try:
        resuming = resume == "auto" and is_run(folder) and has_saved(folder)
        return folder, disk, world.from_first((folder, resuming))[1]
    except BaseException:
        disk.release()
        raise


def _build(
    configuration: Configuration,
    *,
    world: World,
    disk: RunFolder,
    resuming: bool,
    model: nn.Module | None,
    data: Any,
    criterion: Criterion | None,
    callbacks: Sequence[object],
    notify: Callable[[str], None],
) -> Run:
    settings = configuration.settings
    seed_everything(settings.seed)
    device = pick_device(settings.device, world)
    if any(map(is_sharded, model.parameters() if model is not None else ())):
        raise PtrainError(
            "the model is split over processes already, by a run before",
            hint="build it anew, and begin with that run's weights: init_from",
        )
    assets = sound_assets(disk.path) if resuming else None
    data = data if data is not None else build_part(configuration.data, assets=assets)
    if model is None:
        model = build_part(configuration.model, data=data, assets=assets)
    run = _run(
        configuration, world=world, disk=disk, device=device, model=model, data=data,
        criterion=criterion, callbacks=callbacks, notify=notify,
    )  # fmt: skip
    if not world.is_first:  # the weights are alike by now, and what is drawn from here on is not
        seed_everything(derive_seed(settings.seed, "process", world.rank))
    return run


def _begin_or_go_on(
    run: Run,
    configuration: Configuration,
    *,
    resuming: bool,
    overwrite: bool,
    allow: Sequence[str],
    notify: Callable[[str], None],
) -> None:
    world, around, resumption = run.world, {}, None
    if world.is_first:
        around = surroundings(configuration, run)
        if resuming:
            resumption = _resumption(run, configuration, around, allow=allow)
    resumption = world.from_first(resumption)
    if resumption is not None and resumption.done:
        raise AlreadyDone(run.folder, run.disk.read_about())
    with _writing_in(run.folder):
        if resumption is not None:
            _go_on(run, resumption, notify=notify)
        else:
            _begin(run, overwrite=overwrite, notify=notify)
        if world.is_first:
            _write_down(run, configuration, around, resumed=resumption is not None)
            if not run.disk.read_about()["signature"] and any(code_named(configuration.values())):
                notify(
                    f"{key_file()} cannot be written: opening this run later needs --trust, for it "
                    "names code of its own"
                )
    world.gather(None)  # from here on all go on, or none
    run.agree_to_stop()


def _own_device(device: torch.device, world: World) -> torch.device:
    """This process's device of a type. Raises PtrainError if there are not enough of them."""
    if device.index is not None:
        raise PtrainError(
            f"device: of {world.size} processes each takes one of its own, and '{device}' is one",
            hint=f'say device = "{device.type}"; CUDA_VISIBLE_DEVICES chooses among several',
        )
    there = torch.accelerator.device_count()
    if world.local_rank >= there:
        raise PtrainError(
            f"device: this machine has {there} of type {device.type}, fewer than processes",
            hint='start fewer, or train on the CPU: device = "cpu"',
        )
    return torch.device(device.type, world.local_rank)


@contextmanager
def _writing_in(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise RunFolderError(
            f"the run folder {folder} cannot be written: {error.strerror or error}",
            hint="make room there, or choose another with --out",
        ) from error


def _folder(configuration: Configuration, *, out: Path | None, named: bool) -> Path:
    """The run folder.

    named  whether it must have been named
    """
    name = configuration.settings.name
    if out is not None:
        return out
    if name:
        return RUNS / name
    if named:
        raise ResumeError(
            "to resume or overwrite a run, its folder must be named",
            hint="give --out DIR or --set name=NAME",
        )
    offer = configuration.model.offer if configuration.model else None
    return new_folder((offer.owner or offer.spec.name.partition(":")[2]) if offer else "fit")


def build_part(choice: Choice | None, *, assets: Path | None = None, **context: Any) -> Any:
    """The model or the data module: from a run's assets where there are some and it knows how."""
    if choice is None:
        raise PtrainError("the run has no model or no data", hint="pass them to fit")
    if assets is not None:
        target = import_target(choice.offer.spec.target, plugin=choice.offer.owner)
        if hasattr(target, "from_assets"):
            try:
                return target.from_assets(choice.settings, *context.values(), assets)
            except PtrainError:
                raise
            except Exception as error:
                raise RunFolderError(
                    f"{choice.address} cannot be made of {assets}",
                    hint=hint_for(error, target=choice.offer.spec.target),
                ) from error
    return build(choice.offer, choice.settings, **context)


def pick_device(name: str, world: World = ALONE) -> torch.device:
    """The device a name stands for; "auto" is CUDA, then what else torch offers, then the CPU.

    Several processes on a machine take one device each, by their local numbers.

    Raises PtrainError for a device that is not there.
    """
    if name == "auto":
        found = torch.accelerator.current_accelerator(check_available=True)
        if found is None:
            return torch.device("cpu")
        name = found.type if world.size > 1 else f"{found.type}:0"
    try:
        device = torch.device(name)
        if world.size > 1 and device.type != "cpu":
            device = _own_device(device, world)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise PtrainError(
            f"device: '{name}' cannot be used", hint=str(error).splitlines()[0]
        ) from error
    return device


def _run(
    configuration: Configuration,
    *,
    world: World,
    disk: RunFolder,
    device: torch.device,
    model: nn.Module,
    data: Any,
    criterion: Criterion | None,
    callbacks: Sequence[object],
    notify: Callable[[str], None],
) -> Run:
    settings = configuration.settings
    if isinstance(model, nn.DataParallel):
        notify(
            "DataParallel is left out; on several devices: ptrain run --processes N, or torchrun"
        )
    model, already_compiled = unwrapped(model)
    model = model.to(device)
    criterion = build_criterion(settings.loss if criterion is None else criterion, model=model)
    if isinstance(criterion, nn.Module):
        criterion.to(device)
    train = given_by(data, "train")
    check_batch_size(train, settings.batch_size)
    stream = training_stream(
        train,
        seed=settings.seed,
        accumulate=settings.accumulate,
        batch_size=settings.batch_size or ROWS,
        limit=settings.limit_batches.train,
        mixing=Mixing(**vars(settings.mixture)),
        share=world.share,
    )
    stream.content = content_of(train)
    stream.inexact_because = stream.inexact_because or getattr(data, "inexact_because", "")
    plan = make_plan(settings, stream)
    forward = Forward(
        model,
        criterion=criterion,
        label=settings.label,
        compiled=compiled(model, settings.compile) if settings.compile else already_compiled,
        notify=notify,
    )
    initialize_lazy(forward, model, stream, seed=settings.seed)
    give_buffers_memory(model)
    same_weights(model, world)
    check_saves_what_it_trains(model)
    checkpoint_activations(model, settings.activation_checkpointing)
    freeze(model, settings.optimizer.groups)
    shards = split_over(world, model, device, settings)
    optimizer = build_optimizer(model, settings.optimizer, shards=shards)
    precision = pick_precision(settings.precision, device)
    scaler = precision.scaler()
    if scaler is not None and any(p.dtype == torch.float16 for p in model.parameters()):
        raise PtrainError(
            "precision: fp16 trains weights in float32, and the model has some in float16",
            hint="do not call model.half(): autocast computes in float16 by itself",
        )
    splits = ["val"] if settings.test_split == "never" else METHODS
    loaders = evaluation_loaders(data, splits=splits)
    by_task = [its for its in loaders.values() if isinstance(its, Mapping)]
    if by_task:
        check_metrics(data, tasks={*stream.tasks, *(task for its in by_task for task in its)})
    if not stream.inexact_because:
        stream.inexact_because = why_inexact([train, *loaders.values()], model)
    guard = build_guard(optimizer, device, scaler)
    ema = _ema(settings, model, shards)
    run = Run(
        settings=settings,
        model=model,
        data=data,
        device=device,
        forward=forward,
        precision=precision,
        scaler=scaler,
        optimizer=optimizer,
        guard=guard,
        update=build_update(
            optimizer, max_norm=settings.optimizer.max_grad_norm, ema=ema, guard=guard
        ),
        schedule=_schedule(
            configuration,
            optimizer,
            plan,
            evaluates="val" in loaders,
            steps_per_epoch=stream.steps_per_epoch,
            notify=notify,
        ),
        ema=ema,
        hooks=make_hooks(configuration, callbacks=callbacks, first=world.is_first),
        stream=stream,
        loaders=loaders,
        plan=plan if "val" in loaders else replace(plan, evaluate=None),
        best=_bests(settings) if "val" in loaders else {},
        disk=disk,
        store=(CheckpointStore if world.is_first else SeenStore)(disk.path, keep=settings.keep),
        tasks=TaskShares() if stream.is_mixture else None,
        world=world,
        shards=shards,
        notify=notify,
    )
    run.together = make_together(run)
    if run.best:
        run.watch(settings.best.watch, setting="best.watch")
    elif settings.best.watch not in ("", BestSettings().watch):
        notify("best.watch has no effect: the run has no validation data")
    if run.schedule.watch:
        run.watch(run.schedule.watch, setting="schedule.watch")
    return run


def make_plan(settings: RunSettings, stream: TrainStream) -> Plan:
    """The settings' spans in optimizer steps.

    Raises SettingsError for every one that cannot be told in data whose length nobody knows.
    """
    per_epoch, length = stream.steps_per_epoch, settings.length
    problems = []

    def known(key: str, in_steps: Callable[[], Any]) -> Any:
        try:
            return in_steps()
        except ValueError as error:
            problems.append(Problem("this data", key, str(error)))

    def every(key: str) -> Cadence:
        cadence: Span | None = getattr(settings, key)
        by_ends = stream.epochs_vary and cadence is not None and cadence.is_in_whole_epochs
        steps = None if by_ends else per_epoch
        return known(key, lambda: recurrence(cadence, steps_per_epoch=steps))

    total = known("length", lambda: whole_steps(length, steps_per_epoch=per_epoch))
    warmup = settings.schedule.warmup
    plan = Plan(
        total,
        total_epochs=int(length.amount)
        if stream.epochs_vary and length.is_in_whole_epochs
        else None,
        evaluate=every("evaluate"),
        save=every("save"),
        log=every("log"),
        warmup_steps=known(
            "schedule.warmup",
            lambda: whole_steps(warmup, steps_per_epoch=per_epoch, total_steps=total or 0),
        ),
        schedule=known(
            "schedule.every", lambda: recurrence(settings.schedule.every, steps_per_epoch=per_epoch)
        ),
    )
    if problems:
        raise SettingsError(problems)
    return plan


def _schedule(
    configuration: Configuration,
    optimizer: torch.optim.Optimizer,
    plan: Plan,
    *,
    evaluates: bool,
    steps_per_epoch: int | None,
    notify: Callable[[str], None],
) -> Schedule:
    settings, best = configuration.settings.schedule, configuration.settings.best
    if plan.warmup_steps >= plan.total_steps and plan.warmup_steps > 0:
        in_steps = "" if settings.warmup.unit == "steps" else f" ({plan.warmup_steps} steps)"
        raise PtrainError(
            f"schedule.warmup: {settings.warmup}{in_steps} is no shorter than the whole run of "
            f"{plan.total_steps} steps",
            hint="make the warm-up shorter than the run",
        )
    choice = configuration.schedule
    values = choice.settings
    if choice.offer.spec.target.endswith(":ReduceLROnPlateau"):
        if not evaluates:
            raise PtrainError(
                "schedule.name: ReduceLROnPlateau goes by evaluations, and this run has no "
                "validation data",
                hint="give it some, or use another schedule",
            )
        if not (settings.watch or best.watch):
            raise PtrainError(
                "schedule.name: ReduceLROnPlateau goes by a metric, and best.watch is empty",
                hint='name one: schedule.watch = "val/loss"',
            )
        values = {"mode": best.mode, **values}
    rate = configuration.settings.optimizer.learning_rate
    values = _rates_by_group(values, optimizer, learning_rate=rate)

    def make(optimizer: torch.optim.Optimizer) -> LRScheduler:
        scheduler: LRScheduler = build(
            choice.offer, values, optimizer=optimizer, total_steps=plan.schedule_steps
        )
        if not (hasattr(scheduler, "step") and hasattr(scheduler, "state_dict")):
            raise PtrainError(
                f"schedule.name: {choice.address} gave a {type(scheduler).__name__}",
                hint="return a scheduler of torch.optim.lr_scheduler, LambdaLR for a function",
            )
        return scheduler

    if (steps_per_epoch or plan.total_steps) < plan.total_steps and settings.every.unit == "steps":
        step = falls_at(make, optimizer, within=steps_per_epoch or 0)
        if step is not None:
            notify(
                f"schedule.name: the learning rate falls to 1 % after {step} of the "
                f"{steps_per_epoch} steps of an epoch; a schedule that counts epochs needs "
                'schedule.every = "1 epoch"'
            )
    return Schedule(
        optimizer,
        make(optimizer),
        warmup_steps=plan.warmup_steps,
        start_factor=settings.start_factor,
        every=plan.schedule,
        total_steps=plan.total_steps,
        watch=settings.watch or best.watch,
    )


def _rates_by_group(values: Any, optimizer: torch.optim.Optimizer, *, learning_rate: float) -> Any:
    """Rates that a schedule takes of its own (OneCycleLR, CyclicLR), each group's in proportion.

    torch would give the one number to every group, whatever rate that has.
    """
    shares = [group["lr"] / learning_rate for group in optimizer.param_groups]
    if not isinstance(values, Mapping) or len(set(shares)) == 1:
        return values
    return {
        key: [value * share for share in shares]
        if key in ("max_lr", "base_lr") and isinstance(value, (int, float))
        else value
        for key, value in values.items()
    }


def _ema(settings: RunSettings, model: nn.Module, shards: LocalShards | None) -> Ema | None:
    if settings.ema is None:
        return None
    return Ema(
        model,
        decay=settings.ema.decay,
        warmup=settings.ema.warmup,
        buffers=settings.ema.buffers,
        shards=shards,
    )


def _bests(settings: RunSettings) -> dict[str, Best]:
    watch, mode = settings.best.watch, settings.best.mode
    if not watch:
        return {}
    if watch.partition("/")[0].endswith("_ema"):
        raise PtrainError(
            f"best.watch: '{watch}' is the name for the average",
            hint=f"write '{watch.replace('_ema/', '/', 1)}', which chooses the best of each",
        )
    first = settings.best.ties == "oldest"
    bests = {"best": Best(watch, mode, keep_first=first)}
    if settings.ema is not None:
        split, slash, name = watch.partition("/")
        bests["best_ema"] = Best(f"{split}_ema{slash}{name}", mode, keep_first=first)
    return bests


def make_hooks(
    configuration: Configuration,
    *,
    callbacks: Sequence[object] = (),
    configured: bool = True,
    first: bool = True,
) -> RunHooks:
    """The hooks of the active plugins and of the callbacks: the configured ones, then these, then
    those that show or write what the others log.

    callbacks  objects, and names of configured ones that are to be called among them
    first      whether this is the first process, which alone has those that write something
    """
    early: list[tuple[str, object]] = []
    last: list[tuple[str, object]] = []
    for choice in configuration.callbacks if configured else ():
        if first or not choice.offer.spec.writes:
            built = (choice.address, build(choice.offer, choice.settings))
            (last if choice.offer.spec.last else early).append(built)
    listed: list[tuple[str, object]] = []
    objects = 0
    for callback in callbacks:
        if isinstance(callback, str):
            named = [entry for entry in early if callback in (entry[0], entry[0].partition("/")[2])]
            early = [entry for entry in early if entry[0] not in dict(named)]
            listed += named
        else:
            objects += 1
            listed.append((f"{type(callback).__name__} ({objects})", callback))
    return RunHooks(
        plugins=[(plugin.name, plugin.module) for plugin in configuration.catalog.plugins],
        callbacks=[*early, *listed, *last],
        core=engine,
    )


def _resumption(
    run: Run, configuration: Configuration, around: Mapping[str, Any], *, allow: Sequence[str]
) -> Resumption:
    return find_resumption(
        run.disk,
        configuration.values(),
        allow=allow,
        around=around,
        inexact_because=run.stream.inexact_because,
    )


def _go_on(run: Run, resumption: Resumption, *, notify: Callable[[str], None]) -> None:
    snapshot = read(run, resumption.checkpoint.path)
    if "progress" not in snapshot.state:
        raise ResumeError(
            f"{resumption.checkpoint.path} holds weights only: there is no training to go on with",
            hint=f"start a new run from them: --set init_from={run.folder}",
        )
    made = snapshot.state["progress"]["step"]
    if run.plan.total_epochs is None and made > run.plan.total_steps:
        raise ResumeError(
            f"length: {run.settings.length} is {run.plan.total_steps} steps, but the run has made "
            f"{made} already",
            hint="give it a longer length, or start another run",
        )
    restore(run, snapshot, changed=resumption.changed)
    _refuse_other_epochs(run)
    run.store.point_again("latest", resumption.checkpoint.path, step=run.progress.step)
    run.disk.cut_metrics_after(snapshot.state["metric_lines"])
    for line in plan_of(run, resumption, snapshot):
        notify(line)


def _refuse_other_epochs(run: Run) -> None:
    """A length in epochs means nothing any more once epochs have other numbers of steps."""
    before, now = run.disk.read_about().get("steps_per_epoch"), run.stream.steps_per_epoch
    if run.settings.length.unit == "epochs" and before != now:
        raise ResumeError(
            f"an epoch has {now} steps now and had {before}: how far '{run.settings.length}' is "
            "cannot be told any more",
            hint='give the length in steps: --set length="20_000 steps" --allow length',
        )


def _begin(run: Run, *, overwrite: bool, notify: Callable[[str], None]) -> None:
    if overwrite:
        run.disk.empty()
    elif is_run(run.folder):
        notify(f"{run.folder} has no checkpoint yet: it starts at step 0")
    run.disk.cut_metrics_after(0)  # of a process that was killed before its first checkpoint
    if run.settings.init_from is not None:
        notify(start_from(run.model, run.settings.init_from))
        if run.ema is not None:
            run.ema.begin()
    if run.stream.inexact_because:
        notify(f"resuming will not be exact: {run.stream.inexact_because}")
    for line in (*run.stream.warnings, *differing_from_one_process(run)):
        notify(line)


def _write_down(
    run: Run, configuration: Configuration, around: Mapping[str, Any], *, resumed: bool
) -> None:
    """Put the settings, the surroundings and the assets into the run folder."""
    resumes: list[int] = []
    if resumed:
        resumes = [*run.disk.read_about().get("resumed", []), run.progress.step]
    else:
        run.disk.begin_about()
    run.disk.forget_traceback()
    assets: dict[str, Any] = {}
    if not resumed or not run.disk.assets.is_dir():
        # A run that ended before its first checkpoint may have left some, of other settings.
        shutil.rmtree(run.disk.assets, ignore_errors=True)
        run.disk.assets.mkdir()
        for part in (run.data, run.model):
            if hasattr(part, "save_assets"):
                with os_errors(run.disk.assets):
                    part.save_assets(run.disk.assets)
        assets = seal(run.disk.assets)
    text = to_toml(configuration.values())
    run.disk.write_about(
        **around,
        signature=signature(text),
        **assets,
        parameters=sum(p.numel() for p in run.model.parameters()),
        trainable=sum(p.numel() for p in run.model.parameters() if p.requires_grad),
        steps=run.plan.total_steps,
        steps_per_epoch=run.stream.steps_per_epoch,
        inexact_because=run.stream.inexact_because,
        predicts=hasattr(run.data, "predict") and hasattr(run.data, "decode"),
        **({"tasks": run.stream.quotas} if run.stream.is_mixture else {}),
        resumed=resumes,
    )
    # Last, because a folder counts as a run once it is there.
    run.disk.write_settings(text)
