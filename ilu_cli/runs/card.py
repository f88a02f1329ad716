"""The README.md of a run folder: what it is, from the manifest alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ilu_cli.runs.store import Manifest

TITLES = {"unlearn": "Unlearned model", "attack": "Attacked model", "apply": "Sum of task vectors"}


def card(m: Manifest) -> str:
    """What the run was made from, and how to use and remake it, as Markdown."""
    parents = "\n".join(f"- {p['role']}: `{p['id']}` ({p['kind']})" for p in m.parents)
    data = "\n".join(
        f"- {d['role']}: `{d['name']}` ({d['source']}, {d['split']}), {d['rows']} rows, "
        f"sha256 `{d['fingerprint'][:16]}`"
        for d in m.data
    )
    weights = "\n".join(f"- `{name}`: sha256 `{digest}`" for name, digest in m.weights.items())
    versions = ", ".join(f"{name} {version}" for name, version in m.versions.items())
    called = {"apply": "taskvec-apply"}.get(m.command, m.command)
    return f"""# {TITLES[m.command]} `{m.id}`

Made by `ilu {called}` ({m.created[:19]} UTC, seed {m.seed}, {m.world_size} process(es), {m.precision} autocast).

`checkpoint/` loads with `AutoModelForCausalLM.from_pretrained("checkpoint")`. The same run again:
`ilu {called} --recipe recipe.yaml`. Steps and losses are in `metrics.jsonl`, results in `eval/`.

## Made from
{parents}

## Data
{data}

## Weights
{weights}

## Versions
{versions}
"""
