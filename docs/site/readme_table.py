"""Readme table: the table and the figure of noisy-neighbour in README.md, from a run.

python docs/site/readme_table.py        # writes README.md and docs/noisy-neighbour.svg
"""

from __future__ import annotations

import base64
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from loratory import load_scenario, run_scenario

ROOT = Path(__file__).resolve().parents[2]
FIGURE = "Latency against adapter popularity"
SOURCES = {"fifo": "vLLM V1", "fair_share": "VTC", "deficit": "deficit round robin"}
HEAD = """\
| policy | TTFT p99 of `quiet-a` | of `quiet-b` | of `noisy` | TTFT p50 of `noisy` | within the SLO | adapter loads |
|---|---|---|---|---|---|---|
"""


def table(summary: Mapping[str, Any]) -> str:
    """A row for each policy of noisy-neighbour's summary: seconds to the first token by tenant, requests within 3 s."""
    return HEAD + "".join(f"| {' | '.join(_cells(run))} |\n" for run in summary["runs"])


def _cells(run: Mapping[str, Any]) -> list[str]:
    name = run["policy"]
    tenants = {each["tenant"]: each for each in run["per_tenant"]}
    source = f" ({SOURCES[name]})" if name in SOURCES else ""
    p99 = [f"{tenants[tenant]['ttft_p99_s']:.1f} s" for tenant in ("quiet-a", "quiet-b", "noisy")]
    p50 = f"{tenants['noisy']['ttft_p50_s']:.1f} s"
    kept, loads = f"{run['slo']['attainment']:.1%}".replace("%", " %"), f"{run['adapters']['loads']:,}"
    return [f"`{name}`{source}", *p99, p50, kept, loads]


def figure(report: str) -> str:
    """The SVG of `FIGURE` in a report.html."""
    found = re.search(rf'data:image/svg\+xml;base64,([\w+/=]+)"\s+alt="{FIGURE}', report)
    assert found is not None, f"the report has no figure {FIGURE!r}"
    return base64.b64decode(found[1]).decode("utf-8")


def main() -> None:
    """Run the scenario and write both."""
    with tempfile.TemporaryDirectory() as folder:
        summary = run_scenario(load_scenario("noisy-neighbour"), Path(folder) / "run")
        svg = figure((Path(folder) / "run" / "report.html").read_text(encoding="utf-8"))
    (ROOT / "docs" / "noisy-neighbour.svg").write_text(svg, encoding="utf-8")
    readme = ROOT / "README.md"
    text = readme.read_text(encoding="utf-8")
    written = re.sub(r"^\| policy \|.*\n(?:\|.*\n)+", lambda _: table(summary), text, count=1, flags=re.MULTILINE)
    readme.write_text(written, encoding="utf-8")


if __name__ == "__main__":
    main()
