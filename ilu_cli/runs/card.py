"""The README.md of a run folder: a model card in the hub's format, from what is on disk."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

import yaml

from ilu_cli import trust
from ilu_cli.errors import UnavailableError
from ilu_cli.metrics.figure import shown
from ilu_cli.runs.results import AttackResult, Data, Row, Summary

if TYPE_CHECKING:
    from ilu_cli.runs.store import Manifest

TITLES = {"unlearn": "Unlearned model", "attack": "Attacked model", "taskvec apply": "Sum of task vectors"}
# The models that ship as packages, on the hub, and their licences.
KNOWN = {"smollm2-135m": ("HuggingFaceTB/SmolLM2-135M-Instruct", "apache-2.0")}


def card(
    m: Manifest, recipe: str, results: Mapping[str, Summary], *, adapter: bool = False, folder: str = "checkpoint"
) -> str:
    """Front matter and text.

    Args:
        recipe: the run's recipe.yaml.
        results: benchmark summaries by name.
        adapter: whether the checkpoint is a peft adapter.
        folder: where the checkpoint lies as seen from the card: a path, or a name on the hub.
    """
    front = yaml.safe_dump(front_matter(m, recipe, results, adapter), sort_keys=False, allow_unicode=True)
    sections = [
        f"---\n{front}---\n\n# {TITLES.get(m.command, 'Model')} `{m.id}`",
        f"Made by `ilu {m.command}` ({m.created[:19]} UTC, seed {m.seed}, {m.world_size} process(es)).",
        "## Use\n\n" + _use(adapter, folder),
        "## Made from\n\n" + "\n".join(f"- {p['role']}: `{p['id']}` ({p['kind']})" for p in m.parents),
        "## Results\n\n" + (_results(results) or "Not evaluated yet: `ilu eval` fills this in."),
        *([_attack(AttackResult.read(m.result))] if m.result.get("points") else []),
        f"## Recipe\n\nThe same run again: `ilu {m.command} --recipe recipe.yaml`.\n\n{fenced(recipe)}",
        _reproduce(m, folder),
        "## Data\n\n" + "\n".join(_data(d) for d in m.data),
        "## Weights\n\n" + "\n".join(f"- `{name}`: sha256 `{digest}`" for name, digest in m.weights.items()),
        *(["## Code that was run\n\n" + "\n".join(f"- {line}" for line in trust.lines(m.trust))] if m.trust else []),
        "## Versions\n\n" + ", ".join(f"{name} {version}" for name, version in m.versions.items()),
    ]
    return "\n\n".join(sections) + "\n"


KEPT = (
    "id", "command", "created", "format", "recipe_sha256", "asked_sha256", "base", "parents", "data", "weights",
    "beside", "points", "versions", "clear_of", "trust", "seed", "world_size", "precision",
)  # fmt: skip
HEAD = "## Reproduce"


def _reproduce(m: Manifest, folder: str) -> str:
    """What `ilu reproduce` needs, and what to type. Where things lay on the machine that made them is left out."""
    first = [] if folder == "checkpoint" else [f"hf download {folder} --local-dir {folder.rpartition('/')[2]}"]
    lines = [*first, f"ilu reproduce {folder.rpartition('/')[2] if first else m.id}"]
    record = json.dumps(_bare({k: v for k, v in vars(m).items() if k in KEPT}), ensure_ascii=False)
    return f"{HEAD}\n\n```sh\n" + "\n".join(lines) + f"\n```\n\n{fenced(record, 'json')}"


def _bare(value: Any) -> Any:
    """Without paths: of a folder, its name."""
    if isinstance(value, dict):
        kept = {k: _bare(v) for k, v in value.items() if k != "path"}
        kept |= {"code": {PurePath(k).name: v for k, v in kept["code"].items()}} if "code" in kept else {}
        return kept | ({"id": PurePath(str(kept["id"])).name} if kept.get("kind") == "folder" else {})
    return [_bare(v) for v in value] if isinstance(value, list) else value


def read_record(path: Path) -> Row:
    """The manifest that a card tells of, as JSON.

    Raises:
        UnavailableError: if it tells of none.
    """
    found = re.search(r"^(`{3,})json\n(.*?)\n\1$", path.read_text(encoding="utf-8").partition(HEAD)[2], re.M | re.S)
    try:
        return dict(json.loads(found[2] if found else ""))
    except (ValueError, TypeError) as error:
        raise UnavailableError(
            f"{path} tells of no run that could be made again",
            hint="a card that `ilu push` wrote has a section Reproduce, with a line of JSON",
        ) from error


def _ideas(recipe: Row) -> list[str]:
    """The names of what a recipe is made of."""
    one = [recipe.get("objective"), recipe.get("attack")]
    parts = [*one, *(recipe.get("regularizers") or []), *(recipe.get("defences") or [])]
    return [str(part["name"]) for part in parts if part]


def front_matter(m: Manifest, recipe: str, results: Mapping[str, Summary], adapter: bool) -> Row:
    """The metadata that the hub reads. What is not known, as the licence of a local model, is left out."""
    kind, name = m.base.get("kind"), str(m.base.get("id", ""))
    base, license_ = KNOWN.get(name, (name if kind == "hub" else None, None))
    finite = [_index(s) for s in results.values() if math.isfinite(s.value)]
    found: Row = {
        "library_name": "peft" if adapter else "transformers",
        "pipeline_tag": "text-generation",
        "license": license_,
        "base_model": base,
        "base_model_relation": base and ("adapter" if adapter else "finetune"),
        "datasets": _hub_datasets(m),
        "tags": list(dict.fromkeys(["ilu", "unlearning", *_ideas(yaml.safe_load(recipe) or {})])),
        "model-index": [{"name": m.id, "results": finite}] if results else None,
    }
    return {key: value for key, value in found.items() if value}


def _hub_datasets(m: Manifest) -> list[str]:
    """The names on the hub of the data that came from there."""
    names = {str(d.get("hub") or d["name"]) for d in m.data if d["source"] == "hub"}
    return sorted(name for name in names if "/" in name)


def _index(s: Summary) -> Row:
    return {
        "task": {"type": "text-generation"},
        "dataset": {"name": f"{s.benchmark} ({s.data['source']})", "type": s.benchmark},
        "metrics": [{"type": s.words, "value": round(s.value, 6), "name": f"{s.role}: {s.words}"}],
    }


def _use(adapter: bool, folder: str) -> str:
    if adapter:
        return f'`peft.AutoPeftModelForCausalLM.from_pretrained("{folder}")` loads the adapter on its base model.'
    return f'`transformers.AutoModelForCausalLM.from_pretrained("{folder}")` loads it.'


def _results(results: Mapping[str, Summary]) -> str:
    if not results:
        return ""
    rows = [
        f"| {s.benchmark} ({s.data['source']}) | {s.role} | {s.metric} | {shown(s.value, '.4g')} | "
        f"{'–' if s.stderr is None else format(s.stderr, '.2g')} | {s.n} |"
        for s in results.values()
    ]
    return "\n".join(["| benchmark | role | metric | value | standard error | n |", "|---|---|---|---|---|---|", *rows])


def _attack(r: AttackResult) -> str:
    lines = [f"- accuracy on the attack's own task {r.fa.task}: {r.fa.value:.3f} (n = {r.fa.n})"] if r.fa else []
    lines += [f"- RA, mean of 1 − forget accuracy under the attack: {r.ra:.3f}"] if r.ra is not None else []
    lines += [f"- the worst of them: {r.worst:.3f}"] if r.worst is not None else []
    return "## Under attack\n\n" + "\n".join(lines)


def _data(d: Data) -> str:
    split = f", {d['split']}" if d.get("split") else ""
    return f"- {d['role']}: `{d['name']}` ({d['source']}{split}), {d['rows']} rows, sha256 `{d['fingerprint'][:16]}`"


def fenced(text: str, language: str = "yaml") -> str:
    """Text in a fence that is longer than any in it."""
    ticks = "`" * max(3, 1 + max((len(t) for t in re.findall("`+", text)), default=0))
    return f"{ticks}{language}\n{text.rstrip()}\n{ticks}"
