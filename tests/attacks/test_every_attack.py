"""Every attack runs from the command line on a tiny unlearned model, and leaves what is promised."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import Ilu

from ilu_cli import registry
from ilu_cli.runs.results import point_name

pytestmark = pytest.mark.slow

UNLEARN = ["unlearn", "--method", "rmu", "--set", "objective.layer=1", "--steps", 2, "--set", "forget.batch=4", "--set",
           "retain.batch=4", "--set", 'train.params=["model.layers.[01].mlp.down_proj.weight"]']  # fmt: skip
QUICK: dict[str, list[object]] = {
    "finetune": ["--task", "sst2", "--steps", 2, "--set", "attack.batch=2", "--set", "attack.test_rows=4"],
    "relearn": ["--set", "attack.k=4", "--set", "attack.batch=2"],
    "relearn_benign": ["--steps", 2, "--set", "attack.batch=2"],
    "fewshot": ["--set", "attack.k=[1,4]"],
    "merge": ["--set", "attack.finetuned={tiny}"],
}
LIMIT = {"multihop": 12}  # few capitals lie on a river of fame


@pytest.fixture
def unlearned(tiny: Path, ilu: Ilu) -> Path:
    done = ilu(*UNLEARN, "--model", tiny)
    assert done.code == 0, done.err
    return Path(done.out.strip())


@pytest.mark.parametrize("kind", sorted(registry.attack))
def test_it_runs_and_leaves_what_is_promised(unlearned: Path, tiny: Path, ilu: Ilu, kind: str) -> None:
    quick, limit = [str(x).format(tiny=tiny) for x in QUICK.get(kind, [])], LIMIT.get(kind, 6)
    source, capped = ["--source", "builtin"], ["--set", f"eval.limit={limit}"]
    args = [*(["--kind", kind] if kind != "finetune" else []), *quick, *source, *capped]
    done = ilu("attack", *args, "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    declared = registry.attack[kind].declared
    assert (found["kind"], found["axis"], found["parent"]) == (kind, declared.strength, unlearned.name)
    assert [f[found["axis"]] for f in found["fq"]] == [p[found["axis"]] for p in found["points"]]
    attacked = {f[found["axis"]]: f["value"] for f in found["fq"] if f[found["axis"]] != found["unattacked"]}
    assert found["worst"] == min(attacked.values())
    assert found["ra"] == pytest.approx(sum(attacked[m] for m in found["marks"]) / len(found["marks"]))
    assert found["reference"]["parent"] != found["parent"]
    manifest = json.loads((Path(found["path"]) / "manifest.json").read_text())
    assert bool(manifest["weights"]) == (declared.access == "training")
    for p in found["points"]:
        for name, summary in p["eval"].items():
            rows = Path(found["path"]) / "eval" / point_name(found["axis"], p[found["axis"]]) / f"{name}.rows.jsonl"
            assert len(rows.read_text().splitlines()) == summary["n"] <= limit
        if kind == "relearn":
            assert p["eval"]["capitals"]["unseen"]["n"] == 6  # the four samples name none of the first six capitals


def test_a_lens_on_every_second_layer_ends_at_the_last(tiny: Path, ilu: Ilu) -> None:
    found = ilu("attack", tiny, "--kind", "logit_lens", "--set", "attack.every=2", "--set", "eval.limit=4", "--json")
    assert [f["layer"] for f in json.loads(found.out)["fq"]] == [0, 2]


@pytest.mark.parametrize(
    ("kind", "sets", "message"),
    [
        ("ablate", ["attack.layers=[99]"], "attack.layers: 99 does not exist"),
        ("logit_lens", ["attack.layers=[99]"], "attack.layers: 99 does not exist"),
        ("finetune", ["attack.weights=[nope]"], "attack.weights: 'nope' matches no weight"),
        ("finetune", ["attack.task=prose", "attack.stop=plateau"], "attack.stop: plateau waits"),
        ("relearn", ["attack.data=[capitals,elements]", "attack.k=1"], "attack.k: 1 sample is too few"),
        ("fewshot", ["attack.k=[1,16]"], "attack.k: there are 3 other questions"),
    ],
)
def test_what_does_not_fit_is_refused_and_leaves_no_run(
    unlearned: Path, ilu: Ilu, kind: str, sets: list[str], message: str
) -> None:
    args = ["--kind", kind, "--source", "builtin", *(x for text in (*sets, "eval.limit=4") for x in ("--set", text))]
    for more in [["--dry-run"]] * (kind != "fewshot") + [[]]:  # the questions are not read for a plan
        done = ilu("attack", *args, *more)
        assert done.code == 2
        assert message in done.err
        assert [path.name for path in unlearned.parent.iterdir()] == [unlearned.name]


def test_ablation_needs_no_questions_names_its_data_and_the_layers_that_did_not_change(tiny: Path, ilu: Ilu) -> None:
    params = 'train.params=["model.layers.1.mlp.down_proj.weight"]'
    assert ilu(*UNLEARN, "--set", params, "--lr", 1e-2, "--model", tiny).code == 0
    args = ["--kind", "ablate", "--set", "eval.benchmarks=[prose]", "--set", "eval.limit=4", "--no-reference"]
    done = ilu("attack", *args, "--set", "attack.layers=[0,1]", "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert [p["directions"] for p in found["points"]] == [0, 1, 2, 4]
    [data] = found["data"]
    assert [data[k] for k in ("role", "name", "source", "split")] == ["attack fit", "capitals", "builtin", "test"]
    assert "layer 1, where the states moved" in done.err
    assert "the hidden states of layers 0 are the original's" in done.err
