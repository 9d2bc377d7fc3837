"""Browser: Chromium without a window, driven over its DevTools protocol. No package but websockets is needed."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.request import urlopen

from websockets.sync.client import ClientConnection, connect

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
MISSING = "no chromium, chromium-browser or google-chrome is installed here"
OPTIONS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--hide-scrollbars",
    "--disable-background-networking", "--remote-debugging-port=0", "about:blank",
)  # fmt: skip

_UNTIL = """new Promise((resolve, reject) => {
  const began = performance.now();
  const look = () => {
    let found;
    try { found = %s; } catch (error) { found = null; }
    if (found) resolve(found);
    else if (performance.now() - began > %d) reject(new Error("it did not come true"));
    else setTimeout(look, 30);
  };
  look();
})"""


class Page:
    """One page. Errors of its scripts, and what its policy blocked, are kept in ``complaints``."""

    def __init__(self, connection: ClientConnection) -> None:
        self._connection = connection
        self._number = 0
        self.complaints: list[str] = []
        for domain in ("Page", "Runtime", "Log"):
            self._send(f"{domain}.enable")

    def open(self, url: str) -> None:
        """Go to an address."""
        self._send("Page.navigate", url=url)

    def window(self, width: int, height: int, dark: bool = False) -> None:
        """The size of the window, and which colours its user likes."""
        self._send(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._send("Emulation.setEmulatedMedia", features=[scheme])

    def read(self, expression: str) -> Any:
        """The value of a JavaScript expression; a promise is waited for. Raises `AssertionError` where it throws."""
        answer = self._send("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def until(self, expression: str, within_s: float = 20) -> Any:
        """Wait until an expression is true; returns its value."""
        return self.read(_UNTIL % (expression, within_s * 1000))

    def screenshot(self, path: Path) -> None:
        """The whole page as PNG."""
        taken = self._send("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(taken["data"]))

    def _send(self, method: str, **params: Any) -> dict[str, Any]:
        self._number += 1
        self._connection.send(json.dumps({"id": self._number, "method": method, "params": params}))
        while True:
            message = json.loads(self._connection.recv(timeout=60))
            if message.get("id") == self._number:
                assert "error" not in message, message
                result: dict[str, Any] = message["result"]
                return result
            if message.get("method") == "Runtime.exceptionThrown":
                self.complaints.append(json.dumps(message["params"]["exceptionDetails"]))
            if message.get("method") == "Log.entryAdded" and message["params"]["entry"]["level"] == "error":
                self.complaints.append(json.dumps(message["params"]["entry"]))


@contextmanager
def browser(profile: Path) -> Iterator[Page]:
    """A page of a Chromium of its own, which ends with the block. ``profile``: a folder that does not exist yet."""
    assert CHROMIUM is not None, MISSING
    with TemporaryDirectory(prefix="browser-", ignore_cleanup_errors=True) as scratch, ExitStack() as ends:
        process = subprocess.Popen(
            [CHROMIUM, f"--user-data-dir={profile}", *OPTIONS],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"TMPDIR": scratch},  # where Chromium leaves folders behind
        )
        ends.callback(_end, process)
        port = _port(process)
        with urlopen(f"http://127.0.0.1:{port}/json/list", timeout=30) as answer:
            pages = [each for each in json.load(answer) if each["type"] == "page"]
        with connect(pages[0]["webSocketDebuggerUrl"], max_size=None, proxy=None) as connection:
            yield Page(connection)


def _end(process: subprocess.Popen[str]) -> None:
    process.terminate()
    try:
        process.wait(timeout=20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    assert process.stderr is not None
    process.stderr.close()


def _port(process: subprocess.Popen[str]) -> int:
    """The port that Chromium says it listens on."""
    assert process.stderr is not None
    began = time.monotonic()
    for line in process.stderr:
        if "DevTools listening on" in line:
            return int(line.partition("127.0.0.1:")[2].partition("/")[0])
        assert time.monotonic() - began < 60, "Chromium does not start"
    raise AssertionError("Chromium has ended")
