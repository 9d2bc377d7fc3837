"""Files that a public project has: licence, notice, citation, workflow, hooks; each agrees with the code."""

from __future__ import annotations

import hashlib
import re
import tomllib
from pathlib import Path
from typing import Any

import yaml

from loratory import __version__

ROOT = Path(__file__).parents[1]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def test_the_licence_is_apache_2_0_word_for_word() -> None:
    """The digest is that of LICENSE-2.0.txt, as the Apache Software Foundation publishes it."""
    text = (ROOT / "LICENSE").read_bytes()
    assert hashlib.sha256(text).hexdigest() == "cfc7749b96f63bd31c3c42b5c471bf756814053e847c10f3eb003417bc523d30"
    assert PROJECT["license"] == "Apache-2.0"


def test_the_notice_names_every_table_and_profile_that_ships() -> None:
    kinds = ("scenarios/**/*.csv", "scenarios/profiles/*.json", "executor/**/*.json")
    shipped = {str(path.relative_to(ROOT)) for kind in kinds for path in ROOT.glob(kind)}
    named = re.findall(r"^[\w/.-]+\.(?:csv|json)$", (ROOT / "NOTICE").read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(named) == sorted(shipped)


def test_the_citation_is_of_this_version() -> None:
    """The keys that Citation File Format 1.2.0 requires, and those that would go stale."""
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"cff-version", "message", "title", "authors"} <= set(citation)
    assert citation["cff-version"] == "1.2.0"
    assert citation["version"] == __version__
    assert citation["license"] == PROJECT["license"]
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"## [{__version__}] - {citation['date-released']}\n" in changelog


def test_the_workflow_tests_every_python_that_the_metadata_names() -> None:
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8"))
    cells = workflow["jobs"]["test"]["strategy"]["matrix"]["include"]
    named = [each.rpartition(" ")[2] for each in PROJECT["classifiers"] if re.search(r"Python :: 3\.\d", each)]
    assert [cell["python"] for cell in cells] == named
    assert PROJECT["requires-python"] == f">={named[0]}"
    extras = PROJECT["optional-dependencies"]
    steps = [step.get("run", "") for job in workflow["jobs"].values() for step in job["steps"]]
    asked = {extra for step in steps for extra in re.findall(r"\.\[([\w-]+)\]", step)}
    assert asked | {cell["extra"] for cell in cells} <= set(extras)
    torch = next(each for each in extras["test"] if each.startswith("torch=="))
    assert {word for step in steps for word in step.split() if word.startswith("torch")} == {torch}
    assert "torch" not in " ".join(extras["test-without-torch"]) and "executor" not in extras["test-without-torch"][0]


def test_every_linter_of_make_lint_is_a_hook_and_a_step_of_the_workflow() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    lint = re.search(r"^lint:.*\n((?:\t.*\n)+)", makefile, re.MULTILINE)
    assert lint is not None
    linters = [line.strip().removeprefix("$(BIN)/") for line in lint[1].splitlines()]
    (local,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"]
    hooks = [hook["entry"].removeprefix(".venv/bin/").replace("--force-exclude", ".") for hook in local["hooks"]]
    assert [" ".join(sorted(each.split())) for each in hooks] == [" ".join(sorted(each.split())) for each in linters]
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8"))
    assert set(linters) <= {step.get("run") for step in workflow["jobs"]["lint"]["steps"]}
