"""README.md and docs/: the policies, catalogue, columns, metrics, keys and figures that they name are Loratory's."""

from __future__ import annotations

import json
import re
import runpy
from pathlib import Path
from typing import Any

from command import SMALL
from pages import ROOT, code_spans, prose, rows
from typer.main import get_command

from loratory.cli.main import app
from loratory.experiment.policy_spec import policy_factory, policy_names
from loratory.scenarios.load import load_text
from loratory.scenarios.reference import tables
from loratory.sim.catalogue import gpu, model

README = ROOT / "README.md"
DOCS = ROOT / "docs"


def test_policies() -> None:
    words = ("nine", "ten", "eleven", "twelve", "thirteen", "fourteen", "fifteen")
    told = re.findall(rf"\b({'|'.join(words)}|\d+) policies\b", README.read_text(encoding="utf-8"))
    assert told and all(words.index(word) + 9 == len(policy_names()) for word in told)
    specs = [re.findall("`([^`]+)`", cells[0])[0] for cells in rows(DOCS / "policies.md", "policy")]
    assert {spec.split(":")[0] for spec in specs} == set(policy_names())
    for spec in specs:
        policy_factory(spec)()


def test_commands_that_tell_of_exit_code_1_are_in_the_table_of_exit_codes() -> None:
    told: set[str] = set()

    def walk(command: Any, name: str) -> None:
        if re.search(r"xit code(:? is)? 1\b", " ".join((command.help or "").split())):
            told.add(name)
        for word, below in getattr(command, "commands", {}).items():
            walk(below, f"{name} {word}".strip())

    walk(get_command(app), "")
    (failed,) = (cells[1] for cells in rows(README, "code") if cells[0] == "1")
    assert told == set(re.findall("`([^`]+)`", failed)) >= {"check-policy", "swap", "adapters scan"}


def test_the_catalogue_is_what_the_page_lists() -> None:
    from loratory.sim.catalogue import gpu_names, model_names

    text = prose(DOCS / "cost-models.md").split("## Catalogue")[1].split("## ")[0]
    gpus, models = re.search(r"GPUs: `([^`]+)`", text), re.search(r"Models: (.*?), or the path", text, re.DOTALL)
    assert gpus and models
    assert gpus[1].split() == list(gpu_names()) or set(gpus[1].split()) == set(gpu_names())
    listed = [name for span in re.findall("`([^`]+)`", models[1]) for name in span.split()]
    assert set(listed) == set(model_names())
    assert gpu(gpus[1].split()[0]) and model(listed[0])


def test_columns_and_metrics_of_a_result(tmp_path: Path) -> None:
    import pyarrow.parquet as parquet

    from loratory import run_scenario

    folder = tmp_path / "keys"
    run_scenario(load_text(SMALL), folder)
    page = DOCS / "reports.md"
    columns = {name for cells in rows(page, "column") for name in re.findall(r"`(\w+)`", cells[0])}
    assert columns == set(parquet.read_schema(folder / "fifo" / "0" / "requests.parquet").names)
    text = prose(page).split("## steps.parquet")[1].split("## ")[0]
    assert set(re.findall(r"`(\w+)`", text)) == set(parquet.read_schema(folder / "fifo" / "0" / "steps.parquet").names)
    (one,) = json.loads((folder / "summary.json").read_text())["runs"]
    (fleet,) = run_scenario(load_text(SMALL, overrides=["cluster.replicas=2"]))["runs"]
    assert set(fleet) - set(one) == {"per_replica"}
    one = {**fleet, **one}
    documented: set[str] = set()
    for cells in rows(page, "key"):
        stem = ""
        for name in re.findall(r"`([\w.]+)`", cells[0]):
            stem = name if not name.startswith(".") else stem
            path = name if not name.startswith(".") else stem.rsplit(".", 1)[0] + name
            documented.add(path.split(".")[0])
            value: Any = one
            for part in path.split("."):
                assert part in value, f"reports.md documents {path}, which a summary does not have"
                value = value[part]
    assert set(one) == documented


def test_scenario_keys_that_the_prose_names_exist() -> None:
    sections = {"engine", "workload", "adapters", "tiers", "tenants", "cluster", "executor", "cost"}
    known = {name: set(re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE)) for name, text in reference().items()}
    for page in (
        README,
        DOCS / "scenarios.md",
        DOCS / "cost-models.md",
        DOCS / "traces.md",
        DOCS / "executor.md",
        DOCS / "policies.md",
    ):
        for span in code_spans(page):
            found = re.match(r"([a-z]+)\.([a-z_]+)\b(?![./(])", span)
            if found and found[1] in sections and not span.endswith((".py", ".md", ".yaml")):
                every = set().union(*(keys for name, keys in known.items() if name.split()[0] == found[1]))
                assert found[2] in every, f"{page.name}: `{span}`"


def reference() -> dict[str, str]:
    return {part.split("\n", 1)[0].strip(): part for part in tables().split("### ")[1:]}


def test_what_the_readme_says_of_its_table_follows_from_it() -> None:
    cells = {re.findall("`([^`]+)`", row[0])[0]: row[1:] for row in rows(README, "policy")}
    p99 = {name: [float(each.removesuffix(" s")) for each in row[:3]] for name, row in cells.items()}
    loads = {name: int(row[5]) for name, row in cells.items()}
    saved = p99["fair_share"][2] - p99["affine_deficit"][2]
    for sentence in (
        f"for the quiet tenants, P99 TTFT reaches {max(p99['fifo'][:2])} s",
        f"Under `fair_share` it stays at {max(p99['fair_share'][:2])} s",
        f"its own burst, {p99['fair_share'][2]} s instead of {p99['fifo'][2]} s",
        f"Fairness costs {loads['fair_share'] - loads['fifo']} more adapter loads",
        f"saves {loads['fair_share'] - loads['affine_deficit']} of them and {saved:.1f} s of the wait of `noisy`",
    ):
        assert sentence in " ".join(README.read_text(encoding="utf-8").split())


def test_the_table_of_the_readme_is_what_noisy_neighbour_gives(tmp_path: Path) -> None:
    from loratory import load_scenario, run_scenario

    made = runpy.run_path(str(DOCS / "site" / "readme_table.py"))
    summary = run_scenario(load_scenario("noisy-neighbour"), tmp_path / "run")
    assert made["table"](summary) in README.read_text(encoding="utf-8")
    drawn = made["figure"]((tmp_path / "run" / "report.html").read_text(encoding="utf-8"))
    shown = (DOCS / "noisy-neighbour.svg").read_text(encoding="utf-8")
    assert drawn.count("clip-path=") == shown.count("clip-path=") > 0, "lines, markers and grid of the same figure"
