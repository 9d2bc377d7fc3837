"""The house rules on imports: rooms import downward only, sim needs no torch, executor no simpy."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("serving", "policies", "sim", "executor", "scenarios", "reports", "loratory")
MAY = {
    "serving": {"serving"},
    "policies": {"serving"},
    "sim": {"serving", "policies", "sim"},
    "executor": {"serving", "policies", "executor"},
    "scenarios": {"serving", "scenarios"},
    "reports": {"serving", "reports"},
    "loratory": set(ROOMS),
}
"""DESIGN.md, section 1."""
NEVER = {"serving": {"simpy", "torch"}, "policies": {"simpy", "torch"}, "sim": {"torch"}, "executor": {"simpy"}}
NEVER |= {"scenarios": {"simpy", "torch"}, "reports": {"simpy", "torch"}}


def _imports(path: Path) -> set[str]:
    """Every module a file imports, also inside functions and under TYPE_CHECKING."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: relative import"
            found.add(node.module or "")
    return found


FILES = [path for room in ROOMS for path in sorted((ROOT / room).rglob("*.py"))]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_imports_downward_only(path: Path) -> None:
    room = path.relative_to(ROOT).parts[0]
    imports = _imports(path)
    tops = {name.split(".")[0] for name in imports}
    assert tops & set(ROOMS) <= MAY[room]
    assert not tops & NEVER.get(room, set())
    assert "tests" not in tops


@pytest.mark.parametrize("path", sorted((ROOT / "policies").glob("*.py")), ids=lambda path: path.name)
def test_a_policy_needs_the_policy_interface_only(path: Path) -> None:
    assert {name for name in _imports(path) if name.split(".")[0] in ROOMS} <= {"serving.policy"}


WITHOUT_TORCH = """
import importlib, importlib.abc, pathlib, sys

class NoTorch(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "triton", "vllm"):
            raise ImportError(name + " is not installed here")

sys.meta_path.insert(0, NoTorch())
for room in ("serving", "policies", "sim", "scenarios", "reports", "loratory"):
    for file in sorted(pathlib.Path(room).rglob("*.py")):
        if file.name == "__main__.py":
            continue
        name = ".".join(file.with_suffix("").parts)
        importlib.import_module(name.removesuffix(".__init__"))
"""


def test_the_simulator_imports_without_torch() -> None:
    done = subprocess.run([sys.executable, "-c", WITHOUT_TORCH], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
