"""Packaging: what sdist and wheel hold; an installed Loratory runs beside packages that have its rooms' names."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from email import message_from_bytes
from pathlib import Path

import pytest

from loratory import __version__

ROOT = Path(__file__).parents[1]
ROOMS = sorted(path.name for path in (ROOT / "loratory").iterdir() if path.is_symlink())
DECOYS = (*ROOMS, "cli", "experiment", "reproduce", "policy", "testing", "errors", "file_lock", "git_lfs", "tests")
"""Top-level names that a user's folder may have, and that Loratory must never import."""

SHORT = ("--set", "workload.duration_s=2", "--set", "seeds=[0]")

BUILD = "from setuptools import build_meta; import sys; getattr(build_meta, 'build_' + sys.argv[1])(sys.argv[2])"

API = """
from loratory import load_scenario, policy_names, run_scenario
from loratory.policy import Admit

assert "fifo" in policy_names()
scenario = load_scenario("quickstart", ["workload.duration_s=2", "seeds=[0]"], policies=["fifo", "mine.py:Mine"])
runs = run_scenario(scenario)["runs"]
assert [run["policy"] for run in runs] == ["fifo", "mine.py:Mine"]
assert all(run["ttft_s"]["p99"] > 0 for run in runs)
print(Admit.__module__)
"""

MINE = """
import policies  # the author's own package, not one of Loratory's
from loratory.policies.fifo import Fifo

class Mine(Fifo):
    "First come, first served."
"""


def run(*command: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    """A command in a folder; the checkout is not on its path."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "COLUMNS"))}
    done = subprocess.run([str(each) for each in command], cwd=cwd, env=clean, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}: {done.stdout}\n{done.stderr}"
    return done


def tracked() -> list[str]:
    """Every file of the tree that git has, or would take; links are files."""
    if not (ROOT / ".git").exists():
        pytest.skip("needs a git checkout")
    listed = run("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", cwd=ROOT)
    return [name for name in listed.stdout.split("\0") if name and os.path.lexists(ROOT / name)]


def copy_tree(target: Path, files: Sequence[str], *, links: bool = True) -> Path:
    """A copy of these files; without links, as git lays them out where a system has none."""
    for name in files:
        source, copy = ROOT / name, target / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        if source.is_symlink() and not links:
            copy.write_text(str(source.readlink()))
        else:
            shutil.copy2(source, copy, follow_symlinks=False)
    return target


@dataclass(frozen=True)
class Built:
    """An sdist, the wheel of the tree and the wheel of the sdist."""

    sdist: Path
    wheel: Path
    wheel_of_sdist: Path


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    folder = tmp_path_factory.mktemp("dist")
    tree = copy_tree(tmp_path_factory.mktemp("tree"), tracked())
    for kind in ("sdist", "wheel"):
        run(sys.executable, "-c", BUILD, kind, folder, cwd=tree)
    (sdist,), (wheel,) = folder.glob("*.tar.gz"), folder.glob("*.whl")
    unpacked = tmp_path_factory.mktemp("unpacked")
    with tarfile.open(sdist) as archive:
        archive.extractall(unpacked, filter="data")
    again = tmp_path_factory.mktemp("again")
    run(sys.executable, "-c", BUILD, "wheel", again, cwd=unpacked / f"loratory-{__version__}")
    (wheel_of_sdist,) = again.glob("*.whl")
    return Built(sdist, wheel, wheel_of_sdist)


def contents(wheel: Path) -> dict[str, str]:
    """The files of a wheel, with a digest each."""
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if not name.endswith("/")]
        return {name: hashlib.sha256(archive.read(name)).hexdigest() for name in names}


def test_the_wheel_holds_every_file_of_the_package_and_nothing_else(built: Built) -> None:
    expected = {
        name if room == "loratory" else f"loratory/{name}": hashlib.sha256((ROOT / name).read_bytes()).hexdigest()
        for name in tracked()
        if (room := name.split("/")[0]) in ("loratory", *ROOMS) and not (ROOT / name).is_symlink()
    }
    found = contents(built.wheel)
    info = f"loratory-{__version__}.dist-info/"
    assert {name: digest for name, digest in found.items() if not name.startswith(info)} == expected
    assert {name.removeprefix(info) for name in found if name.startswith(info)} >= {"METADATA", "entry_points.txt"}


def test_the_wheel_of_the_sdist_is_the_same(built: Built) -> None:
    assert contents(built.wheel_of_sdist) == contents(built.wheel)


def test_the_metadata_of_the_wheel(built: Built) -> None:
    """PEP 639: a licence expression and the licence files themselves. No address of a host is given."""
    info = f"loratory-{__version__}.dist-info"
    with zipfile.ZipFile(built.wheel) as archive:
        metadata = message_from_bytes(archive.read(f"{info}/METADATA"))
        for name in ("LICENSE", "NOTICE"):
            assert archive.read(f"{info}/licenses/{name}") == (ROOT / name).read_bytes()
    assert metadata["Version"] == __version__
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata.get_all("License-File") == ["LICENSE", "NOTICE"]
    assert metadata["Project-URL"] is metadata["Home-page"] is metadata["Author-email"] is None
    assert metadata["Requires-Python"] == ">=3.11"


@pytest.fixture(scope="module")
def installed(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs' folder of an environment with the wheel; dependencies come from the environment of the tests."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=True)
    run(folder / "bin" / "python", "-m", "pip", "install", "-q", "--no-deps", "--no-index", built.wheel, cwd=folder)
    (site,) = (folder / "lib").glob("python*/site-packages")
    # Lines of a .pth file become part of the path; .pth files in those folders (an editable Loratory) are not read.
    (site / "dependencies.pth").write_text("".join(f"{each}\n" for each in sys.path if each.endswith("site-packages")))
    return folder / "bin"


@pytest.fixture
def decoys(tmp_path: Path) -> Path:
    """A folder whose packages have the names of Loratory's rooms, and raise when imported."""
    for name in DECOYS:
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(f"raise RuntimeError('imported the decoy {name}')\n")
    (tmp_path / "executor" / "__init__.py").unlink()
    (tmp_path / "executor").rmdir()
    (tmp_path / "executor.py").write_text("raise RuntimeError('imported the decoy executor')\n")
    (tmp_path / "policies" / "__init__.py").write_text("")
    (tmp_path / "mine.py").write_text(MINE)
    return tmp_path


def test_an_installed_loratory_runs_in_a_folder_of_decoys(installed: Path, decoys: Path) -> None:
    python = installed / "python"
    where = run(python, "-c", "import loratory; print(loratory.__file__, loratory.__version__)", cwd=decoys)
    assert where.stdout.split() == [
        str(next(installed.parent.glob("lib/python*/site-packages")) / "loratory" / "__init__.py"),
        __version__,
    ]
    assert "results/quickstart" in run(installed / "loratory", "run", "quickstart", *SHORT, cwd=decoys).stdout
    assert (decoys / "results" / "quickstart" / "report.html").exists()
    done = run(python, "-m", "loratory", "run", "quickstart", *SHORT, "--policy", "mine.py:Mine", cwd=decoys)
    assert "mine.py:Mine" in done.stdout
    assert "fair_share" in run(python, "-m", "loratory.cli", "policies", cwd=decoys).stdout
    assert run(python, "-c", API, cwd=decoys).stdout.strip().startswith("loratory.")


def test_a_checkout_without_symbolic_links_says_so(tmp_path: Path) -> None:
    """Git on Windows makes text files of links, unless it may make links: the error names cause and remedy."""
    copy_tree(tmp_path, [name for name in tracked() if name.startswith("loratory/")], links=False)
    done = subprocess.run([sys.executable, "-c", "import loratory"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: ") and "symbolic link" in last and "core.symlinks=true" in last
