"""What test_sharding.py runs in several processes: one check after another, all in one launch.

    torchrun --nproc-per-node 2 sharded_checks.py REPORT FOLDER CHECK...

REPORT becomes a JSON object: of each check what was wrong in any process, empty if nothing was.
"""

from __future__ import annotations

import gc
import json
import os
import resource
import signal
import sys
import traceback
from datetime import timedelta
from pathlib import Path

import safetensors.torch
import torch
import torch.distributed as dist
from sharded_training import Net, Training, batch, loss_sum, start, whole
from torch import nn
from torch.distributed.device_mesh import init_device_mesh

from plugin_trainer.errors import CheckpointError, PtrainError
from plugin_trainer.training.checkpointing.store import (
    CheckpointStore,
    read_own_shards,
    read_snapshot,
    read_weights,
    write_own_shards,
    write_rest,
)
from plugin_trainer.training.distributed.sharding import (
    LocalShards,
    explained,
    fitted,
    is_sharded,
    local_part,
    shard,
)
from plugin_trainer.training.distributed.sharding.files import (
    read_shards_into,
    read_whole,
    write_shards,
)
from plugin_trainer.training.model.model_options import checkpoint_activations


def close(some: float, other: float) -> bool:
    return abs(some - other) <= 2e-5 * max(1.0, abs(other))


def same_bits(some: torch.Tensor, other: torch.Tensor) -> bool:
    if some.dtype != other.dtype or some.shape != other.shape:
        return False
    return some.numel() == 0 or torch.equal(
        some.detach().contiguous().flatten().view(torch.uint8),
        other.detach().contiguous().flatten().view(torch.uint8),
    )


def check_same(some: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert some.keys() == other.keys(), set(some) ^ set(other)
    for name, tensor in some.items():
        assert same_bits(tensor, other[name]), name


def check_close(sharded: Training, alone: Training) -> None:
    for ours, theirs in (
        (whole(sharded.model.state_dict()), alone.model.state_dict()),
        (whole(sharded.ema.state_dict()), alone.ema.state_dict()),
        (whole(sharded.snapshot().optimizer), alone.snapshot().optimizer),
    ):
        assert ours.keys() == theirs.keys()
        for name, tensor in ours.items():
            assert torch.allclose(tensor, theirs[name], atol=2e-5), name


def save(store: CheckpointStore, training: Training) -> Path:
    """As a run saves: the first makes the folder, all write into it, the first completes it."""
    paths = [store.begin(training.step) if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(paths)
    snapshot = training.snapshot()
    assert snapshot.is_sharded
    write_own_shards(snapshot, paths[0])
    if dist.get_rank() == 0:
        write_rest(snapshot, paths[0], step=training.step)
        store.commit(paths[0], training.step)
    dist.barrier()
    return store.path_of(training.step)


class Checks:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self.mesh = init_device_mesh("cpu", (self.size,))

    # ------------------------------------------------------------------------------ training

    def losses_equal_one_process(self, optimizer: str = "adamw", **settings) -> None:
        alone = start(optimizer, **settings)
        sharded = start(optimizer, self.mesh, **settings)
        assert sharded.update.name == alone.update.name
        expected = alone.go_on(4)
        found = sharded.go_on(4)
        assert all(map(close, found, expected)), (found, expected)
        assert expected[-1] < expected[0]
        check_close(sharded, alone)
        assert all(map(close, sharded.evaluate_both(), alone.evaluate_both()))

    def losses_equal_with_sgd(self) -> None:
        self.losses_equal_one_process("sgd", momentum=0.9)

    def losses_equal_with_adagrad(self) -> None:
        self.losses_equal_one_process("adagrad")

    def losses_equal_with_torch_adamw(self) -> None:
        self.losses_equal_one_process("adamw", amsgrad=True)

    def losses_equal_with_recomputed_activations(self) -> None:
        def prepare(model: nn.Module) -> None:
            checkpoint_activations(model, True)

        alone, sharded = start(), start(mesh=self.mesh, prepare=prepare)
        assert all(map(close, sharded.go_on(3), alone.go_on(3)))
        check_close(sharded, alone)

    def losses_equal_when_compiled(self) -> None:
        alone, sharded = start(), start(mesh=self.mesh)
        compiled = torch.compile(sharded.model, backend="aot_eager")
        for training, model in ((alone, alone.model), (sharded, compiled)):
            mine = slice(training.rank, None, training.size)
            tokens, labels = batch(0)
            (loss_sum(model, tokens[mine], labels[mine]) * training.size).backward()
        for (name, ours), theirs in zip(
            sharded.model.named_parameters(), alone.model.parameters(), strict=True
        ):
            if theirs.grad is not None:
                assert torch.allclose(ours.grad.full_tensor(), theirs.grad, atol=1e-5), name

    def every_process_holds_its_rows(self) -> None:
        sharded = start(mesh=self.mesh)
        assert all(is_sharded(parameter) for parameter in sharded.model.parameters())
        assert not any(is_sharded(buffer) for buffer in sharded.model.buffers())
        rows = local_part(sharded.model.embedding.weight).shape[0]
        each = -(-11 // self.size)
        assert rows == min(each, 11 - self.rank * each)
        assert local_part(sharded.model.scale).shape[0] == (self.rank == 0)
        held = sum(p.numel() for group in sharded.optimizer.param_groups for p in group["params"])
        counts = [None] * self.size
        dist.all_gather_object(counts, held)
        trained = [p for p in start().model.parameters() if p.requires_grad]
        assert sum(counts) == sum(p.numel() for p in trained)
        blocks = [type(m).__name__ for m in sharded.model.modules() if hasattr(m, "reshard")]
        assert blocks == ["FSDPNet", "FSDPBlock", "FSDPBlock", "FSDPBlock"]

    def the_optimizer_is_told_the_same_groups(self) -> None:
        alone, sharded = start(), start(mesh=self.mesh)
        ours, theirs = (
            training.snapshot().state["optimizer"]["groups"] for training in (sharded, alone)
        )
        assert ours == theirs and len(ours) == 4

    def weights_tied_between_blocks_and_the_rest_stay_tied(self) -> None:
        def tie(model: Net) -> None:
            model.blocks[2] = model.blocks[0]  # one block at two places
            model.blocks[1].wide.bias = nn.Parameter(torch.zeros(11))
            model.head.bias = model.blocks[1].wide.bias  # a block and the rest

        alone, sharded = start(prepare=tie), start(mesh=self.mesh, prepare=tie)
        assert sharded.model.head.bias is sharded.model.blocks[1].wide.bias
        assert all(map(close, sharded.go_on(3), alone.go_on(3)))
        check_close(sharded, alone)

    # ------------------------------------------------------------------------------- average

    def the_average_is_lent_and_the_raw_weights_are_put_back(self) -> None:
        sharded = start(mesh=self.mesh)
        sharded.go_on(2)
        raw = {name: t.clone() for name, t in whole(sharded.model.state_dict()).items()}
        average = whole(sharded.ema.state_dict())
        before = sharded.evaluate()  # what is in no block stays gathered after it
        try:
            with sharded.ema.applied():
                inside = whole(sharded.model.state_dict())
                for name, tensor in average.items():
                    assert same_bits(inside[name], tensor), name
                assert not close(sharded.evaluate(), before)
                raise ZeroDivisionError
        except ZeroDivisionError:
            check_same(whole(sharded.model.state_dict()), raw)
        assert sharded.evaluate() == before

    # ----------------------------------------------------------------------------- refusals

    def a_parameter_used_outside_its_block_is_explained(self) -> None:
        class Reaching(Net):
            def forward(self, tokens: torch.Tensor) -> torch.Tensor:
                return super().forward(tokens) + self.blocks[0].wide.weight.sum()

        model = Reaching()
        shard(model, self.mesh)
        try:
            model(batch(0)[0])
        except RuntimeError as error:
            found = explained(error)
            assert found is not None and 'under "fsdp2"' in found.message
        else:
            raise AssertionError("it passed")
        assert explained(RuntimeError("shapes do not fit")) is None

    # -------------------------------------------------------------------------------- files

    def _samples(self) -> dict[str, torch.Tensor]:
        from torch.distributed.tensor import Shard, distribute_tensor

        generator = torch.Generator().manual_seed(0)
        split = {
            "float32": torch.randn(7, 3, generator=generator),
            "one row": torch.ones(1, 4),
            "float64": torch.arange(5).double(),
            "bfloat16": torch.randn(4, 2, generator=generator).bfloat16(),
            "float16": torch.ones(3).half(),
            "nan": torch.tensor([float("nan"), -0.0, float("inf")]),
            "no row": torch.empty(0, 3),
            "no column": torch.empty(4, 0),
        }
        held = torch.arange(6)
        return {
            "count/step": torch.tensor(3.0),
            "int64": torch.tensor(2**62),
            "bool": torch.tensor([True, False]),
            "view": held[2:4],
            "view of the same": held[1:5],
            "transposed": torch.arange(6).view(2, 3).t(),
            **{
                name: distribute_tensor(tensor, self.mesh, [Shard(0)], src_data_rank=None)
                for name, tensor in split.items()
            },
        }

    def every_kind_of_tensor_comes_back_bit_by_bit(self) -> None:
        samples = self._samples()
        folder = self.folder / f"samples-{self.size}"
        folder.mkdir(exist_ok=True)
        write_shards(samples, folder)
        expected = whole(samples)
        check_same(read_whole(folder), expected)
        found = {name: torch.zeros_like(tensor) for name, tensor in samples.items()}
        read_shards_into(found, folder)
        check_same(whole(found), expected)
        names = sorted(path.name for path in folder.iterdir())
        assert len(names) == self.size and all(name.endswith(".safetensors") for name in names)
        first = safetensors.torch.load_file(folder / names[0])
        assert {"count/step", "int64", "bool", "view"} <= first.keys()
        if self.size > 1:
            assert "int64" not in safetensors.torch.load_file(folder / names[1])

    def tensors_of_other_world_sizes_come_back(self) -> None:
        samples = self._samples()
        found = {name: torch.zeros_like(tensor) for name, tensor in samples.items()}
        read_shards_into(found, self.folder / "samples-2")
        check_same(whole(found), whole(samples))

    def what_does_not_fit_is_named(self) -> None:
        folder = self.folder / f"samples-{self.size}"
        for tensors, message in (
            ({"missing": torch.ones(2)}, "Missing key in checkpoint state_dict: missing"),
            ({"float32": torch.ones(2, 2)}, "Size mismatch"),
        ):
            try:
                read_shards_into(tensors, folder)
            except CheckpointError as error:
                assert message in error.message, error.message
            else:
                raise AssertionError("it passed")

    def a_disk_that_refuses_in_one_process_stops_all(self) -> None:
        store = CheckpointStore(self.folder / "full")
        training = start(mesh=self.mesh)
        paths = [store.begin(1) if self.rank == 0 else None]
        dist.broadcast_object_list(paths)
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        if self.rank == self.size - 1:
            resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
        try:
            write_own_shards(training.snapshot(), paths[0])
        except OSError as error:
            assert error.strerror == "File too large"
        else:
            raise AssertionError("it passed")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
            signal.signal(signal.SIGXFSZ, before)
        if self.rank == 0:
            store.abandon(paths[0])
            assert list(store.folder.iterdir()) == []

    # --------------------------------------------------------------------------- checkpoints

    def a_run_is_saved(self) -> None:
        """Leaves step-3 of a sharded run and of one alone, and what the sharded one does next."""
        sharded = start(mesh=self.mesh)
        sharded.go_on(3)
        sharded.evaluate()  # what is in no block stays gathered after it
        path = save(CheckpointStore(self.folder / "sharded"), sharded)
        expected = sharded.snapshot()
        found = read_snapshot(path)
        check_same(found.model, whole(expected.model))
        check_same(found.ema, whole(expected.ema))
        check_same(found.optimizer, whole(expected.optimizer))
        assert found.state == expected.state
        alone = start()
        alone.go_on(3)
        if self.rank == 0:
            CheckpointStore(self.folder / "alone").save(alone.snapshot(), step=3)
        resumed = start(mesh=self.mesh)
        resumed.restore(read_own_shards(path, resumed.model))
        losses = sharded.go_on(5)
        assert resumed.go_on(5) == losses  # to the bit, in as many processes as before
        if self.rank == 0:
            (self.folder / "losses.json").write_text(json.dumps(losses))

    def a_run_goes_on_in_other_numbers_of_processes(self) -> None:
        losses = json.loads((self.folder / "losses.json").read_text())
        for kind in ("sharded", "alone"):
            path = CheckpointStore(self.folder / kind).find("last").path
            resumed = start(mesh=self.mesh)
            resumed.go_on(1)
            resumed.evaluate()
            resumed.restore(read_own_shards(path, resumed.model))
            saved, snapshot = read_snapshot(path), resumed.snapshot()
            check_same(whole(snapshot.model), saved.model)
            check_same(whole(snapshot.ema), saved.ema)
            check_same(whole(snapshot.optimizer), saved.optimizer)
            assert all(map(close, resumed.go_on(5), losses))
            # What is written by these processes holds the same again.
            resumed.restore(read_own_shards(path, resumed.model))
            again = save(CheckpointStore(self.folder / f"{kind}-{self.size}"), resumed)
            check_same(read_weights(again, weights="ema"), read_weights(path, weights="ema"))
            check_same(read_snapshot(again).optimizer, saved.optimizer)

    def whole_weights_fit_into_a_sharded_model(self) -> None:
        path = CheckpointStore(self.folder / "alone").find("last").path
        weights = read_weights(path, weights="raw")
        sharded = start(mesh=self.mesh)
        sharded.evaluate()
        sharded.model.load_state_dict(fitted(weights, sharded.model))
        check_same(whole(sharded.model.state_dict()), weights)
        alone = start()
        alone.model.load_state_dict(weights)
        assert close(sharded.evaluate(), alone.evaluate())

    def weights_of_another_shape_are_left_to_torch_to_name(self) -> None:
        path = CheckpointStore(self.folder / "sharded").find("last").path
        other = Net()
        other.blocks[1] = nn.Linear(5, 5)
        shard(other, self.mesh)
        LocalShards(other)
        found = read_own_shards(path, other)
        assert not is_sharded(found.model["blocks.1.wide.weight"])
        try:
            other.load_state_dict(found.model)
        except RuntimeError as error:
            assert "blocks.1.wide.weight" in str(error)
        else:
            raise AssertionError("it passed")

    def a_writer_is_killed(self) -> None:
        """The last process dies while the others write; no process comes back from this."""
        training = start(mesh=self.mesh)
        training.step = 7
        store = CheckpointStore(self.folder / "sharded")
        paths = [store.begin(7) if self.rank == 0 else None]
        dist.broadcast_object_list(paths)
        if self.rank == self.size - 1:
            os.kill(os.getpid(), signal.SIGKILL)
        write_own_shards(training.snapshot(), paths[0])
        write_rest(training.snapshot(), paths[0], step=7)
        store.commit(paths[0], 7)


def main() -> None:
    report, folder, *names = sys.argv[1:]
    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=timedelta(seconds=60))
    checks = Checks(Path(folder))
    found: dict[str, str] = {}
    for name in names:
        wrong = ""
        try:
            getattr(checks, name)()
        except (Exception, PtrainError):
            wrong = f"process {checks.rank}: {traceback.format_exc()}"
        everywhere = [""] * checks.size
        dist.all_gather_object(everywhere, wrong)
        found[name] = "\n".join(filter(None, everywhere))
        if checks.rank == 0:
            Path(report).write_text(json.dumps(found))
    del checks
    gc.collect()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
