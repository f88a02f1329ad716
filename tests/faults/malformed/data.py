"""Rows and data files of every format, and READMEs that list them."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from typing import Any

from malformed.judge import Input

ARGS = ["unlearn", "--model", "{model}", "--set", "objective.layer=1", "--set", "train.params=['*down_proj*']", "--steps", "2",
        "--set", "retain.data=[elements]", "--dry-run", "--forget"]  # fmt: skip
ROWS: dict[str, str | bytes] = {
    "empty": "", "blank lines": "\n\n", "spaces": "   ", "no JSON": "{", "text": '"abc"', "number": "5", "null": "null", "list": "[1]",
    "true": "true", "empty row": "{}", "no fields known": '{"a": "b"}', "text is null": '{"text": null}', "text is a number": '{"text": 5}',
    "text is a list": '{"text": ["a"]}', "text is a mapping": '{"text": {"a": 1}}', "text is empty": '{"text": ""}',
    "text is blank": '{"text": "  \\n "}', "text is true": '{"text": true}', "prompt alone": '{"prompt": "a"}',
    "response alone": '{"response": "a"}', "prompt is a number": '{"prompt": 1, "response": "a"}',
    "response is null": '{"prompt": "a", "response": null}', "response is empty": '{"prompt": "a", "response": ""}',
    "field twice": '{"text": "a", "text": "b"}', "half a surrogate pair": '{"text": "\\ud800"}',
    "other half": '{"prompt": "a", "response": "x\\udfff"}', "deep list": '{"text": "a", "b": ' + "[" * 100_000 + "]" * 100_000 + "}",
    "deep mapping": '{"a": ' * 20_000 + "1" + "}" * 20_000, "open deep": "[" * 200_000, "5,000 digits": '{"text": ' + "9" * 5000 + "}",
    "NaN": '{"text": NaN}', "trailing comma": '{"text": "a",}', "single quotes": "{'text': 'a'}", "comment": '// no\n{"text": "a"}',
    "NUL": "\0\0\0\0", "no UTF-8": b'{"text": "\xff"}', "UTF-16": '{"text": "a"}'.encode("utf-16"), "gzip": b"\x1f\x8b\x08\0\0\0\0\0",
    "PNG": b"\x89PNG\r\n\x1a\n" + b"\0" * 64, "HTML": "<!DOCTYPE html><html></html>", "YAML": "text: a\n",
    "LFS pointer": "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "two in a line": '{"text": "a"} {"text": "b"}',
    "second line broken": '{"text": "a sentence here"}\n{"text": ', "second line a number": '{"text": "a sentence here"}\n5\n',
    "10 MB row": json.dumps({"text": "word and so on " * 700_000}), "10 MB word": json.dumps({"text": "a" * 10_000_000}),
    "10 MB prompt": json.dumps({"prompt": "why " * 2_500_000, "response": "so"}),
}  # fmt: skip
CSV: dict[str, str | bytes] = {
    "empty": "", "header alone": "text\n", "no such column": "a,b\n1,2\n", "column twice": "text,text\na,b\n", "too many fields": "text\na,b\n",
    "too few fields": "prompt,response\na\n", "open quote": 'text\n"abc\n', "text after a quote": 'text\n"a"b\n', "NUL": "text\n\0\n",
    "no UTF-8": b"text\n\xff\n", "UTF-16": "text\na\n".encode("utf-16"), "semicolons": "prompt;response\na;b\n", "tabs": "prompt\tresponse\na\tb\n",
    "empty text": "text\n''\n,\n", "blank text": 'text\n" "\n', "empty response": "prompt,response\na,\n", "JSON": '{"text": "a"}\n',
    "10 MB field": "text\n" + "a" * 10_000_000 + "\n", "gzip": b"\x1f\x8b\x08\0\0\0\0\0", "PNG": b"\x89PNG\r\n\x1a\n" + b"\0" * 64,
}  # fmt: skip
README: dict[str, str] = {
    "up": "../ok.jsonl", "absolute": "/etc/*.json", "star stars": '"**a**"', "number": "5", "list of numbers": "[5]", "null in a list": "[~]",
    "true": "true", "no path": "[{split: train}]", "no split": "[{path: ok.jsonl}]", "mapping in it": "{train: {a: b}}", "number in it": "{train: 5}",
    "up in it": "{train: ../../x.jsonl}", "up in a list": "[ok.jsonl, ../x.jsonl]", "mixed": "[{split: train, path: ok.jsonl}, 5]",
    "missing": "nowhere.jsonl", "no data": "ok.txt", "anchor": "&a [*a]", "tag": "!!python/name:os.system ''", "float": "1.5", "empty list in it": "{train: [[]]}",
}  # fmt: skip
FRONT: dict[str, str] = {
    "bad date": "!!timestamp 2024-99-99", "itself": "&a [*a]", "open": "[", "NUL": "\0", "tag": "!x 1", "half a pair": '"\\ud800"',
    "deep": "[" * 900, "bomb": "\n".join(["", "- &a0 [x, x, x, x, x, x, x, x, x]"] + [f"- &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12)]),
}  # fmt: skip


def inputs() -> Iterator[Input]:
    for name, text in ROWS.items():
        for kind in ("jsonl", "json"):
            if kind == "json" and name == "list":
                text = "[1]"
            yield Input(f"{kind}: {name}", [*ARGS, f"d.{kind}"], {f"d.{kind}": text}, (3,), f"d.{kind}")
    for name in (
        "no JSON",
        "text",
        "number",
        "no fields known",
        "text is null",
        "half a surrogate pair",
        "field twice",
    ):
        text = ROWS[name]
        assert isinstance(text, str)
        yield Input(
            f"json list: {name}", [*ARGS, "d.json"], {"d.json": f'[{{"text": "a sentence"}}, {text}]'}, (3,), "d.json"
        )
    for name, text in CSV.items():
        yield Input(f"csv: {name}", [*ARGS, "d.csv"], {"d.csv": text}, (3,), "d.csv")
    for name, data in _parquets():
        yield Input(f"parquet: {name}", [*ARGS, "d.parquet"], {"d.parquet": data}, (3,), "d.parquet")
    yield from _folders()


def _parquets() -> Iterator[tuple[str, bytes]]:
    import datetime

    import pyarrow
    import pyarrow.parquet

    def made(**columns: Any) -> bytes:
        out = io.BytesIO()
        pyarrow.parquet.write_table(pyarrow.table(columns), out)
        return out.getvalue()

    good = made(text=["a sentence here"] * 20)
    day = datetime.date(2024, 1, 1)
    yield from {
        "empty": b"", "magic alone": b"PAR1", "cut": good[: len(good) // 2], "no end": good[:-4],
        "footer length": good[:-8] + b"\xff\xff\xff\x7f" + good[-4:], "zeros": b"\0" * len(good), "JSON": b'{"text": "a"}',
        "dates alone": made(day=[day]), "text is dates": made(text=[day]), "text is numbers": made(text=[1, 2]), "text is nulls": made(text=[None, None]),
        "text is bytes": made(text=[b"abc"]), "text is lists": made(text=[["a"]]), "no rows": made(text=pyarrow.array([], pyarrow.string())),
        "no columns": made(), "text is empty": made(text=["", "x"]), "prompt alone": made(prompt=["a"]), "nested": made(text=[{"a": {"b": 1}}]),
        "footer turned": good[:-20] + bytes(255 - b for b in good[-20:-8]) + good[-8:],
    }.items()  # fmt: skip


def _folders() -> Iterator[Input]:
    row = '{"text": "a sentence here"}\n'
    for name, value in README.items():
        files: dict[str, str | bytes] = {
            "d/README.md": f"---\nconfigs:\n- data_files: {value}\n---\n",
            "d/ok.txt": row,
            "ok.jsonl": row,
        }
        yield Input(f"README: {name}", [*ARGS, "d"], files, (3,), "d")
    for name, value in FRONT.items():
        files = {"d/README.md": f"---\nconfigs: {value}\n---\n", "d/train.jsonl": row}
        yield Input(f"front matter: {name}", [*ARGS, "d"], files, (3,), "README.md:")
    yield Input("folder: empty", [*ARGS, "d"], {"d/x.txt": "a"}, (3,), "d")
    yield Input(
        "folder: two kinds", [*ARGS, "d"], {"d/train.jsonl": row, "d/train.csv": "text\na\n"}, (3,), "both there"
    )
    yield Input("folder: a shard lost", [*ARGS, "d"], {"d/train-00000-of-00002.jsonl": row}, (3,), "lacks 1 of the 2")
    for name in ("d.txt", "d.jsonl.gz", "d.arrow", "d", "d.xml", "d.tar"):
        yield Input(f"file: {name}", [*ARGS, f"./{name}"], {name: row}, (3,), name)
    for state, info in (
        ("{", "{}"),
        ("{}", "{"),
        ("{}", "{}"),
        ("[]", "[]"),
        ('{"_data_files": [{"filename": "../x"}]}', "{}"),
    ):
        files = {"d/state.json": state, "d/dataset_info.json": info}
        yield Input(f"saved: {state} {info}", [*ARGS, "d"], files, (3,), "d")
