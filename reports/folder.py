"""ResultFolder: the folder of a result, written elsewhere and moved into place, so that an older one is not lost."""

from __future__ import annotations

import errno
import json
import os
import platform
import re
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from loratory.errors import InputError, shortened
from loratory.file_lock import FileLock
from loratory.reports.html import render
from loratory.reports.recorder import Recorder
from loratory.reports.summary import RunReport, summary_of, to_json
from loratory.reports.sweep import is_sweep_summary, sweep_json
from loratory.reports.timeline import timeline_json

SUMMARY = "summary.json"
_OLD = "old"
_LOCK = ".lock"
"""The lock that the run that fills a folder holds until it ends."""
_FILES = ("scenario.yaml", SUMMARY, "timeline.json", "report.html", "run_info.json")
_PACKAGES = ("loratory", "numpy", "pyarrow", "pandas", "simpy", "matplotlib", "torch")


class ResultFolder:
    """Collects results beside ``target`` and replaces it when the block ends without an exception.

        with ResultFolder(Path("results/quickstart")) as folder:
            recorder = folder.recorder("fifo", seed=0)
            ...
            folder.write(reports, title="quickstart", scenario_yaml=text)

    If the block raises, ``target`` stays unchanged. Entering raises `InputError` if the folder cannot be written, or if
    ``target`` holds something that is not a Loratory result. It also removes what killed runs into the same target
    left: a run locks the folder that it fills, and the lock ends with the run.
    """

    def __init__(self, target: Path) -> None:
        self.target = target
        self._staged: Path | None = None
        self._lock: FileLock | None = None
        self._made: list[Path] = []
        self._names: dict[str, str] = {}
        self._started = (0.0, 0.0, "")
        self._whole: ResultFolder | None = None

    def __enter__(self) -> Self:
        check_target(self.target)
        final = _final(self.target)
        try:
            self._made = [parent for parent in final.parents if not parent.exists()]
            final.parent.mkdir(parents=True, exist_ok=True)
            _tidy(final)
            self._staged = Path(tempfile.mkdtemp(prefix=f".{final.name}.", suffix=".partial", dir=final.parent))
            self._staged.chmod(0o755)
            with suppress(OSError):  # on a file system without locks, nothing is removed either
                self._lock = FileLock.take(self._staged / _LOCK)
        except OSError as error:
            self.discard()
            raise _unwritable(self.target, error) from error
        self._started = (time.perf_counter(), _cpu_seconds(), datetime.now(UTC).isoformat(timespec="seconds"))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if error is None:
                (self.staged / _LOCK).unlink(missing_ok=True)
                _replace(self.staged, _final(self.target))
        except OSError as failure:
            raise _unwritable(self.target, failure) from failure
        finally:
            self.discard()

    def discard(self) -> None:
        """Remove what has been written so far, and the empty folders made for it."""
        staged, self._staged = self._staged, None
        if staged is not None:
            shutil.rmtree(staged, ignore_errors=True)
        if self._lock is not None:
            self._lock.release()
        for parent in self._made:
            with suppress(OSError):
                parent.rmdir()

    def part(self, name: str) -> ResultFolder:
        """A folder like that of one scenario inside this one: whole with it or gone with it.

        ``name`` becomes a safe, unique name of a folder. Raises `InputError` if it cannot be made.
        """
        inner = ResultFolder(self.target / self._safe(name))
        inner._staged, inner._whole, inner._started = self.staged / self._names[name], self, self._started
        with writing(inner._staged / name):
            inner._staged.mkdir()
        return inner

    @property
    def leavings(self) -> tuple[tuple[Path, tuple[Path, ...]], ...]:
        """What to remove if the process ends without `discard`: the folder, and those made around it."""
        return ((self.staged, tuple(self._made)),) if self._whole is None else self._whole.leavings

    @property
    def staged(self) -> Path:
        """The folder being filled. Raises `RuntimeError` outside the block."""
        if self._staged is None:
            raise RuntimeError("a ResultFolder is written inside its with block")
        return self._staged

    def run_folder(self, policy: str, seed: int) -> Path:
        """``<policy>/<seed>`` inside the result, created if necessary; the policy spec becomes a safe, unique name."""
        folder = self.staged / self._safe(policy) / str(seed)
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def _safe(self, name: str) -> str:
        """The folder of a policy or a part: its name if that is a safe and unique name of a file, else one like it."""
        if name not in self._names:
            safe = safe_name(name)
            taken = {used.casefold() for used in self._names.values()}
            if safe.casefold() in taken:
                safe = f"{safe}-{sha256(name.encode()).hexdigest()[:8]}"
            self._names[name] = safe
        return self._names[name]

    def recorder(self, policy: str, seed: int, *, decisions: bool = True) -> Recorder:
        """A recorder that writes into `run_folder`."""
        return Recorder(self.run_folder(policy, seed), decisions=decisions)

    def write(
        self,
        reports: Sequence[RunReport],
        *,
        title: str,
        scenario_yaml: str,
        description: str = "",
        setup: Mapping[str, str] | None = None,
        run_info: Mapping[str, Any] | None = None,
        regret: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Write everything except the records: summary.json, scenario.yaml, report.html, timeline.json, run_info.json.

        Returns the summary. ``setup``: what ran, texts by label. ``run_info`` is added to run_info.json, which
        holds what differs between two equal runs. ``regret``: see `loratory.reports.regret`.
        """
        summary = summary_of([report.run for report in reports], setup, regret)
        traced = [report for report in reports if report.trace]
        names = [(f"{r.info.policy}, seed {r.info.seed}", r.info.replicas, r.trace) for r in traced]
        try:
            self._text("scenario.yaml", scenario_yaml)
            self._text(SUMMARY, to_json(summary))
            self._text("timeline.json", timeline_json(names))
            self._text("report.html", render(title, reports, description, setup, regret))
            self._text("run_info.json", json.dumps(self._run_info(run_info or {}), indent=2, default=str) + "\n")
        except OSError as error:
            raise _unwritable(self.target, error) from error
        return summary

    def write_sweep(self, summary: Mapping[str, Any], page: str) -> None:
        """Write what a sweep has beside its `part`s: its summary.json, its report.html and a run_info.json."""
        try:
            self._text(SUMMARY, sweep_json(summary))
            self._text("report.html", page)
            self._text("run_info.json", json.dumps(self._run_info({}), indent=2) + "\n")
        except OSError as error:
            raise _unwritable(self.target, error) from error

    def _text(self, name: str, text: str) -> None:
        (self.staged / name).write_text(text, encoding="utf-8", newline="\n")

    def _run_info(self, more: Mapping[str, Any]) -> dict[str, Any]:
        wall, cpu, started = self._started
        spent = {"wall_s": round(time.perf_counter() - wall, 3), "cpu_s": round(_cpu_seconds() - cpu, 3)}
        return {
            "started": started,
            **(spent if self._whole is None else {}),  # a part shares its time with others
            "host": platform.node(),
            "platform": platform.platform(),
            "python": platform.python_version(),
            "versions": {name: found for name in _PACKAGES if (found := _version(name)) is not None},
            "folders": dict(self._names),
            **more,
        }


def check_target(target: Path) -> None:
    """Refuse a folder that could not be replaced; call it before a long run.

    Raises `InputError` if ``target`` is a file, cannot be read, or holds anything that no Loratory run wrote.
    """
    try:
        if not target.exists():
            return
        if not target.is_dir():
            raise InputError(f"{target} is a file: name a folder with --out")
        entries = sorted(entry.name for entry in target.iterdir())
    except OSError as error:
        raise _unwritable(target, error) from error
    foreign = [name for name in entries if name not in _own_names(target)]
    if foreign:
        raise InputError(
            f"{target} holds {foreign[0]!r}, which no Loratory run wrote there, so it is not replaced: name another "
            "folder with --out, or move that file away"
        )


def _final(target: Path) -> Path:
    """Where ``target`` leads to. Raises `InputError` for links that lead to one another."""
    try:
        return target.resolve()
    except (RuntimeError, ValueError) as error:
        raise InputError(
            f"{shortened(str(target), 150)} is a link that leads nowhere: name another folder with --out"
        ) from error


def _own_names(folder: Path) -> set[str]:
    """The names that its run wrote into a finished result; none for a folder that is not a result."""
    try:
        summary = json.loads((folder / SUMMARY).read_text(encoding="utf-8"))
        info = json.loads((folder / "run_info.json").read_text(encoding="utf-8"))
        ours = {"format"} < set(summary) and ({"policies", "runs"} <= set(summary) or is_sweep_summary(summary))
        return {*_FILES, *info["folders"].values()} if ours else set()
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return set()


def safe_name(policy: str) -> str:
    """A policy spec as a file name: letters, digits and ``-_.=`` stay; ``fifo:strict=true`` is ``fifo-strict=true``."""
    spec = re.sub(r"^.*[/\\](?=[^/\\]*\.py:)", "", policy)
    name = re.sub(r"[^A-Za-z0-9_.=]+", "-", spec).strip("-.")[:80]
    return name or f"policy-{sha256(policy.encode()).hexdigest()[:8]}"


def _replace(staged: Path, target: Path) -> None:
    """Move ``staged`` into the place of ``target``; at every moment one of the two is complete."""
    aside = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".old", dir=target.parent))
    kept = aside / _OLD
    lock = None
    with suppress(OSError):
        lock = FileLock.take(aside / _LOCK)
    if target.exists():
        os.rename(target, kept)
    try:
        os.rename(staged, target)
    except OSError:
        if kept.exists():
            os.rename(kept, target)
        raise
    finally:
        if target.exists():
            shutil.rmtree(aside, ignore_errors=True)
        if lock is not None:
            lock.release()


def _tidy(target: Path) -> None:
    """Remove the folders that dead runs into ``target`` left beside it; restore a result that they had moved aside."""
    named = re.compile(rf"\.{re.escape(target.name)}\.[a-z0-9_]{{8}}\.(partial|old)")
    for folder in target.parent.iterdir():
        found = named.fullmatch(folder.name)
        if found is None or folder.is_symlink() or not folder.is_dir():
            continue
        try:
            lock = FileLock.attempt(folder / _LOCK)
        except OSError:
            continue
        if lock is None:
            continue  # its run is alive
        with lock:
            if found[1] == "old" and (folder / _OLD).exists() and not target.exists():
                os.rename(folder / _OLD, target)
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def writing(folder: Path | None) -> Iterator[None]:
    """Turns a failure to write a file in the block into an `InputError`; ``folder`` is inside a result."""
    try:
        yield
    except OSError as error:
        if folder is None:
            raise
        staged = next((path for path in folder.parents if path.name.endswith(".partial")), folder)
        name = re.sub(r"^\.(.*)\.[a-z0-9_]{8}\.partial$", r"\1", staged.name)
        raise _unwritable(staged.parent / name, error) from error


def _unwritable(target: Path, error: OSError) -> InputError:
    reason = os.strerror(error.errno) if error.errno else shortened(str(error), 150) or type(error).__name__
    name = shortened(str(target), 150)
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return InputError(f"{name} cannot be written ({reason}): free space there, or name another folder with --out")
    return InputError(f"{name} cannot be written ({reason}): name a folder you may write to with --out")


def _cpu_seconds() -> float:
    """CPU seconds of this process and of the child processes it has waited for."""
    return sum(os.times()[:4])


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
