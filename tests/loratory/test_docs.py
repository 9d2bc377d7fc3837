"""README.md and docs/: every block is run, loaded or parsed; every file, link, key, policy and number is there.

docs/adapters.md's blocks run in test_adapters_guide.py, those of docs/planning.md in test_planning_page.py, those of
docs/serving.md in tests/server/test_serving_page.py, the figures of docs/fidelity.md in tests/published; what
docs/policies.md and docs/fleets.md have to be complete in is in test_policies_page.py and test_fleets_page.py, and
facts of Loratory are in test_docs_facts.py.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import sys
import tarfile
from collections.abc import Iterator
from importlib.util import find_spec
from math import inf
from pathlib import Path
from typing import Any

import click
import pytest
import typer
import yaml
from command import Command, command_line
from pages import PAGES, ROOT, Block, anchors, blocks, links, prose

from loratory import policies, scenarios
from loratory.cli import terminal
from loratory.cli.main import app
from loratory.experiment import policy_spec
from loratory.scenarios.reference import tables
from loratory.sim.catalogue import gpu, model

README = ROOT / "README.md"
DOCS = ROOT / "docs"
NAMED = [pytest.param(page, id=str(page.relative_to(ROOT))) for page in PAGES]

NOT_RUN = {
    "docs/compiled.md": ("LORATORY_MYPYC=1 pip install",),  # tests/loratory/test_compiled.py; wheels need the network
    "docs/architecture.md": (
        "loratory/     front door",
        "clock   ",
        "boundaries ",
        "on the GPU ",
        "no slot can be",
    ),
    "docs/cost-models.md": ("decode   max(", "KV = gpu memory"),
    "docs/fleets.md": ("index  ",),
    "docs/policies.md": ("                          your policy",),
    "docs/server.md": (
        "curl ",
        "2026-01-31T12:00:00Z INFO",
        'echo "a long secret"',
        "loratory swap fair_share:by=tenant --token-file token\nLORATORY_ADMIN_TOKEN",
        "scrape_configs:",
    ),
}
"""Blocks that are neither commands nor code, by how they begin: a map of folders, six pictures, two formulae; and
requests to a server, its log, and what a shell does around it: docs/serving.md has the same, which is run."""

ELSEWHERE = {"docs/adapters.md", "docs/planning.md", "docs/serving.md"}
"""Pages whose blocks tests of their own run."""

BASE = {
    "name": "base",
    "model": "llama-3.1-8b",
    "gpu": "h100-80gb",
    "engine": {"max_loras": 8},
    "adapters": {"count": 20},
    "workload": {"arrivals": 4, "input_tokens": 64, "output_tokens": 8, "duration_s": 2},
}
"""What a block that shows one section of a scenario is put into."""

SHORT = ("run quickstart", "run my.yaml", "run my-fleet.yaml", "run hot-and-tail")
"""Commands that are run with `SETTINGS` besides, because what they run takes minutes."""

SETTINGS = ("--set", "workload.duration_s=2", "--set", "seeds=[0]", "--no-decisions")

PLANS = ("--set", "workload.duration_s=2", "--set", "plan.details=false", "--set", "plan.space={}", "--jobs", "1")
"""Settings of the plans that other pages than docs/planning.md show."""

HEAVY = (
    "get",
    "profile",
    "--on",
    "replay",
    "results/sim",
    "results/SIM",
    "NAME",
    "reproduce",
    "serve",
    "swap",
    "shadow",
    "recording/scenario.yaml",
)
"""Commands with one of these words are parsed, not run: they need minutes, a model, a network, or a measured folder."""


def block_of(page: str, begins: str) -> str:
    return next(block.text for block in blocks(ROOT / page) if block.text.startswith(begins))


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files that the pages name."""
    folder = tmp_path_factory.mktemp("desk")
    (folder / "my.yaml").write_text(block_of("docs/scenarios.md", "name: my-fleet"))
    (folder / "scenario.yaml").write_text(yaml.safe_dump(BASE))
    (folder / "path" / "to").mkdir(parents=True)
    (folder / "path" / "to" / "mine.py").write_text(
        "from loratory.policies.fifo import Fifo\n\n\nclass MyPolicy(Fifo):\n    'Mine.'\n\n\n"
        "class MyRouter:\n    def route(self, request, fleet): return fleet.lowest(fleet.in_flight)\n"
    )
    (folder / "my-fleet.yaml").write_text(block_of("docs/fleets.md", "name: my-fleet"))
    for block in (*blocks(ROOT / "docs/policies.md"), *blocks(ROOT / "docs/fleets.md")):
        if name := re.match(r"# (\w+\.py)\n", block.text):
            (folder / name[1]).write_text(block.text)
    (folder / "examples").mkdir()
    for program in (ROOT / "examples").glob("*.py"):
        shutil.copy(program, folder / "examples")
    (folder / "requests.csv").write_text("when,in,out,lora\n" + "".join(f"{n}000,9,5,a{n % 2}\n" for n in range(9)))
    (folder / "FILE").write_text("timestamp,input_tokens,output_tokens\n0,9,5\n1,8,4\n")
    azure = "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:17:03.9799600,4808,10\n"
    (folder / "AzureLLMInferenceTrace_code.csv").write_text(azure)
    clients = folder / "clients"
    clients.mkdir()
    (clients / "chunk-0-trace.csv").write_text("36000,0.5,1.0,Gamma,1.0,2.0\n")
    lengths = {"input_tokens": "{50: 1.0}", "output_tokens": "{7: 1.0}", "reason_ratio": "{0.0: 1.0}"}
    (clients / "chunk-0-dataset.json").write_text(json.dumps({"36000": lengths}))
    with tarfile.open(folder / "servegen_deepseek-r1_clients.tgz", "w:gz") as archive:
        archive.add(clients, "clients")
    return folder


@pytest.fixture
def here(desk: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(desk)
    monkeypatch.syspath_prepend(str(desk))
    return desk


@pytest.fixture
def loratory(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    monkeypatch.setattr(terminal, "_EVERY_S", inf)  # no progress on stderr, however busy the machine is
    return command_line(capsys, monkeypatch)


# Blocks


def all_blocks() -> Iterator[Block]:
    for page in PAGES:
        if str(page.relative_to(ROOT)) not in ELSEWHERE:
            yield from blocks(page)


def kind(block: Block) -> str:
    """How a block is tested; an empty text if nothing here can."""
    page = str(block.page.relative_to(ROOT))
    if block.language == "python":
        return "python"
    if block.commands:
        return "commands"
    if block.text.startswith(NOT_RUN.get(page, ("\0",))):
        return "not run"
    if re.match(r'\{"t":', block.text):
        return "decisions"
    if re.match(r"\[project", block.text):
        return "toml"
    if "my.yaml:4:" in block.text:
        return "errors"
    return "yaml" if re.match(r"\w+:", block.text) and block.language in ("yaml", "") else ""


def of(*kinds: str) -> list[Any]:
    return [pytest.param(block, id=block.where) for block in all_blocks() if kind(block) in kinds]


def test_every_block_has_a_test() -> None:
    assert [block.where for block in all_blocks() if not kind(block)] == []
    for page, starts in NOT_RUN.items():
        for start in starts:
            assert any(block.text.startswith(start) for block in blocks(ROOT / page)), (
                f"{page} has no {start!r} any more"
            )


@pytest.mark.parametrize("block", of("commands"))
def test_commands(block: Block, here: Path, loratory: Command) -> None:
    if "kind: kernels" in block.text and find_spec("aiconfigurator_core") is None:
        pytest.skip("AIConfigurator's tables are not installed: loratory[kernels]")
    for line in block.commands:
        words = shlex.split(line)
        if words[0] != "loratory":
            parse_other(words)
        elif any(word in HEAVY for word in words) and "--list" not in words:
            parse(words[1:])
        else:
            run(line, loratory)


def run(line: str, loratory: Command) -> None:
    line, _, target = line.partition(" > ")
    arguments = shlex.split(line)[1:]
    if " ".join(arguments).startswith(SHORT):
        arguments += SETTINGS
    if arguments[0] == "plan":
        arguments += PLANS
    if arguments[:2] == ["compare", "results/a"]:
        for name in ("results/a", "results/b"):
            assert loratory("run", "scenario.yaml", "--out", name).code == 0
    done = loratory(*arguments)
    assert (done.code, done.err) == (0, ""), f"{line}: {done.err}"
    assert done.out
    if target:
        (json.loads if target.endswith(".json") else yaml.safe_load)(done.out)


def parse(arguments: list[str]) -> None:
    """The command, its options and its arguments exist, and values have the right type."""
    command: click.Command = typer.main.get_command(app)
    context = click.Context(command, info_name="loratory")
    while isinstance(command, click.Group):
        name, found, arguments = command.resolve_command(context, list(arguments))
        assert found is not None
        command, context = found, click.Context(found, parent=context, info_name=name)
    command.make_context(context.info_name, list(arguments), parent=context.parent)


def parse_other(words: list[str]) -> None:
    """``make`` targets are in the Makefile; Python programs exist, with every option."""
    if words[0] == "make":
        assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE), words
        return
    words = [word for word in words if word not in ("python", "PYTHONPATH=.")]
    program = words[1].replace(".", "/") + ".py" if words[0] == "-m" else words[0]
    text = (ROOT / program).read_text(encoding="utf-8")
    for option in (word for word in words if word.startswith("--")):
        assert f'"{option}"' in text, f"{program} has no {option}"


@pytest.mark.parametrize("block", of("yaml"))
def test_scenarios_and_sections_of_scenarios_load(block: Block, here: Path, loratory: Command) -> None:
    if "registry:" in block.text:
        for line in block.text.splitlines():
            section = yaml.safe_load(line)["adapters"]
            registry = section["registry"]
            assert set(section) <= keys("adapters") | {"registry"}
            assert isinstance(registry, str) or set(registry) <= keys("adapters.registry")
        return
    given = yaml.safe_load(block.text)
    whole = dict(given)
    if "model" not in given:
        whole = BASE | given
        if "trace" in given.get("workload", {}):
            whole["adapters"] = given.get("adapters", {})
    file = here / "block.yaml"
    file.write_text(block.text if "model" in given else yaml.safe_dump(whole), encoding="utf-8")
    done = loratory("scenarios", "check", file)
    assert (done.code, done.err) == (0, ""), f"{block.where}: {done.err}"


def keys(section: str) -> set[str]:
    """The keys of a section, by the reference of keys."""
    found = re.search(rf"^### {re.escape(section)}\n(.*?)(?=^### |\Z)", tables(), re.DOTALL | re.MULTILINE)
    assert found is not None, section
    return set(re.findall(r"^\| `(\w+)` \|", found[1], re.MULTILINE))


@pytest.mark.parametrize("block", of("errors"))
def test_messages_are_what_is_printed(block: Block, here: Path, loratory: Command) -> None:
    unknown, ranks, override = block.text.splitlines()
    complete = block_of("docs/scenarios.md", "name: my-fleet").replace(
        "description: two hundred adapters on one H100\n", ""
    )
    broken = here / "broken" / "my.yaml"
    broken.parent.mkdir(exist_ok=True)
    broken.write_text(complete.replace("max_loras: 16", "max_lora: 16"))
    assert said(loratory("scenarios", "check", "broken/my.yaml")) == unknown
    broken.write_text(
        complete.replace("adapters: {count: 200, ranks: {8: 0.5, 16: 0.5}", "adapters: {count: 200,\n\n  ranks: 64")
    )
    assert said(loratory("scenarios", "check", "broken/my.yaml")) == ranks
    assert said(loratory("run", "my.yaml", "--set", "workload.arrivals.poisson=-1")) == override


def said(done: Any) -> str:
    assert done.code == 2
    return str(done.err).removeprefix("loratory: ").replace("broken/", "").rstrip("\n")


@pytest.mark.parametrize(
    "page", list(dict.fromkeys(b.page for b in all_blocks() if kind(b) == "python")), ids=lambda page: page.name
)
def test_python(page: Path, here: Path, loratory: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    found = [block for block in blocks(page) if block.language == "python"]
    import loratory as package

    load = package.load_scenario

    def short(name: str, overrides: Any = (), **rest: Any) -> Any:
        return load(name, [*overrides, "workload.duration_s=2", "seeds=[0]"], **rest)

    monkeypatch.setattr(package, "load_scenario", short)
    names: dict[str, Any] = {"__name__": "page"}
    if page.name == "reports.md":
        done = loratory("run", "quickstart", "--policy", "fifo", *SETTINGS)
        assert done.code == 0, done.err
        names |= prepared()
    if page.name == "traces.md":
        (here / "requests.csv").rename(here / "kept.csv")
        (here / "requests.csv").write_text((here / "FILE").read_text())
    try:
        for block in found:
            exec(compile(block.text, block.where, "exec", flags=0, dont_inherit=True), names)
    finally:
        if page.name == "traces.md":
            (here / "kept.csv").replace(here / "requests.csv")


def prepared() -> dict[str, Any]:
    """What docs/reports.md's example takes for granted: an engine that serves a thousand requests."""
    from loratory.policies.fifo import Fifo
    from loratory.serving.config import EngineConfig
    from loratory.serving.engine import Engine
    from loratory.serving.lora import Adapter, LoRARequest
    from loratory.serving.plan import StepResult
    from loratory.serving.request import Request
    from loratory.sim.cost import cost_model

    config = EngineConfig(num_gpu_blocks=1000)
    cost = cost_model("roofline", model("llama-3.1-8b"), gpu("h100-80gb"), config, {})

    def served(*given: Any, **more: Any) -> Engine:
        engine, now = Engine(*given, **more), 0.0
        for number in range(1000):
            engine.submit(Request(str(number), "a" if number % 2 else None, 0.0, 5, 1))
        while (plan := engine.plan(now)) is not None:
            now += 0.01
            ended = [prefill.sequence.request_id for prefill in plan.prefills if prefill.completes]
            engine.commit(plan, StepResult(1, ended, 0.0), now)
        return engine

    adapters = [Adapter(LoRARequest("a", 1, "a"), 8, 1000)]
    return {"Engine": served, "config": config, "adapters": adapters, "policy": Fifo(), "cost": cost, "text": "a: 1"}


def test_the_entry_point_of_a_policy(here: Path) -> None:
    (block,) = (block for block in all_blocks() if kind(block) == "toml")
    import tomllib

    project = tomllib.loads(block.text)["project"]
    (target,) = project["entry-points"]["loratory.policies"].values()
    assert target.split(":")[1] in (here / "shortest_first.py").read_text()
    assert "loratory.policies" in Path(policy_spec.__file__).read_text(encoding="utf-8")


def test_decisions_are_as_the_page_shows_them(here: Path, loratory: Command) -> None:
    (block,) = (block for block in all_blocks() if kind(block) == "decisions")
    assert loratory("run", "scenario.yaml", "--set", "engine.max_loras=1", "--out", "results/log").code == 0
    log = (here / "results" / "log" / "fifo" / "0" / "decisions.jsonl").read_text().splitlines()
    found = {entry["action"]: list(entry) for entry in map(json.loads, log)}
    for shown in map(json.loads, block.text.splitlines()):
        assert found[shown["action"]] == list(shown)


# Files, links, names, numbers


@pytest.mark.parametrize("page", NAMED)
def test_links_resolve(page: Path) -> None:
    for link in links(page):
        if re.match(r"https?://", link):
            continue
        file, _, anchor = link.partition("#")
        target = (page.parent / file).resolve() if file else page
        assert target.exists(), f"{page.name}: {link}"
        if anchor:
            assert anchor in anchors(target), f"{page.name}: {link}"


@pytest.mark.parametrize("page", NAMED)
def test_files_that_are_named_exist(page: Path) -> None:
    folders = (
        r"loratory|reports|sim|executor|scenarios|adapters(?=/[\w/]*\.py)|models|policies|serving|tests|bench|docs"
    )
    for path in re.findall(rf"(?<![\w/.-])((?:{folders})/[\w./{{}},*-]*\w)", prose(page)):
        choices = re.search(r"\{([\w,]+)\}", path)
        for choice in choices[1].split(",") if choices else [""]:
            one = re.sub(r"\{[\w,]+\}", choice, path).split("::")[0]
            assert list(ROOT.glob(one)) or list(ROOT.glob(one + ".*")), f"{page.name}: {path}"


@pytest.mark.parametrize(
    ("page", "head", "folder"),
    [
        ("architecture.md", "file", "serving"),
        ("architecture.md", "file", "adapters"),
        ("architecture.md", "file", "models"),
        ("architecture.md", "file", "plan"),
        ("executor.md", "file", "executor"),
    ],
)
def test_files_of_tables_exist(page: str, head: str, folder: str) -> None:
    """A table under a heading ``## serving/: ...`` is of that folder, and complete; another table has what it has."""
    text = (DOCS / page).read_text(encoding="utf-8")
    complete = f"## {folder}/" in text
    part = text.partition(f"## {folder}/")[2].partition("\n## ")[0] if complete else text
    table = part.partition(f"| {head} |")[2].partition("\n\n")[0]
    cells = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    names = [name for cell in cells for name in re.findall(r"`([^`]+)`", cell)]
    assert names
    for name in names:
        assert list((ROOT / folder).glob(name)), f"{page}: {folder}/{name}"
    if complete:
        files = {str(path.relative_to(ROOT / folder)) for path in (ROOT / folder).rglob("*.py")}
        assert {name for name in files if not name.endswith("__init__.py")} == set(names)


def test_modules_that_are_named_exist() -> None:
    for page in PAGES:
        for name in re.findall(r"python -m (?!sglang\.)([\w.]+)", page.read_text(encoding="utf-8")):
            assert (ROOT / (name.replace(".", "/") + ".py")).exists() or (ROOT / name.replace(".", "/")).is_dir(), name


def test_packages_that_are_imported_here_are_those_of_this_checkout() -> None:
    for package in (policies, scenarios):
        assert Path(package.__path__[0]).resolve().parent == ROOT, sys.path
