"""Fork server for hostile inputs: each command line runs in a fork of one warm process, with bounded memory and time.

Reads a JSON object a line, {argv, folder, seconds, said}; answers with one, {code, out, err, timed_out}.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import resource
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

WARM = (
    "loratory.cli.main",
    "loratory.experiment.resolve",
    "loratory.experiment.run",
    "loratory.experiment.policy_spec",
    "loratory.experiment.replay",
    "loratory.reports.compare",
    "loratory.reports.agreement",
    "loratory.reports.folder",
    "loratory.scenarios.build",
    "loratory.scenarios.traces",
    "loratory.scenarios.traces.report",
    "loratory.adapters.registry.registry",
    "loratory.sim.cluster",
    "pandas",
    "pyarrow.parquet",
)
"""Imported once, before anything is forked."""

MEMORY_BYTES = 2 << 30
"""What a fork may ask for beyond what it begins with."""


def main() -> None:
    """Serve until stdin ends."""
    for name in WARM:
        importlib.import_module(name)
    os.setsid()
    gc.freeze()
    for line in sys.stdin:
        asked = json.loads(line)
        place = Path(asked.get("said", asked["folder"]))
        print(json.dumps(served(asked["argv"], Path(asked["folder"]), asked["seconds"], place)), flush=True)


def served(argv: list[str], folder: Path, seconds: float, place: Path) -> dict[str, object]:
    """Run one command line in a fork; what it left. What it says goes to two files whose paths begin as ``place``."""
    said = {name: place.with_name(f"{place.name}.{name}") for name in ("out", "err")}
    child = os.fork()
    if child == 0:
        run(argv, folder, said)
    ends = time.monotonic() + seconds
    timed_out = False
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            break
        if time.monotonic() > ends and not timed_out:
            timed_out = True
            os.kill(child, signal.SIGKILL)
        time.sleep(0.002)
    texts = {name: path.read_bytes().decode("utf-8", "replace") for name, path in said.items()}
    for path in said.values():
        path.unlink()
    return {"code": os.waitstatus_to_exitcode(status), "timed_out": timed_out, **texts}


def run(argv: list[str], folder: Path, said: dict[str, Path]) -> None:
    """In the fork: never returns."""
    code = 70
    try:
        os.setpgid(0, 0)
        for number, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(said[name], os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600), number)
        pages = int(Path("/proc/self/statm").read_text().split()[0]) if Path("/proc/self/statm").exists() else 1 << 18
        most = pages * resource.getpagesize() + MEMORY_BYTES
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
        os.chdir(folder)
        sys.path.insert(0, str(folder))
        sys.argv = ["loratory", *argv]
        from loratory.cli.main import main as command

        command()
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 0 if ended.code is None else 1
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        with suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    main()
