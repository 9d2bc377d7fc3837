"""docs/planning.md, from start to end: every command runs and prints what is shown, every YAML block is planned."""

from __future__ import annotations

import json
import re
import shlex
from math import inf
from pathlib import Path
from typing import Any

import pytest
import yaml
from command import Command, command_line
from pages import ROOT, Block, blocks, prose, rows
from small_plan import SMALL

from loratory.cli import terminal
from loratory.plan.measure import METRICS
from loratory.plan.run import FILES
from loratory.scenarios.plan_spec import FACTORS, PlanSpec

PAGE = ROOT / "docs" / "planning.md"
EXIT = {"--require-slo": 3}
"""Commands that do not exit with 0, by an option that they have."""


@pytest.fixture
def loratory(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Command:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(terminal, "_EVERY_S", inf)  # no progress on stderr, however busy the machine is
    return command_line(capsys, monkeypatch)


def test_the_page_from_start_to_end(loratory: Command) -> None:
    whole = [block for block in blocks(PAGE) if block.text.startswith("name: ")]
    for block in whole:
        Path(f"{yaml.safe_load(block.text)['name']}.yaml").write_text(block.text, encoding="utf-8")
    sessions = [block for block in blocks(PAGE) if block.language == "console"]
    assert whole and len(sessions) >= 5
    for block in sessions:
        session(block, loratory)
    shown = {re.findall("`([^`]+)`", cells[0])[0] for cells in rows(PAGE, "file")}
    assert shown == {path.name for path in Path("results/job-plan").iterdir()} == {*FILES} - {".lock"}
    for path in sorted(Path("results").glob("*/plan.json")):
        documented(json.loads(path.read_text()))


def test_the_readme_begins_with_what_plan_fleet_answers(loratory: Command) -> None:
    """With the values of the answer only: the others of its space make no candidate better."""
    text = " ".join(prose(ROOT / "README.md").split())
    (answer,) = re.findall(r'such as `vllm serve ... (--max-loras \d+)`: "([^"]+)"', text)
    plan = ("plan", "plan-fleet", "--set", "plan.space={gpu: [h100-80gb], engine.max_loras: [32]}")
    done = loratory(*plan, "--set", "plan.details=false", "--jobs", "1", "--out", "fleet")
    assert done.out.splitlines()[0].startswith(answer[1])
    assert f" {answer[0]} " in next(line for line in done.out.splitlines() if line.startswith("vllm: vllm serve "))


def session(block: Block, loratory: Command) -> None:
    """Runs ``$ loratory ...``; the lines below it are printed, in order. ``...`` is any text, alone any lines."""
    command, *wanted = block.text.splitlines()
    assert command.startswith("$ loratory plan "), block.where
    done = loratory(*shlex.split(command)[2:], "--jobs", "1")  # the plan is the same with any number
    code = next((code for option, code in EXIT.items() if option in command), 0)
    assert (done.code, done.err) == (code, ""), f"{block.where}: {done.err}"
    printed = "\n".join(" ".join(line.replace("─", "").split()) for line in done.out.splitlines())
    parts = [" ".join(line.split()) for line in wanted]
    pattern = "".join(r"(?:.*\n)*?" if part == "..." else line_of(part) + r"\n" for part in parts)
    assert re.fullmatch(pattern, printed + "\n"), f"{block.where}: {command}\nprints\n{done.out}"


def line_of(part: str) -> str:
    return ".*".join(re.escape(piece) for piece in part.split("..."))


def documented(found: dict[str, Any]) -> None:
    """The table of plan.json's keys has the keys of a plan, and so do their parts."""
    told = {name: cells[1] for cells in rows(PAGE, "key") for name in re.findall(r"`(\w+)`", cells[0])}
    assert set(told) == set(found)
    for key in ("best", "flags", "workload"):
        assert set(found[key] or {}) <= set(re.findall(r"`(\w+)`", told[key])), key
    for key in ("slo", "candidates", "discarded", "curves", "sensitivity", "what_if", "regret"):
        for part in found[key] or ():
            assert set(part) <= set(re.findall(r"`(\w+)`", told[key])), key


def test_every_section_of_a_scenario_is_planned(loratory: Command) -> None:
    parts = [block for block in blocks(PAGE) if block.language == "yaml" and not block.text.startswith("name: ")]
    assert len(parts) >= 4
    for number, block in enumerate(parts):
        given = yaml.safe_load(block.text)
        whole = SMALL | {"tenants": {"map": {"groups": 2}}, "engine": SMALL["engine"] | {"max_lora_rank": 64}}
        whole["adapters"] = SMALL["adapters"] | {"ranks": [8, 64]}
        whole |= {"name": f"part-{number}"} | given
        Path("part.yaml").write_text(yaml.safe_dump(whole), encoding="utf-8")
        done = loratory("plan", "part.yaml", "--jobs", "1", "--json")
        assert (done.code, done.err) == (0, ""), f"{block.where}: {done.err}"
        assert done.json["runs"] > 0, block.where
        documented(done.json)


def test_details_add_what_the_page_says(loratory: Command) -> None:
    small = SMALL | {"plan": {"replicas": {"most": 3}, "space": {}, "factors": ["traffic"]}}
    Path("small.yaml").write_text(yaml.safe_dump(small), encoding="utf-8")
    found = loratory("plan", "small.yaml", "--jobs", "1", "--json").json
    assert all(found[key] for key in ("curves", "heat", "sensitivity", "what_if", "regret"))
    documented(found)


def test_keys_goals_and_factors_are_those_of_a_plan() -> None:
    text = prose(PAGE)
    section = text.split("## The plan section")[1].split("\n## ")[0]
    keys = {key for head in re.findall(r"^(\*\*`.*?):", section, re.MULTILINE) for key in re.findall(r"`(\w+)`", head)}
    assert keys | {"ask"} == set(PlanSpec.model_fields)
    goal = section.split("**`goal`**")[1].split("\n\n")[0]
    assert set(METRICS) <= set(re.findall(r"`(\w+)`", goal))
    assert set(FACTORS) <= set(re.findall(r"`(\w+)`", section.split("**`factors`**")[1]))
