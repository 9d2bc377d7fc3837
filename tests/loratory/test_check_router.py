"""check-router: every router of ours passes, and each promise is broken by a router that breaks it."""

from __future__ import annotations

from pathlib import Path

import pytest
from command import command_line

from loratory.experiment.router_spec import router_names
from loratory.testing.check_router import ROUTER_PROMISES, check_router

HEAD = "import random\n\n\nclass Mine:\n"
BREAKS = {
    "returns": "    def route(self, request, fleet): return len(fleet)\n",
    "returns while the last replica is away": "    def route(self, request, fleet): return len(fleet) - 1\n",
    "returns while the first is away": "    def route(self, request, fleet): return 0\n",
    "determinism": "    def route(self, request, fleet): return random.choice(list(fleet.candidates))\n",
    "returns in time": "    def route(self, request, fleet):\n        while True: pass\n",
}


@pytest.mark.parametrize("name", router_names())
def test_every_router_of_ours_keeps_every_promise(name: str) -> None:
    found = check_router(name, examples=6)
    assert found.passed, found.findings


@pytest.mark.parametrize("what", BREAKS)
def test_a_broken_promise_is_found(what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(HEAD + BREAKS[what])
    found = check_router("mine.py:Mine", examples=20, timeout_s=0.2)
    broken = {finding.law for finding in found.findings if finding.ok is False}
    assert broken == {what.partition(" ")[0]} and not found.passed
    if what == "returns in time":
        assert {finding.ok for finding in found.findings} == {False, None}
        assert "router mine.py:Mine failed" in found.findings[0].found


def test_what_no_fleet_has_shown_is_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(HEAD + "    def route(self, request, fleet): raise KeyError('a7')\n")
    found = check_router("mine.py:Mine", examples=3)
    assert [each.ok for each in found.findings] == [False, None, None, None]


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(HEAD + BREAKS["returns"])
    command = command_line(capsys, monkeypatch)
    good = command("check-router", "rendezvous:few=2", "-n", "3")
    assert good.code == 0 and all(promise in good.out for promise in ROUTER_PROMISES.values())
    bad = command("check-router", "mine.py:Mine", "-n", "3")
    assert bad.code == 1 and "router mine.py:Mine breaks 1 of 4: returns" in bad.err and "FAILED" in bad.out
    assert "return one of fleet.candidates" in bad.out
    assert command("check-router", "mine.py:Mine", "-n", "3", "--json").json["passed"] is False
    assert command("check-router", "fifo").code == 2 and command("check-router", "rendezvous", "-n", "0").code == 2
