"""reports: from engine events to records, metrics, tables, plots and one HTML page. Imports only `serving` of ours.

The way of the data: an engine's events go into a `Recorder` (requests.parquet, steps.parquet, decisions.jsonl);
`summarise` turns the records of one run into a small `RunReport`; a `ResultFolder` writes summary.json, report.html and
timeline.json over all runs; `compare` reads summaries back. See docs/reports.md.
"""

from reports.compare import Comparison, Difference, compare
from reports.folder import ResultFolder, check_target
from reports.info import RunInfo
from reports.recorder import Recorder, Records
from reports.slo import read_slo
from reports.summary import RunReport, over_seeds, scalars, summarise, summary_of
from reports.verdict import Verdict
from reports.verdicts import verdicts

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
