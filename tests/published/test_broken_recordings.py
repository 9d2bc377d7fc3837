"""Recordings that are broken, cut short or contradict themselves: one sentence with the file and the line."""

from __future__ import annotations

import gzip
import json
import random
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from loratory.cli.reproduce import reproduce_command
from loratory.errors import InputError
from loratory.reproduce import reproduce
from loratory.reproduce.scheduler_recordings import read_recordings
from loratory.scenarios.library_index import published_folder

MORE = Path(__file__).parent / "scheduler_recordings"
SYNC, AHEAD = "s_short_mix5", "a_short_mix1"

Rows = list[dict[str, Any]]


def lines(name: str, what: str) -> Rows:
    with gzip.open(MORE / f"{name}_{what}.jsonl.gz", "rt") as file:
        return [json.loads(line) for line in file]


def settings_of(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((MORE / "settings.json").read_text())[name]
    return found


class Folder:
    """A folder of one recording, of which a test changes something."""

    def __init__(self, path: Path, name: str = SYNC) -> None:
        self.path, self.name, self.settings = path, name, settings_of(name)
        self.rows = {what: lines(name, what) for what in ("requests", "steps")}
        self.write()

    def file(self, what: str) -> Path:
        return self.path / f"{self.name}_{what}.jsonl.gz"

    def write(self) -> None:
        (self.path / "settings.json").write_text(json.dumps({self.name: self.settings}, indent=1))
        for what, rows in self.rows.items():
            with gzip.open(self.file(what), "wt") as file:
                file.writelines((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)

    def refused(self, *settings: str) -> str:
        with pytest.raises(InputError) as caught:
            reproduce("vllm-scheduler", self.path, settings)
        text = str(caught.value)
        assert "\n" not in text and "pydantic" not in text and len(text) <= 500
        return text


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


NAN = float("nan")

BAD_REQUESTS: list[tuple[str, Any, str]] = [
    ("inp", None, "inp should be a whole number, not nothing"),
    ("inp", "x", "inp should be a whole number, not 'x'"),
    ("inp", 1.5, "inp should be a whole number, not 1.5"),
    ("inp", 0, "inp should be at least 1, not 0"),
    ("out", "a", "out should be a whole number, not 'a'"),
    ("out", True, "out should be a whole number, not true"),
    ("arrival", NAN, "arrival should be a finite number, not nan"),
    ("arrival", -1, "arrival should be at least 0, not -1"),
    ("arrival", None, "arrival should be a number, not nothing"),
    ("added", None, "added should be a number, not nothing"),
    ("added", "now", "added should be a number, not 'now'"),
    ("adapter", "a", "adapter should be a whole number, not 'a'"),
    ("adapter", -1, "adapter should be at least 0, not -1"),
    ("priority", "x", "priority should be a whole number, not 'x'"),
    ("id", None, "id should be a request's id, a text or a whole number"),
    ("max_tokens", 1, "max_tokens is 1, below out ("),
]

BAD_STEPS: list[tuple[str, Any, str]] = [
    ("t", None, "t should be a number, not nothing"),
    ("t", "x", "t should be a number, not 'x'"),
    ("t", NAN, "t should be a finite number, not nan"),
    ("d", None, "d should be a number, not nothing"),
    ("d", -1, "d should be at least 0, not -1"),
    ("s", None, "s should be a list, not nothing"),
    ("s", [[1]], "s.0 should be a list of a request's id and the whole numbers start and tokens"),
    ("s", [["1", "b", "c"]], "s.0 should be a list of a request's id and the whole numbers start and tokens"),
    ("s", [["1", 0.0, 2]], "s.0 should be a list of a request's id and the whole numbers start and tokens"),
    ("s", [["1", -1, 2]], "s.0 has start -1 and tokens 2"),
    ("s", [["zzz", 0, 5, 5]], "it names request 'zzz', which s_short_mix5_requests.jsonl.gz lacks"),
    ("adm", None, "adm should be a list, not nothing"),
    ("pre", None, "pre should be a list, not nothing"),
    ("pre", ["zzz"], "it names request 'zzz'"),
    ("free", None, "free should be a list, not nothing"),
    ("free", [1], "free should have 3 numbers"),
    ("free", [1, -1, 1], "free.1 should be at least 0, not -1"),
    ("t", 0.0, "t is 0, before that of line 6"),
]


@pytest.mark.parametrize(
    ("what", "key", "value", "says"),
    [("requests", *each) for each in BAD_REQUESTS] + [("steps", *each) for each in BAD_STEPS],
)
def test_a_bad_value_is_named_with_file_and_line(folder: Folder, what: str, key: str, value: Any, says: str) -> None:
    folder.rows[what][6][key] = value
    folder.write()
    assert folder.refused().startswith(f"{folder.file(what)}:7: {says}")


def test_bad_lines_are_named(folder: Folder) -> None:
    for line, says in (("hello", " is not JSON"), ("", " is not JSON"), ("[1]", " is not a mapping of keys to values")):
        folder.rows["steps"][3] = line  # type: ignore[call-overload]
        folder.write()
        assert folder.refused().startswith(f"{folder.file('steps')}:4{says}")


def test_requests_must_be_there_once(folder: Folder) -> None:
    rows = folder.rows["requests"]
    rows[3]["id"] = rows[2]["id"]
    folder.write()
    assert f"requests.jsonl.gz:4: id '{rows[2]['id']}' is that of line 3" in folder.refused()
    del rows[3]
    folder.write()
    assert "it names request '3', which s_short_mix5_requests.jsonl.gz lacks" in folder.refused()


def _flipped(data: bytes) -> bytes:
    """The file with one byte changed so that its compressed body cannot be unpacked."""
    rng = random.Random(1)
    while True:
        broken = bytearray(data)
        broken[rng.randrange(20, len(data) - 20)] ^= rng.randrange(1, 256)
        try:
            gzip.decompress(bytes(broken))
        except zlib.error:
            return bytes(broken)
        except (OSError, EOFError):
            continue


@pytest.mark.parametrize(
    ("broken", "says"),
    [
        (_flipped, " is damaged"),
        (lambda data: data[:10] + b"\xff" * 50 + data[60:], " is damaged"),
        (lambda data: data[: len(data) // 2], " ends too early after line "),
        (
            lambda data: data[:-6] + bytes([data[-6] ^ 255]) + data[-5:],
            " cannot be read, because its checksum is wrong",
        ),
        (lambda data: b"not gzip at all", " cannot be read, because it is not compressed with gzip"),
        (lambda data: b"", " is empty"),
    ],
)
def test_a_damaged_file_is_named(folder: Folder, broken: Callable[[bytes], bytes], says: str) -> None:
    file = folder.file("steps")
    file.write_bytes(broken(file.read_bytes()))
    assert folder.refused().startswith(f"{file}{says}")


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("max_lora", 1, "max_lora is an unknown key; did you mean 'max_loras'?"),
        ("max_loras", "x", "max_loras should be a whole number, not 'x'"),
        ("max_loras", None, "max_loras should be a whole number, not nothing"),
        ("async_scheduling", "no", "async_scheduling should be true or false, not 'no'"),
        ("enable_prefix_caching", "no", "enable_prefix_caching should be true or false, not 'no'"),
        ("watermark", NAN, "watermark should be below 1, not nan"),
        ("max_num_seqs", 100_000, "max_num_batched_tokens is 256, below max_num_seqs"),
        ("num_gpu_blocks", None, "has no num_gpu_blocks: add the number of KV blocks from vLLM's log"),
    ],
)
def test_a_bad_setting_is_named_with_its_line(folder: Folder, key: str, value: Any, says: str) -> None:
    folder.settings[key] = value
    folder.write()
    text = folder.refused()
    assert text.startswith(f"{folder.path / 'settings.json'}:") and says in text
    number = int(text.partition("settings.json:")[2].partition(":")[0])
    named = folder.name if value is None and key == "num_gpu_blocks" else "max_num_batched_tokens"
    named = key if key in says.split(" ")[0] else named
    assert f'"{named}"' in (folder.path / "settings.json").read_text().splitlines()[number - 1]


def test_other_keys_describe_the_recording_and_are_told(folder: Folder) -> None:
    folder.settings["machine"] = "a laptop"
    folder.write()
    (recording,) = read_recordings(folder.path)
    assert [note for note in recording.notes if "machine" in note] == [
        f"{folder.name}: settings.json has machine, which is not read"
    ]


def test_settings_are_json_with_each_name_once(folder: Folder) -> None:
    file = folder.path / "settings.json"
    text = json.dumps(folder.settings)
    file.write_text(f'{{"{SYNC}": {text}, "{SYNC}": {text}}}')
    assert "is given twice" in folder.refused()
    file.write_text(f'{{"../{SYNC}": {text}}}')
    assert "is no part of a file name" in folder.refused()
    file.write_text('{"a": ' * 100_000)
    assert "is not JSON" in folder.refused()
    folder.settings["note"] = {"made": "by hand"}
    folder.write()
    assert reproduce("vllm-scheduler", folder.path).holds


def test_the_folders_below_that_hold_recordings_are_named(tmp_path: Path) -> None:
    for name in ("near", "over"):
        (tmp_path / name).mkdir()
        Folder(tmp_path / name)
    for path, says in (
        (tmp_path, "the folders near, over in it have one: give one of them"),
        (tmp_path / "none", "does not exist"),
        (tmp_path / "near" / "settings.json", "is a file: give the folder"),
    ):
        with pytest.raises(InputError, match=says):
            reproduce("vllm-scheduler", path)


def test_a_recording_that_is_cut_short_is_compared_and_told_of(
    folder: Folder, capsys: pytest.CaptureFixture[str]
) -> None:
    del folder.rows["steps"][60:]
    folder.write()
    ended = {part[0]: part[1] + part[2] for step in folder.rows["steps"] for part in step["s"]}
    left = sum(ended.get(row["id"], 0) < row["inp"] + row["out"] - 1 for row in folder.rows["requests"])
    assert reproduce_command(["vllm-scheduler"], rows=folder.path) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert left > 10 and f"note: {SYNC}: the recording ends while {left} requests are unfinished" in printed
    assert f"note: {SYNC}: settings.json says {folder.settings['steps']:,} steps, and the files have 60" in printed
    (row,) = (row for row in reproduce("vllm-scheduler", folder.path).rows if row.metric == "requests unfinished")
    assert row.published == left
    assert not reproduce("vllm-scheduler", published_folder() / "measured" / "vllm032_scheduler").notes


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("engine.watermark=[1", "--set engine.watermark=[1 has a value that is not YAML"),
        ("engine.watermark=2", "--set engine.watermark should be below 1, not 2"),
        ("engine.max_loras=", "--set engine.max_loras should be a whole number, not nothing"),
        ("engine.as=foo", "--set engine.as should be one of vllm-0.32, vllm-0.8.5, lightllm, not 'foo'"),
        ("engine.max_num_seqs=100000", f"--set engine.max_num_seqs: in recording {SYNC}, max_num_batched_tokens is"),
        ("engine.tensor_parallel_size=2", "changes nothing in a replay, as its step times are the recorded ones"),
        ("engine.gpu_memory_utilization=0.5", "changes nothing in a replay, as num_gpu_blocks is recorded"),
        ("engine.max_lora_rank=8", "changes nothing in a replay"),
        ("engine.max_cpu_loras=9", "changes nothing in a replay"),
        ("engine.adapter_loading=async", "changes nothing in a replay"),
        ("engine.eviction=lfu", "changes nothing in a replay"),
        ("engine.memory=unified", "changes nothing in a replay"),
        ("engine.async_scheduling=true", f"{SYNC} was recorded without it, and its times say when each step was"),
    ],
)
def test_a_setting_is_refused_where_it_can_do_nothing(folder: Folder, setting: str, says: str) -> None:
    assert says in folder.refused(setting)


def test_a_preset_of_the_user_s_wins_over_what_the_recording_has_of_it(tmp_path: Path) -> None:
    from loratory.reproduce.scheduler_replay import engine_of

    (sync,) = read_recordings(Folder(tmp_path).path)
    assert engine_of(sync, {})[0].scheduler_reserve_full_isl is False and sync.settings["watermark"] == 0
    now, _ = engine_of(sync, {"as": "vllm-0.32"})
    assert now.scheduler_reserve_full_isl and not now.async_scheduling, "a plan ahead cannot be replayed"
    own, _ = engine_of(sync, {"as": "lightllm", "watermark": 0.1, "batching": "chunked"})
    assert (own.watermark, own.batching, own.null_block) == (0.1, "chunked", False), "a key beside it overrides it"
    (tmp_path / "ahead").mkdir()
    (ahead,) = read_recordings(Folder(tmp_path / "ahead", AHEAD).path)
    assert engine_of(ahead, {"as": "vllm-0.32"})[0].async_scheduling
    assert not engine_of(ahead, {"as": "vllm-0.8.5"})[0].async_scheduling
    found = reproduce("vllm-scheduler", tmp_path, ["engine.as=lightllm"])
    assert not found.holds and not found.notes


def test_settings_that_a_recording_already_has_are_told_of(folder: Folder) -> None:
    for setting, says in (
        ("engine.watermark=0", "as it was recorded with these settings"),
        ("engine.max_cpu_loras=8", "as it was recorded with these settings"),
        ("engine.long_prefill_threshold_alone=true", "as engine.long_prefill_token_threshold is 0"),
    ):
        (note,) = reproduce("vllm-scheduler", folder.path, [setting]).notes
        assert note == f"{SYNC}: --set changes nothing, {says}"
