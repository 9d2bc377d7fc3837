"""Policy guard process: reads the stack of a policy's process, and ends it when a call into C never returns.

It is a script, started by `loratory.serving.policy_guard`, and imports next to nothing before it has to act. On
stdin comes ``.`` as often as the watched process looks at itself, which it does while it runs Python code; when it
does not for the time a policy has, its stack comes instead, as `faulthandler` writes it, and again after the same time.
"""

from __future__ import annotations

import json
import os
import re
import select
import sys
from collections.abc import Iterator
from typing import Any

MEND = "mend that, or allow more with --policy-timeout (in Python, policy_timeout_s)"
"""What to do about a policy that does not come back."""

Frame = tuple[str, int, str]
"""File, line and function."""

_SIGN_OF_LIFE = b".\n"
_QUIET_S = 0.1
"""A stack is whole when nothing more has come for so long (or for a quarter of the policy's time)."""

_FRAME = re.compile(r'^  File "(.*)", line (\d+) in (.*)$', re.MULTILINE)
_ESCAPED = re.compile(r"\\(?:x[0-9a-f]{2}|u[0-9a-f]{4}|U[0-9a-f]{8})")


def late_text(timeout_s: float, where: str) -> str:
    """What is said of a policy that takes longer than ``timeout_s`` seconds."""
    return f"did not come back within {timeout_s:g} s; it was at {where}"


def main(known: dict[str, Any]) -> None:
    """Look on until the watched process closes the pipe or has to be ended."""
    before = None
    for stack in _stacks(0, min(_QUIET_S, known["timeout_s"] / 4), known["thread"]):
        if stack is not None and stack == before and in_policy(stack, known):
            _end(stack, known)
            return
        before = stack


def _stacks(descriptor: int, quiet_s: float, thread: str) -> Iterator[str | None]:
    """The stack of a thread each time it comes, and None at each sign of life."""
    come = b""
    while True:
        if not come or select.select([descriptor], [], [], quiet_s)[0]:
            more = os.read(descriptor, 65_536)
            if not more:
                return
            come += more
            if not come.endswith(_SIGN_OF_LIFE):
                continue
        dumps = come.rpartition(b"\n" + _SIGN_OF_LIFE)[2].removeprefix(_SIGN_OF_LIFE)
        if len(dumps) < len(come):
            yield None
        for dump in dumps.decode(errors="replace").split("Timeout (")[1:]:
            yield dump.partition(f"Thread {thread} ")[2].partition("\n\n")[0]
        come = b""


def in_policy(stack: str, known: dict[str, Any]) -> bool:
    """Whether a guest's code is at work: the rule of `loratory.serving.policy_watch`, on the text of a stack."""
    return _caller(stack, known) is not None


def _caller(stack: str, known: dict[str, Any]) -> str | None:
    """The file of the function that called a guest's code; empty where the stack is too deep to tell."""
    found = None
    frames = _frames(stack)
    for place, (file, _, name) in enumerate(frames):
        if [file, name] in known["entries"]:
            for inner, _, _ in reversed(frames[:place]):
                if not inner.startswith(tuple(known["ours"])):
                    found = file
                    break
                if inner not in known["passing"]:
                    break
    cut_short = stack.rstrip().endswith("...")  # a hundred calls deep: the outer ones are not told
    if found is None and known["blame_deep"] and cut_short and frames:
        return None if frames[-1][0].startswith(tuple(known["ours"])) else ""
    return found


def _frames(stack: str) -> list[Frame]:
    """The innermost first."""
    return [
        (_ESCAPED.sub(lambda code: chr(int(code[0][2:], 16)), file), int(line), name)
        for file, line, name in _FRAME.findall(stack)
    ]


def _end(stack: str, known: dict[str, Any]) -> None:
    """Remove what the run has written, say why in one line, and end the watched process with exit code 1."""
    import ctypes
    import shutil
    import signal
    from contextlib import suppress

    sys.path[:] = known["path"]
    from loratory.errors import LONGEST_MESSAGE, shortened
    from loratory.serving.guest_errors import innermost

    where = innermost((file, line) for file, line, _ in _frames(stack))
    for folder, made in known["leavings"]:
        shutil.rmtree(folder, ignore_errors=True)
        for parent in made:
            with suppress(OSError):
                os.rmdir(parent)
    what = f"{late_text(known['timeout_s'], where)}, in a call that Python cannot interrupt: {MEND}"
    policy, router = known["names"]
    routed = router and (_caller(stack, known) or "").endswith(f"sim{os.sep}gateway.py")
    text = f"{router if routed else policy} {what}"
    prefix = known["prefix"]
    clear = "\r\x1b[K\x1b[?25h" if prefix and os.isatty(known["words"]) else ""  # a progress bar hides the cursor
    with suppress(OSError):
        os.write(known["words"], f"{clear}{prefix}{shortened(text, LONGEST_MESSAGE - len(prefix))}\n".encode())
    queue = known["queue"]
    if queue is None or ctypes.CDLL(None).mq_send(queue, b"1", 1, 0) != 0 or not _gone(known["process"]):
        os.kill(known["process"], signal.SIGKILL)


def _gone(parent: int) -> bool:
    """Whether the watched process, this one's parent, has ended within two seconds."""
    import time

    for _ in range(100):
        if os.getppid() != parent:
            return True
        time.sleep(0.02)
    return False


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
