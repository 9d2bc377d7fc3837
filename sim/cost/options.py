"""parse: validates the options of a cost model; TransferOptions: those of the hops that every cost model has."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from loratory.errors import InputError
from loratory.sim.catalogue.names import unknown_name


class TransferOptions(BaseModel):
    """The hops that end in host memory.

    The defaults: remote is an object store behind a 10 Gbit/s network with 0.2 s to find and open the files; disk is a
    local NVMe drive read at 3 GB/s with 10 ms to open and parse a safetensors file. They are assumptions: set your own.
    15 downloads at once saturate 10 Gbit/s from S3, at 85 to 90 MB/s a request (AWS, Best Practices Design
    Patterns: Optimizing Amazon S3 Performance).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    remote_fixed_s: float = Field(default=0.2, ge=0, description="remote to disk: seconds before the first byte")
    remote_bytes_per_s: float = Field(default=1.25e9, gt=0, description="remote to disk: bytes/s")
    remote_concurrency: int = Field(default=15, ge=1, description="adapters fetched at once")
    disk_fixed_s: float = Field(default=0.01, ge=0, description="disk to host: seconds to open and parse")
    disk_bytes_per_s: float = Field(default=3e9, gt=0, description="disk to host: bytes/s")
    disk_first_read_s: float = Field(default=0.0, ge=0, description="disk to host: seconds more for a cold disk")


OptionsT = TypeVar("OptionsT", bound=BaseModel)


def parse(model: type[OptionsT], options: Mapping[str, object], where: str) -> OptionsT:
    """``options`` as a ``model``. Raises `InputError` for the first unknown key (nearest offered) or bad value."""
    try:
        return model.model_validate(dict(options))
    except ValidationError as error:
        first = error.errors()[0]
        path = ".".join([where, *(str(part) for part in first["loc"])])
        if first["type"] == "extra_forbidden":
            known = _fields(model, [str(part) for part in first["loc"][:-1]])
            raise unknown_name(f"key {path.rpartition('.')[0]}:", first["loc"][-1], known) from None
        message = first["msg"][0].lower() + first["msg"][1:]
        raise InputError(f"{path} is {first['input']!r}: {message}") from None


def _fields(model: type[BaseModel], path: list[str]) -> list[str]:
    """Field names of the options model that ``path`` leads to."""
    for part in path:
        annotation = model.model_fields[part].annotation
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            model = annotation
    return list(model.model_fields)
