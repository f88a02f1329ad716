"""Task files for lm-eval that are wrong."""

from __future__ import annotations

from collections.abc import Iterator

from malformed.judge import Input
from malformed.recipes import BOMB

GOOD = {
    "task": "x", "dataset_path": "json", "dataset_kwargs": "{data_files: {test: d.jsonl}}", "test_split": "test",
    "output_type": "multiple_choice", "doc_to_text": '"{{q}}"', "doc_to_choice": "[a, b]", "doc_to_target": "0",
    "metric_list": "[{metric: acc}]", "metadata": "{version: 1}",
}  # fmt: skip
WHOLE: dict[str, str | bytes] = {
    "empty": "", "null": "~\n", "text": "hello\n", "list": "- a\n", "number": "5\n", "no YAML": "{", "NUL": "\0", "no UTF-8": b"\xff\xfe",
    "task alone": "task: x\n", "Python": "task: x\ny: !!python/object/apply:os.system [true]\n", "includes itself": "include: t.yaml\ntask: x\n",
    "includes a folder": "include: .\ntask: x\n", "includes nothing": "include: nowhere.yaml\ntask: x\n", "includes a number": "include: 5\ntask: x\n",
    "itself": "a: &a [*a]\n", "deep": "a: " + "[" * 900, "bomb": BOMB, "group": "group: g\ntask: [nowhere]\n", "class": "task: x\nclass: 5\n",
    "tag": "task: x\ny: !frobnicate 1\n", "key twice": "task: x\n? [a]\n: 1\n",
}  # fmt: skip
ODD = {
    "dataset_path": ["~", "5", "[]", "nowhere", "./nowhere"], "dataset_kwargs": ["5", "[a]", "{data_files: nowhere.jsonl}", "{data_files: 5}", "{frobnicate: 1}",
                                                                                  "{data_files: {test: empty.jsonl}}", "{data_files: {test: bad.jsonl}}"],
    "test_split": ["nowhere", "5", "[]", "~"], "output_type": ["frobnicate", "5", "~", "[]"],
    "doc_to_text": ['"{{ q "', '"{{nofield}}"', '"{% for %}"', '"{{ q | frobnicate }}"', '"{{ 1/0 }}"', "{a: b}", "!function nowhere.f", "!function x"],
    "doc_to_choice": ["~", "5", '"{{nofield}}"', "[]"], "doc_to_target": ['"{{nofield}}"', "{a: 1}", "7"],
    "metric_list": ["5", "[5]", "[{}]", "[{metric: 5}]", "{}", "[{metric: acc, aggregation: frobnicate}]"],
    "metadata": ["{version: 1, kind: frobnicate}"], "num_fewshot": ["99", "x"], "fewshot_config": ["5", "{sampler: frobnicate}"],
    "filter_list": ["5", "[5]", "[{name: x, filter: [{function: frobnicate}]}]"], "repeats": ["x", "0"], "process_docs": ["5", "!function nowhere.f"],
}  # fmt: skip


def inputs() -> Iterator[Input]:
    args = ["eval", "{model}", "--bench", "t.yaml"]
    data: dict[str, str | bytes] = {"d.jsonl": '{"q": "a b c"}\n{"q": "b c d"}\n', "empty.jsonl": "", "bad.jsonl": "{"}
    for name, text in WHOLE.items():
        yield Input(name, args, {"t.yaml": text, **data}, (2, 3), "t")
    for key, values in ODD.items():
        for value in values:
            text = "".join(f"{k}: {v}\n" for k, v in {**GOOD, key: value}.items())
            yield Input(f"{key}: {value}", args, {"t.yaml": text, **data}, (2, 3), "t")
    for key in ("dataset_path", "test_split", "doc_to_text", "doc_to_target", "doc_to_choice"):
        text = "".join(f"{k}: {v}\n" for k, v in GOOD.items() if k != key)
        yield Input(f"without {key}", args, {"t.yaml": text, **data}, (2, 3), "t")
    for name in ("nowhere.yaml", "../t.yaml", "", "t.yml", ".yaml", "\x1b[31m.yaml"):
        yield Input(
            f"named {name!r}",
            ["eval", "{model}", f"--bench={name}"],
            {},
            (2, 3),
            "benchmark" if not name.endswith("yaml") else "file",
        )
