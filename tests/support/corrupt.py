"""Every way we know to corrupt an adapter on disk, with what its refusal must say."""

from __future__ import annotations

import json
import os
import shutil
import struct
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from adapters_on_disk import A0, B0, CONFIG, PREFIX, Q0, WEIGHTS, Tensors, config, data, header, packed, tensors, write
from numpy.typing import NDArray

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"4d7a" * 16 + b"\nsize 448\n"


@dataclass(frozen=True)
class Corruption:
    """Spoils the valid adapter in a folder; ``says`` is what the refusal must match.

    ``spoil`` may return another path to give to ``describe``.
    """

    name: str
    spoil: Callable[[Path], Path | None]
    says: str


def _fields(name: str, says: str, **fields: Any) -> Corruption:
    return Corruption(name, lambda folder: _write(folder / CONFIG, json.dumps(config(**fields)).encode()), says)


def _config(name: str, says: str, text: bytes) -> Corruption:
    return Corruption(name, lambda folder: _write(folder / CONFIG, text), says)


def _weights(name: str, says: str, change: Callable[[bytes], bytes]) -> Corruption:
    return Corruption(name, lambda folder: _write(folder / WEIGHTS, change((folder / WEIGHTS).read_bytes())), says)


def _header(name: str, says: str, change: Callable[[dict[str, Any]], object]) -> Corruption:
    def spoil(folder: Path) -> None:
        found = tensors()
        entries = header(found)
        changed = change(entries)
        _write(folder / WEIGHTS, packed(entries if changed is None else changed, data(found)))

    return Corruption(name, spoil, says)


def _tensors(name: str, says: str, change: Callable[[Tensors], Tensors | None]) -> Corruption:
    def spoil(folder: Path) -> None:
        found = tensors()
        found = change(found) or found
        _write(folder / WEIGHTS, packed(header(found), data(found)))

    return Corruption(name, spoil, says)


def _write(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def _entry(key: str, **changes: Any) -> Callable[[dict[str, Any]], None]:
    return lambda entries: entries[key].update(changes)


def _put(key: str, value: NDArray[Any]) -> Callable[[Tensors], None]:
    return lambda found: found.update({key: value})


def _drop(*keys: str) -> Callable[[Tensors], Tensors]:
    return lambda found: {key: value for key, value in found.items() if key not in keys}


def _set(key: str, value: float, at: int = -1) -> Callable[[Tensors], None]:
    def change(found: Tensors) -> None:
        found[key].reshape(-1)[at] = value

    return change


def _rename(old: str, new: str) -> Callable[[Tensors], Tensors]:
    return lambda found: {key.replace(old, new): value for key, value in found.items()}


def _replace_by(name: str, make: Callable[[Path], object]) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        (folder / name).unlink()
        make(folder / name)

    return spoil


def _outside(name: str) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        shutil.move(folder / name, folder.parent / f"outside-{name}")
        (folder / name).symlink_to(Path("..") / f"outside-{name}")

    return spoil


def _pickle_only(suffix: str) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        (folder / WEIGHTS).unlink()
        # would raise or run code if anybody unpickled it
        (folder / f"adapter_model{suffix}").write_bytes(b"cposix\nsystem\n(S'touch /tmp/opened-a-pickle'\ntR.")

    return spoil


def _archive(folder: Path) -> Path:
    path = folder.with_suffix(".zip")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr(WEIGHTS, b"\0" * 10_000_000)
    shutil.rmtree(folder)
    return path


def _archive_inside(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()
    (folder / "adapter.tar.gz").write_bytes(b"\x1f\x8b" + bytes(100))


def _remove(*names: str) -> Callable[[Path], None]:
    return lambda folder: [(folder / name).unlink() for name in names] and None


def _sharded(folder: Path) -> None:
    index = {"weight_map": {A0: "../../../etc/passwd", B0: "/etc/passwd"}}
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps(index))


CORRUPTIONS: tuple[Corruption, ...] = (
    # the folder and its files
    Corruption("no folder", lambda folder: folder / "nowhere", "cannot be found: give the folder"),
    Corruption("a null byte in the name", lambda folder: Path(f"{folder}\0"), "cannot be found: give the folder"),
    Corruption("a file for a folder", lambda folder: folder / CONFIG, "is not a folder: give the folder"),
    Corruption("an archive for a folder", _archive, "is an archive, .* unpack it yourself"),
    Corruption("an archive in the folder", _archive_inside, "holds the archive 'adapter.tar.gz' .* unpack it yourself"),
    Corruption("an empty folder", _remove(CONFIG, WEIGHTS), f"has no {CONFIG}: save the adapter"),
    Corruption("no configuration", _remove(CONFIG), f"has no {CONFIG}: save the adapter"),
    Corruption("no weights", _remove(WEIGHTS), f"has no {WEIGHTS}: save the adapter"),
    Corruption("a pickle .bin", _pickle_only(".bin"), "a pickle, which is never opened .* safe_serialization=True"),
    Corruption("a pickle .pt", _pickle_only(".pt"), "a pickle, which is never opened .* safe_serialization=True"),
    Corruption("a pickle .ckpt", _pickle_only(".ckpt"), "a pickle, which is never opened .* safe_serialization=True"),
    Corruption(
        "weights of another name",
        lambda folder: os.rename(folder / WEIGHTS, folder / "model.safetensors"),
        "rename 'model.safetensors'",
    ),
    Corruption("shards that name files outside", _sharded, "index.json lists weights in shards: save"),
    Corruption("weights linked from outside", _outside(WEIGHTS), f"{WEIGHTS} is a link that leaves .* put the file"),
    Corruption(
        "configuration linked from outside", _outside(CONFIG), f"{CONFIG} is a link that leaves .* put the file"
    ),
    Corruption("a dangling link", _replace_by(WEIGHTS, lambda path: path.symlink_to("nowhere")), "cannot be opened"),
    Corruption("a circular link", _replace_by(WEIGHTS, lambda path: path.symlink_to(WEIGHTS)), "cannot be opened"),
    Corruption("a device", _replace_by(WEIGHTS, lambda path: path.symlink_to("/dev/zero")), "link that leaves"),
    Corruption("a pipe for weights", _replace_by(WEIGHTS, os.mkfifo), "is a pipe, not a file: put the file"),
    Corruption("a pipe for configuration", _replace_by(CONFIG, os.mkfifo), "is a pipe, not a file: put the file"),
    Corruption("a folder for weights", _replace_by(WEIGHTS, Path.mkdir), "is a folder, not a file: put the file"),
    Corruption("a folder for configuration", _replace_by(CONFIG, Path.mkdir), "is a folder, not a file: put the file"),
    # the configuration's text
    _config("a link written as a file", "'../../blobs/bbb', the path of a symbolic link", b"../../blobs/bbb"),
    _config("empty configuration", f"{CONFIG} is empty: copy it again", b""),
    _config("blank configuration", f"{CONFIG} is empty: copy it again", b"  \n"),
    _config("truncated configuration", "is not valid JSON .*: save the file again", b'{"peft_type": "LORA", "r'),
    _config("configuration in Latin-1", "is not UTF-8 .*: save it as UTF-8", '{"é": 1}'.encode("latin-1")),
    _config("configuration with a list", "holds a JSON array: it must hold an object", b"[1, 2]"),
    _config("configuration with a number", "holds a JSON number: it must hold an object", b"3"),
    _config("a key twice", "has the key 'r' twice: keep one", b'{"peft_type": "LORA", "r": 2, "r": 3}'),
    _config("NaN in configuration", "holds NaN, .*: write a finite number", b'{"peft_type": "LORA", "r": NaN}'),
    _config("deep configuration", "nested too deeply: .* flatten", b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
    _config("nested configuration", "is nested 42 levels deep: .* flatten", b'{"a":' + b"[" * 41 + b"]" * 41 + b"}"),
    _config("huge configuration", "is larger than 1048576 bytes: remove", b'{"a": "' + b"x" * (1 << 20) + b'"}'),
    _config("huge number", "thousands of digits: write", b'{"r": ' + b"9" * 5000 + b"}"),
    _config("pickle as configuration", "is not UTF-8 .*: save it as UTF-8", b"\x80\x04\x95\x00\x00\xff."),
    # the configuration's content
    _fields("no peft_type", "has no peft_type: save", peft_type=None),
    _fields("peft_type of another kind", r"peft_type is \['LORA'\], but only LORA is served", peft_type=["LORA"]),
    _fields("another peft_type", "peft_type is 'IA3', but only LORA is served: retrain", peft_type="IA3"),
    _fields(
        "task_type", "task_type is 'SEQ_2_SEQ_LM', but only CAUSAL_LM is served: retrain", task_type="SEQ_2_SEQ_LM"
    ),
    _fields("no rank", "r is None: a rank is a whole number of at least 1", r=None),
    _fields("rank 0", "r is 0: a rank is a whole number of at least 1", r=0),
    _fields("negative rank", "r is -2: a rank is a whole number of at least 1", r=-2),
    _fields("fractional rank", "r is 2.0: a rank is a whole number of at least 1", r=2.0),
    _fields("rank true", "r is True: a rank is a whole number of at least 1", r=True),
    _fields("alpha 0", "lora_alpha is 0: it must be a finite number above 0", lora_alpha=0),
    _fields("alpha as text", "lora_alpha is '8': it must be a finite number above 0", lora_alpha="8"),
    _config(
        "infinite alpha",
        "lora_alpha is inf: it must be a finite",
        json.dumps(config(lora_alpha=7)).replace("7,", "1e999,").encode(),
    ),
    _fields("rank pattern of text", "rank_pattern of 'q_proj' is '2': a rank", rank_pattern={"q_proj": "2"}),
    _fields("rank pattern a list", r"rank_pattern is \['q_proj'\]: it must map", rank_pattern=["q_proj"]),
    _fields("alpha pattern negative", "alpha_pattern of 'q_proj' is -1: it must be", alpha_pattern={"q_proj": -1}),
    _fields("pattern no expression", "is no regular expression .*: name the modules", rank_pattern={"q_proj(": 2}),
    _fields("back reference", "uses groupref, which is not supported", target_modules=r"(.).*\1.*"),
    _fields("catastrophic expression", "promises|leaves out", target_modules="(((.*)*)*)*(.*.*.*.*)*z"),
    _fields("explosive table", "take too long to match", rank_pattern={f"(a|b|.)*{i}x": 2 for i in range(9000)}),
    _fields("no target", "target_modules names no module: list", target_modules=[]),
    _fields("targets a number", "target_modules is 3: it must be", target_modules=3),
    _fields("targets of numbers", "target_modules is .* it must be", target_modules=["q_proj", 3]),
    _fields(
        "a target that is no linear layer",
        "names 'self_attn', which is no linear layer but model.layers.0.self_attn: save",
        target_modules=["q_proj", "v_proj", "self_attn"],
    ),
    _fields("embedding as a target", "names 'embed_tokens'", target_modules=["q_proj", "v_proj", "embed_tokens"]),
    _fields("only unknown targets", "which target_modules of .* leaves out", target_modules=["c_attn"]),
    _fields(
        "module missing",
        "has no LoRA matrices of model.layers.0.self_attn.k_proj",
        target_modules=["q_proj", "v_proj", "k_proj"],
    ),
    _fields(
        "module too many",
        "has LoRA matrices of model.layers.0.self_attn.v_proj, which .* leaves out",
        target_modules=["q_proj"],
    ),
    _fields("layer left out", "has LoRA matrices of model.layers.0.* leaves out", layers_to_transform=[1]),
    _fields(
        "layer beyond the model", "names layer 7, but the base model's last layer is 1: give", layers_to_transform=[7]
    ),
    _fields("negative layer", "layers_to_transform is -1: it must be", layers_to_transform=-1),
    _fields("layers with an expression", "need a list", target_modules=".*[qv]_proj", layers_to_transform=[0]),
    _fields("layers pattern alone", "layers_pattern needs layers_to_transform", layers_pattern="layers"),
    _fields("bias", "bias is 'all', but trained biases are not served: retrain", bias="all"),
    _fields("DoRA", "use_dora is True, which is refused: DoRA", use_dora=True),
    _fields("DoRA as text", "use_dora is 'false', which is refused: DoRA", use_dora="false"),
    _fields("unknown field", "the field 'use_newlora' is unknown and not off", use_newlora=True),
    _fields("unknown initialisation", "init_lora_weights is 'magic', which is unknown", init_lora_weights="magic"),
    _fields("initialisation a list", r"init_lora_weights is \[\], which is unknown", init_lora_weights=[]),
    _fields("rsLoRA as text", "use_rslora is 'yes': it must be true or false", use_rslora="yes"),
    _fields("base model a number", "base_model_name_or_path is 3: it must be", base_model_name_or_path=3),
    _fields("dropout as text", "lora_dropout is 'x', which PEFT does not write", lora_dropout="x"),
    _fields("other rank", r"has rank 2 .* gives it 4 by r and rank_pattern: save", r=4),
    _fields("other rank by pattern", r"v_proj.* has rank 2 .* gives it 1 by", rank_pattern={"v_proj": 1}),
    # the weight file's bytes
    _weights("empty weights", f"{WEIGHTS} is empty: copy", lambda raw: b""),
    _weights("four bytes", "ends inside the length of its header: copy", lambda raw: raw[:4]),
    _weights("cut inside the header", "ends inside its header .*: copy", lambda raw: raw[:100]),
    _weights("cut inside the tensors", "is truncated: tensor .* ends at byte", lambda raw: raw[:-5]),
    _weights("bytes after the tensors", "has 3 bytes after its last tensor: copy", lambda raw: raw + b"abc"),
    _weights(
        "absurd header size",
        "claims a header of 9223372036854775807 bytes",
        lambda raw: struct.pack("<Q", 2**63 - 1) + raw[8:],
    ),
    _weights("header size of all ones", "claims a header of 18446744073709551615", lambda raw: b"\xff" * 8 + raw[8:]),
    _weights("header size 0", "header that is not a JSON object", lambda raw: bytes(8) + raw[8:]),
    _weights("a pickle as weights", "claims a header of", lambda raw: b"\x80\x02}q\x00(X\x04\x00\x00" + raw),
    _weights("a zip as weights", "claims a header of", lambda raw: b"PK\x03\x04\x14\x00\x00\x08" + raw),
    _weights("an LFS pointer", f"{WEIGHTS} is a Git LFS pointer, not the file: run git lfs pull", lambda raw: LFS),
    _weights("a short LFS pointer", "is a Git LFS pointer", lambda raw: LFS[:43]),
    _config("an LFS pointer for a configuration", f"{CONFIG} is a Git LFS pointer, not the file: run git lfs", LFS),
    # the weight file's header
    _header("header not JSON", "is not valid JSON", lambda entries: '{"a": '),
    _header("header a list", "header that is not a JSON object", lambda entries: "[]"),
    _header("header not UTF-8", "is not UTF-8 .*: save it as UTF-8", lambda entries: b'{"\xff": 1}'),
    _header("deep header", "nested too deeply", lambda entries: '{"a":' + "[" * 100_000 + "]" * 100_000 + "}"),
    _header("no tensors", "holds no tensor", lambda entries: "{}"),
    _header("tensor twice", "has the key 'a' twice", lambda entries: '{"a": 1, "a": 2}'),
    _header(
        "metadata of numbers",
        "__metadata__ must map names to strings",
        lambda entries: entries.update(__metadata__={"a": 1}),
    ),
    _header("entry a number", "must have dtype, shape and data_offsets", lambda entries: entries.update({A0: 3})),
    _header(
        "entry without shape",
        "must have dtype, shape and data_offsets",
        lambda entries: entries[A0].pop("shape") and None,
    ),
    _header("entry with more", "must have dtype, shape and data_offsets", _entry(A0, more=1)),
    _header("dtype F64", "has dtype 'F64': save the adapter in one of F32", _entry(A0, dtype="F64")),
    _header("dtype a list", r"has dtype \['F32'\]: save the adapter", _entry(A0, dtype=["F32"])),
    _header("negative width", r"has the shape \[-2, -8\]: a shape is", _entry(A0, shape=[-2, -8])),
    _header("fractional width", r"has the shape \[2.0, 8\]: a shape is", _entry(A0, shape=[2.0, 8])),
    _header("width true", r"has the shape \[True, 16\]: a shape is", _entry(A0, shape=[True, 16])),
    _header("product beyond 64 bits", "has 64 bytes, but its shape .* takes", _entry(A0, shape=[2**62, 2**62])),
    _header("width beyond 64 bits", "a shape is a list of whole numbers", _entry(A0, shape=[2**64 + 2, 8])),
    _header("other product", r"has 64 bytes, but its shape \[2, 9\] in F32 takes 72", _entry(A0, shape=[2, 9])),
    _header("a vector", "must be a matrix", _entry(A0, shape=[16])),
    _header("offsets backwards", "they must be its start and end", _entry(A0, data_offsets=[64, 0])),
    _header("offsets negative", "they must be its start and end", _entry(A0, data_offsets=[-64, 0])),
    _header("three offsets", "they must be its start and end", _entry(A0, data_offsets=[0, 64, 64])),
    _header("tensors overlap", "overlaps the tensor before it", _entry(B0, data_offsets=[32, 96])),
    _header("a gap", "leaves a gap before it", lambda entries: entries.pop(A0) and None),
    _header("beyond the file", "leaves a gap|is truncated", _entry(B0, data_offsets=[2**50, 2**50 + 64])),
    # the tensors
    _tensors("A without B", "has lora_A of .* without its lora_B", _drop(B0)),
    _tensors("B without A", "has lora_B of .* without its lora_A", _drop(A0)),
    _tensors("module missing from the file", f"has no LoRA matrices of {Q0}", _drop(A0, B0)),
    _tensors(
        "last layer missing",
        "has no LoRA matrices of model.layers.1",
        lambda found: {k: v for k, v in found.items() if ".1." not in k},
    ),
    _tensors("rank of A", r"has rank 3 \(shape \[3, 8\]\).* gives it 2", _put(A0, np.ones((3, 8), np.float32))),
    _tensors("rank of B", r"has rank 3 \(shape \[8, 3\]\).* gives it 2", _put(B0, np.ones((8, 3), np.float32))),
    _tensors(
        "input width",
        "has 9 input features, but the base model's q_proj has 8: give",
        _put(A0, np.ones((2, 9), np.float32)),
    ),
    _tensors(
        "output width",
        "has 5 output features, but the base model's q_proj has 8: give",
        _put(B0, np.ones((5, 2), np.float32)),
    ),
    Corruption(
        "rank too large",
        lambda folder: write(folder, {"r": 17}, tensors(rank=17)) and None,
        "has rank 17, more than max_lora_rank 16: raise the limit",
    ),
    _tensors("no width", "must be a matrix", _put(A0, np.ones((2, 0), np.float32))),
    _tensors("layer 2 of 2", "the base model's last layer is 1: give", _rename("layers.1", "layers.2")),
    _tensors("layer 01", "which no served model has", _rename("layers.1", "layers.01")),
    _tensors(
        "unknown module", "which no served model has: if it is one of q_proj.* rename", _rename("v_proj", "w_proj")
    ),
    _tensors("module in another block", "which no served model has: if it is", _rename("self_attn.v", "mlp.v")),
    _tensors(
        "an expert",
        "it belongs to a mixture of experts, .*: serve it with",
        _rename("self_attn.v_proj", "mlp.experts.0.up_proj"),
    ),
    _tensors("forbidden module", "o_proj is not among the allowed modules", _rename("v_proj", "o_proj")),
    _tensors("path upwards", "which no served model has: if it is", _rename("self_attn.v_proj", "../../etc/passwd")),
    _tensors(
        "adapter's name in keys", "carries the adapter's name 'default'; save", _rename(".weight", ".default.weight")
    ),
    _tensors("keys without prefix", "does not begin with 'base_model.model.'", _rename(PREFIX, "")),
    _tensors("line break in a key", "only lora_A and lora_B .* are served", _put("a\nb", np.ones(1, np.float32))),
    _tensors(
        "embedding",
        "LoRA on an embedding is not served",
        _put(f"{PREFIX}model.embed_tokens.lora_embedding_A", np.ones((2, 32), np.float32)),
    ),
    _tensors(
        "DoRA's magnitude",
        "lora_magnitude_vector.*it is DoRA's",
        _put(f"{PREFIX}{Q0}.lora_magnitude_vector", np.ones(8, np.float32)),
    ),
    _tensors(
        "bias of B", "biases of LoRA layers are not served", _put(f"{PREFIX}{Q0}.lora_B.bias", np.ones(8, np.float32))
    ),
    _tensors(
        "whole module",
        "it is the whole output head, and whole modules are not served",
        _put(f"{PREFIX}lm_head.weight", np.ones((32, 8), np.float32)),
    ),
    _tensors("dtypes mixed", "mixes the dtypes F16 and F32: save", _put(A0, np.ones((2, 8), np.float16))),
    _tensors("eight-byte numbers", "has dtype 'F64': save", _put(A0, np.ones((2, 8), np.float64))),
    _tensors("quantised", "has dtype 'I8': save", _put(A0, np.ones((2, 8), np.int8))),
    _tensors("NaN", rf"tensor {B0} holds a number that is not finite: take", _set(B0, np.nan)),
    _tensors("infinity", rf"tensor {A0} holds a number that is not finite: take", _set(A0, -np.inf, 0)),
)
"""Each is applied to ``write(folder)`` and refused under ``Limits(16, base=BASE, target_modules=all but o_proj)``."""
