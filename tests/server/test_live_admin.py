"""Admin routes: nothing without the token; policies are tried and swapped, adapters pinned, the server drained."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from admin_world import TOKEN, AdminWorld, admin_world
from fastapi.testclient import TestClient

from loratory.server import admin

GOOD = """
from loratory.policy import Policy, View, want

class Good(Policy):
    def schedule(self, view: View):
        for request in view.unblocked():
            yield from want(view, request)

class Loops(Good):
    def schedule(self, view: View):
        while True:
            pass
        yield

class Later(Good):
    "Fails once it has been asked a few times, which no trial reaches."
    def __init__(self, calls: int = 1000) -> None:
        self.left = calls
    def schedule(self, view: View):
        self.left -= sum(request.tenant == "mine" for request in view.waiting)
        if self.left < 1000 and any(request.tenant == "mine" for request in view.waiting):
            raise RuntimeError("later")
        yield from super().schedule(view)
"""
ROUTES = (
    ("GET", "policy"), ("POST", "policy"), ("POST", "shadow"), ("GET", "state"), ("POST", "drain"),
    ("POST", "settings"), ("POST", "adapters/a1/pin"), ("POST", "adapters/a1/unpin"), ("POST", "adapters/a1/preload"),
)  # fmt: skip


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with policies."""
    folder = tmp_path_factory.mktemp("policies")
    (folder / "mine.py").write_text(GOOD)
    return folder


@pytest.fixture
def world(roots: Path):  # type: ignore[no-untyped-def]
    with admin_world(policy_roots=(roots,)) as world:
        yield world


def told(answer) -> tuple[int, str]:  # type: ignore[no-untyped-def]
    return answer.status_code, answer.json()["error"]["message"]


def test_without_a_token_there_are_no_admin_routes() -> None:
    with admin_world(admin_token="") as world:
        for method, path in ROUTES:
            answer = world.client.request(method, f"/admin/{path}", headers={"authorization": f"Bearer {TOKEN}"})
            assert answer.status_code == 404


@pytest.mark.parametrize(
    "given", [None, "", "Bearer", "Bearer wrong", f"Basic {TOKEN}", f"Bearer {TOKEN}x", "Bearer é"]
)
def test_without_the_token_every_admin_route_is_401(world: AdminWorld, given: str | None) -> None:
    headers = {} if given is None else {"authorization": given.encode()}
    for method, path in ROUTES:
        answer = world.client.request(method, f"/admin/{path}", headers=headers, json={"policy": "drain", "on": True})
        assert answer.status_code == 401 and answer.headers["www-authenticate"] == "Bearer"
        assert answer.json()["error"]["code"] == "invalid_token"
    assert world.executor.policy_spec == "fifo" and not world.executor.engine.ledger.slots.on_gpu


def test_a_policy_is_tried_and_put_in_under_traffic(world: AdminWorld) -> None:
    for number in range(12):
        world.send(f"r{number}", tokens=40, adapter=f"a{number % 3 + 1}")
    answer = world.post("policy", {"policy": "fair_share:by=tenant"})
    assert answer.status_code == 200, answer.text
    found = answer.json()
    assert (found["before"], found["policy"]) == ("fifo", "fair_share:by=tenant")
    assert found["at_s"] > 0 and 0 < found["trial_s"] < 60
    state = world.get("policy").json()
    assert state["policy"] == "fair_share:by=tenant"
    assert [(each["policy"], each["why"]) for each in state["history"]] == [("fair_share:by=tenant", "")]
    assert set(world.ends().values()) == {"completed"}


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("fifoo", "did you mean 'fifo'"),
        ("fifo:strict=perhaps", "give true or false"),
        ("os:path", "names a module, which a running server does not import"),
        ("/etc/passwd.py:X", "is not below"),
        ("../mine.py:Good", "is not below"),
        pytest.param("ROOT/mine.py:Nobody", "is no class with a schedule method", marks=pytest.mark.slow),
        pytest.param("ROOT/mine.py:Loops", "did not come back within", marks=pytest.mark.slow),
    ],
)
def test_a_refused_policy_changes_nothing(world: AdminWorld, roots: Path, spec: str, says: str) -> None:
    status, text = told(world.post("policy", {"policy": spec.replace("ROOT", str(roots))}))
    assert status == 400 and says in text and "\n" not in text
    assert world.get("policy").json() == {"policy": "fifo", "history": [], "shadow": None}


def test_a_policy_that_fails_later_gives_way_to_the_one_before(
    world: AdminWorld, roots: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admin, "try_policy", lambda *_: None)  # it passes, and takes seconds
    spec = f"{roots}/mine.py:Later"
    assert world.post("policy", {"policy": spec}).status_code == 200
    world.send("mine", tenant="mine")
    assert world.ends() == {"mine": "completed"}
    state = world.get("policy").json()
    assert state["policy"] == "fifo" and [each["policy"] for each in state["history"]] == [spec, "fifo"]
    assert "it raised RuntimeError: later" in state["history"][-1]["why"]


@pytest.mark.parametrize(
    ("path", "body", "says"),
    [
        ("policy", {}, "policy is missing"),
        ("policy", {"policy": 3}, "policy"),
        ("policy", {"policy": "fifo", "now": True}, "now is not supported: leave it out"),
        ("policy", {"polcy": "fifo"}, "polcy is not supported: did you mean 'policy'?"),
        ("settings", {"max_num_seq": 4}, "did you mean 'max_num_seqs'?"),
        ("policy", ["fifo"], "no object"),
        ("shadow", {"policy": "drain"}, "start the server with --record DIR"),
        ("policy", {"policy": "drain", "shadow": True}, "start the server with --record DIR"),
        ("drain", {"on": "yes"}, "on"),
        ("settings", {"max_num_seqs": 0}, "max_num_seqs"),
        ("settings", {"max_num_seqs": 2.5}, "max_num_seqs"),
        ("adapters/base/pin", None, "is the base model"),
    ],
)
def test_a_bad_body_is_one_sentence(world: AdminWorld, path: str, body: object, says: str) -> None:
    status, text = told(world.post(path, body))
    assert status == 400 and says in text


def test_adapters_are_pinned_loaded_and_let_go(world: AdminWorld) -> None:
    def rows() -> dict[str, tuple[str, bool]]:
        return {each["name"]: (each["tier"], each["pinned"]) for each in world.get("state").json()["adapters"]}

    assert world.post("adapters/a2/preload").json() == {"adapter": "a2"}
    assert world.post("adapters/a2/pin").status_code == 200
    assert rows() == {"a1": ("disk", False), "a2": ("gpu", True), "a3": ("disk", False)}
    status, text = told(world.post("adapters/a3/pin"))
    assert status == 409 and "pin fewer" in text
    assert world.post("adapters/a2/unpin").status_code == 200 and rows()["a2"] == ("gpu", False)
    assert told(world.post("adapters/nobody/pin"))[0] == 404
    world.send("r", adapter="a3")
    assert world.ends() == {"r": "completed"} and rows()["a3"][0] == "gpu"


def test_fewer_requests_run_at_once(world: AdminWorld) -> None:
    assert world.post("settings", {"max_num_seqs": 1}).json() == {"max_num_seqs": 1}
    assert world.get("state").json()["max_num_seqs"] == 1
    status, text = told(world.post("settings", {"max_num_seqs": 5}))
    assert status == 409 and "from 1 to 4" in text
    for number in range(3):
        world.send(f"r{number}", tokens=10)
    assert set(world.ends().values()) == {"completed"}


def test_drain_turns_requests_away_until_it_is_off(world: AdminWorld) -> None:
    client: TestClient = world.client
    server = client.app.state.server  # type: ignore[attr-defined]
    assert world.post("drain", {"on": True}).json() == {"draining": True, "unfinished": 0}
    assert server.draining and server.limits.draining_s == world.settings.drain_s
    assert world.post("drain", {"on": False}).json()["draining"] is False
    assert not server.draining and server.limits.draining_s is None


def test_an_engine_that_has_ended_is_503(world: AdminWorld) -> None:
    assert world.loop.stop(10)
    assert told(world.get("state"))[0] == 503
    assert told(world.post("settings", {"max_num_seqs": 2}))[0] == 503


def test_two_swaps_at_once_come_one_after_the_other(world: AdminWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admin, "try_policy", lambda *_: None)
    with ThreadPoolExecutor(2) as pool:
        answers = list(pool.map(lambda spec: world.post("policy", {"policy": spec}).json(), ["drain", "priority"]))
    history = [each["policy"] for each in world.get("policy").json()["history"]]
    assert sorted(history) == ["drain", "priority"]
    by_time = sorted(answers, key=lambda answer: answer["at_s"])
    assert [each["before"] for each in by_time] == ["fifo", history[0]] and by_time[1]["policy"] == history[1]


def test_the_document_lists_the_routes_and_their_answers(world: AdminWorld) -> None:
    paths = world.client.get("/openapi.json").json()["paths"]
    assert {path for path in paths if path.startswith("/admin")} == {
        "/admin/policy", "/admin/shadow", "/admin/state", "/admin/drain", "/admin/settings",
        *(f"/admin/adapters/{{name}}/{verb}" for verb in ("pin", "unpin", "preload")),
    }  # fmt: skip
    for path, methods in paths.items():
        for method, said in methods.items():
            assert "401" in said["responses"], path
            assert ("requestBody" in said) == (method == "post" and "adapters" not in path), path
