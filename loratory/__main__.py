"""``loratory`` and ``python -m loratory``: a signal ends the command with one line, also while modules are imported.

It imports almost nothing itself. From `loratory.cli.main.main` on, `loratory.experiment.interruption` handles signals.
"""

from __future__ import annotations

import os
import signal
import sys


def main() -> None:
    """Run the command line, and exit."""
    before = {}
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
            before[number] = signal.signal(number, _stop)
    from loratory.cli.main import main as run

    try:
        for number, handler in before.items():
            signal.signal(number, handler)
        run()
    except KeyboardInterrupt:
        _stop(signal.SIGINT)
    finally:
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # the command is over: let Python end without a traceback


def _stop(number: int, frame: object = None) -> None:
    """End at once: there is nothing to clean up yet."""
    name = signal.Signals(number).name
    if sys.stderr is not None:
        os.write(sys.stderr.fileno(), f"loratory: interrupted by {name}; nothing was written\n".encode())
    os._exit(128 + number)


if __name__ == "__main__":
    main()
