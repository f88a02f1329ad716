"""`ilu taskvec` and `ilu taskvec apply` over runs: roles, points, matrix, plane, arithmetic, bad input."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Ilu, present, tiny_model
from safetensors.torch import load_file, save_file
from test_chain import ATTACK, npo, rmu
from transformers import AutoModelForCausalLM

from ilu_cli.models.subject import find_subject
from ilu_cli.recipe.schema import TaskvecRecipe
from ilu_cli.runs.store import Store
from ilu_cli.workflows.taskvec import compare

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def chain(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[Any, Any]:
    """An unlearning run, an attack on it, and its reference, made once and copied for every test."""
    return {"made": False, "folder": tmp_path_factory.mktemp("chain") / "runs"}


@pytest.fixture
def runs(chain: Any, tiny: Path, ilu: Ilu, tmp_path: Path) -> dict[Any, Any]:
    if not chain["made"]:
        for args in (rmu(tiny), ["attack", *ATTACK]):
            done = ilu(*args)
            assert done.code == 0, done.err
        shutil.copytree(tmp_path / "runs", chain["folder"])
        chain["made"] = True
    else:
        shutil.copytree(chain["folder"], tmp_path / "runs")
    found = {(r.manifest.command, r.manifest.parents[0]["kind"]): r for r in Store().runs()}
    return {"u": found["unlearn", "folder"], "a": found["attack", "run"], "f": found["attack", "folder"]}


def weights(folder: Path) -> dict[Any, Any]:
    return {n: t.double().numpy() for n, t in load_file(Path(folder) / "model.safetensors").items()}


def add_point(run: Any, step: Any, blend: Any) -> Any:
    """A checkpoint between the two ends of an attack run, as `keep: points` saves it."""
    parent = Path(run.manifest.parents[0]["path"])
    start = load_file((parent / "checkpoint" if (parent / "checkpoint").exists() else parent) / "model.safetensors")
    end = load_file(run.checkpoint / "model.safetensors")
    folder = run.path / "points" / f"steps-{step:07d}"
    shutil.copytree(run.checkpoint, folder)
    mixed = {n: torch.lerp(start[n], end[n], blend) for n in end}
    save_file(mixed, folder / "model.safetensors", metadata={"format": "pt"})
    run.add("points")
    return folder


def test_types_touched_and_verdict(runs: Any, ilu: Ilu, tiny: Path) -> None:
    done = ilu("taskvec", "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    o, u, a = weights(tiny), weights(runs["u"].checkpoint), weights(runs["a"].checkpoint)
    touched = [n for n in o if not np.array_equal(o[n], u[n])]
    assert found["touched"]["weights"] == sorted(touched) and found["touched"]["of"] == len(o)
    for names, where in (
        (touched, found["touched"]),
        ([n for n in o if "down_proj" in n], found["types"]["down_proj"]),
    ):
        x, y = (np.concatenate([(p[n] - q[n]).ravel() for n in names]) for p, q in ((u, o), (a, u)))
        assert where["cosines"]["u·u→ft"] == pytest.approx(x @ y / np.linalg.norm(x) / np.linalg.norm(y), abs=1e-9)
    assert f"unlearning changed {len(touched)} of {len(o)} weights" in found["verdict"]
    assert {"norms", "embeddings", "q_proj", "down_proj"} <= set(found["types"])
    text = ilu("taskvec")
    assert "touched by unlearning" in text.out and "fine-tuning" in text.out


def test_several_runs_give_a_matrix(runs: Any, ilu: Ilu, tiny: Path) -> None:
    second = ilu(*npo(tiny))
    assert second.code == 0, second.err
    other = Path(second.out.strip())
    done = ilu("taskvec", runs["u"].id, runs["a"].id, other, "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert len(found["vectors"]) == 4  # τ_u, τ_ft and τ_u→ft of the chain once, and the other run's τ_u
    cosines = np.array(found["cosines"])
    assert np.allclose(cosines, cosines.T) and np.allclose(np.diag(cosines), 1)
    o, u, v = weights(tiny), weights(runs["u"].checkpoint), weights(other / "checkpoint")
    x, y = (np.concatenate([(w[n] - o[n]).ravel() for n in o]) for w in (u, v))
    names = list(found["vectors"])
    i, j = (names.index(f"u {label}") for label in (runs["u"].id, other.name))
    assert cosines[i, j] == pytest.approx(x @ y / np.linalg.norm(x) / np.linalg.norm(y), abs=1e-9)
    assert "cosines" in ilu("taskvec", runs["u"].id, other).out
    refused = ilu("taskvec", runs["u"].id, other, "--plane")
    assert refused.code == 2 and "one run" in refused.err


def test_the_plane_with_intermediate_checkpoints(runs: Any, ilu: Ilu, tiny: Path) -> None:
    add_point(runs["a"], 2, 0.25)
    add_point(runs["a"], 4, 1.0)  # the end of the attack: it has a role of its own
    found = compare.run(TaskvecRecipe(plane=True), find_subject(runs["a"].id, Store()), Store()).plane
    by: Any = {(p["role"], p["step"]): p for p in found["points"]} if found else {}
    assert set(by) == {("original", None), ("unlearned", None), ("finetuned", 4), ("attacked", 2), ("attacked", 4)}
    o, u = weights(tiny), weights(runs["u"].checkpoint)
    plain = {"o": o, "u": u} | {k: weights(runs[k].checkpoint) for k in "fa"}
    flat = {k: np.concatenate([w[n].ravel() for n in o]) for k, w in plain.items()}
    e1 = (flat["u"] - flat["o"]) / np.linalg.norm(flat["u"] - flat["o"])
    rest = flat["f"] - flat["o"] - (flat["f"] - flat["o"]) @ e1 * e1
    e2 = rest / np.linalg.norm(rest)
    d = flat["a"] - flat["o"]
    end = by["attacked", 4]
    assert (end["x"], end["y"]) == pytest.approx((d @ e1, d @ e2), rel=1e-7)
    assert end["explained"] == pytest.approx(((d @ e1) ** 2 + (d @ e2) ** 2) / (d @ d), rel=1e-9)
    middle, start = by["attacked", 2], by["unlearned", None]
    assert middle["y"] == pytest.approx(start["y"] + 0.25 * (end["y"] - start["y"]), rel=1e-3, abs=1e-6)
    fq = {p["steps"]: p["value"] for p in runs["a"].manifest.result["fq"]}
    assert end["forget"] == pytest.approx(1 - fq[4]) and start["forget"] == pytest.approx(1 - fq[0])
    assert middle["forget"] == pytest.approx(1 - fq[2])
    text = ilu("taskvec", "--plane", "--subspace", 2)
    assert text.code == 0, text.err
    assert "A attacked" in text.out and "‖UᵀτV‖²" in text.out


def test_damaged_points(runs: Any, ilu: Ilu) -> None:
    folder = add_point(runs["a"], 2, 0.5)
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-10])
    add_point(runs["a"], 4, 1.0)
    done = ilu("taskvec", "--plane")
    assert done.code == 3 and "steps-0000002" in done.err and "damaged" in done.err
    folder.rename(folder.with_name("what"))
    runs["a"].add("points")
    done = ilu("taskvec", "--plane")
    assert done.code == 3 and "like steps-0000015" in done.err
    assert ilu("taskvec").code == 0  # they are read for the plane only


def test_complete_runs_what_is_missing(runs: Any, ilu: Ilu, tmp_path: Path) -> None:
    shutil.rmtree(runs["f"].path)
    found = json.loads(ilu("taskvec", "--plane", "--json").out)
    assert "finetuned" not in found["checkpoints"] and "not fine-tuned" in found["notes"][0]
    done = ilu("taskvec", "--complete", "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["checkpoints"]["finetuned"]["id"] not in (runs["a"].id, runs["f"].id)
    before = len(Store().runs())
    assert ilu("taskvec", "--complete", "--json").code == 0
    assert len(Store().runs()) == before
    shutil.rmtree(runs["a"].path)
    refused = ilu("taskvec", runs["u"].id, "--complete")
    assert refused.code == 3 and "no attack" in refused.err


def test_attacks_without_weights_are_passed_over(runs: Any, ilu: Ilu) -> None:
    for run in (runs["a"], runs["f"]):
        run.manifest.weights = {}
        run.save()
        shutil.rmtree(run.checkpoint)
    found = json.loads(ilu("taskvec", "--json").out)
    assert set(found["checkpoints"]) == {"original", "unlearned"}
    assert found["notes"] == [f"{runs['a'].id} is passed over: it kept no weights (keep: none)"]
    refused = ilu("taskvec", runs["a"].id)
    assert refused.code == 3 and "kept no checkpoint" in refused.err


def test_negation_is_a_run_like_others(runs: Any, ilu: Ilu, tiny: Path) -> None:
    done = ilu("taskvec", "apply", runs["f"].id, "--alpha", "-0.5")
    assert done.code == 0, done.err
    path = Path(done.out.strip())
    o, f, found = weights(tiny), weights(runs["f"].checkpoint), weights(path / "checkpoint")
    for n in o:
        assert np.allclose(found[n], o[n] - 0.5 * (f[n] - o[n]), rtol=1e-6, atol=1e-8)
    AutoModelForCausalLM.from_pretrained(path / "checkpoint")
    manifest = json.loads((path / "manifest.json").read_text())
    assert manifest["command"] == "taskvec apply" and manifest["status"] == "complete"
    assert [p["weights"] for p in manifest["parents"]] == [
        runs["f"].manifest.parents[0]["weights"], runs["f"].manifest.weights, runs["f"].manifest.parents[0]["weights"]
    ]  # fmt: skip
    evaluated = ilu("eval", path, "--limit", 4, "--json")
    assert evaluated.code == 0, evaluated.err
    assert [s["stage"] for s in json.loads(evaluated.out)["lineage"]] == ["original", "applied"]
    attacked = ilu("attack", path, *ATTACK)
    assert attacked.code == 0, attacked.err
    compared = json.loads(ilu("taskvec", "--json").out)
    assert compared["checkpoints"]["unlearned"]["id"] == path.name
    assert compared["groups"]["all"]["cosines"]["u·ft"] == pytest.approx(-1, abs=1e-6)  # −τ_ft against τ_ft
    again = ilu("taskvec", "apply", "--recipe", path / "recipe.yaml", "--out", "again")
    assert again.code == 0, again.err
    assert present(Store().find("again")).manifest.weights == manifest["weights"]


@pytest.mark.parametrize("merge", ["ties", "dare", "magnitude"])
def test_merges_of_several_vectors(runs: Any, ilu: Ilu, tiny: Path, merge: str) -> None:
    ids = [runs["u"].id, runs["a"].id]
    done = ilu("taskvec", "apply", *ids, "--alpha", 1, "--alpha", "-1", "--merge", merge, "--density", 0.5)
    assert done.code == 0, done.err
    o, found = weights(tiny), weights(Path(done.out.strip()) / "checkpoint")
    name = "model.layers.2.self_attn.q_proj.weight"  # only the attack changed it: half of the entries move
    share = np.mean(o[name] != found[name])
    assert share == pytest.approx(0.5, abs=0.1)


def test_wrong_applications(runs: Any, ilu: Ilu, tiny: Path, tmp_path: Path) -> None:
    u = runs["u"].id
    cases: list[tuple[list[object], int, str]] = [
        (["--alpha", "much"], 2, "Invalid value for '--alpha'"),
        (["--alpha", "nan"], 2, "finite number"),
        (["--alpha", 1, "--alpha", 2], 2, "2 --alpha for 1 runs"),
        (["--merge", "ties"], 2, "need a density"),
        (["--density", 0.5], 2, "linear keeps all"),
        (["--merge", "tis", "--density", 0.5], 2, "merge"),
        (["--merge", "ties", "--density", 1.5], 2, "density"),
        (["--onto", "nothing"], 3, "nothing"),
    ]
    for args, code, message in cases:
        done = ilu("taskvec", "apply", u, *args)
        assert done.code == code, (args, done.err)
        assert message in done.err, (args, done.err)
    assert ilu("taskvec", "apply").code == 2
    done = ilu("taskvec", "apply", tiny)
    assert done.code == 2 and "no task vector" in done.err
    tiny_model(67).save_pretrained(tmp_path / "other")
    done = ilu("taskvec", "apply", u, "--onto", tmp_path / "other")
    assert done.code == 3 and "embed_tokens.weight is" in done.err
    assert len(Store().runs()) == 3  # nothing was left behind


def test_a_run_that_is_no_descendant(runs: Any, ilu: Ilu) -> None:
    done = ilu("taskvec", runs["f"].id)
    assert done.code == 3 and "does not descend from an unlearned model" in done.err
