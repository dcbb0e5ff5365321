"""`ptrain kernels`: which kernels are used here and why, and building them ahead of time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from plugin_trainer.cli.options import json_option
from plugin_trainer.cli.printing import echo, emit_json

if TYPE_CHECKING:
    from plugin_trainer.ops.library import Status


@click.group(invoke_without_command=True)
@json_option
@click.pass_context
def kernels(ctx: click.Context, json_: bool) -> None:
    """Show and build the native kernels. Without a command: status."""
    if ctx.invoked_subcommand is None:
        _print_status(json_=json_)


@kernels.command()
@json_option
def status(json_: bool) -> None:
    """Say which kernels are used here, and why. Builds nothing."""
    _print_status(json_=json_)


@kernels.command()
@click.option("--force", is_flag=True, help="Build though there is a sound library already.")
@click.option(
    "--into-package",
    is_flag=True,
    help="Put the library into the package: a wheel built afterwards carries it.",
)
def build(force: bool, into_package: bool) -> None:
    """Build the kernels now, rather than at their first use."""
    import torch

    from plugin_trainer.errors import PtrainError
    from plugin_trainer.ops.building import builder, prebuilt
    from plugin_trainer.ops.building.toolchain import Unavailable

    try:
        found = builder.obtain(
            load=torch.ops.load_library,
            force=force,
            retry=True,
            carried=not into_package,
            say=lambda line: echo(line, err=True),
        )
    except Unavailable as error:
        reason, *more = str(error).removeprefix("the kernels could not be built: ").splitlines()
        raise PtrainError(f"the kernels cannot be built here: {reason}", hint=more) from error
    if not into_package:
        echo(f"{found.path}\n  {found.reason}")
        return
    try:
        carried = prebuilt.write_prebuilt(found.path.parent)
    except OSError as error:
        raise PtrainError(
            f"the library cannot be put into the package: {error}",
            hint="use a copy of the repository that you may write to",
        ) from error
    echo(f"{carried}\n  a wheel built now carries it, and is for this platform only")


@kernels.command()
@json_option
def bench(json_: bool) -> None:
    """Time each kernel beside what torch offers, in one run. Takes about a minute."""
    from plugin_trainer.ops.bench import run_short_bench

    run_short_bench(echo, as_json=json_)


def _print_status(*, json_: bool) -> None:
    from plugin_trainer.ops import library

    found = library.status(build=False)
    about = _about(found)
    if json_:
        emit_json(about)
        return
    first, *more = found.reason.splitlines()
    echo(f"{about['used']}: {first}\n")
    rows = [
        ("library", about["library"] or ""),
        ("instructions", about["instruction_set"] or ""),
        ("cuda", _cuda_in_words(about)),
        ("torch", _torch_in_words(about)),
        ("compiler", about["compiler"] or "none"),
        ("nvcc", about["nvcc"] or ""),
        ("cache", about["cache"] or "none"),
        ("wanted", f"PTRAIN_KERNELS={about['wanted']}" if about["wanted"] != "auto" else ""),
    ]
    for label, text in rows:
        if text:
            echo(f"  {label:<12}  {text}")  # paths are not wrapped: they are to be copied
    for line in more:
        echo(f"\n{line}")
    if about["used"] == "reference" and about["compiler"]:
        echo("\nnext: ptrain kernels build")


def _about(found: Status) -> dict[str, Any]:
    """What is known of the kernels here, for programs."""
    import torch

    from plugin_trainer.ops.building.memo import user_cache
    from plugin_trainer.ops.building.toolchain import Unavailable, find_toolchain

    compiled = found.compiled
    try:
        tools = find_toolchain(torch_cuda=torch.version.cuda)
    except Unavailable:
        tools = None
    return {
        "used": found.used,
        "reason": found.reason,
        "wanted": found.wanted,
        "library": str(compiled.path) if compiled is not None else None,
        "instruction_set": compiled.instruction_set if compiled is not None else None,
        "cuda": compiled.cuda if compiled is not None else False,
        "torch": str(torch.__version__),
        "torch_cuda": torch.version.cuda,
        "compiler": str(tools.programs[-2 if tools.cuda else -1]) if tools is not None else None,
        "nvcc": str(tools.nvcc.path) if tools is not None and tools.nvcc is not None else None,
        "cache": user_cache(),
    }


def _cuda_in_words(about: dict[str, Any]) -> str:
    if about["cuda"]:
        return "yes"
    if about["torch_cuda"] is None:
        return "no: this torch is for the CPU"
    if about["nvcc"] is None:
        return f"no: there is no nvcc that fits CUDA {about['torch_cuda']}"
    return "no" if about["library"] is None else "no: this library was built without"


def _torch_in_words(about: dict[str, Any]) -> str:
    cuda = about["torch_cuda"]
    return f"{about['torch']}, CUDA {cuda}" if cuda else str(about["torch"])
