"""audited_server: ``loratory serve`` that writes down what becomes of each request, and what it holds when asked.

    python audited_server.py AUDIT serve CHECKPOINT ...

Lines of the file AUDIT, each a JSON object: ``{"accepted": ID}``, ``{"ended": ID, "status": ..., "why": ...}``,
``{"holds": {...}}``, ``{"swapped": SPEC}``. Lines of its input: ``holds`` asks for that line; ``swap SPEC`` puts a
policy in at once, without the trial of POST /admin/policy, which takes seconds. Nothing else differs from the command.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import json
import os
import sys
import threading
from pathlib import Path
from typing import Any

from loratory.errors import LoratoryError
from loratory.experiment.policy_spec import policy_factory


def holds(server: Any) -> dict[str, int]:
    """What a server holds at this moment, counted."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    executor, catalogue = server.executor, server.catalogue
    ledger, tiers = executor.engine.ledger, executor.tiers
    status = Path("/proc/self/status").read_text().split()
    known = {each.adapter.name for each in catalogue.known()}
    return {
        "resident_bytes": int(status[status.index("VmRSS:") + 1]) * 1024,
        "threads": threading.active_count(),
        "system_threads": len(os.listdir("/proc/self/task")),
        "files": len(os.listdir("/proc/self/fd")),
        "tasks": len(asyncio.all_tasks(server._event_loop)),
        "unfinished": executor.engine.unfinished,
        "sequences": len(ledger.sequences),
        "running": len(ledger.running),
        "kv_blocks": ledger.kv.used,
        "generations": len(executor._generations),
        "block_tables": len(executor.runner.tables._rows),
        "streams": len(server.loop._streams),
        "in_progress": server.limits.in_progress,
        "tenants_in_progress": len(server.limits._tenants),
        "loads_in_flight": tiers.in_flight,
        "strange_in_slots": len(tiers.resident.keys() - known),
        "strange_in_host": len(tiers.in_host - known),
        "strange_in_files": len(tiers.files.keys() - known),
        "leaving": sum(each.leaving for each in catalogue._known.values()),
    }


def audit(server: Any, path: Path) -> None:
    """Write down what happens to a server's requests from now on."""
    file = path.open("a", buffering=1, encoding="utf-8")
    executor = server.executor
    submit = executor.submit

    def submitted(request: Any, generation: Any) -> None:
        submit(request, generation)
        file.write(json.dumps({"accepted": request.request_id}) + "\n")

    def ended(event: Any) -> None:
        line = {"ended": event.request.request_id, "status": event.status, "why": event.why}
        file.write(json.dumps(line) + "\n")

    def swap(spec: str) -> None:
        make = policy_factory(spec)
        server.loop.call(lambda executor, at: executor.swap(spec, make, at)).result(60)
        file.write(json.dumps({"swapped": spec}) + "\n")

    def obey() -> None:
        for line in sys.stdin:
            word, _, rest = line.strip().partition(" ")
            if word == "holds":
                file.write(json.dumps({"holds": holds(server)}) + "\n")
            elif not server.draining:
                with contextlib.suppress(LoratoryError):  # the server has ended meanwhile
                    swap(rest)

    executor.submit = submitted
    executor.listen(ended)
    threading.Thread(target=obey, name="audit", daemon=True).start()


def main() -> None:
    """Run the command line with an audited server."""
    import loratory.server.server as module
    from loratory.__main__ import main as command

    path = Path(sys.argv[1])
    build = module.build_server

    def build_audited(*arguments: Any, **options: Any) -> Any:
        server = build(*arguments, **options)
        audit(server, path)
        return server

    module.build_server = build_audited
    sys.argv = ["loratory", *sys.argv[2:]]
    command()


if __name__ == "__main__":
    main()
