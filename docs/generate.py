"""Write the reference pages, docs/recipes.md, docs/methods-reference.md and docs/warnings.md, from the code.

    python docs/generate.py            # write them
    python docs/generate.py --check    # only say which are out of date (exit code 1)

Keys, types, defaults and descriptions come from the JSON Schema that `ilu schema` prints; prose from the docstrings.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

from ilu_cli import registry
from ilu_cli.care import KINDS as KINDS_OF_WARNING
from ilu_cli.recipe.load import about, shipped
from ilu_cli.recipe.schema import RECIPES, json_schema

HERE = Path(__file__).parent
NOTE = "<!-- Written by docs/generate.py from the code; edit the docstrings, not this page. -->\n"
KINDS = {  # title, registry, prefix of its schema, how it is written in a recipe
    "Objectives": (registry.objective, "Objective", "`objective: {name: …}`, or `--method`"),
    "Retain terms": (registry.retain_term, "RetainTerm", "`retain: {name: …, data: …}`"),
    "Regularisers": (registry.regularizer, "Regularizer", "`regularizers: [{name: …, env: […]}]`"),
    "Defences": (registry.defence, "Defence", "`defences: [{name: …}]`, or `--defence`"),
    "Attacks": (registry.attack, "Attack", "`attack: {name: …}`, or `ilu attack --kind`"),
}
TITLES = {prefix: title for title, (_, prefix, _) in KINDS.items()} | {"Benchmark": "Benchmarks"}
COMPONENT = re.compile(rf"({'|'.join(TITLES)})_[\w-]+")


def kind(node: dict[str, Any]) -> str:
    """A node of a JSON Schema in words."""
    if "$ref" in node:
        name = node["$ref"].rpartition("/")[2]
        if idea := COMPONENT.fullmatch(name):
            title = TITLES[idea[1]]
            return f"one of the [{title.lower()}](methods-reference.md#{title.lower().replace(' ', '-')})"
        return f"[{name}](recipes.md#{name.lower()})"
    if "const" in node:
        return f"`{node['const']}`"
    if "enum" in node:
        return " or ".join(f"`{value}`" for value in node["enum"])
    for several in ("anyOf", "oneOf"):
        if several in node:
            return " or ".join(dict.fromkeys(map(kind, node[several])))
    if node.get("type") == "array":
        return f"list of ({kind(node['items'])})" if node.get("items") else "list"
    if node.get("type") == "object" and isinstance(node.get("additionalProperties"), dict):
        return f"mapping to ({kind(node['additionalProperties'])})"
    signs = {"exclusiveMinimum": ">", "minimum": "≥", "exclusiveMaximum": "<", "maximum": "≤"}
    bounds = [f"{sign} {node[key]}" for key, sign in signs.items() if key in node]
    return " ".join([node.get("type", "anything"), *bounds]).replace("object", "mapping")


def table(properties: dict[str, Any], required: list[str]) -> str:
    """Keys with types, defaults and descriptions, as Markdown."""
    lines = ["| key | type | default | |", "|---|---|---|---|"]
    for key, node in properties.items():
        value = node.get("default")
        default = "its own" if isinstance(value, dict) and value else f"`{json.dumps(value, ensure_ascii=False)}`"
        default = "required" if key in required else default
        about_key = node.get("description", "") if "$ref" not in node else ""
        lines.append(f"| `{key}` | {kind(node)} | {default} | {about_key} |".replace(" or null", ", or null"))
    return "\n".join(lines)


def prose(docstring: str) -> str:
    """A docstring as Markdown: what follows `Returns:` stands on its line."""
    return re.sub(r"^(Returns|Raises):\n +", r"\1: ", docstring, flags=re.M)


def cell(docstring: str) -> str:
    """A whole docstring as one cell of a table."""
    return " ".join(docstring.split()).replace("|", "\\|")


def recipes() -> str:
    """The reference of recipes."""
    schemas = {command: json_schema(command) for command in RECIPES}
    parts: dict[str, Any] = {}
    out = [
        NOTE + "# Recipes\n",
        "A recipe is strict YAML: an unknown key, a wrong type or an impossible combination is an error, and all\n"
        "errors are reported at once with their lines. Flags and `--set a.b=c` are written over the file.\n"
        "`ilu schema` prints what follows as JSON Schema;\n"
        "[own-data.md](own-data.md#an-editor-that-knows-the-keys) tells how an editor uses it.\n",
    ]
    for command, found in schemas.items():
        out.append(f"## `command: {command}`\n\n{found.get('description', '')}\n")
        out.append(table(found["properties"], found.get("required", [])) + "\n")
        parts |= {name: node for name, node in found.get("$defs", {}).items() if not COMPONENT.fullmatch(name)}
    out.append("## The parts\n")
    for name in sorted(parts):
        node = parts[name]
        keys = table(node["properties"], node.get("required", [])) if node.get("properties") else "It has no keys."
        out.append(f"### {name}\n\n{node.get('description', '')}\n\n{keys}\n")
    out.append("## Shipped recipes\n\n| name | |\n|---|---|")
    out += [f"| `{name}` | {about(path)} |" for name, path in shipped().items()]
    return "\n".join(out) + "\n"


def fact(value: Any) -> str:
    """What a decorator declares, in a word; of several they stand in order."""
    return " ".join(sorted(value)) if isinstance(value, frozenset) else str(value)


def methods() -> str:
    """The reference of everything that is registered."""
    defs = {name: node for c in ("unlearn", "attack") for name, node in json_schema(c).get("$defs", {}).items()}
    out = [NOTE + "# Methods, attacks, tasks and benchmarks\n"]
    for title, (known, prefix, written) in KINDS.items():
        out.append(f"## {title}\n\nIn a recipe: {written}.\n")
        trains = [name for name in known if getattr(known[name].declared, "access", "training") == "training"]
        node, own = defs[f"{prefix}_{trains[0]}"], known[trains[0]].keys()
        shared = {key: n for key, n in node["properties"].items() if key not in own and key != "name"}
        if shared:
            whose = "all of them have" if len(trains) == len(known) else "attacks that train have"
            out.append(f"Keys that {whose}:\n\n{table(shared, node.get('required', []))}\n")
        for name in known:
            entry, node = known[name], defs[f"{prefix}_{name}"]
            own = {key: node["properties"][key] for key in entry.keys()}  # noqa: SIM118
            keys = table(own, node.get("required", [])) if own else "It has no keys of its own."
            facts = "".join(f" · {k}: {fact(v)}" for k, v in entry.declared if v is not None and not callable(v))
            out.append(f"### `{name}`\n\n{prose(entry.doc)}\n\n{keys}\n")
            out.append(f"<sub>`{Path(entry.obj.__module__.replace('.', '/'))}.py`{facts}</sub>\n")
    out.append("## Tasks\n\nIn a recipe: wherever `data`, `env` or `task` is asked for. Sources: [data.md](data.md).\n")
    out.append("| task | | hub dataset | fields | built-in rows |\n|---|---|---|---|---|")
    for name in registry.task:
        obj = registry.task[name].obj
        task = obj() if callable(obj) else obj
        hub = f"{task.hub}{f' · {task.config}' if task.config else ''}" if task.hub else "-"
        fields = ", ".join(f"`{f}`" for f in task.fields)
        out.append(f"| `{name}` | {cell(registry.task[name].doc)} | {hub} | {fields} | {builtin(task)} |")
    out.append("\n## Benchmarks\n\nIn a recipe: `eval: {benchmarks: […]}`, or `ilu eval --bench`.\n")
    out.append("| benchmark | | role | metric | chance |\n|---|---|---|---|---|")
    for name in registry.benchmark:
        entry = registry.benchmark[name]
        chance = "-" if entry.obj.chance is None else f"{entry.obj.chance:g}"
        out.append(f"| `{name}` | {cell(entry.doc)} | {entry.obj.role} | {entry.obj.metric} | {chance} |")
    out.append("\nWith keys of its own a benchmark is a mapping: `{name: tofu, retain_run: RUN}`.")
    for name in registry.benchmark:
        if own := {k: defs[f"Benchmark_{name}"]["properties"][k] for k in registry.benchmark[name].keys()}:  # noqa: SIM118
            out.append(f"\n### Keys of `{name}`\n\n{table(own, defs[f'Benchmark_{name}'].get('required', []))}")
    return "\n".join(out) + "\n"


def builtin(task: Any) -> str:
    """How many rows are built in."""
    has = type(task).generate is not base_task().generate or type(task).builtin is not base_task().builtin
    return " + ".join(str(len(task.builtin(split))) for split in ("train", "test")) if has else "-"


def base_task() -> Any:
    """The class that tasks derive from."""
    from ilu_cli.tasks import Task

    return Task


ABOUT_WARNINGS = """\
# Warnings: numbers that mean nothing

A number can be computed without a fault and still say nothing. What gives cause for doubt is a warning with an
id, a sentence with the numbers, and what to do. Each stands

- in the terminal (on stderr), and as `warnings` in what `--json` prints;
- in the manifest of an unlearning run or attack (`result.warnings`), and for `ilu eval` in the run's
  `eval/warnings.json`;
- at the head of `ilu report`, in `ilu runs show`, and in `results.json` of a pipeline.

With `--strict`, `ilu unlearn`, `attack`, `eval`, `compare`, `taskvec`, `pipeline` and `report` exit with code 4,
as where a requirement fails, when everything is written: nothing is lost. What only limits a result, and does
not make it void, passes (last column), and stands in reports alone.
"""
ABOUT_OVERLAP = """\
## Rows that are in two sets

Before anything is tokenised, the texts of a run's data are compared by their words, whatever the datasets are
called. The counts are in the manifest (`result.content`), those of 0 too. Of a long text the first
16,384 characters are read.

| what | in what | then |
|---|---|---|
| forget rows, or the other way round | an environment | refused (exit code 2) |
| forget rows, or the other way round | retain data | refused from half of either set on, else a warning |
| attack rows, or the other way round | forget data | a warning; refused, or only counted, of some attacks ¹ |
| attack rows, or the other way round | retain data | a warning |
| attack rows | environments | left out of the attack, and told ([attacks.md](attacks.md)) |
| benchmark questions with their right answers | attack, retain and environment data | a warning |

¹ `relearn_benign` claims to hold them out, and is refused; `relearn` and `jailbreak_tune` teach them on purpose. An
attack declares which (`forget=`).

The forget data hold the questions of the forget topic by their nature, and are not searched for them; those of TOFU and
MUSE about what is retained are only counted in the retain data. Data that cannot be read any more are
named in `unread`. 10,000 rows of 30 words against 10,000 others take 1.1 s and
the memory of the hashes (two slow cores, beside other work; `tests/care/test_content.py`).

## D and temperature

Let ℓ(β) be an environment's loss with all logits times β. D = NLL − H is ℓ′(1), and ℓ is convex; so scaling the
logits brings D to 0 at the β* of the least loss, and the loss there, ℓ(β*), is the same however the logits are
scaled. Before and after a training with `irm`, variant `logit`, ℓ(β*) is measured on the same 16 sequences of each
environment (`result.temperature`; not where a model is spread over processes). If |D| fell and ℓ(β*) did not,
temperature did it.
"""


def warnings() -> str:
    """The declared list of warnings."""
    out = [
        NOTE + ABOUT_WARNINGS,
        "| warning | what it tells | when it is given | what to do | `--strict` |\n|---|---|---|---|---|",
    ]
    for name, k in KINDS_OF_WARNING.items():
        out.append(f"| `{name}` | {k.tells} | {cell(k.when)} | {k.remedy} | {'error' if k.strict else 'passes'} |")
    return "\n".join([*out, "", ABOUT_OVERLAP])


PAGES = {"recipes.md": recipes, "methods-reference.md": methods, "warnings.md": warnings}


def stale() -> list[str]:
    """The pages that differ from what the code says now."""
    paths = {name: HERE / name for name in PAGES}
    return [n for n, p in paths.items() if not p.is_file() or p.read_text(encoding="utf-8") != PAGES[n]()]


def main() -> int:
    """Write the pages, or with `--check` name those that are out of date."""
    found = stale()
    for name in found:
        if "--check" not in sys.argv:
            (HERE / name).write_text(PAGES[name](), encoding="utf-8")
        print(f"{name}: {'out of date' if '--check' in sys.argv else 'written'}")
    return 1 if found and "--check" in sys.argv else 0


if __name__ == "__main__":
    sys.exit(main())
