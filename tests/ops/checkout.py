"""A checkout with sources of a test's own, which compile in a moment, beside the real package."""

from __future__ import annotations

import os
import sys
import textwrap
from pathlib import Path
from typing import Any

import plugin_trainer
from tests import forkserver

# A library as small as one can be, that answers as the real one does when it is asked what it is.
# torch's own headers would take the compiler a hundred times longer than the rest.
OPS = """
#include <cstdint>
#include <cstring>
#include "../core/answer.h"

using Value = std::uint64_t;
extern "C" {
int aoti_torch_library_init_def(const char*, const char*, std::uint32_t, void**);
int aoti_torch_library_init_impl(const char*, const char*, const char*, std::uint32_t, void**);
int aoti_torch_library_def(void*, const char*);
int torch_library_impl(void*, const char*, void (*)(Value*, Value, Value), Value);
int torch_new_string_handle(const char*, std::size_t, void**);
}

static void isa(Value* stack, Value, Value) {
  void* text = nullptr;
  torch_new_string_handle(answer(), std::strlen(answer()), &text);
  stack[0] = reinterpret_cast<Value>(text);
}
static void has_cuda(Value* stack, Value, Value) { stack[0] = PTRAIN_CUDA; }

static const int registered = [] {
  void *schemas = nullptr, *everywhere = nullptr;
  aoti_torch_library_init_def("ptrain", __FILE__, __LINE__, &schemas);
  aoti_torch_library_def(schemas, "isa() -> str");
  aoti_torch_library_def(schemas, "has_cuda() -> bool");
  const char* key = "CompositeExplicitAutograd";
  aoti_torch_library_init_impl("ptrain", key, __FILE__, __LINE__, &everywhere);
  torch_library_impl(everywhere, "isa", &isa, TORCH_TARGET_VERSION);
  torch_library_impl(everywhere, "has_cuda", &has_cuda, TORCH_TARGET_VERSION);
  return 0;
}();
"""

PRELUDE = """
import contextlib, json, os, signal, sys, time
from pathlib import Path
import torch
from plugin_trainer.ops.building import builder, cache, memo
from plugin_trainer.ops.building.toolchain import Unavailable

def obtain(**options):
    return builder.obtain(load=torch.ops.load_library, **options)
"""


class Checkout:
    """Sources of the test's own beside the real package, and a cache."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.cache = folder / "cache"
        self.temporary = folder / "tmp"
        self.temporary.mkdir()
        (folder / "plugin_trainer").symlink_to(Path(plugin_trainer.__file__).parent)
        self.answer("small")
        self.write("binding/ops.cpp", OPS)

    def write(self, file: str, text: str) -> Path:
        path = self.folder / "csrc" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    def answer(self, text: str) -> Path:
        return self.write("core/answer.h", f'inline const char* answer() {{ return "{text}"; }}\n')

    def start(self, *command: str, cold: bool = False, **variables: str | None) -> forkserver.Popen:
        """Start `python COMMAND...` with the package of this checkout."""
        wanted = {
            **os.environ,
            "PYTHONPATH": str(self.folder),
            "PTRAIN_KERNELS_CACHE": str(self.cache),
            "TMPDIR": str(self.temporary),
            **variables,
        }
        return forkserver.Popen(
            [sys.executable, *command],
            cold=cold,
            forget=("plugin_trainer",),  # this folder's is to be found
            cwd=self.folder,
            env={name: value for name, value in wanted.items() if value is not None},
            stdout=forkserver.PIPE,
            stderr=forkserver.PIPE,
            text=True,
        )

    def run(self, program: str, **options: Any) -> tuple[str, str]:
        """What a program printed to stdout and stderr."""
        process = self.start("-c", PRELUDE + textwrap.dedent(program), **options)
        out, err = process.communicate(timeout=240)
        assert process.returncode == 0, f"{out}\n{err}"
        return out, err

    def entries(self) -> list[Path]:
        return sorted(path.parent for path in self.cache.glob("*/about.json"))
