"""`loratory swap` and `loratory shadow report`: what they say, and one sentence for what goes wrong."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from admin_world import TOKEN, AdminWorld, admin_world, tiny_model
from typer.testing import CliRunner

from loratory.cli.main import app
from loratory.errors import InputError, LoratoryError, PolicyError
from loratory.experiment.shadow_report import LiveCounts, shadow_report, simulated
from loratory.server import admin
from loratory.server.cost import ASSUMED


@contextmanager
def listening(asgi: Any) -> Iterator[str]:
    """The URL of an application that answers on a port of this machine."""
    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(asgi, log_level="warning", lifespan="off"))
        place.listen()  # what is asked before the thread serves waits, instead of being refused
        thread = threading.Thread(target=server.run, args=([place],))
        thread.start()
        try:
            yield f"http://127.0.0.1:{place.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()


@pytest.fixture
def world(tmp_path: Path) -> Iterator[AdminWorld]:
    with admin_world(model=tiny_model(tmp_path / "model"), record=tmp_path / "rec", shadow_share=1.0) as world:
        yield world


def run(*arguments: str, env: dict[str, str] | None = None) -> str:
    """What a command prints. Raises what it raises."""
    done = CliRunner().invoke(app, list(arguments), env=env or {}, standalone_mode=False)
    if done.exception is not None:
        raise done.exception
    return done.output


def fails_its_trial(*_: Any) -> None:
    raise PolicyError("it breaks a promise")


async def has_ended(_: Any) -> None:
    raise LoratoryError("it is over")


def test_a_policy_is_swapped_from_the_command_line(
    world: AdminWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admin, "try_policy", lambda *_: None)
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    given = {"LORATORY_ADMIN_TOKEN": TOKEN}
    with listening(world.client.app) as url:
        said = run("swap", "drain", "--url", url, "--token-file", str(tmp_path / "token"))
        assert said.startswith("drain is in force, in place of fifo, since second ")
        with pytest.raises(InputError, match="did you mean 'drain'"):
            run("swap", "drian", "--url", url + "/", env=given)
        with pytest.raises(InputError, match="policy: String should have at least 1 character"):
            run("swap", "", "--url", url, env=given)
        with monkeypatch.context() as patched:
            for failing in (("swap", "drain"), ("swap", "drain", "--shadow")):
                patched.setattr(admin, "try_policy", fails_its_trial)
                with pytest.raises(PolicyError, match="it breaks a promise"):
                    run(*failing, "--url", url, env=given)
        with monkeypatch.context() as patched:
            patched.setattr(world.live.admin, "in_engine", has_ended)
            with pytest.raises(LoratoryError, match="the engine has stopped: it is over") as stopped:
                run("swap", "fifo", "--url", url, env=given)
            assert stopped.type is LoratoryError
        said = run("swap", "priority", "--shadow", "--url", url, env=given)
        assert "priority is asked beside drain from now on" in said
        assert json.loads(run("swap", "priority", "--shadow", "--json", "--url", url, env=given))["before"] == "drain"
        assert world.get("policy").json()["shadow"]["policy"] == "priority"
        for token, says in (("wrong", "refuses the admin token"), ("two words", "refuses"), ("é", "holds no token")):
            with pytest.raises(InputError, match=says):
                run("swap", "fifo", "--url", url, env={"LORATORY_ADMIN_TOKEN": token})
    with pytest.raises(InputError, match=r"no server answers at http://127.0.0.1:\d+ "):
        run("swap", "fifo", "--url", url, env=given)


def test_the_tokens_that_a_swap_cannot_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no admin token is given: give --token-file, or set LORATORY_ADMIN_TOKEN"):
        run("swap", "fifo", env={"LORATORY_ADMIN_TOKEN": " "})
    with pytest.raises(InputError, match=r"--token-file \S+ cannot be read"):
        run("swap", "fifo", "--token-file", str(tmp_path))
    (tmp_path / "empty").write_text("\n")
    with pytest.raises(InputError, match="holds no token"):
        run("swap", "fifo", "--token-file", str(tmp_path / "empty"))
    for url in ("ftp://x", "http://", "nonsense", "http://127.0.0.1:99999999"):
        with pytest.raises(InputError, match="no server answers at"):
            run("swap", "fifo", "--url", url, env={"LORATORY_ADMIN_TOKEN": "x"})


def test_what_answers_may_be_no_server_of_ours() -> None:
    async def other(scope: Any, receive: Any, send: Any) -> None:
        status = 404 if b"deny" in scope["query_string"] else 200
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": b"<html>"})

    async def closed(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 404, "headers": []})
        await send({"type": "http.response.body", "body": b"{}"})

    given = {"LORATORY_ADMIN_TOKEN": "x"}
    with listening(other) as url, pytest.raises(InputError, match=r"is no loratory serve \(HTTP 200\)"):
        run("swap", "fifo", "--url", url, env=given)
    with listening(closed) as url, pytest.raises(InputError, match="has no admin routes"):
        run("swap", "fifo", "--url", url, env=given)


def test_a_report_tells_how_a_shadow_differs_and_what_it_would_mean(world: AdminWorld, tmp_path: Path) -> None:
    folder = tmp_path / "rec"
    assert world.post("shadow", {"policy": "priority"}).status_code == 200
    for number in range(40):
        world.send(f"r{number}", tokens=6, adapter=(None, "a1", "a2", "a3")[number % 4], tenant=f"t{number % 3}")
    assert set(world.ends().values()) == {"completed"}
    world.wait_until(lambda: world.live.admin.shadow and world.live.admin.shadow.compared > 5)
    assert world.post("shadow", {"policy": None}).status_code == 200
    world.wait_until(lambda: len((folder / "requests.jsonl").read_text().splitlines()) == 40)

    report = shadow_report(folder)
    assert (report.live, report.shadow, report.ended) == (("fifo",), "priority", "")
    assert report.asked >= report.compared >= report.same > 0
    assert set(report.actions) <= {"admit", "load", "evict", "preempt"} and "admit" in report.actions
    assert sum(each.earlier for each in report.tenants) == report.earlier
    assert sum(each.later for each in report.adapters) == report.later

    found = json.loads(run("shadow", "report", str(folder), "--json"))
    assert found["compared"] == report.compared
    assert {"ttft_s.mean", "tpot_s.p99", "e2e_s.mean", "fairness.jain"} <= {d["metric"] for d in found["simulated"]}
    said = run("shadow", "report", str(folder), "--set", "workload.requests=10")
    for text in ("priority beside fifo", "both did the same in", "first admission", "ttft_s.p99", "simulated under"):
        assert text in said
    assert "assumed the times" in said  # this server was told to measure nothing
    ASSUMED.model_copy(update={"name": "measured", "usable": True}).save(folder / "profile.json")
    assert "assumed" not in run("shadow", "report", str(folder), "--set", "workload.requests=10")
    assert "ttft_s" not in run("shadow", "report", str(folder), "--no-simulate")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (None, "has no shadow.jsonl"),
        ("", "no shadow has run yet"),
        ("nonsense\n", "line 1 is of no shadow"),
        ('{"t":1.0,"both":{}}\n', "line 1 is of no shadow"),
        ('{"shadow":"a","live":"b"}\n{"t":1,"live":{},"shadow":{}}\n', "line 2 is of no shadow"),
    ],
)
def test_a_log_that_cannot_be_read_is_one_sentence(tmp_path: Path, text: str | None, says: str) -> None:
    if text is not None:
        (tmp_path / "shadow.jsonl").write_text(text)
    with pytest.raises(InputError, match=says) as caught:
        shadow_report(tmp_path)
    assert "\n" not in str(caught.value)


def test_the_counts_of_a_log(tmp_path: Path) -> None:
    """A request counts once, by the first moment at which the two differ about it."""
    lines = [
        {"shadow": "old", "live": "fifo"},
        {"shadow": "drain", "live": "fifo"},
        {"t": 1.0, "both": {"admit": ["r1"], "load": ["a1"]}},
        {"t": 2.0, "live": {"admit": ["r2", "r3"]}, "shadow": {"admit": ["r4", "r2"], "evict": ["a1"]},
         "of": {"r2": ["a1", "t"], "r3": [None, "t"], "r4": ["a1", "u"]}},
        {"t": 3.0, "live": {"admit": ["r4"]}, "shadow": {}, "of": {"r4": ["a1", "u"]}},
        {"t": 3.0, "compared": 9, "same": 7, "left_out": {"share": 2}},
        {"t": 4.0, "live_now": "slora"},
        {"t": 4.5, "compared": 12, "same": 8, "left_out": {"share": 2, "behind": 1}},
        {"t": 4.5, "live_now": "fifo"},
        {"t": 4.5, "compared": 13, "same": 9, "left_out": {"share": 2, "behind": 1}},
        {"t": 4.6, "live_now": "drain"},
        {"t": 5.0, "ended": "it failed"},
    ]  # fmt: skip
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (tmp_path / "shadow.jsonl").write_text(text + '{"t": 6.0, "bo')
    report = shadow_report(tmp_path)
    assert (report.live, report.shadow, report.earlier_candidates) == (("fifo", "slora", "fifo", "drain"), "drain", 1)
    assert (report.asked, report.compared, report.same, report.ended) == (16, 13, 9, "it failed")
    assert report.by_live == (
        LiveCounts("fifo", 10, 8, {"share": 2}),
        LiveCounts("slora", 3, 1, {"behind": 1}),
        LiveCounts("drain", 0, 0, {}),
    )
    assert {kind: (m.same, m.different) for kind, m in report.actions.items()} == {
        "admit": (1, 2), "load": (1, 0), "evict": (0, 1),
    }  # fmt: skip
    assert (report.first.same, report.first.different) == (1, 2)
    assert (report.earlier, report.later) == (1, 1)
    assert [(turns.name, turns.earlier, turns.later) for turns in report.adapters] == [("a1", 1, 0), (None, 0, 1)]
    assert [(turns.name, turns.earlier, turns.later) for turns in report.tenants] == [("t", 0, 1), ("u", 1, 0)]
    with pytest.raises(LoratoryError, match=r"has no scenario.yaml"):
        simulated(tmp_path, report)
    said = run("shadow", "report", str(tmp_path))
    assert "the shadow has ended: it failed" in said
    assert "fifo was asked 12 times: 10 compared; left out: 2 for its share of time\n" in said
    assert "slora was asked 4 times: 3 compared; left out: 1 because it was behind\n" in said
    assert "drain was never asked\n" in said
