"""docs/serving.md, from start to end: every command runs on the real model, and prints what is shown."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from pages import ROOT, Block, blocks
from smollm2 import adapters, checkpoint

from loratory.user_files import user_models

PAGE = ROOT / "docs" / "serving.md"
PATIENCE_S = 240.0


class Session:
    """A shell in a folder of its own. The server of the page listens on a free port, and is the one that it stops."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        programs = Path(sys.executable).parent
        self.environment = {**os.environ, "PATH": f"{programs}:{os.environ['PATH']}", "HF_HUB_OFFLINE": "1"}
        self.environment |= {"LORATORY_MODELS": str(user_models()), "COLUMNS": "300"}
        self.server: subprocess.Popen[bytes] | None = None

    def ours(self, text: str) -> str:
        """The page's text with the port that is free here."""
        text = text.replace("127.0.0.1:8000", f"127.0.0.1:{self.port}")
        text = text.replace("loratory serve ", f"loratory serve --port {self.port} ")
        return re.sub(r"loratory swap (\S+)", rf"loratory swap \1 --url http://127.0.0.1:{self.port}", text)

    def run(self, command: str) -> str:
        """What a command prints. One that ends in ``&`` is the server: what it logs until it answers."""
        if command.startswith("kill"):
            return self.stop()
        if command.endswith(" &"):
            return self.start(command.removesuffix(" &"))
        done = subprocess.run(
            ["bash", "-c", self.ours(command)], cwd=self.folder, env=self.environment, timeout=PATIENCE_S,
            capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def start(self, command: str) -> str:
        """Start the server, and wait until it answers."""
        log = self.folder / "server.log"
        with open(log, "wb") as file:
            self.server = subprocess.Popen(
                ["bash", "-c", f"exec {self.ours(command)}"], cwd=self.folder, env=self.environment, stderr=file
            )
        until = time.monotonic() + PATIENCE_S
        while "serving" not in (told := log.read_text()):
            assert self.server.poll() is None and time.monotonic() < until, told
            time.sleep(0.1)
        return "\n".join(line for line in told.splitlines() if " serving " in line) + "\n"

    def stop(self) -> str:
        """End the server as the page does."""
        assert self.server is not None
        self.server.send_signal(signal.SIGTERM)
        assert self.server.wait(PATIENCE_S) == 0, (self.folder / "server.log").read_text()
        self.server = None
        return ""


@pytest.fixture
def session(tmp_path: Path) -> Iterator[Session]:
    """A folder with the examples of the checkout, and with the page's adapters, which were trained before."""
    checkpoint()
    for name, trained in adapters().items():
        if name in ("json", "one-word"):
            shutil.copytree(trained, tmp_path / "trained" / name)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    session = Session(tmp_path)
    try:
        yield session
    finally:
        if session.server is not None:
            session.server.kill()
            session.server.wait()


def test_the_page_from_start_to_end(session: Session) -> None:
    pytest.importorskip("openai", reason="the page uses OpenAI's client")
    commands = 0
    for block in blocks(PAGE):
        if block.language == "python":
            (session.folder / "client.py").write_text(session.ours(block.text), encoding="utf-8")
            answers = session.run("python client.py").splitlines()
            assert {line.partition(" -> ")[0] for line in answers} == {"smollm2-135m", "json", "one-word"}
            continue
        assert block.language == "console", f"{block.where} is not run"
        for command, wanted in told(block):
            commands += 1
            printed = [
                " ".join(line.split())
                for line in session.run(command).replace(f":{session.port}", ":8000").splitlines()
            ]
            pattern = "".join(r"(?:.*\n)*?" if part == "..." else line_of(part) + r"\n" for part in wanted)
            shown = "".join(f"{line}\n" for line in printed)
            assert re.fullmatch(pattern, shown), f"{block.where}: {command}\nprints\n{shown}\nnot\n{pattern}"
    assert commands >= 15 and session.server is None


def told(block: Block) -> list[tuple[str, list[str]]]:
    """The commands of a block, each with the lines below it, which it prints. ``...`` is any text, alone any lines."""
    found: list[tuple[str, list[str]]] = []
    for line in block.text.splitlines():
        if line.startswith("$ "):
            found.append((line[2:], []))
        else:
            found[-1][1].append(" ".join(line.split()))
    return found


def line_of(part: str) -> str:
    """A pattern of a line, in which ``...`` is any text."""
    return ".*".join(re.escape(piece) for piece in part.split("..."))
