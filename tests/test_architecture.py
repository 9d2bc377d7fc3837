"""The house rules: imports go downward, sim needs no torch, executor no simpy, names differ, slots are checked."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Collection, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("serving", "models", "adapters", "policies", "sim", "executor", "scenarios", "reports", "plan", "server")
"""Folders at the top of the tree, each linked into the package; what else is in loratory/ is the front door."""

GROUND = {"loratory.errors", "loratory.git_lfs", "loratory.file_lock"}
"""Imported by every room; they import only each other."""

PACKAGE = "loratory"
"""The package itself: the server tells its clients its ``__version__``."""

MAY = {
    "serving": {"serving"},
    "models": {"models"},
    "policies": {"policy"},
    "adapters": {"serving", "models", "adapters"},
    "sim": {"serving", "models", "sim"},
    "sim/routers": {"router"},
    "executor": {"serving", "models", "adapters", "executor"},
    "scenarios": {"serving", "adapters", "scenarios"},
    "reports": {"serving", "reports"},
    "plan": {"serving", "models", "adapters", "sim", "scenarios", "reports", "experiment", "plan"},
    "server": {
        "serving",
        "models",
        "adapters",
        "executor",
        "scenarios",
        "reports",
        "experiment",
        "sim",
        "testing",
        "server",
        "user_files",
    },
}
NEVER = {"serving": {"simpy", "torch"}, "policies": {"simpy", "torch"}, "sim": {"torch"}, "executor": {"simpy"}}
NEVER |= {room: {"simpy", "torch"} for room in ("models", "adapters", "scenarios", "reports")}


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


FILES = [path for room in (*ROOMS, "loratory") for path in sorted((ROOT / room).rglob("*.py"))]


def _ours(path: Path) -> set[str]:
    """The modules of ours that a file imports."""
    return {name for name in _imports(path) if name.partition(".")[0] == "loratory"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_imports_downward_only(path: Path) -> None:
    room = path.relative_to(ROOT).parts[0]
    tops = {name.partition(".")[0] for name in _imports(path)}
    assert not tops & {*ROOMS, "tests"}, "a room is imported as loratory.ROOM"
    assert not tops & NEVER.get(room, set())
    name = str(path.relative_to(ROOT).with_suffix("")).replace("/", ".")
    if name in GROUND:
        assert _ours(path) <= GROUND
    elif room in MAY:
        own = _ours(path) - GROUND - ({PACKAGE} if room == "server" else set())
        folder = str(path.parent.relative_to(ROOT))
        assert {name.split(".")[1] for name in own} <= MAY.get(folder, MAY[room])


def test_only_the_command_line_knows_the_command_line() -> None:
    """Options, exit codes and terminal tables are in loratory/cli/: what a program imports needs none of them."""
    for path in FILES:
        name = str(path.relative_to(ROOT))
        if name.startswith("loratory/cli/") or name == "loratory/__main__.py":
            continue
        tops = {module.partition(".")[0] for module in _imports(path)}
        assert not tops & {"typer", "click", "rich"}, name
        assert not {module for module in _ours(path) if module.startswith("loratory.cli")}, name


def _modules_imported(path: Path, modules: Collection[str]) -> set[str]:
    """Those of ``modules`` that a file imports, under TYPE_CHECKING and inside functions as well."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= names
            if not names <= set(modules):  # not modules of a package alone, but what the module itself defines
                found.add(node.module or "")
    return found & set(modules)


def _circles(imports: Mapping[str, set[str]]) -> set[frozenset[str]]:
    """Sets of more than one module in which each imports each, directly or through others.

    Tarjan's algorithm: ``low`` is the earliest module on the stack that a module leads back to; one that leads to none
    before itself closes a set, which is all that lies above it on the stack.
    """
    order: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    circles: set[frozenset[str]] = set()

    def visit(module: str) -> None:
        order[module] = low[module] = len(order)
        stack.append(module)
        for other in sorted(imports[module]):
            if other not in order:
                visit(other)
            if other in stack:
                low[module] = min(low[module], low[other])
        if low[module] == order[module]:
            place = stack.index(module)
            if len(stack) > place + 1:
                circles.add(frozenset(stack[place:]))
            del stack[place:]

    for module in sorted(imports):
        if module not in order:
            visit(module)
    return circles


def test_circles_are_found() -> None:
    imports = {"a": {"b"}, "b": {"c", "d"}, "c": {"a"}, "d": {"e"}, "e": {"d"}, "f": {"a", "f"}, "g": set[str]()}
    assert _circles(imports) == {frozenset("abc"), frozenset("de")}


def test_no_import_circle_inside_a_room() -> None:
    """Type-only imports count: a reader of one file of a circle has to read all of them."""
    names: dict[str, Path] = {}
    for path in FILES:
        parts = path.relative_to(ROOT).with_suffix("").parts
        name = ".".join(parts if parts[0] == "loratory" else ("loratory", *parts)).removesuffix(".__init__")
        names[name] = path
    assert not _circles({name: _modules_imported(path, names) for name, path in names.items()})


def test_nothing_but_its_command_imports_what_is_for_tests() -> None:
    """loratory.testing needs hypothesis, which is no dependency of a run."""
    for path in FILES:
        if "testing" not in path.parts and path.name not in ("check_policy.py", "check_router.py"):
            assert not any(name.startswith("loratory.testing") for name in _imports(path)), path


def test_the_kv_pool_alone_writes_how_many_blocks_are_used() -> None:
    """Others `take` and `give`: so every block that is counted was counted in one file."""
    writers = {
        str(path.relative_to(ROOT))
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and node.attr == "used" and isinstance(node.ctx, ast.Store)
    }
    assert writers == {"serving/kv_pool.py"}


def test_every_room_is_a_link_in_the_package() -> None:
    """One import name: `loratory.sim` is the folder sim, in a checkout, an editable install, a wheel."""
    links = {path.name: path.readlink() for path in (ROOT / "loratory").iterdir() if path.is_symlink()}
    assert links == {room: Path("..") / room for room in ROOMS}


WITHOUT_TORCH = """
import importlib, importlib.abc, pathlib, sys

class NoTorch(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "triton", "vllm"):
            raise ImportError(name + " is not installed here")

sys.meta_path.insert(0, NoTorch())
for room in ("serving", "models", "adapters", "policies", "sim", "scenarios", "reports", "."):
    for file in sorted((pathlib.Path("loratory") / room).rglob("*.py")):
        if file.name == "__main__.py":
            continue
        name = ".".join(file.with_suffix("").parts)
        importlib.import_module(name.removesuffix(".__init__"))
"""


def test_the_simulator_imports_without_torch() -> None:
    done = subprocess.run([sys.executable, "-c", WITHOUT_TORCH], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_no_two_classes_share_a_public_name() -> None:
    """A name that two rooms use has to be looked up each time it is read."""
    places: dict[str, list[str]] = defaultdict(list)
    for path in FILES:
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places[node.name].append(str(path.relative_to(ROOT)))
    assert {name: files for name, files in places.items() if len(files) > 1} == {}


def _plain(text: str) -> str:
    return re.sub(r"[^a-z0-9]", "", text.lower())


@pytest.mark.parametrize("path", [p for p in FILES if p.stem[0] != "_"], ids=lambda path: str(path.relative_to(ROOT)))
def test_the_first_line_names_the_file_or_what_it_defines(path: Path) -> None:
    """``Trace times: ...`` opens trace_times.py, or ``TraceTimes: ...`` the file that defines that class."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    subject = (ast.get_docstring(tree) or "").split("\n")[0].split(":")[0]
    defined = {node.name for node in tree.body if isinstance(node, ast.ClassDef | ast.FunctionDef)}
    stem, name = _plain(path.stem), _plain(subject)
    assert name and (stem in name or name in stem or re.split(r", | and ", subject)[0] in defined)


def _calls(path: Path) -> set[tuple[str, str]]:
    """(innermost function, what it calls): a name, a method with a dot before it, an alias by its real name."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    meant = {
        alias.asname: alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if alias.asname
    }
    found: set[tuple[str, str]] = set()

    def walk(node: ast.AST, function: str, owner: str) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.ClassDef):
                walk(child, function, child.name)
            elif isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
                walk(child, child.name, owner)
            else:
                if isinstance(child, ast.Call):
                    called = child.func
                    if isinstance(called, ast.Name):
                        name = owner if called.id == "cls" else meant.get(called.id, called.id)
                        found.add((function, name))
                    elif isinstance(called, ast.Attribute):
                        whose = called.value.id if isinstance(called.value, ast.Name) else ""
                        found.add((function, f"{whose if whose[:1].isupper() else ''}.{called.attr}"))
                walk(child, function, owner)

    walk(tree, "", "")
    return found


def _callers(name: str) -> set[tuple[str, str]]:
    """(file, function) of everything in the house that calls ``name``."""
    return {
        (str(path.relative_to(ROOT)), function) for path in FILES for function, called in _calls(path) if called == name
    }


def test_no_way_into_a_slot_skips_the_comparison_of_digests() -> None:
    """Weights reach a slot as a `HostAdapter`, which is made of a `VerifiedAdapter` alone, which is made by comparing.

    Each step has one function: whoever adds another way has to add it here, and say how it compares.
    """
    assert _callers("VerifiedAdapter") == {("adapters/fetch.py", "verified")}
    assert _callers(".verified") == {
        ("adapters/fetch.py", "fetch_record"),
        ("loratory/experiment/machine.py", "adapter_files"),
        ("server/catalogue.py", "_load"),  # what an operator or a client names: its id stands for what is read then
    }
    assert _callers("adapter_files") == {
        ("loratory/experiment/machine.py", "machine_for"),
        ("loratory/experiment/calibrate.py", "calibrate"),
        ("server/quick_profile.py", "quick_profile"),
    }
    assert _callers("HostAdapter") == {("executor/lora/weights.py", "load")}
    assert _callers("HostAdapter.load") == {("executor/machine.py", "read")}
    writers = {path for path, _ in _callers(".write") if path.startswith("executor/")}
    assert writers <= {"executor/machine.py", "executor/tiers.py", "executor/profiler.py"}


def test_what_a_slot_is_loaded_from_cannot_be_of_other_content(tmp_path: Path) -> None:
    """A `VerifiedAdapter` cannot be made of other content, even on purpose, and slots accept nothing else."""
    pytest.importorskip("torch", reason="the executor needs torch")
    from typing import get_type_hints

    from loratory.adapters.files.description import AdapterDescription
    from loratory.adapters.sources.source import AdapterSource
    from loratory.adapters.verified import VerifiedAdapter
    from loratory.errors import RefusedAdapter
    from loratory.executor.lora import HostAdapter, LoRASlots
    from loratory.executor.machine import Machine

    holds = AdapterDescription(1, 1.0, False, ("q_proj",), None, "F32", 8, "sha256:" + "1" * 64, ())
    with pytest.raises(RefusedAdapter, match="was registered with the digest"):
        VerifiedAdapter("sql@1", AdapterSource("local", "", "/sql"), tmp_path, holds, "sha256:" + "2" * 64)
    assert get_type_hints(HostAdapter.load)["files"] is VerifiedAdapter
    assert get_type_hints(LoRASlots.write)["adapter"] is HostAdapter
    assert get_type_hints(Machine.read)["return"] is get_type_hints(Machine.write)["adapter"] is HostAdapter


def test_rooms_that_run_adapters_read_none_past_the_fetcher() -> None:
    """`AdapterFetcher.fetch` compares nothing: it is for registering. Nor do these rooms validate files themselves."""
    for path in FILES:
        room, file = path.relative_to(ROOT).parts[0], str(path.relative_to(ROOT))
        if room not in ("executor", "loratory"):
            continue
        called = {name for _, name in _calls(path)}
        assert not called & {".fetch", ".registration"} or file == "loratory/cli/adapters.py", file
        assert not _imports(path) & {
            "loratory.adapters.sources.source",
            "loratory.adapters.files.validation",
            "safetensors",
        } or file in (
            "loratory/experiment/machine.py",  # the limits
            "loratory/cli/adapters_options.py",  # the limits
            "executor/checkpoint.py",  # the base model
            "executor/random_checkpoint.py",  # writes
        ), file
    assert not any(
        alias.name == "validate"
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and node.module == "loratory.adapters.files.validation"
        for alias in node.names
        if path.name != "fetch.py"
    )
