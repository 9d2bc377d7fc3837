"""reports: from engine events to records, metrics, tables, plots and one HTML page. It imports only `loratory.serving`.

How the data travels: an engine's events go into a `Recorder` (requests.parquet, steps.parquet, decisions.jsonl);
`summarise` turns the records of one run into a small `RunReport`; a `ResultFolder` writes summary.json, report.html and
timeline.json over all runs; `compare` reads summaries back. See docs/reports.md.
"""

from loratory.reports.compare import Comparison, Difference, compare
from loratory.reports.folder import ResultFolder, check_target
from loratory.reports.recorder import Recorder, Records
from loratory.reports.run_info import RunInfo
from loratory.reports.slo import read_slo
from loratory.reports.summary import RunReport, over_seeds, scalars, summarise, summary_of
from loratory.reports.verdict_types import Verdict
from loratory.reports.verdicts import verdicts

__all__ = [
    "Comparison",
    "Difference",
    "Recorder",
    "Records",
    "ResultFolder",
    "RunInfo",
    "RunReport",
    "Verdict",
    "check_target",
    "compare",
    "over_seeds",
    "read_slo",
    "scalars",
    "summarise",
    "summary_of",
    "verdicts",
]
