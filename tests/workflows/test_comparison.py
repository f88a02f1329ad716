"""Arms and numbers of a comparison, from runs whose results are on disk already."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import present
from safetensors.torch import save_file

from ilu_cli.engine.reporter import Reporter
from ilu_cli.errors import UnavailableError, UsageError
from ilu_cli.models.subject import of_run
from ilu_cli.recipe.schema import EvalRecipe
from ilu_cli.runs.files import ModelRecord
from ilu_cli.runs.store import Run, Store
from ilu_cli.workflows.compare import Arm, Compared, Gap, arms_of, run, sentence
from ilu_cli.workflows.evaluate import Evaluation, results_folder

N = 12
FORGET = {"data": [{"name": "capitals"}]}
RECIPE = EvalRecipe.model_validate(
    {"command": "eval", "eval": {"benchmarks": ["capitals", "elements", "prose"], "limit": N}}
)
ROLES = {"capitals": ("forget", "acc"), "elements": ("utility", "acc"), "prose": ("utility", "perplexity")}


def made(label: str, seed: int, command: str = "unlearn", parent: Run | None = None, **recipe: Any) -> Run:
    """A finished run with one small weight."""
    made = Store().create(command, label)
    (made.path / "recipe.yaml").write_text(
        yaml.safe_dump({"objective": {"name": label}, "seed": seed, "forget": FORGET, **recipe})
    )
    made.checkpoint.mkdir()
    (made.checkpoint / "config.json").write_text("{}")
    save_file({"w": torch.tensor([float(seed)])}, made.checkpoint / "model.safetensors")
    made.manifest.seed = seed
    made.manifest.base = {"id": "base", "weights": {"model.safetensors": "0"}}
    original: ModelRecord = {"role": "model", "kind": "builtin", "id": "base", "path": "", "weights": {}}
    made.manifest.parents = [of_run(parent).record("model")] if parent else [original]
    made.finish()
    (made.path / "files.json").unlink()  # results are put into it by hand, as if there were no lists yet
    made.manifest.listed = False
    made.save()
    return made


def answered(done: Run, **right: int | float) -> Run:
    """Keep results: how many of twelve questions are right, and the NLL of each of prose's texts of two tokens."""
    subject, evaluation = of_run(done), Evaluation(RECIPE.eval, Reporter())
    folder = results_folder(subject)
    folder.mkdir(parents=True, exist_ok=True)
    for name, (role, metric) in ROLES.items():
        how = right[name]
        if metric == "acc":
            rows, value = [{"value": float(i < how)} for i in range(N)], how / N
        else:
            rows, value = [{"value": how * (2 if i % 2 else 4), "weight": 2} for i in range(N)], math.exp(1.5 * how)
        summary = {
            "benchmark": name, "metric": metric, "role": role, "value": value, "stderr": 0.1, "n": N, "also": {},
            "data": {"name": name, "fingerprint": f"{name} questions"}, "key": evaluation.key(name, subject.digest),
        }  # fmt: skip
        (folder / f"{name}.json").write_text(json.dumps(summary))
        (folder / f"{name}.rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return done


def test_runs_are_arms_by_recipe_whatever_their_seed(place: None) -> None:
    rmu, npo = [made("rmu", s) for s in (0, 1)], made("npo", 0)
    found = arms_of([rmu[0], npo, rmu[1]], [])
    assert [(a.label, [r.id for r in a.runs]) for a in found] == [
        ("rmu", [r.id for r in rmu]),
        ("npo", [npo.id]),
    ]
    turned = made("rmu", 2)
    (turned.path / "recipe.yaml").write_text(
        yaml.safe_dump({"train": {"lr": 1.0}, "objective": {"name": "rmu"}, "forget": FORGET}, sort_keys=False)
    )
    other = made("rmu", 0, train={"lr": 1.0})
    assert len(arms_of([turned, other, npo], [])) == 2  # the order of keys says nothing
    assert [[r.id for r in a.runs] for a in arms_of([rmu[0], other], [])] == [[rmu[0].id], [other.id]]
    assert [a.label for a in arms_of([rmu[0], other], [])] == [rmu[0].id, other.id]  # one label would name both


def test_arms_as_given_are_kept(place: None) -> None:
    rmu = [made("rmu", s) for s in range(3)]
    other = made("", 0)
    found = arms_of(rmu[:2], [rmu[2], other])
    assert [[r.id for r in a.runs] for a in found] == [[r.id for r in rmu[:2]], [rmu[2].id, other.id]]
    assert [a.label for a in arms_of([rmu[0]], [other])] == ["rmu", other.id]  # an empty label names nothing


def test_another_original_is_another_arm(place: None) -> None:
    one, two = made("rmu", 0), made("rmu", 1)
    two.manifest.base = {"id": "base", "weights": {"model.safetensors": "1"}}
    assert len(arms_of([one, two], [])) == 2


def test_what_are_no_two_arms_is_refused(place: None) -> None:
    a, b = made("rmu", 0), made("rmu", 1)
    with pytest.raises(UsageError, match="are one arm") as refused:
        arms_of([a, b], [])
    assert "--with" in present(refused.value.hint)
    with pytest.raises(UsageError, match="named twice"):
        arms_of([a, b], [a])
    with pytest.raises(UsageError, match="named twice"):
        arms_of([a, Store().get(a.id)], [])
    (b.path / "recipe.yaml").unlink()
    with pytest.raises(UnavailableError, match=r"has no recipe\.yaml"):
        arms_of([a, b], [])


def test_seeds_of_an_attack_and_of_its_unlearning_are_one_arm(place: None) -> None:
    parents = [made("rmu", 0), made("rmu", 1), made("npo", 0)]
    attacks = [made("relearn", i, "attack", p) for i, p in enumerate(parents)]
    found = arms_of(attacks, [])
    assert [[r.id for r in a.runs] for a in found] == [[attacks[0].id, attacks[1].id], [attacks[2].id]]
    direct = made("relearn", 3, "attack")  # on a model that is no run
    assert len(arms_of([*attacks[:2], direct], [])) == 2


def numbers(a: list[Run], b: list[Run], margin: float = 0.05) -> Compared:
    return run(RECIPE, [Arm("A", a), Arm("B", b)], margin, Reporter())


def test_every_number_of_two_arms(place: None) -> None:
    a = [answered(made("rmu", s), capitals=c, elements=9, prose=2.0) for s, c in ((0, 9), (1, 7))]
    b = [answered(made("npo", s), capitals=c, elements=9, prose=p) for s, c, p in ((2, 3, 2.1), (3, 1, 2.3))]
    found = numbers(a, b)
    assert found["margin"] == 0.05
    assert found["arms"] == [
        {"label": "A", "runs": [r.id for r in a], "seeds": [0, 1]},
        {"label": "B", "runs": [r.id for r in b], "seeds": [2, 3]},
    ]
    (comparison,) = found["comparisons"]
    assert (comparison["a"], comparison["b"]) == ("A", "B")
    capitals, elements, prose = comparison["numbers"]
    told = [(n["name"], n["role"], n["sign"], n["relative"], n["n"], n["paired"]) for n in comparison["numbers"]]
    assert told == [
        ("capitals.acc", "forget", -1, False, N, True),
        ("elements.acc", "utility", 1, False, N, True),
        ("prose.perplexity", "utility", -1, True, N, True),
    ]
    assert [capitals[k] for k in ("a", "b", "difference")] == pytest.approx([8 / N, 2 / N, -6 / N])
    assert [elements[k] for k in ("a", "b", "difference", "p")] == pytest.approx([0.75, 0.75, 0.0, 1.0])
    assert [prose[k] for k in ("a", "b")] == pytest.approx([math.exp(3.0), math.exp(3.3)])
    assert prose["difference"] == pytest.approx(math.exp(0.3) - 1)  # 1.5·(2.2 − 2.0) in the logarithm
    for n in comparison["numbers"]:
        assert present(n["low"]) <= present(n["difference"]) <= present(n["high"])
    assert present(capitals["high"]) - present(capitals["low"]) > 0.1
    assert comparison["sentence"] == sentence("A", "B", comparison["numbers"], 0.05, 2)


def test_the_arm_of_fewest_seeds_says_how_far_the_sentence_goes(place: None) -> None:
    a = [answered(made("rmu", s), capitals=9, elements=9, prose=2.0) for s in (0, 1)]
    b = [answered(made("npo", 2), capitals=3, elements=9, prose=2.0)]
    assert "one seed" in numbers(a, b)["comparisons"][0]["sentence"]
    assert "one seed" in numbers(b, a)["comparisons"][0]["sentence"]


def test_each_further_arm_is_compared_with_the_first(place: None) -> None:
    arms = [[answered(made(n, 0), capitals=c, elements=9, prose=2.0)] for n, c in (("x", 9), ("y", 3), ("z", 6))]
    found = run(RECIPE, [Arm(r[0].manifest.label, r) for r in arms], 0.1, Reporter())
    assert [(c["a"], c["b"]) for c in found["comparisons"]] == [("x", "y"), ("x", "z")]
    assert [c["numbers"][0]["difference"] for c in found["comparisons"]] == pytest.approx([-6 / N, -3 / N])


def test_other_questions_are_not_paired(place: None) -> None:
    a, b = (answered(made(n, 0), capitals=6, elements=9, prose=2.0) for n in ("rmu", "npo"))
    path = results_folder(of_run(b)) / "capitals.json"
    path.write_text(path.read_text().replace("capitals questions", "other questions"))
    capitals, elements, _ = numbers([a], [b])["comparisons"][0]["numbers"]
    assert (capitals["paired"], elements["paired"]) == (False, True)


def test_rows_that_cannot_be_read_are_named(place: None) -> None:
    a, b = (answered(made(n, 0), capitals=6, elements=9, prose=2.0) for n in ("rmu", "npo"))
    (results_folder(of_run(b)) / "elements.rows.jsonl").write_text("{")
    with pytest.raises(UnavailableError, match=r"elements\.rows\.jsonl cannot be read") as refused:
        numbers([a], [b])
    assert "delete the eval folder" in present(refused.value.hint)


def asked(fingerprint: str, role: str = "forget", metric: str = "acc") -> dict[str, Any]:
    """A summary at a point of an attack, of which only the questions count here: the rest is in the rows."""
    return {"role": role, "metric": metric, "value": 0.0, "data": {"fingerprint": fingerprint}}


def resilient(done: Run, known: dict[int, int]) -> Run:
    """Rows of an attack's points: how many of twelve facts are known after so many steps; RA is over all but 0."""
    point = {"capitals": asked("capitals questions")}
    done.manifest.result = {
        "marks": [s for s in known if s],
        "axis": "steps",
        "points": [{"steps": s, "eval": point} for s in known],
    }
    for steps, right in known.items():
        folder: Path = done.eval / f"steps-{steps:07d}"
        folder.mkdir(parents=True)
        lines = [json.dumps({"value": float(i < right)}) for i in range(N)]
        (folder / "capitals.rows.jsonl").write_text("\n".join(lines))
    return done


def test_attacks_have_their_ra_question_by_question(place: None) -> None:
    arms = []
    for label, known in (("rmu", {0: 1, 2: 6, 4: 9}), ("npo", {0: 0, 2: 3, 4: 3})):
        attack = made(label, 0, "attack", made(label, 0))
        arms.append(resilient(answered(attack, capitals=6, elements=9, prose=2.0), known))
    rows = numbers(arms[:1], arms[1:])["comparisons"][0]["numbers"]
    (ra,) = [r for r in rows if r["name"] == "capitals.RA"]
    assert [ra[k] for k in ("a", "b", "difference")] == pytest.approx([1 - 7.5 / N, 1 - 3 / N, 4.5 / N])
    assert (ra["role"], ra["sign"], ra["relative"], ra["paired"], ra["n"]) == ("robust", 1, False, True, N)
    assert [r["name"] for r in rows] == ["capitals.acc", "elements.acc", "prose.perplexity", "capitals.RA"]


def test_an_attack_without_marks_has_no_ra(place: None) -> None:
    a, b = (made(n, 0, "attack", made(n, 0)) for n in ("rmu", "npo"))
    for attack in (a, b):
        answered(attack, capitals=6, elements=9, prose=2.0)
    assert [r["name"] for r in numbers([a], [b])["comparisons"][0]["numbers"]][-1] == "prose.perplexity"


def row(role: str, sign: int, difference: float, half: float, name: str = "n", p: float = 0.5) -> Gap:
    return {
        "name": name, "role": role, "sign": sign, "difference": difference,
        "low": difference - half, "high": difference + half, "p": p,
        "relative": False, "a": None, "b": None, "freedom": None, "n": 2, "paired": True,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("sign", "difference", "said"),
    [
        (-1, -0.2, "B forgets more than A on n: +0.20 [0.10, 0.30]"),
        (-1, 0.2, "A forgets more than B on n: +0.20 [0.10, 0.30]"),
        (1, 0.2, "B forgets more than A on n: +0.20 [0.10, 0.30]"),
        (1, -0.2, "A forgets more than B on n: +0.20 [0.10, 0.30]"),
    ],
)
def test_the_winner_is_named_first(sign: int, difference: float, said: str) -> None:
    assert sentence("A", "B", [row("forget", sign, difference, 0.1)], 0.05, 2).startswith(said)
    robust = sentence("A", "B", [row("robust", sign, difference, 0.1)], 0.05, 2)
    assert robust.startswith(said.replace("forgets more", "keeps more forgotten under attack"))


def test_an_interval_that_touches_0_settles_nothing() -> None:
    for difference in (0.1, -0.1):
        assert " more " not in sentence("A", "B", [row("forget", 1, difference, 0.1)], 0.05, 2)
        assert "utility not settled" in sentence("A", "B", [row("utility", 1, difference, 0.1)], 0.05, 2)


def test_utility_in_words() -> None:
    def said(sign: int, difference: float, half: float, margin: float = 0.05) -> str:
        return sentence("A", "B", [row("utility", sign, difference, half)], margin, 2)

    assert said(1, 0.2, 0.1) == "higher utility of B (n +0.20 [0.10, 0.30])"
    assert said(-1, 0.2, 0.1) == "lower utility of B (n +0.20 [0.10, 0.30])"  # as in the table
    perplexity = row("utility", -1, 0.2, 0.1, "ppl") | {"relative": True}
    assert sentence("A", "B", [perplexity], 0.05, 2) == "lower utility of B (ppl +20.0% [10.0%, 30.0%])"
    assert said(1, 0.0, 0.06) == "utility not settled (n +0.00 [-0.06, 0.06])"
    assert said(1, 0.0, 0.05) == said(-1, 0.0, 0.05) == said(1, 0.25, 0.25, margin=0.5) == "same utility"
    assert said(1, 0.03, 0.03) != "same utility"  # one end lies beyond the margin
    assert said(1, -0.03, 0.03) != "same utility"
    assert sentence("A", "B", [row("utility", 0, 0.5, 0.1)], 0.05, 2) == "utility was not measured"
    assert sentence("A", "B", [row("forget", 0, 0.5, 0.1)], 0.05, 2) == "utility was not measured"
    two = [row("utility", 1, 0.2, 0.1, "x"), row("utility", 1, 0.0, 0.01, "y"), row("utility", 1, -0.2, 0.1, "z")]
    assert sentence("A", "B", two, 0.05, 2) == (
        "higher utility of B (x +0.20 [0.10, 0.30]), lower utility of B (z -0.20 [-0.30, -0.10])"
    )


@pytest.mark.parametrize(
    ("p", "said"),
    [(0.0005, "p<0.001"), (0.001, "p<0.01"), (0.009, "p<0.01"), (0.01, "p=0.01"), (0.5, "p=0.50")],
)
def test_p_in_words(p: float, said: str) -> None:
    assert f"{said};" in sentence("A", "B", [row("forget", 1, 0.2, 0.1, p=p)], 0.05, 2)
