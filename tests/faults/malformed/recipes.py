"""Recipes that are no YAML, or more than a recipe may be; and recipes whose keys or values are wrong."""

from __future__ import annotations

from collections.abc import Iterator

from malformed.judge import Input

OBJECTIVE = "objective: {name: rmu, layer: 1}\nforget: {data: capitals, batch: 4, max_length: 24}\n"
GOOD = {  # by command: how it is run on FILE, and a sound recipe
    "unlearn": (["unlearn", "--recipe", "bad.yaml", "--dry-run"],
                "command: unlearn\nmodel: {ref: tiny}\n" + OBJECTIVE + "train: {steps: 2}\n"),
    "attack": (["attack", "runs/u", "--recipe", "bad.yaml", "--dry-run"],
               "command: attack\nattack: {name: finetune, task: elements, steps: 4}\n"),
    "eval": (["eval", "runs/u", "--recipe", "bad.yaml", "--dry-run"],
             "command: eval\neval: {benchmarks: [capitals], limit: 4}\n"),
    "taskvec": (["taskvec", "runs/u", "--recipe", "bad.yaml"], "command: taskvec\n"),
    "apply": (["taskvec-apply", "--recipe", "bad.yaml", "--dry-run"],
              "command: apply\nvectors: [{run: u, alpha: -1.0}]\n"),
    "pipeline": (["pipeline", "bad.yaml", "--dry-run"],
                 "command: pipeline\nmethods: {rmu: {recipe: quickstart-rmu}}\nattacks: [{attack: {name: noise}}]\n"),
    "suite": (["attack", "runs/u", "--suite", "bad.yaml", "--dry-run"],
              "command: suite\nattacks: [{attack: {name: noise}}]\n"),
}  # fmt: skip
BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12)
)
MAPS = "a0: &a0 {p: x, q: x, r: x, s: x, t: x}\n" + "".join(
    f"a{i}: &a{i} {{p: *a{i - 1}, q: *a{i - 1}, r: *a{i - 1}, s: *a{i - 1}, t: *a{i - 1}}}\n" for i in range(1, 12)
)
SYNTAX: dict[str, str | bytes] = {
    "anchor bomb of lists": BOMB,
    "anchor bomb of mappings": MAPS,
    "merge bomb": "a: &a {k: 1}\n" + "b: &b {<<: [*a, *a, *a]}\n" * 0 + "c: &c {<<: *c}\n",
    "list within itself": "x: &a [*a]\n",
    "mapping within itself": "x: &a {b: *a}\n",
    "two that hold each other": "x: &a [&b [*a, *b]]\n",
    "alias of nothing": "x: *nothing\n",
    "900 levels of lists": "x: " + "[" * 900 + "]" * 900 + "\n",
    "900 levels of mappings": "x: " + "{a: " * 900 + "1" + "}" * 900 + "\n",
    "20,000 open brackets": "x: " + "[" * 20_000,
    "NUL": "x: \0\n",
    "bell": "x: '\a'\n",
    "escape": "x: '\x1b[31m'\n",
    "no UTF-8": b"x: \xff\xfe\n",
    "UTF-16": "x: 1\n".encode("utf-16"),
    "half a surrogate pair": 'x: "\\ud800"\n',
    "no character": 'x: "\\U00110000"\n',
    "unknown escape": 'x: "\\q"\n',
    "open quote": "x: 'abc\n",
    "open list": "x: [1, 2\n",
    "open mapping": "x: {a: 1\n",
    "tab": "\tx: 1\n",
    "dedent": "x:\n    a: 1\n  b: 2\n",
    "two values": "x: 1 : 2\n",
    "key twice": "x: 1\nx: 2\n",
    "key is a list": "? [a, b]\n: 1\n",
    "key is a mapping": "? {a: b}\n: 1\n",
    "key is null": "? \n: 1\n",
    "key is binary": '!!binary "AA==": 1\n',
    "key is a date": "2024-13-45: 1\n",
    "no int": "x: !!int abc\n",
    "empty int": 'x: !!int ""\n',
    "no float": "x: !!float abc\n",
    "no bool": "x: !!bool maybe\n",
    "no date": "x: !!timestamp abc\n",
    "date out of range": "x: !!timestamp 2024-13-45\n",
    "5,000 digits": "x: " + "9" * 5000 + "\n",
    "python object": "x: !!python/object/apply:os.system [true]\n",
    "python name": "x: !!python/name:os.system ''\n",
    "unknown tag": "x: !frobnicate 1\n",
    "set": "x: !!set {a, b}\n",
    "directive": "%YAML 9.9\n---\nx: 1\n",
    "two documents": "---\nx: 1\n---\ny: 2\n",
    "second end": "x: 1\n...\nx: 2\n",
    "200 kB": "# " + "x" * 210_000 + "\n",
    "3,000 unknown keys": "".join(f"k{i}: {i}\n" for i in range(3000)),
    "one key of 10,000 letters": "k" * 900 + ": 1\n",
}


def syntax() -> Iterator[Input]:
    """Each form below a sound recipe of each command."""
    for command, (args, good) in GOOD.items():
        for name, text in SYNTAX.items():
            whole = good.encode() + (text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass"))
            yield Input(f"{command}: {name}", args, {"bad.yaml": whole}, (2,), "bad.yaml")


WHOLE = {
    "nothing": "", "null": "~\n", "text": "hello\n", "number": "5\n", "list": "- a\n- b\n", "only a comment": "# a\n",
    "another command": "command: {other}\n", "no such command": "command: frobnicate\n", "command is a list": "command: []\n",
    "command is null": "command: ~\n",
}  # fmt: skip
VALUES = {
    "null": "~", "text": "abc", "empty text": "''", "list": "[1]", "mapping": "{a: 1}", "true": "true", "nan": ".nan",
    "infinite": ".inf", "beyond float": "1e999", "beyond all sense": "1e18", "far below 0": "-1e18",
    "huge integer": "9" * 40, "half": "0.5", "nested": "[[[[1]]]]",
}  # fmt: skip
NUMBERS = {  # keys that must be whole and positive, by command
    "unlearn": ["train.steps", "forget.batch", "forget.max_length", "train.accumulation", "objective.layer"],
    "attack": ["attack.steps", "attack.batch", "attack.max_length", "attack.test_rows", "attack.save_every"],
}


def content() -> Iterator[Input]:
    """Sound YAML with a wrong kind, key or value."""
    for command, (args, good) in GOOD.items():
        for name, text in WHOLE.items():
            if command in ("taskvec", "eval") and name in ("nothing", "null", "only a comment"):
                continue  # a recipe may leave everything out
            if command in ("unlearn", "attack", "apply", "pipeline", "suite") and name == "nothing":
                text = f"command: {command}\n"
            text = text.replace("{other}", "eval" if command != "eval" else "attack")
            yield Input(f"{command}: {name}", args, {"bad.yaml": text}, (2,), "bad.yaml" if text.strip() else "")
        for key in (
            "seed: -1",
            "seed: 4294967296",
            "seed: 1.5",
            "sead: 1",
            "'': 1",
            "a.b.c: 1",
            "[]: 1",
            "__class__: 1",
        ):
            if key.startswith("seed") and command not in ("unlearn", "attack"):
                key = key.replace("seed", "sead")
            yield Input(f"{command}: {key}", args, {"bad.yaml": f"{good}{key}\n"}, (2,), "bad.yaml:")
    for command, keys in NUMBERS.items():
        args, good = GOOD[command]
        for key in keys:
            for name, value in VALUES.items():
                line = f"--set={key}={value}"
                yield Input(f"{key}: {name}", [*args, line], {"bad.yaml": good}, (2,), key)
