"""docs/adapters.md, from start to end: every example runs, in the page's order, and prints what it says."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from command import Command, command_line
from servers import HubServer, adapter

GUIDE = Path(__file__).parents[2] / "docs" / "adapters.md"
FILES = {"ids: user": "by-hand.yaml", "name: real": "real.yaml"}
"""What a reader would call the files whose content the page shows, by how they begin."""


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """The Hub, with the one repository the page names."""
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setenv("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")
    server = HubServer()
    for branch in ("main", "v2"):
        server.push("acme/sql-lora", adapter(), branch)
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    with server.running():
        yield server


@pytest.mark.usefixtures("hub")
def test_the_page_from_start_to_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("peft", reason="the page makes its adapters with PEFT")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("LORATORY_REGISTRY", "LORATORY_CACHE", "LORATORY_CACHE_SIZE", "XDG_DATA_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    loratory = command_line(capsys, monkeypatch)
    names: dict[str, object] = {"__name__": "guide"}
    blocks = re.findall(r"^```(\w+)\n(.*?)^```", GUIDE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    for language, block in blocks:
        if language == "python":
            capsys.readouterr()
            exec(compile(block, str(GUIDE), "exec", flags=0, dont_inherit=True), names)
            said = re.findall(r"^ *# (.*)$", block, re.MULTILINE)
            assert capsys.readouterr().out.splitlines() == said
        elif language == "yaml":
            start = next(start for start in FILES if block.startswith(start))
            (tmp_path / FILES[start]).write_text(block, encoding="utf-8")
        else:
            assert language == "console"
            run_session(block, loratory)
    assert {language for language, _ in blocks} == {"python", "yaml", "console"}
    done = loratory("adapters", "import", "by-hand.yaml", "--registry", "by-hand.db")
    assert done.code == 0 and "registered sql@2: id 7002" in done.out, done


def run_session(block: str, loratory: Command) -> None:
    """Runs each ``$ loratory`` line; the lines below it must be printed, in order (blanks do not count, ... is any)."""
    for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
        line, *expected = part.splitlines()
        program, *arguments = shlex.split(line)
        assert program == "loratory"
        done = loratory(*arguments)
        assert (done.code, done.err) == (0, ""), f"{line}: {done.err}"
        printed = [" ".join(text.split()) for text in done.out.splitlines()]
        for wanted in expected:
            pattern = ".*".join(re.escape(piece) for piece in " ".join(wanted.split()).split("..."))
            place = next((at for at, text in enumerate(printed) if re.fullmatch(pattern, text)), None)
            assert place is not None, f"{line}: {wanted!r} is not in\n{done.out}"
            del printed[: place + 1]
