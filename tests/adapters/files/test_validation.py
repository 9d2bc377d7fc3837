"""validate: each kind of corrupted adapter is refused with one sentence, nothing else disturbed, in bounded memory."""

from __future__ import annotations

import hashlib
import os
import re
import struct
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from adapters_on_disk import A0, B0, BASE, CONFIG, PREFIX, Q0, WEIGHTS, data, header, packed, tensors
from adapters_on_disk import write as write_adapter
from corrupt import CORRUPTIONS, Corruption

import loratory.adapters.files.weight_scan
from loratory.adapters.files.validation import FileLimits, validate
from loratory.errors import InputError, InvalidAdapter
from loratory.models.linear_layers import BLOCKS

LIMITS = FileLimits(16, base=BASE, target_modules=frozenset(BLOCKS) - {"o_proj"})


def snapshot(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Every file under ``folder`` with its time of change and content; pipes and links by name."""
    found = {}
    for path in sorted(folder.rglob("*")):
        status = path.lstat()
        content = path.read_bytes() if path.is_file() and not path.is_symlink() else b""
        found[str(path.relative_to(folder))] = (status.st_mtime_ns, content)
    return found


def test_a_valid_adapter_is_described(tmp_path: Path) -> None:
    found = tensors()
    description = validate(write_adapter(tmp_path), LIMITS)
    assert description == validate(str(tmp_path), LIMITS)
    assert (description.rank, description.alpha, description.use_rslora) == (2, 4.0, False)
    assert description.target_modules == ("q_proj", "v_proj")
    assert (description.base_model, description.dtype, description.weights) == ("some/llama", "F32", WEIGHTS)
    assert description.bytes == sum(tensor.nbytes for tensor in found.values()) == 4 * description.parameters
    assert re.fullmatch("sha256:[0-9a-f]{64}", description.digest)
    assert [(m.layer, m.name) for m in description.modules] == [
        (0, "q_proj"),
        (0, "v_proj"),
        (1, "q_proj"),
        (1, "v_proj"),
    ]
    first = description.modules[0]
    assert (first.path, first.rank, first.scaling, first.in_features, first.out_features) == (Q0, 2, 2.0, 8, 8)
    assert (first.key_a, first.key_b) == (A0, B0)


def test_names_of_corruptions_are_unique_and_many() -> None:
    assert len({corruption.name for corruption in CORRUPTIONS}) == len(CORRUPTIONS) >= 30


@pytest.mark.parametrize("corruption", CORRUPTIONS, ids=lambda corruption: corruption.name)
def test_a_corrupted_adapter_is_refused_in_one_sentence_and_disturbs_nothing(
    corruption: Corruption, tmp_path: Path
) -> None:
    neighbour = validate(write_adapter(tmp_path / "neighbour"), LIMITS)
    folder = write_adapter(tmp_path / "adapter")
    given_path = corruption.spoil(folder) or folder
    before = snapshot(tmp_path)
    with pytest.raises(InvalidAdapter) as refusal:
        validate(given_path, LIMITS)
    text = str(refusal.value)
    assert re.search(corruption.says, text)
    assert "\n" not in text
    assert str(folder.parent) in text
    said = text.replace(str(tmp_path), "")
    assert re.search("[:;] ", said)  # what is wrong, then the remedy
    assert ". " not in said and not said.endswith(".")
    assert len(said) < 600
    assert snapshot(tmp_path) == before
    assert validate(tmp_path / "neighbour", LIMITS) == neighbour
    assert not os.path.exists("/tmp/opened-a-pickle")


LEGACY = """{
  "auto_mapping": null, "base_model_name_or_path": "", "bias": "none", "enable_lora": null, "fan_in_fan_out": false,
  "inference_mode": true, "init_lora_weights": true, "layers_pattern": null, "layers_to_transform": null,
  "lora_alpha": 4, "lora_dropout": 0.05, "merge_weights": false, "modules_to_save": null, "peft_type": "LORA", "r": 2,
  "revision": null, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"
}"""
"""The fields PEFT wrote up to version 0.4, among them two it has dropped since."""


def test_a_configuration_of_an_early_peft_is_accepted(tmp_path: Path) -> None:
    plain = validate(write_adapter(tmp_path, {"base_model_name_or_path": None}), LIMITS)
    (tmp_path / CONFIG).write_text(LEGACY)
    assert validate(tmp_path, LIMITS) == plain


def test_a_pickle_beside_the_weights_is_not_opened(tmp_path: Path) -> None:
    before = validate(write_adapter(tmp_path), LIMITS)
    os.mkfifo(tmp_path / "adapter_model.bin")  # to open it would block
    assert validate(tmp_path, LIMITS) == before


def test_a_link_is_followed_inside_the_root_only(tmp_path: Path) -> None:
    plain = validate(write_adapter(tmp_path / "blobs"), LIMITS)
    folder = tmp_path / "snapshots" / "main"
    folder.mkdir(parents=True)
    for name in (CONFIG, WEIGHTS):
        (folder / name).symlink_to(Path("..", "..", "blobs", name))
    with pytest.raises(InvalidAdapter, match="link that leaves"):
        validate(folder, LIMITS)
    assert validate(folder, LIMITS, root=tmp_path) == plain
    inside = write_adapter(tmp_path / "inside")
    (inside / WEIGHTS).rename(inside / "v1.safetensors")
    (inside / WEIGHTS).symlink_to("v1.safetensors")
    assert validate(inside, LIMITS) == plain


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS, ""])
def test_what_may_not_be_read_is_refused(name: str, tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "adapter")
    parents = [tmp_path, *tmp_path.parents[: len(tmp_path.parents) - 2]]
    modes = {path: path.stat().st_mode for path in parents}
    root = os.geteuid() == 0
    try:
        for path in parents if root else []:
            path.chmod(0o755)
        (folder / name).chmod(0)
        if root:
            os.seteuid(65534)  # root may read everything
        with pytest.raises(InvalidAdapter, match="Permission denied"):
            validate(folder, LIMITS)
    finally:
        if root:
            os.seteuid(0)
        (folder / name).chmod(0o755)
        for path, mode in modes.items():
            path.chmod(mode)


@pytest.mark.parametrize("change", ["longer", "shorter", "touched"])
def test_a_file_that_changes_while_it_is_read_is_refused(
    change: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_adapter(tmp_path)
    size = (folder / WEIGHTS).stat().st_size
    finite = loratory.adapters.files.weight_scan._finite
    calls = []

    def meddle(chunk: memoryview, dtype: str) -> bool:
        if not calls:
            calls.append(dtype)
            if change == "touched":
                os.utime(folder / WEIGHTS, ns=(1, 1))
            else:
                os.truncate(folder / WEIGHTS, size + (8 if change == "longer" else -8))
        return finite(chunk, dtype)

    monkeypatch.setattr(loratory.adapters.files.weight_scan, "_finite", meddle)
    with pytest.raises(InvalidAdapter, match="while it was read: copy it completely"):
        validate(folder, LIMITS)


@pytest.mark.parametrize(
    ("dtype", "finite", "bad"),
    [
        ("F16", [0x7BFF, 0xFBFF, 0, 0x8000, 1], [0x7C00, 0xFC00, 0x7E00, 0x7C01]),
        ("BF16", [0x7F7F, 0xFF7F, 0, 0x8000, 1], [0x7F80, 0xFF80, 0x7FC0, 0x7F81]),
        ("F32", [0x7F7FFFFF, 0xFF7FFFFF, 0, 1 << 31, 1], [0x7F800000, 0xFF800000, 0x7FC00000, 0x7F800001]),
    ],
)
def test_infinities_and_nans_are_told_by_their_bits(
    dtype: str, finite: list[int], bad: list[int], tmp_path: Path
) -> None:
    word = np.dtype("<u4" if dtype == "F32" else "<u2")
    entries = header(tensors())
    position = 0
    for key, entry in entries.items():
        if key != "__metadata__":
            count = entry["shape"][0] * entry["shape"][1]
            entry.update(dtype=dtype, data_offsets=[position, position + count * word.itemsize])
            position += count * word.itemsize
    write_adapter(tmp_path)
    words = np.resize(np.array(finite, word), position // word.itemsize)
    (tmp_path / WEIGHTS).write_bytes(packed(entries, words.tobytes()))
    assert validate(tmp_path, LIMITS).dtype == dtype
    for value in bad:
        for place in (0, len(words) // 2, len(words) - 1):
            spoiled = words.copy()
            spoiled[place] = value
            (tmp_path / WEIGHTS).write_bytes(packed(entries, spoiled.tobytes()))
            with pytest.raises(InvalidAdapter, match="not finite"):
                validate(tmp_path, LIMITS)


def test_the_digest_tells_contents_apart_and_nothing_else(tmp_path: Path) -> None:
    def digest(name: str, fields: dict[str, Any] | None = None, seed: int = 0) -> str:
        return validate(write_adapter(tmp_path / name, fields, tensors(seed=seed)), LIMITS).digest

    first = digest("a")
    assert digest("b") == first
    assert digest("c", {"peft_version": "0.1", "target_modules": ["v_proj", "q_proj"], "lora_dropout": 0.5}) == first
    others = [digest("d", seed=1), digest("e", {"lora_alpha": 5}), digest("f", {"use_rslora": True})]
    others += [digest("g", {"base_model_name_or_path": None}), digest("h", {"alpha_pattern": {"q_proj": 3}})]
    assert len({first, *others}) == 6


def test_the_digest_covers_every_byte_of_the_weights(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path)
    raw = (folder / WEIGHTS).read_bytes()
    first = validate(folder, LIMITS).digest
    start = len(raw) - len(data(tensors()))
    for place in range(start, len(raw), 7):
        (folder / WEIGHTS).write_bytes(raw[:place] + bytes([raw[place] ^ 1]) + raw[place + 1 :])
        assert validate(folder, LIMITS).digest != first


def test_a_large_adapter_is_described_in_little_memory(tmp_path: Path) -> None:
    rank, width, count = 64, 1_000_000, 64_000_000
    entries = {
        A0: {"dtype": "F32", "shape": [rank, width], "data_offsets": [0, 4 * count]},
        B0: {"dtype": "F32", "shape": [width, rank], "data_offsets": [4 * count, 8 * count]},
    }
    write_adapter(tmp_path, {"target_modules": ["q_proj"], "r": rank})
    (tmp_path / WEIGHTS).write_bytes(packed(entries, b""))
    size = (tmp_path / WEIGHTS).stat().st_size + 8 * count
    os.truncate(tmp_path / WEIGHTS, size)  # half a gigabyte of zeros that takes no room
    tracemalloc.start()
    try:
        description = validate(tmp_path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert description.bytes == 512_000_000 == 4 * description.parameters
    assert peak < 8_000_000
    with pytest.raises(InvalidAdapter, match=f"has {size} bytes, more than max_file_bytes 1000: raise the limit"):
        validate(tmp_path, FileLimits(max_file_bytes=1000))


def test_a_hostile_header_size_allocates_nothing(tmp_path: Path) -> None:
    write_adapter(tmp_path)
    (tmp_path / WEIGHTS).write_bytes(struct.pack("<Q", 400_000_000))
    os.truncate(tmp_path / WEIGHTS, 500_000_000)
    tracemalloc.start()
    try:
        with pytest.raises(InvalidAdapter, match="claims a header of 400000000 bytes"):
            validate(tmp_path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2_000_000


def test_limits_name_what_is_wrong_with_them() -> None:
    with pytest.raises(InputError, match="max_lora_rank is 0"):
        FileLimits(max_lora_rank=0)
    with pytest.raises(InputError, match="target module 'c_attn'"):
        FileLimits(target_modules=frozenset({"c_attn"}))


def test_the_corpus_as_one_folder_leaves_the_valid_ones_alone(tmp_path: Path) -> None:
    good = {
        seed: validate(write_adapter(tmp_path / f"good-{seed}", found=tensors(seed=seed)), LIMITS) for seed in range(5)
    }
    spoiled = []
    for number, corruption in enumerate(CORRUPTIONS):
        folder = write_adapter(tmp_path / f"bad-{number}" / "adapter")
        spoiled.append(corruption.spoil(folder) or folder)
    state = hashlib.sha256(repr(snapshot(tmp_path)).encode()).hexdigest()
    for folder in spoiled:
        with pytest.raises(InvalidAdapter):
            validate(folder, LIMITS)
    assert {seed: validate(tmp_path / f"good-{seed}", LIMITS) for seed in good} == good
    assert hashlib.sha256(repr(snapshot(tmp_path)).encode()).hexdigest() == state
    assert PREFIX in good[0].modules[0].key_a
