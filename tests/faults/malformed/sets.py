"""`--set` with what is no key, no value, or no place."""

from __future__ import annotations

from collections.abc import Iterator

from malformed.judge import Input
from malformed.recipes import SYNTAX

KEYS = [
    "", "=", "=1", ".", ".=1", "..=1", "a", "train", "train.", "train.=1", ".train=1", "train..lr=1", "train.lr", "train.lr.x=1",
    "train.lr.0=1", "train.0=1", "0=1", "0.0.0=1", "forget.data.5.name=capitals", "forget.data.-1.name=capitals",
    "forget.data.²=1", "forget.data.99999999999999999999=1", "objective=1", "objective=[]", "objective=~", "objective={}",
    "objective.name=frobnicate", "objective.name=~", "objective.name=[rmu]", "objective.name={a: 1}", "command=attack",
    "model=1", "model.ref=1", "model.ref=[]", "regularizers=1", "regularizers=[1]", "regularizers=[{}]",
    "regularizers=[{name: irm}]", "regularizers.0=1", "regularizers.0.name=1", "defences=[1]", "defences.7.name=sam",
    "retain=1", "retain.name=frobnicate", "retain.data=[]", "retain.data=[1]", "retain.data=[[]]", "retain.data=~",
    "forget.data={}", "forget.data=[{}]", "forget.data=[{name: 1}]", "forget.data=[{name: capitals, split: nowhere}]",
    "forget.data=[{name: capitals, source: frobnicate}]", "forget.data=[{name: capitals, limit: 0}]", "lora=1",
    "lora={r: 0}", "lora={r: 1e99}", "lora={targets: []}", "train.schedule=frobnicate", "train.precision=int1",
    "train.params=[]", "train.params=1", "train.points=[0]", "train.points=[5, 4]", "train.points=[1.5]",
    "train.warmup=99", "track=[frobnicate]", "track=1", "seed=-1", "seed=x", "\x1b[31m=1", "train.lr\n=1", "[red]=1",
    "train.\ud800=1", "{}=1", "*=1", "train.lr==1", "train.budget=1", "train.budget={}", "train.budget={kl: 0}",
    "ключ=1", "a" * 5000 + "=1", ".".join("a" * 2000) + "=1",
]  # fmt: skip


def inputs() -> Iterator[Input]:
    """Keys, and the values that are no YAML."""
    base = ["unlearn", "--model", "{model}", "--dry-run"]
    for key in KEYS:
        name = key if len(key) < 60 else f"{key[:20]}… ({len(key)} characters)"
        yield Input(
            repr(name), [*base, "--set", key], says="--set" if key and len(key) < 60 and "\ud800" not in key else ""
        )
    for name, text in SYNTAX.items():
        if (
            isinstance(text, bytes)
            or "\0" in text
            or "\n" in text.strip()
            or not text.startswith("x: ")
            or len(text) > 10**5
        ):
            continue
        yield Input(f"value: {name}", [*base, "--set", f"train.lr={text[3:].strip()}"], says="--set train.lr")
