"""Imports point down only, and nothing below the line pulls in torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "plugin_trainer"

# From the bottom up. What stands on one line may import each other.
LAYERS = [
    {"errors", "quoting"},
    {"files", "run_folder", "run_assets", "ownership"},
    {"specs", "hookspecs", "outcome", "cadence", "settings", "watching"},
    {"registry"},
    {"configuration"},
    {"ops"},
    {"early_exit"},
    {"data", "callbacks"},
    {"training"},
    {"model_store", "tuning"},
    {"testing"},
    {"cli", "__main__"},
]
TORCH_FREE = set().union(*LAYERS[:5])


def layer_of(part: str) -> int:
    return next(number for number, layer in enumerate(LAYERS) if part in layer)


def modules() -> list[Path]:
    return [
        path
        for path in sorted(PACKAGE.rglob("*.py"))
        if "template" not in path.parts and path != PACKAGE / "__init__.py"
    ]


def imports_of(path: Path) -> list[str]:
    """Every module a file imports at run time, not what only a type checker does."""
    found = []

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            return
        if isinstance(node, ast.Import):
            found.extend(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.extend([node.module, *(f"{node.module}.{alias.name}" for alias in node.names)])
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(path.read_text(encoding="utf-8")))
    return found


def part_of(module: str) -> str | None:
    parts = module.split(".")
    if parts[0] != "plugin_trainer" or len(parts) == 1:
        return None
    known = set().union(*LAYERS)
    return parts[1] if parts[1] in known else None


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_imports_only_from_its_own_layer_or_below(path):
    own = path.relative_to(PACKAGE).with_suffix("").parts[0]
    upward = [
        module
        for module in imports_of(path)
        if (part := part_of(module)) is not None and layer_of(part) > layer_of(own)
    ]
    assert upward == []


def test_every_part_of_the_package_has_its_layer():
    parts = {path.relative_to(PACKAGE).with_suffix("").parts[0] for path in modules()}
    assert parts <= set().union(*LAYERS)


@pytest.mark.process
def test_everything_below_the_line_imports_no_torch():
    names = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for path in modules()
        if path.relative_to(PACKAGE).with_suffix("").parts[0] in TORCH_FREE
    ]
    program = f"import sys, importlib\n[importlib.import_module(n) for n in {names!r}]\n"
    program += "heavy = {'torch', 'numpy', 'transformers', 'torchmetrics'} & set(sys.modules)\n"
    program += "sys.exit(f'imported: {heavy}' if heavy else 0)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


FOR_COMMANDS = tuple(f"plugin_trainer.cli.{name}" for name in ("calibrate", "options", "printing"))
"""What a plugin's own commands share with those of the core."""


def test_plugins_import_neither_the_loop_nor_the_command_line():
    for path in (ROOT / "plugins").rglob("*.py"):
        if "tests" in path.parts:
            continue
        modules = [name for name in imports_of(path) if not name.startswith(FOR_COMMANDS)]
        parts = {part_of(module) for module in modules}
        assert not parts & {"training", "cli"}, path
