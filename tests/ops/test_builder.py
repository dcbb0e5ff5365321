"""The kernels are built once per machine, whatever happens to those who build them."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path

import pytest
import torch

from plugin_trainer.ops.building import builder, cache, memo, toolchain
from plugin_trainer.ops.building.locking import LockTimeout, lock
from plugin_trainer.ops.building.sources import _LONGEST, find_sources
from plugin_trainer.ops.building.toolchain import Unavailable
from tests.ops.checkout import Checkout

pytestmark = [
    pytest.mark.process,
    pytest.mark.skipif(os.name != "posix", reason="the kernels are built on POSIX systems"),
]

try:
    toolchain.find_toolchain(torch_cuda=None)
    HAS_COMPILER = True
except Unavailable:
    HAS_COMPILER = False
needs_compiler = pytest.mark.skipif(not HAS_COMPILER, reason="there is no C++ compiler")

SHOW = """
found = obtain()
print(found.origin, torch.ops.ptrain.isa())
"""


@pytest.fixture
def copy(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path)


@pytest.fixture(scope="module")
def ready(tmp_path_factory) -> Path:
    """A cache with the small library in it."""
    first = Checkout(tmp_path_factory.mktemp("ready"))
    assert first.run(SHOW)[0] == "built small\n"
    return first.cache


@pytest.fixture
def built(copy: Checkout, ready: Path) -> Checkout:
    """A checkout whose small library lies ready. The key does not know where the sources lie."""
    shutil.copytree(ready, copy.cache)
    return copy


@needs_compiler
def test_the_first_process_builds_says_so_in_one_line_and_the_next_finds_it(copy):
    out, err = copy.run(SHOW)
    assert out == "built small\n"
    assert err == "ptrain: building the kernels, once: about 5 s\n"
    assert copy.run(SHOW) == ("cached small\n", "")
    (entry,) = copy.entries()
    assert {path.name for path in copy.cache.iterdir()} == {
        entry.name, "lock", *(path.name for path in copy.cache.glob("found-*"))
    }  # fmt: skip
    assert sorted(path.name for path in entry.iterdir()) == ["about.json", "libptrain.so"]


@needs_compiler
def test_a_cached_load_imports_no_build_system_and_starts_no_process(built):
    program = """
        started = []
        sys.addaudithook(lambda event, args: started.append(event)
            if event in ("subprocess.Popen", "os.fork", "os.posix_spawn", "os.system") else None)
        found = {how}
        assert torch.ops.ptrain.isa() == "small"
        print(started, "torch.utils.cpp_extension" in sys.modules)
    """
    quick = "memo.recall(); torch.ops.load_library(found.path)"
    assert built.run(program.format(how="obtain()"), cold=True)[0] == "[] False\n"
    assert built.run(program.format(how=quick), cold=True)[0] == "[] False\n"


@needs_compiler
def test_a_changed_source_makes_another_library(built):
    built.answer("large")
    assert built.run(SHOW)[0] == "built large\n"
    built.answer("small")
    assert built.run(SHOW)[0] == "cached small\n"
    assert len(built.entries()) == 2


@needs_compiler
def test_a_source_that_changed_behind_its_size_and_time_is_seen(built):
    path = built.answer("small")
    before = path.stat()
    assert built.run(SHOW + "print(memo.recall() is not None)")[0] == "cached small\nTrue\n"
    built.answer("SMALL")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size
    recalled = "print(memo.recall() is not None)"
    assert built.run(recalled + SHOW)[0] == "False\nbuilt SMALL\n"


def test_the_key_knows_names_bytes_flags_and_the_compiler(copy, tmp_path, monkeypatch):
    digests = {find_sources([copy.folder / "csrc"]).digest}
    copy.write("core/empty.cpp", "")
    digests.add(find_sources([copy.folder / "csrc"]).digest)
    (copy.folder / "csrc/core/empty.cpp").rename(copy.folder / "csrc/core/other.cpp")
    digests.add(find_sources([copy.folder / "csrc"]).digest)
    copy.write("core/other.cpp", "// something")
    digests.add(find_sources([copy.folder / "csrc"]).digest)
    copy.write("core/notes.txt", "no source")
    digests.add(find_sources([copy.folder / "csrc"]).digest)
    assert len(digests) == 4

    before = toolchain.target_digest()
    monkeypatch.setattr(toolchain, "_FLAGS", (*toolchain._FLAGS, "-g"))
    assert toolchain.target_digest() != before

    compiler = tmp_path / "c++"
    compiler.write_text("#!/bin/sh\nexit 1\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    first = toolchain.find_toolchain(torch_cuda=None).digest()
    compiler.write_text("#!/bin/sh\nexit 2 # an update\n")
    assert toolchain.find_toolchain(torch_cuda=None).digest() != first


def cut_short(entry: Path) -> None:
    library = entry / "libptrain.so"
    os.truncate(library, library.stat().st_size // 2)


def overwrite(entry: Path) -> None:
    library = entry / "libptrain.so"
    library.write_bytes(bytes(library.stat().st_size))


def change_what_it_says(entry: Path) -> None:
    """A library that loads, and is another one."""
    library = entry / "libptrain.so"
    whole = library.read_bytes()
    assert whole.count(b"small\0") == 1
    library.write_bytes(whole.replace(b"small\0", b"wrong\0"))


def cut_short_the_note(entry: Path) -> None:
    (entry / "about.json").write_text('{"sha256": ')


def remove_the_library(entry: Path) -> None:
    (entry / "libptrain.so").unlink()


@needs_compiler
@pytest.mark.parametrize(
    "damage",
    [cut_short, overwrite, change_what_it_says, cut_short_the_note, remove_the_library],
)
def test_a_damaged_library_is_never_loaded_but_built_again(built, damage):
    (entry,) = built.entries()
    damage(entry)
    assert built.run(SHOW)[0] == "built small\n"
    assert cache.read_entry(entry) is not None


@needs_compiler
def test_an_intact_file_that_cannot_be_loaded_is_built_again(built):
    (entry,) = built.entries()
    library = entry / "libptrain.so"
    library.write_bytes(b"not a library")
    about = json.loads((entry / "about.json").read_text())
    about |= {"size": library.stat().st_size, "sha256": cache.sha256_of(library)}
    (entry / "about.json").write_text(json.dumps(about))
    assert built.run(SHOW)[0] == "built small\n"


# Twenty at once, who build something that takes the compiler long enough to be killed at.
LONG = """
#include <functional>
#include <iostream>
#include <regex>
inline const char* answer() { return "small"; }
"""
TWENTY = """
def child(number):
    os.setpgid(0, 0)
    own = os.open(f"child-{number}", os.O_WRONLY | os.O_CREAT)
    os.dup2(own, 1), os.dup2(own, 2)
    code = 1
    try:
        found = obtain()
        print(found.origin, torch.ops.ptrain.isa(), flush=True)
        code = 0
    finally:
        os._exit(code)

children = []
for number in range(20):
    children.append(os.fork())
    if children[-1] == 0:
        child(number)

# Kill whoever builds, in the middle of it: ninja has its file, and there is no library yet.
victim, deadline = 0, time.monotonic() + 120
while not victim and time.monotonic() < deadline:
    for folder in Path(os.environ["PTRAIN_KERNELS_CACHE"]).glob("ptrain-building-*"):
        if (folder / "build.ninja").exists() and not list(folder.glob("*.so")):
            victim = int(folder.name.split("-")[2])
            os.{kill}(victim, signal.SIGKILL)
    time.sleep(0.005)
ends = {}
for pid in children:
    ends[pid] = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
killed = ends.pop(victim)
said = [path.read_text() for path in Path().glob("child-*")]
print(json.dumps({"killed": killed, "others": list(ends.values()), "said": said}))
"""


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("kill", ["kill", "killpg"])  # with the compilers it started, or without
def test_twenty_build_at_once_one_is_killed_and_all_others_have_a_library(copy, kill):
    copy.write("core/answer.h", LONG)
    out, _ = copy.run(TWENTY.replace("{kill}", kill))
    seen = json.loads(out)
    assert seen["killed"] == -9
    assert seen["others"] == [0] * 19
    said = "".join(seen["said"])
    assert said.count("building the kernels") == 2
    assert said.count("built small\n") == 1
    assert said.count("cached small\n") == 18
    assert len(copy.entries()) == 1
    # What the killed one left goes with the next build.
    copy.answer("large")
    copy.run(SHOW)
    assert not list(copy.cache.glob("ptrain-building-*"))


def test_the_lock_of_a_killed_process_is_free_though_its_child_lives_on(copy):
    out, _ = copy.run("""
        from plugin_trainer.ops.building.locking import lock
        ready, go = os.pipe()
        holder = os.fork()
        if holder == 0:
            with lock(Path("lock"), timeout_s=1):
                child = os.fork()
                if child == 0:
                    os.write(go, b"%d" % os.getpid())
                    time.sleep(60)
                    os._exit(0)
                time.sleep(60)
        child = int(os.read(ready, 20))
        os.kill(holder, signal.SIGKILL)
        os.waitpid(holder, 0)
        with lock(Path("lock"), timeout_s=5) as owned:
            print(owned)
        os.kill(child, signal.SIGKILL)
    """)
    assert out == "True\n"


def test_who_waits_says_so_once_and_gives_up_after_a_time(tmp_path):
    said = []
    with (
        lock(tmp_path / "lock", timeout_s=1),
        pytest.raises(LockTimeout, match="has been locked for"),
        lock(tmp_path / "lock", timeout_s=0.3, patience_s=0.1, waiting=lambda: said.append("w")),
    ):
        pass
    assert said == ["w"]


def test_who_waits_goes_on_when_the_others_work_is_enough(tmp_path):
    with (
        lock(tmp_path / "lock", timeout_s=1),
        lock(tmp_path / "lock", timeout_s=1, done=lambda: True) as owned,
    ):
        assert not owned


REASON = """
try:
    print(obtain().origin)
except Unavailable as error:
    print(error)
"""


@pytest.mark.parametrize(
    ("variables", "reason"),
    [
        ({"CXX": "nonexistent"}, "there is no C++ compiler: CXX=nonexistent cannot be run\n"),
        ({"CXX": 'g++ "x'}, 'there is no C++ compiler: CXX=g++ "x cannot be run\n'),
        (
            {"CXX": None, "PATH": "/nowhere"},
            "there is no C++ compiler: no c++, g++ or clang++ on the PATH\n",
        ),
    ],
)
def test_without_a_compiler_there_is_a_reason(copy, variables, reason):
    assert copy.run(REASON, **variables) == (reason, "")


@needs_compiler
@pytest.mark.parametrize("command", ["env {}", "'{folder}/a compiler'"])
def test_a_compiler_may_be_a_command_of_several_words_or_a_path_with_a_space(copy, command):
    compiler = shutil.which("c++") or shutil.which("g++")
    (copy.folder / "a compiler").symlink_to(compiler)
    out, _ = copy.run(SHOW, CXX=command.format(compiler, folder=copy.folder))
    assert out == "built small\n"


@needs_compiler
def test_a_library_built_on_a_machine_with_a_compiler_serves_one_without(built):
    assert built.run(SHOW, CXX="nonexistent")[0] == "cached small\n"


def test_without_sources_there_is_a_reason(copy):
    (copy.folder / "csrc/binding/ops.cpp").unlink()
    assert "carries no sources" in copy.run(REASON)[0]


@needs_compiler
def test_what_the_compiler_said_is_shown_kept_and_not_asked_for_again_at_once(copy):
    copy.write("core/answer.h", "#error never\n")
    out, err = copy.run(REASON)
    assert err.count("building") == 1
    first, *more = out.splitlines()
    assert first.startswith("the kernels could not be built: ")
    assert "error: #error never" in out
    log = Path(more[-1].removeprefix("the whole log: "))
    assert log.parent == copy.cache
    assert "ops.cpp" in log.read_text()
    # Who only looks is told too, in another process.
    looked, said = copy.run(REASON.replace("obtain()", "obtain(may_build=False)"))
    assert looked.splitlines()[-1] == more[-1] and said == ""

    assert copy.run(REASON) == (out, "")  # at once, in the words of the first
    assert "building" in copy.run(REASON.replace("obtain()", "obtain(retry=True)"))[1]
    os.utime(log, (time.time() - 4000,) * 2)
    assert "building" in copy.run(REASON)[1]

    copy.answer("small")
    assert copy.run(REASON)[0] == "built\n"


@needs_compiler
@pytest.mark.parametrize("unusable", ["/proc/nowhere", "file/below"])
def test_a_cache_that_cannot_be_written_is_replaced_by_a_private_temporary_folder(copy, unusable):
    (copy.folder / "file").write_text("in the way")
    variables = {"PTRAIN_KERNELS_CACHE": unusable}
    assert copy.run(SHOW, **variables)[0] == "built small\n"
    own = copy.temporary / f"plugin_trainer-{os.getuid()}"
    assert own.stat().st_mode & 0o777 == 0o700
    assert copy.run(SHOW, **variables)[0] == "cached small\n"


@needs_compiler
def test_what_lies_in_the_temporary_folder_does_not_go_before_the_cache_that_is_named(copy):
    assert copy.run(SHOW, PTRAIN_KERNELS_CACHE="/proc/nowhere")[0] == "built small\n"
    looking = REASON.replace("obtain()", "obtain(may_build=False)")
    assert copy.run(looking)[0] == "the kernels have not been built yet\n"
    assert "no C++ compiler" in copy.run(REASON, CXX="nonexistent")[0]
    assert not copy.cache.exists()
    assert copy.run(looking, PTRAIN_KERNELS_CACHE="/proc/nowhere")[0] == "cached\n"
    assert copy.run(SHOW)[0] == "built small\n"


@needs_compiler
def test_a_home_that_is_missing_is_no_obstacle(copy):
    variables = {"PTRAIN_KERNELS_CACHE": None, "XDG_CACHE_HOME": None, "HOME": "/proc/nowhere"}
    assert copy.run(SHOW, **variables)[0] == "built small\n"
    assert copy.run(SHOW, **variables)[0] == "cached small\n"


@needs_compiler
def test_a_temporary_folder_that_others_may_write_to_is_not_trusted(copy):
    own = copy.temporary / f"plugin_trainer-{os.getuid()}"
    own.mkdir()
    own.chmod(0o777)
    out, _ = copy.run(REASON, PTRAIN_KERNELS_CACHE="/proc/nowhere")
    assert out.startswith("/proc/nowhere cannot be used: ")
    own.rmdir()
    own.symlink_to(copy.folder)
    out, _ = copy.run(REASON, PTRAIN_KERNELS_CACHE="/proc/nowhere")
    assert out.startswith("/proc/nowhere cannot be used: ")


@needs_compiler
@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_cache_is_read(built):
    built.cache.chmod(0o500)
    assert built.run(SHOW)[0] == "cached small\n"
    built.cache.chmod(0o700)


@needs_compiler
def test_only_looking_builds_nothing(copy):
    out, err = copy.run(REASON.replace("obtain()", "obtain(may_build=False)"))
    assert (out, err) == ("the kernels have not been built yet\n", "")
    assert not copy.entries()


@needs_compiler
def test_a_second_library_in_one_process_is_refused_rather_than_fatal(copy):
    out, _ = copy.run(SHOW + REASON.replace("obtain()", "obtain(force=True)"))
    assert out == "built small\nthis process has loaded other kernels already\n"


def test_a_sweep_takes_what_is_ours_and_old_and_nothing_else(tmp_path):
    old = time.time() - 200 * 24 * 3600
    name = f"{'0' * 16}-cpu-{'1' * 16}"
    for file in (f"{name}/about.json", f"found-{'2' * 16}", "lock", "thesis.tex", "data/x"):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).touch()
    (tmp_path / "ptrain-building-1-x").mkdir()
    for path in (*tmp_path.glob("*/*"), *tmp_path.iterdir()):
        os.utime(path, (old, old))
    (tmp_path / f"{name}.log").touch()
    cache.sweep(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        "lock", "thesis.tex", "data", f"{name}.log"
    }  # fmt: skip


# CUDA toolkits, as far as they can be told apart without a GPU.


def make_toolkit(folder: Path, version: str, *, static: bool = True) -> Path:
    (folder / "bin").mkdir(parents=True)
    (folder / "bin/nvcc").touch(mode=0o755)
    (folder / "lib64").mkdir()
    if static:
        (folder / "lib64/libcudart_static.a").touch()
    (folder / "version.json").write_text(json.dumps({"cuda": {"version": version}}))
    return folder


@pytest.mark.parametrize(
    ("toolkit", "torch_cuda", "fits"),
    [("12.8.1", "12.8", True), ("12.9.0", "12.6", True), ("12.8.1", "13.0", True),
     ("13.0.88", "12.8", False), ("11.8.0", "13.0", True)],
)  # fmt: skip
def test_a_toolkit_may_not_be_of_a_newer_major_than_torch(
    tmp_path, monkeypatch, toolkit, torch_cuda, fits
):
    monkeypatch.setenv("CUDA_HOME", str(make_toolkit(tmp_path / "cuda", toolkit)))
    found = toolchain.find_nvcc(torch_cuda)
    assert (found is not None) == fits


@needs_compiler
def test_with_a_toolkit_the_library_has_another_key_and_is_linked_statically(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_HOME", str(make_toolkit(tmp_path / "cuda", "12.6.0")))
    monkeypatch.delenv("TORCH_CUDA_ARCH_LIST", raising=False)
    cpu = toolchain.find_toolchain(torch_cuda=None)
    cuda = toolchain.find_toolchain(torch_cuda="12.6")
    assert cuda.cuda and not cpu.cuda
    assert cuda.digest() != cpu.digest()
    assert "-lcudart_static" in cuda.link_flags
    assert [flag for flag in cuda.cuda_flags if "gencode" in flag] == [
        "-gencode=arch=compute_80,code=sm_80",
        "-gencode=arch=compute_90,code=sm_90",
        "-gencode=arch=compute_90,code=compute_90",
    ]
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "8.6")
    other = toolchain.find_toolchain(torch_cuda="12.6")
    assert not [flag for flag in other.cuda_flags if "gencode" in flag]
    assert other.digest() != cuda.digest()


def test_a_toolkit_without_the_static_runtime_is_none(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_HOME", str(make_toolkit(tmp_path / "cuda", "12.6.0", static=False)))
    assert toolchain.find_nvcc("12.6") is None


def test_the_real_sources_are_found_and_no_two_make_one_object_file():
    sources = find_sources()
    assert sources is not None
    units = [Path(path) for path in sources.to_compile(cuda=True)]
    assert {"ops.cpp", "isa.cpp"} <= {path.name for path in units}
    objects = [(path.stem, path.suffix) for path in units]
    assert len(set(objects)) == len(objects)
    assert not [path for path in sources.to_compile(cuda=False) if path.endswith(".cu")]


def test_a_memo_of_a_library_that_is_gone_is_forgotten(tmp_path, monkeypatch):
    monkeypatch.setenv("PTRAIN_KERNELS_CACHE", str(tmp_path))
    library = tmp_path / "libptrain.so"
    library.touch()
    memo.remember(memo.Memo(str(library), "cached", ()))
    assert memo.recall() == memo.Memo(str(library), "cached", ())
    library.unlink()
    assert memo.recall() is None


def test_what_is_wanted_is_for_this_torch():
    assert builder.wanted().cuda is (
        torch.version.cuda is not None and toolchain.find_nvcc(torch.version.cuda) is not None
    )


def test_the_longest_files_are_compiled_first_and_every_file_once():
    found = find_sources()
    assert found is not None
    paths = [Path(path) for path in found.to_compile(cuda=True)]
    compiled = [path.relative_to(found.folder).as_posix() for path in paths]
    units = [file for file in found.files if file.endswith((".cpp", ".cu"))]
    assert sorted(compiled) == sorted(units)
    assert tuple(compiled[: len(_LONGEST)]) == _LONGEST
