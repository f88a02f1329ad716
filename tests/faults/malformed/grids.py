"""Pipelines and suites whose parts do not fit."""

from __future__ import annotations

from collections.abc import Iterator

from malformed.judge import Input

METHODS = "methods: {rmu: {recipe: quickstart-rmu}}\n"
ATTACKS = "attacks: [{attack: {name: noise}}]\n"
MANY = ", ".join(map(str, range(1, 120)))
PIPELINES = {
    "no methods": ATTACKS, "no attacks": METHODS, "methods empty": f"methods: {{}}\n{ATTACKS}", "methods a list": f"methods: [rmu]\n{ATTACKS}",
    "method null": f"methods: {{rmu: ~}}\n{ATTACKS}", "method without a recipe": f"methods: {{rmu: {{}}}}\n{ATTACKS}",
    "recipe nowhere": f"methods: {{rmu: {{recipe: nowhere}}}}\n{ATTACKS}", "recipe of another command": f"methods: {{rmu: {{recipe: suite-quick}}}}\n{ATTACKS}",
    "recipe itself": f"methods: {{rmu: {{recipe: bad.yaml}}}}\n{ATTACKS}", "recipe a number": f"methods: {{rmu: {{recipe: 5}}}}\n{ATTACKS}",
    "set a list": f"methods: {{rmu: {{recipe: quickstart-rmu, set: [1]}}}}\n{ATTACKS}", "set an unknown key": f"methods: {{rmu: {{recipe: quickstart-rmu, set: {{frob: 1}}}}}}\n{ATTACKS}",
    "set a wrong value": f"methods: {{rmu: {{recipe: quickstart-rmu, set: {{train.steps: x}}}}}}\n{ATTACKS}",
    "set beyond": f"methods: {{rmu: {{recipe: quickstart-rmu, set: {{train.steps: 1000000000}}}}}}\n{ATTACKS}",
    "the reference's name": f"methods: {{original: {{recipe: quickstart-rmu}}}}\n{ATTACKS}", "seeds empty": f"seeds: []\n{METHODS}{ATTACKS}",
    "seed twice": f"seeds: [1, 1]\n{METHODS}{ATTACKS}", "seed beyond": f"seeds: [99999999999]\n{METHODS}{ATTACKS}", "seed text": f"seeds: [x]\n{METHODS}{ATTACKS}",
    "suite nowhere": f"suite: nowhere\n{METHODS}", "suite itself": f"suite: bad.yaml\n{METHODS}", "suite a number": f"suite: 5\n{METHODS}",
    "named ..": f"name: ..\n{METHODS}{ATTACKS}", "named .": f"name: .\n{METHODS}{ATTACKS}", "named with a slash": f"name: a/b\n{METHODS}{ATTACKS}",
    "named up": f"name: ../x\n{METHODS}{ATTACKS}", "name empty": f"name: ''\n{METHODS}{ATTACKS}", "name markup": f"name: '[red]'\n{METHODS}{ATTACKS}",
    "name hidden": f"name: .hidden\n{METHODS}{ATTACKS}", "environments a text": f"environments: sst2\n{METHODS}{ATTACKS}",
    "environment twice": f"environments: [sst2, sst2]\n{METHODS}{ATTACKS}", "match nothing": f"match: {{}}\n{METHODS}{ATTACKS}",
    "match another": f"match: {{benchmark: frob, target: 1.0}}\n{METHODS}{ATTACKS}", "match below 0": f"match: {{benchmark: elements, target: -1.0}}\n{METHODS}{ATTACKS}",
    "match beyond": f"match: {{benchmark: elements, target: 1.0e+99}}\n{METHODS}{ATTACKS}", "model a list": f"model: []\n{METHODS}{ATTACKS}",
    "eval unknown": f"eval: {{frob: 1}}\n{METHODS}{ATTACKS}",
}  # fmt: skip
GRIDS = {
    "no attacks": "", "empty": "attacks: []\n", "text": "attacks: noise\n", "a number": "attacks: [5]\n", "null": "attacks: [~]\n", "no attack": "attacks: [{}]\n",
    "no name": "attacks: [{attack: {}}]\n", "unknown name": "attacks: [{attack: {name: frob}}]\n", "name a list": "attacks: [{attack: {name: [noise]}}]\n",
    "unknown key": "attacks: [{attack: {name: noise, frob: 1}}]\n", "wrong value": "attacks: [{attack: {name: noise, sigmas: x}}]\n", "twice": ATTACKS[:-2] + ", {attack: {name: noise}}]\n",
    "each empty": "attacks: [{attack: {name: noise}, each: {sigmas: []}}]\n", "each a list": "attacks: [{attack: {name: noise}, each: [1]}]\n",
    "each a text": "attacks: [{attack: {name: noise}, each: {sigmas: x}}]\n", "each unknown": "attacks: [{attack: {name: noise}, each: {frob: [1]}}]\n",
    "each deep": "attacks: [{attack: {name: noise}, each: {a.b.c: [1]}}]\n", "best of wrong": "attacks: [{attack: {name: finetune}, best_of: {lr: [x]}}]\n",
    "lr below 0": "attacks: [{attack: {name: finetune}, best_of: {lr: [-1.0]}}]\n", "steps beyond": "attacks: [{attack: {name: finetune, steps: 1000000000}}]\n",
    "eval unknown": "attacks: [{attack: {name: noise}, eval: {frob: 1}}]\n", "random a text": "attacks: [{attack: {name: noise}, random: x}]\n",
    "a million runs": f"attacks: [{{attack: {{name: finetune}}, each: {{steps: [{MANY}], batch: [{MANY}], max_length: [{MANY}]}}}}]\n",
}  # fmt: skip


def inputs() -> Iterator[Input]:
    for name, text in PIPELINES.items():
        yield Input(
            f"pipeline: {name}",
            ["pipeline", "bad.yaml", "--dry-run"],
            {"bad.yaml": f"command: pipeline\n{text}"},
            (2, 3),
            "",
        )
    for name, text in GRIDS.items():
        suite: dict[str, str | bytes] = {"bad.yaml": f"command: suite\n{text}"}
        yield Input(f"suite: {name}", ["attack", "runs/u", "--suite", "bad.yaml", "--dry-run"], suite, (2,), "bad.yaml")
        if text:
            suite = {"bad.yaml": f"command: pipeline\n{METHODS}{text}"}
            yield Input(f"pipeline, attacks: {name}", ["pipeline", "bad.yaml", "--dry-run"], suite, (2,), "attack")
