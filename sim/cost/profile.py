"""Profile and ProfileCost: step times fitted to steps measured on real hardware."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, fields
from importlib import resources
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from loratory.errors import InputError, several, shortened
from loratory.git_lfs import LFS_POINTER, lfs_text
from loratory.serving.lora import Adapter
from loratory.serving.plan import BatchShape
from loratory.sim.catalogue.names import unknown_name
from loratory.sim.cost.base import DecodeLine
from loratory.sim.cost.options import TransferOptions, parse
from loratory.sim.cost.transfer import TransferModel


@dataclass(frozen=True, slots=True)
class _Weights:
    """Coefficients as attributes, so that a prediction is a few multiplications."""

    step: float
    prefill_step: float
    lora_step: float
    tokens: float
    prefill_tokens: float
    prefill_attention: float
    prefill_seqs: float
    decode_seqs: float
    kv_tokens: float
    distinct_adapters: float
    sum_ranks: float
    max_rank: float
    lora_tokens: float
    lora_token_ranks: float


FEATURES: tuple[str, ...] = tuple(field.name for field in fields(_Weights))
"""What a step's time is linear in. ``step``, ``prefill_step`` and ``lora_step`` are 1 where the step computes,
prefills, has an adapter, else 0; the rest are `BatchShape` fields. Besides these, for any N, ``tokens_above_N`` is
max(0, tokens - N), and ``FIELD_to_N``, for fields in `CAPPED`, is min(FIELD, N): the first N may cost more."""

CAPPED: tuple[str, ...] = ("tokens", "decode_seqs", "distinct_adapters", "lora_tokens")
"""Fields of a ``FIELD_to_N`` feature: costs that rise steeply at first."""

RANGED: tuple[str, ...] = (
    "tokens",
    "prefill_attention",
    "decode_seqs",
    "kv_tokens",
    "distinct_adapters",
    "sum_ranks",
)
"""`BatchShape` fields whose measured range a profile records."""

MOST_ERROR: dict[str, float] = {"median": 0.15, "p90": 0.4, "total": 0.1}
"""Held-out errors (`HeldOut`) above which a profile is not to be used."""

LEAST_STEPS, LEAST_HELD_OUT = 40, 8
"""Steps below which a profile is not to be used: in all, and held out of the fit."""

_ABOVE = "tokens_above_"


class LoadTime(BaseModel):
    """Seconds of one hop of an adapter: fixed_s + per_byte_s * bytes + per_rank_s * rank."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    fixed_s: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    per_byte_s: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    per_rank_s: float = Field(default=0.0, ge=0, allow_inf_nan=False)


class HeldOut(BaseModel):
    """How well the fit predicts samples it did not see: relative errors of single steps, and of their sum."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    samples: int = Field(default=0, ge=0)
    median: float = Field(default=0.0, ge=0, description="median of |predicted - measured| / measured")
    p90: float = Field(default=0.0, ge=0)
    total: float = Field(default=0.0, allow_inf_nan=False, description="(sum predicted - sum measured) / sum measured")


class Residuals(BaseModel):
    """Measured seconds over predicted ones, in the order of measurement: how steps scatter around the profile.

    ``decode``: of steps that only decode; ``prefill``: of those with prompt tokens.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    decode: tuple[Annotated[float, Field(gt=0, allow_inf_nan=False)], ...] = ()
    prefill: tuple[Annotated[float, Field(gt=0, allow_inf_nan=False)], ...] = ()

    @model_validator(mode="after")
    def _not_empty(self) -> Residuals:
        if not self.decode and not self.prefill:
            raise ValueError("residuals has neither decode nor prefill")
        return self


class Profile(BaseModel):
    """A profile file (JSON or YAML), written by ``loratory profile`` and read by the ``profile`` cost model.

    ``coefficients`` are seconds per unit of a feature, none negative, so no prediction falls when a batch grows.
    ``ranges`` are the largest value of each shape field that was measured; reports tell how far a run went beyond them.
    ``noise`` is the median relative difference between repeats of one batch. ``load`` is an adapter's hop from host
    memory to the GPU, ``disk`` the one before it, where it was measured. ``usable``: false where `doubts` gave reasons.
    ``residuals``: what ``cost: {noise: residuals}`` draws from.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal["loratory-profile-1"] = "loratory-profile-1"
    name: str
    model: str = ""
    machine: dict[str, str | int | float] = Field(default_factory=dict)
    versions: dict[str, str] = Field(default_factory=dict)
    created: str = ""
    samples: int = Field(default=0, ge=0)
    coefficients: dict[str, float]
    ranges: dict[str, Annotated[float, Field(ge=0, allow_inf_nan=False)]] = Field(default_factory=dict)
    held_out: HeldOut = HeldOut()
    noise: float | None = Field(default=None, ge=0)
    usable: bool = True
    load: LoadTime = LoadTime()
    disk: LoadTime | None = None
    residuals: Residuals | None = None

    @model_validator(mode="after")
    def _known_and_not_negative(self) -> Profile:
        for feature, seconds in self.coefficients.items():
            if feature not in FEATURES and _knot(feature) is None and _cap(feature) is None:
                known = several((f"{_ABOVE}N", *(f"{field}_to_N" for field in CAPPED), *FEATURES), 10)
                raise ValueError(f"unknown feature {shortened(feature, 60)!r} in coefficients: known are {known}")
            if not 0 <= seconds < float("inf"):
                raise ValueError(f"coefficient {feature!r} is {seconds}: coefficients are seconds of at least 0")
        if not any(self.coefficients.values()):
            raise ValueError("no coefficient is above 0, so every step would take 0 s")
        return self

    def doubts(self) -> tuple[str, ...]:
        """Why not to use it: too few steps, or held-out errors above `MOST_ERROR`; nothing where they are not given."""
        doubts: list[str] = []
        if 0 < self.samples < LEAST_STEPS:
            doubts.append(f"only {self.samples} steps were measured, fewer than {LEAST_STEPS}")
        if not self.held_out.samples:
            return tuple(doubts)
        if self.held_out.samples < LEAST_HELD_OUT:
            doubts.append(f"only {self.held_out.samples} steps were held out of the fit, fewer than {LEAST_HELD_OUT}")
        says = {"median": "the median error", "p90": "the P90 of errors", "total": "the error of the sum"}
        for name, limit in MOST_ERROR.items():
            if abs(error := getattr(self.held_out, name)) > limit:
                sign = "+" if name == "total" else ""
                doubts.append(f"{says[name]} of held-out steps is {error:{sign}.1%}, above {limit:.0%}")
        return tuple(doubts)

    def save(self, path: str | Path) -> None:
        """Write the profile as JSON, whole or not at all. Raises `OSError` where the path cannot be written."""
        target, text = Path(path).resolve(), self._text()
        if target.exists() and not target.is_file():  # such as /dev/stdout
            target.write_text(text, encoding="utf-8")
            return
        draft = target.with_name(f".{target.name}.{os.getpid()}")
        try:
            draft.write_text(text, encoding="utf-8")
            os.replace(draft, target)
        finally:
            with suppress(OSError):
                draft.unlink(missing_ok=True)

    def _text(self) -> str:
        """The profile as JSON, the thousands of residuals on two lines."""
        text = self.model_dump_json(indent=2, exclude={"residuals"})
        if self.residuals is not None:
            kinds = [f'    "{kind}": {json.dumps(found)}' for kind, found in self.residuals.model_dump().items()]
            text = text.removesuffix("\n}") + ',\n  "residuals": {\n' + ",\n".join(kinds) + "\n  }\n}"
        return text + "\n"


def _knot(feature: str) -> int | None:
    """N of ``tokens_above_N``."""
    digits = feature.removeprefix(_ABOVE)
    return int(digits) if feature.startswith(_ABOVE) and digits.isdigit() else None


def _cap(feature: str) -> tuple[str, int] | None:
    """FIELD and N of ``FIELD_to_N``."""
    field, _, digits = feature.rpartition("_to_")
    return (field, int(digits)) if field in CAPPED and digits.isdigit() else None


def profile_names() -> tuple[str, ...]:
    """Names of the profiles shipped in scenarios/profiles/."""
    try:
        folder = resources.files("loratory.scenarios").joinpath("profiles")
    except ModuleNotFoundError:
        return ()
    if not folder.is_dir():
        return ()
    suffixes = (".json", ".yaml", ".yml")
    return tuple(sorted(Path(f.name).stem for f in folder.iterdir() if f.name.endswith(suffixes)))


def load_profile(name_or_path: str | Path) -> Profile:
    """A shipped profile by name, or one from a JSON or YAML file. Raises `InputError` naming file and remedy."""
    path = Path(name_or_path)
    if path.is_file():
        try:
            text = path.read_text(encoding="utf-8")
        except OSError as error:
            raise InputError(f"profile {path} cannot be read ({error.strerror}): check its permissions") from None
        except UnicodeDecodeError:
            raise InputError(f"profile {path} is not text: give one that `loratory profile` wrote") from None
        if lfs_text(text):
            raise InputError(f"profile {path} {LFS_POINTER}")
    else:
        names = profile_names()
        if str(name_or_path) not in names:
            raise unknown_name("profile", str(name_or_path), names, "give the path of a file of `loratory profile`")
        folder = resources.files("loratory.scenarios").joinpath("profiles")
        text = next(f.read_text("utf-8") for f in folder.iterdir() if Path(f.name).stem == str(name_or_path))
    try:
        data = json.loads(text) if text.lstrip().startswith("{") else yaml.safe_load(text)
        return Profile.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        why = shortened(first["msg"].removeprefix("Value error, "), 240)
        raise InputError(
            f"profile {name_or_path}, {shortened(key, 60) or 'content'}: {why}; write it anew with `loratory profile`"
        ) from None
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        why = shortened(str(error), 120)
        raise InputError(
            f"profile {name_or_path} is neither JSON nor YAML ({why}): give one that `loratory profile` wrote"
        ) from None


class ProfileOptions(BaseModel):
    """The ``cost:`` mapping of kind ``profile``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    profile: str = Field(description="name of a shipped profile, or the path of a profile file")
    scale: float = Field(default=1.0, gt=0, description="multiplies every step time")
    transfers: TransferOptions = Field(default=TransferOptions(), description="remote to disk and disk to host")


class ProfileCost:
    """Step time as a non-negative combination of a profile's features; adapter loads from its ``load``."""

    name = "profile"

    def __init__(self, profile: Profile, *, scale: float = 1.0, transfers: TransferOptions | None = None) -> None:
        self.profile = profile
        self.source = f"profile {profile.name}: {profile.samples} steps of {profile.model or 'a model'}, " + (
            f"median held-out error {profile.held_out.median:.1%}" if profile.held_out.samples else "no held-out error"
        )
        self.known_error = _known_error(profile)
        doubts = "; ".join(profile.doubts()) or ("" if profile.usable else "its file says usable: false")
        self.warnings: list[str] = (
            [f"profile {profile.name} is not fit for use: {doubts}: measure anew with `loratory profile`"]
            if doubts
            else []
        )
        self._w = _Weights(**{f: scale * profile.coefficients.get(f, 0.0) for f in FEATURES})
        knots = {_knot(f): scale * seconds for f, seconds in profile.coefficients.items()}
        self._knots = tuple(sorted((knot, s) for knot, s in knots.items() if knot is not None and s > 0))
        bends = {_cap(f): scale * seconds for f, seconds in profile.coefficients.items()}
        self._caps = tuple(sorted((CAPPED.index(c[0]), c[1], s) for c, s in bends.items() if c is not None and s > 0))
        self.below = _below(profile, transfers or TransferOptions())
        self._transfers = TransferModel(
            self.below,
            profile.load.fixed_s,
            profile.load.per_byte_s,
            profile.load.per_rank_s,
        )
        self.fitted = (f"profile {profile.name}", {f: profile.ranges[f] for f in RANGED if f in profile.ranges})

    @classmethod
    def from_options(cls, options: Mapping[str, object]) -> ProfileCost:
        """From a scenario's ``cost:`` mapping; `InputError` for unknown keys, bad values or an unknown profile."""
        o = parse(ProfileOptions, options, "cost")
        return cls(load_profile(o.profile), scale=o.scale, transfers=o.transfers)

    def _base(self, shape: BatchShape) -> float:
        """Seconds of everything but decode attention."""
        w = self._w
        prefill = shape.prefill_tokens
        decodes = shape.decode_seqs
        tokens = prefill + decodes
        total = w.step + w.tokens * tokens + w.decode_seqs * decodes
        for knot, seconds in self._knots:
            if tokens <= knot:
                break
            total += seconds * (tokens - knot)
        if prefill:
            total += w.prefill_step + w.prefill_tokens * prefill + w.prefill_attention * shape.prefill_attention
            total += w.prefill_seqs * shape.prefill_seqs
        if shape.distinct_adapters or shape.lora_tokens:
            total += w.lora_step + w.distinct_adapters * shape.distinct_adapters + w.sum_ranks * shape.sum_ranks
            total += w.lora_tokens * shape.lora_tokens + w.lora_token_ranks * shape.lora_token_ranks
            total += w.max_rank * shape.max_rank
        counts = (tokens, decodes, shape.distinct_adapters, shape.lora_tokens)
        for field, cap, seconds in self._caps:
            count = counts[field]
            total += seconds * (count if count < cap else cap)
        return total

    def step_seconds(self, shape: BatchShape) -> float:
        """See `CostModel.step_seconds`."""
        if not shape.prefill_tokens and not shape.decode_seqs:
            return 0.0
        return self._base(shape) + self._w.kv_tokens * shape.kv_tokens

    def decode_line(self, shape: BatchShape) -> DecodeLine | None:
        """See `CostModel.decode_line`."""
        if shape.prefill_tokens or not shape.decode_seqs:
            return None
        return DecodeLine(self._base(shape), self._w.kv_tokens)

    def load_seconds(self, adapter: Adapter, tier: str) -> float:
        """See `CostModel.load_seconds`."""
        return self._transfers.seconds(adapter, tier)

    def explain(self, shape: BatchShape) -> dict[str, float]:
        """See `CostModel.explain`: seconds by feature, those that are not 0."""
        bent = {f"{_ABOVE}{knot}": s for knot, s in self._knots}
        bent |= {f"{CAPPED[field]}_to_{cap}": s for field, cap, s in self._caps}
        values = feature_values(shape, tuple(bent))
        seconds = {f: getattr(self._w, f) * values[f] for f in FEATURES}
        seconds |= {feature: s * values[feature] for feature, s in bent.items()}
        return {feature: value for feature, value in seconds.items() if value}


def _known_error(profile: Profile) -> str:
    held = profile.held_out
    noise = "" if profile.noise is None else f"; equal steps differ by {profile.noise:.1%}"
    if not held.samples:
        return f"not known: profile {profile.name} has no held-out steps{noise}"
    return (
        f"of {held.samples} steps it was not fitted to, on the machine it was measured on: median {held.median:.1%}, "
        f"P90 {held.p90:.1%}, their sum {held.total:+.1%}{noise}"
    )


def _below(profile: Profile, given: TransferOptions) -> TransferOptions:
    """The hops that end in host memory: as given, else from disk as measured."""
    if profile.disk is None:
        return given
    measured = {"disk_fixed_s": profile.disk.fixed_s}
    if profile.disk.per_byte_s > 0:
        measured["disk_bytes_per_s"] = 1.0 / profile.disk.per_byte_s
    return given.model_copy(update={k: v for k, v in measured.items() if k not in given.model_fields_set})


def feature_values(shape: BatchShape, bent: tuple[str, ...] = ()) -> dict[str, float]:
    """The features of one step, and those with an N in their names that are in ``bent``; all 0 for an empty step."""
    tokens = shape.tokens
    with_lora = tokens and (shape.distinct_adapters or shape.lora_tokens)
    values: dict[str, float] = {f: float(getattr(shape, f)) for f in FEATURES if not f.endswith("step")}
    values["step"] = 1.0 if tokens else 0.0
    values["prefill_step"] = 1.0 if shape.prefill_tokens else 0.0
    values["lora_step"] = 1.0 if with_lora else 0.0
    for feature in bent:
        cap = _cap(feature)
        above = max(0, tokens - (_knot(feature) or 0))
        values[feature] = float(above if cap is None else min(getattr(shape, cap[0]), cap[1]))
    return values
