"""Model folders whose config, tokenizer, weights or adapter is wrong."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from malformed.judge import Input

BROKEN: dict[str, bytes] = {
    "empty": b"", "no JSON": b"{", "null": b"null", "list": b"[]", "number": b"5", "text": b'"x"', "no UTF-8": b"\xff\xfe\0",
    "deep": b"[" * 100_000, "NUL": b"\0" * 64,
}  # fmt: skip
CONFIG: dict[str, list[Any]] = {
    "model_type": ["frobnicate", 5, None, [], ""], "vocab_size": [0, -1, 10**9, "x", None], "hidden_size": [0, -16, 17, "x", None, 2**40],
    "num_hidden_layers": [-1, 10**6, "x", 4], "num_attention_heads": [0, -1, 3, "x"], "intermediate_size": [0, 25, "x"], "hidden_act": ["frobnicate", 5],
}  # fmt: skip
ADAPTER: dict[str, str] = {
    "empty": "", "null": "null", "list": "[]", "no JSON": "{", "nothing": "{}", "base is null": '{"base_model_name_or_path": null}',
    "base is empty": '{"base_model_name_or_path": ""}', "base is a number": '{"base_model_name_or_path": 5}',
    "itself": '{"base_model_name_or_path": "m"}', "itself by a dot": '{"base_model_name_or_path": "."}',
    "nowhere": '{"base_model_name_or_path": "./nowhere/at-all"}', "base is a list": '{"base_model_name_or_path": []}',
    "no type": '{"base_model_name_or_path": "tiny2"}', "odd type": '{"base_model_name_or_path": "tiny2", "peft_type": "FROBNICATE"}',
    "odd rank": '{"base_model_name_or_path": "tiny2", "peft_type": "LORA", "r": "x", "target_modules": ["q_proj"]}',
    "odd revision": '{"base_model_name_or_path": "some-org/some-model", "revision": []}',
    "rank 0": '{"base_model_name_or_path": "tiny2", "peft_type": "LORA", "r": 0, "target_modules": ["q_proj"]}',
    "no such module": '{"base_model_name_or_path": "tiny2", "peft_type": "LORA", "r": 2, "target_modules": ["frob"]}',
}  # fmt: skip


def _headers() -> Iterator[tuple[str, bytes]]:
    def file(header: Any, data: bytes = b"\0" * 64, length: int | None = None) -> bytes:
        text = header if isinstance(header, bytes) else json.dumps(header).encode()
        return struct.pack("<Q", len(text) if length is None else length) + text + data

    entry = {"dtype": "F32", "shape": [4, 4], "data_offsets": [0, 64]}
    yield from {
        "empty": b"", "4 bytes": b"\0" * 4, "length beyond the file": file({}, length=10**6), "length beyond all": file({}, length=2**63), "length 0": file(b""),
        "no JSON": file(b"{"), "list": file([]), "null": file(b"null"), "no UTF-8": file(b"\xff\xff"), "no tensors": file({}, b""),
        "offsets swapped": file({"a": entry | {"data_offsets": [64, 0]}}), "offsets beyond": file({"a": entry | {"data_offsets": [0, 10**9]}}),
        "negative": file({"a": entry | {"data_offsets": [-1, 64]}}), "odd type": file({"a": entry | {"dtype": "X9"}}), "odd shape": file({"a": entry | {"shape": [5, 5]}}),
        "shape is text": file({"a": entry | {"shape": "x"}}), "shape overflows": file({"a": entry | {"shape": [2**40, 2**40]}}), "no shape": file({"a": {"dtype": "F32"}}),
        "overlap": file({"a": entry, "b": entry}), "hole": file({"a": entry}, b"\0" * 128), "other names": file({"a": entry}), "pickle": b"\x80\x02}q\0.",
        "LFS pointer": b"version https://git-lfs.github.com/spec/v1\n", "deep": file(b"[" * 50_000),
    }.items()  # fmt: skip


def _copied(change: Callable[[Path], Any]) -> Callable[[Path], None]:
    def make(place: Path) -> None:
        shutil.copytree(place.parent / "tiny", place / "m")
        change(place / "m")

    return make


def _config(key: str, value: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "config.json"
        found = json.loads(path.read_text())
        path.write_text(json.dumps({**found, key: value}))

    return _copied(change)


def _written(name: str, data: bytes) -> Callable[[Path], None]:
    return _copied(lambda folder: (folder / name).write_bytes(data))


def inputs() -> Iterator[Input]:
    args = ["eval", "./m", "--bench", "elements", "--limit", "2"]
    dry = [
        "unlearn",
        "--model",
        "./m",
        "--set",
        "objective.layer=1",
        "--set",
        "train.params=['*down_proj*']",
        "--dry-run",
    ]
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"):
        for what, data in BROKEN.items():
            yield Input(f"{name}: {what}", args, codes=(3,), says="m", make=_written(name, data))
    for key, values in CONFIG.items():
        for value in values:
            yield Input(f"config {key}={value!r}", args, codes=(2, 3), says="m", make=_config(key, value))
    for what, data in _headers():
        yield Input(f"safetensors: {what}", dry, codes=(3,), says="m", make=_written("model.safetensors", data))
    for what, data in BROKEN.items():

        def index(folder: Path, data: bytes = data) -> None:
            (folder / "model.safetensors").unlink()
            (folder / "model.safetensors.index.json").write_bytes(data)

        yield Input(f"index: {what}", dry, codes=(3,), says="m", make=_copied(index))
    for odd in (
        "{}",
        '{"weight_map": {}}',
        '{"weight_map": 5}',
        '{"weight_map": {"a": "../x.safetensors"}}',
        '{"weight_map": {"a": 5}}',
    ):
        yield Input(f"index: {odd}", dry, codes=(3,), says="m", make=_copied(lambda f, odd=odd: (  # type: ignore[misc]
            (f / "model.safetensors").unlink(), (f / "model.safetensors.index.json").write_text(odd))))  # fmt: skip
    for what, text in ADAPTER.items():

        def make(place: Path, text: str = text) -> None:
            shutil.copytree(place.parent / "tiny", place / "tiny2")
            shutil.copytree(place.parent / "tiny", place / "m")
            (place / "m/config.json").unlink()
            (place / "m/adapter_config.json").write_text(text)
            (place / "m/model.safetensors").rename(place / "m/adapter_model.safetensors")

        yield Input(f"adapter: {what}", args, codes=(2, 3), says="m", make=make)

    def two(place: Path) -> None:
        for one, other in ("mn", "nm"):
            (place / one).mkdir()
            (place / one / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": other}))

    yield Input("adapter: each other's base", args, codes=(3,), says="its own base", make=two)
