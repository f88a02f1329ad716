"""The sections with results, from a family written by hand: every number and word of tables, figures and captions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ilu_cli.report import figures
from ilu_cli.report.document import Picture, Table
from ilu_cli.report.family import Family, Member
from ilu_cli.report.figures import REFERENCE, Look
from ilu_cli.report.outcomes import overview, returned, traded
from ilu_cli.runs.results import Summary
from ilu_cli.runs.store import Manifest, Run

HALF, NONE = "50.0% (40.4–59.6)", "0.0% (0.0–27.8)"  # Wilson's 95% of 50 in 100, and of 0 in 10
STYLES = {"rmu": Look("red", "s"), "npo": Look("blue", "^")}


def summary(
    name: str, value: float, role: str = "forget", *, metric: str = "acc", n: int = 100, stderr: Any = None
) -> dict[str, Any]:
    found = {"benchmark": name, "metric": metric, "value": value, "n": n, "stderr": stderr, "role": role}
    return found | {"chance": 0.25 if metric == "acc" else None, "data": {"fingerprint": name}}


def forget(value: float, n: int = 100, metric: str = "acc") -> dict[str, Any]:
    return summary("capitals", value, n=n, metric=metric, stderr=0.1)


class Folder:
    """Makes the members of a family below a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.members: list[Member] = []

    def unlearned(self, name: str, *results: dict[str, Any], seed: int = 0, key: str | None = None) -> str:
        run = Run(self.path / (key or name), Manifest(key or name, "unlearn", seed=seed))
        run.eval.mkdir(parents=True)
        for found in results:
            (run.eval / f"{found['benchmark']}.json").write_text(json.dumps(found))
        self.members.append(Member(run, {"objective": {"name": name}}))
        return run.id

    def attack(
        self,
        parent: str,
        attack: str,
        points: list[tuple[int, dict[str, Any]]],
        *,
        seed: int = 0,
        rows: Any = None,
        **result: Any,
    ) -> None:
        at = [{"steps": x, "eval": {s["benchmark"]: s}} for x, s in points]
        manifest = Manifest(f"{parent}-{attack}-{seed}", "attack", seed=seed, result={"points": at, **result})
        manifest.parents = [{"id": parent}]
        run = Run(self.path / manifest.id, manifest)
        for x, _ in points if rows else []:
            folder = run.eval / f"steps-{x:07d}"
            folder.mkdir(parents=True)
            lines = [json.dumps({"value": v}) for v in rows[x]]
            (folder / "capitals.rows.jsonl").write_text("\n".join(lines))
        self.members.append(Member(run, {"attack": {"name": attack}}))

    def family(self, *original: dict[str, Any]) -> Family:
        found = {s["benchmark"]: Summary.read(s) for s in original}
        return Family({"id": "base"}, self.members, (self.path, found) if original else None)


class Drawn:
    """Stands for the drawing: keeps what is drawn."""

    def __init__(self) -> None:
        self.calls: dict[str, tuple[Any, tuple[Any, ...]]] = {}

    def __call__(self, draw: Any, name: str) -> tuple[str, str]:
        self.calls[name] = draw.func, draw.args
        return f"{name} wide", f"{name} narrow"


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


@pytest.fixture
def drawn() -> Drawn:
    return Drawn()


def prose(value: float, stderr: float | None = None) -> dict[str, Any]:
    return summary("prose", value, "utility", metric="perplexity", stderr=stderr)


def elements(value: float, n: int = 100) -> dict[str, Any]:
    return summary("elements", value, "utility", n=n)


def test_forgetting_against_utility(folder: Folder, drawn: Drawn) -> None:
    folder.unlearned("rmu", forget(0.0, 10), elements(0.5), prose(12.5, 0.5))
    folder.unlearned("npo", forget(0.5), elements(0.0, 10), prose(10000.0))
    family = folder.family(forget(0.5), elements(0.5), prose(10.0))
    picture, table = traded(family, STYLES, drawn)
    assert isinstance(picture, Picture)
    assert (picture.name, picture.wide, picture.narrow) == ("tradeoff", "tradeoff wide", "tradeoff narrow")
    assert picture.title == "Forgetting against utility, before any attack"
    assert "less of capitals" in picture.caption
    draw, (panels,) = drawn.calls["tradeoff"]
    assert draw is figures.tradeoff
    assert [(x, y, share, chance) for x, y, share, _, chance in panels] == [
        ("capitals: accuracy", "elements: accuracy", True, 0.25),
        ("capitals: accuracy", "prose: perplexity", False, 0.25),
    ]
    assert [(d.name, d.look, d.x.value, d.y.value) for d in panels[0][3]] == [
        ("base", REFERENCE, 0.5, 0.5),
        ("rmu", STYLES["rmu"], 0.0, 0.5),
        ("npo", STYLES["npo"], 0.5, 0.0),
    ]
    assert [d.y.value for d in panels[1][3]] == [10.0, 12.5, 10000.0]
    assert isinstance(table, Table)
    assert table.head == ["model", "capitals (forget)", "elements (keep)", "prose (keep)"]
    assert table.rows == [
        ["base", HALF, HALF, "10"],
        ["rmu", NONE, HALF, "12.5 (11.52–13.48)"],
        ["npo", HALF, NONE, "1e+04"],
    ]
    assert (
        table.caption
        == "Value with its 95% interval: over questions for one seed, over seeds and questions for several."
    )


def test_what_was_not_measured_is_a_dash_and_one_model_is_no_figure(folder: Folder, drawn: Drawn) -> None:
    folder.unlearned("rmu", forget(0.5))
    folder.unlearned("npo", elements(0.5))
    (table,) = traded(folder.family(elements(0.5)), STYLES, drawn)
    assert isinstance(table, Table)
    assert table.rows == [["base", "–", HALF], ["rmu", HALF, "–"], ["npo", "–", HALF]]
    assert not drawn.calls


def test_one_model_with_both_is_no_figure_and_without_a_forget_benchmark_there_is_none(
    folder: Folder, drawn: Drawn
) -> None:
    folder.unlearned("rmu", forget(0.5), elements(0.5))
    assert [type(b) for b in traded(folder.family(), STYLES, drawn)] == [Table]
    other = Folder(folder.path / "other")
    other.unlearned("npo", elements(0.5))
    (table,) = traded(other.family(elements(0.5)), STYLES, drawn)
    assert isinstance(table, Table)
    assert table.head == ["model", "elements (keep)"]
    assert not drawn.calls


def test_two_models_are_a_figure_whichever_they_are(folder: Folder, drawn: Drawn) -> None:
    folder.unlearned("rmu", forget(0.5), elements(0.5))
    folder.unlearned("npo", forget(0.0, 10), elements(0.5))
    assert [d.name for d in (traded(folder.family(), STYLES, drawn), drawn.calls["tradeoff"][1][0][0][3])[1]] == [
        "rmu",
        "npo",
    ]


def test_a_forget_benchmark_that_is_no_accuracy_is_in_the_table_only(folder: Folder, drawn: Drawn) -> None:
    folder.unlearned("rmu", forget(3.0, metric="nll"), elements(0.5))
    (table,) = traded(folder.family(forget(2.0, metric="nll"), elements(0.5)), STYLES, drawn)
    assert isinstance(table, Table)
    assert table.rows[0][1] == "2 (1.804–2.196)"


def test_nothing_measured_is_nothing_said(folder: Folder, drawn: Drawn) -> None:
    folder.unlearned("rmu")
    assert traded(folder.family(), STYLES, drawn) == []
    assert returned(folder.family(), STYLES, drawn) == []


def test_at_a_glance_the_strongest_attack_stands_first(folder: Folder, drawn: Drawn) -> None:
    rmu, npo = folder.unlearned("rmu"), folder.unlearned("npo")
    points = [(0, forget(0.0)), (4, forget(0.5))]
    for attack, fq in {"prune": (0.9, 0.8), "noise": (0.7, 0.2), "lens": (0.6, 0.95)}.items():
        for parent, worst in zip((rmu, npo), fq):
            folder.attack(parent, attack, points, worst=worst)
    folder.attack(rmu, "prune", points, worst=0.5, seed=1)
    folder.attack("base", "noise", points, worst=0.1)
    folder.attack(rmu, "rephrase", points)  # has no worst point
    (picture,) = overview(folder.family(forget(0.5)), drawn)
    assert isinstance(picture, Picture)
    draw, (rows, columns, table, share) = drawn.calls["overview"]
    assert (draw, share) == (figures.heat, figures.SHARE)
    assert rows == ["the strongest of all", "noise", "lens", "prune"]
    assert columns == ["the original", "rmu", "npo"]
    expected: list[list[float | None]] = [[0.9, 0.4, 0.8], [0.9, 0.3, 0.8], [None, 0.4, 0.05], [None, 0.3, 0.2]]
    for found, wanted in zip(table, expected):
        assert found == [None if w is None else pytest.approx(w) for w in wanted]
    assert (picture.name, picture.title) == ("overview", "What each attack brings back")
    assert (picture.wide, picture.narrow) == ("overview wide", "overview narrow")
    assert picture.caption.startswith("How much of capitals is answered at the worst point of each attack, mean")
    assert picture.caption.endswith("chosen on one half of the questions, counted on the other.")


def test_two_attacks_are_no_overview(folder: Folder, drawn: Drawn) -> None:
    rmu = folder.unlearned("rmu", forget(0.5))
    for attack in ("prune", "noise"):
        folder.attack(rmu, attack, [(0, forget(0.5))], worst=0.5)
    assert overview(folder.family(), drawn) == []


def test_an_overview_of_the_original_alone_has_an_order(folder: Folder, drawn: Drawn) -> None:
    for attack in ("prune", "noise", "lens"):
        folder.attack("base", attack, [(0, forget(0.5))], worst=0.5)
    overview(folder.family(forget(0.5)), drawn)
    assert drawn.calls["overview"][1][0] == ["the strongest of all", "prune", "noise", "lens"]


def test_what_was_tried_on_the_original_alone_stands_last_and_has_its_curve(folder: Folder, drawn: Drawn) -> None:
    rmu = folder.unlearned("rmu")
    folder.attack("base", "lens", [(0, forget(0.5))], worst=0.0)
    for attack, worst in (("prune", 0.9), ("noise", 0.5)):
        folder.attack(rmu, attack, [(0, forget(0.5))], worst=worst)
    glance, first, *_ = returned(folder.family(forget(0.5)), STYLES, drawn)
    assert isinstance(glance, Picture)
    assert isinstance(first, Picture)
    assert (glance.name, glance.wide) == ("overview", "overview wide")
    assert drawn.calls["overview"][1][0] == ["the strongest of all", "noise", "prune", "lens"]
    assert first.title == "Under lens"
    (panel,) = drawn.calls["recovery-1"][1][0]
    assert ([s.name for s in panel.series], panel.share) == (["base"], True)


def attacked(folder: Folder, seeds: int = 1) -> Family:
    """Two methods and the original under one attack; what is known at its end differs between the methods."""
    high, low = [1.0] * 6 + [0.0] * 4, [1.0] * 1 + [0.0] * 9
    for seed in range(seeds):
        rmu = folder.unlearned("rmu", seed=seed, key=f"rmu{seed}")
        npo = folder.unlearned("npo", seed=seed, key=f"npo{seed}")
        fa: dict[str, Any] = {"fa": {"value": 0.5, "n": 100, "stderr": 0.05}}
        known: dict[str, Any] = {"rows": {0: low, 4: high}, "seed": seed, "ra": 0.4 + 0.02 * seed}
        folder.attack(rmu, "prune", [(0, forget(0.1, 10)), (4, forget(0.6, 10))], **known, **fa)
        known["rows"] = {0: low, 4: low}
        folder.attack(npo, "prune", [(0, forget(0.1, 10)), (4, forget(0.1, 10))], **known)
    folder.attack("base", "prune", [(0, forget(0.5)), (4, forget(0.5))])
    return folder.family(forget(0.5))


def test_two_reference_lines_of_one_seed_are_no_two_seeds(folder: Folder) -> None:
    """Two models attacked on other rows have two lines; the report draws one of them, over its questions."""
    rmu = folder.unlearned("rmu")
    folder.attack(rmu, "relearn", [(0, forget(0.1)), (4, forget(0.6))])
    for value in (0.80, 0.90):
        folder.attack("base", "relearn", [(0, forget(0.5)), (4, forget(value))])
    end = folder.family(forget(0.5)).curve("", "relearn", "capitals")[-1]
    assert [s.summary.value for s in end.sources] == [0.90]
    assert end.estimate.over != "seeds"


def test_what_comes_back_under_an_attack(folder: Folder, drawn: Drawn) -> None:
    picture, table, compared = returned(attacked(folder), STYLES, drawn)
    assert isinstance(picture, Picture)
    assert isinstance(table, Table)
    assert isinstance(compared, Table)
    draw, ((panel,),) = drawn.calls["recovery-1"]
    assert draw is figures.recovery
    assert (panel.title, panel.xlabel, panel.ylabel, panel.share) == ("capitals", "steps", "accuracy", True)
    assert panel.levels == {"chance": 0.25}
    assert [(s.name, s.look, s.x, [e.value for e in s.y], s.band) for s in panel.series] == [
        ("rmu", STYLES["rmu"], [0, 4], [0.1, 0.6], False),
        ("npo", STYLES["npo"], [0, 4], [0.1, 0.1], False),
        ("base", REFERENCE, [0, 4], [0.5, 0.5], False),
    ]
    assert (picture.name, picture.title) == ("recovery-1", "Under prune")
    assert (picture.wide, picture.narrow) == ("recovery-1 wide", "recovery-1 narrow")
    assert picture.caption == (
        "Higher means that more has come back. The dotted line is the original under the same attack. "
        "Bars: 95% over questions, one seed. At the end, 1 of 1 paired differences exclude 0."
    )
    assert table.head == ["model", "attack", "seeds", "RA", "accuracy on the attack's task"]
    assert table.rows == [
        ["rmu", "prune", "0", "0.400", HALF],
        ["npo", "prune", "0", "0.400", "–"],
        ["base", "prune", "0", "–", "–"],
    ]
    assert table.caption.startswith("RA: mean of 1 − forget accuracy over the points after the first")
    assert compared.head == ["under attack", "method", "knows", "against", "knows", "difference"]
    # five of ten questions differ by −1: squares of 2.5 about the mean, and half a question more on either side:
    # √((2.5 + 1)/(10 · 11)) = 0.1784, and t(9) = 2.262 times that is 0.4035
    ends = "10.0% (1.8–40.4)", "60.0% (31.3–83.2)"
    assert compared.rows == [["capitals, prune", "npo", ends[0], "rmu", ends[1], "−50.0 (−90.4 to −9.6)"]]
    assert compared.caption.startswith("What is known at the end of each attack")


def test_several_seeds_are_bands(folder: Folder, drawn: Drawn) -> None:
    picture, table, compared = returned(attacked(folder, seeds=2), STYLES, drawn)
    assert isinstance(picture, Picture)
    assert isinstance(table, Table)
    assert isinstance(compared, Table)
    (panel,) = drawn.calls["recovery-1"][1][0]
    assert [(s.name, s.band) for s in panel.series] == [("rmu", True), ("npo", True), ("base", False)]
    assert "Bands: 95% over up to 2 seeds and the questions. At the end" in picture.caption
    # RA 0.40 and 0.42: the mean is 0.41, and t(1)·s/√2 = 12.706 · 0.01 = 0.127; FA ± 1.96 · 0.05
    assert table.rows[0] == ["rmu", "prune", "0, 1", "0.410 (0.283–0.537)", "50.0% (40.2–59.8)"]
    assert table.rows[2][:3] == ["base", "prune", "0"]
    assert compared.rows[0][-1] == "−50.0 (−90.4 to −9.6)"  # a second seed that answers alike says nothing new


def test_a_single_method_is_compared_with_nobody(folder: Folder, drawn: Drawn) -> None:
    rmu = folder.unlearned("rmu")
    folder.attack(rmu, "prune", [(0, forget(2.0, metric="nll")), (4, forget(1.0, metric="nll"))])
    folder.attack(rmu, "noise", [(0, forget(2.0, metric="nll"))])
    found = returned(folder.family(), STYLES, drawn)
    assert [type(b) for b in found] == [Picture, Picture, Table]
    assert [b.name for b in found if isinstance(b, Picture)] == ["recovery-1", "recovery-2"]
    assert isinstance(found[0], Picture)
    assert "There is no second method to compare with." in found[0].caption
    (panel,) = drawn.calls["recovery-1"][1][0]
    assert (panel.ylabel, panel.share) == ("value", False)


def test_a_benchmark_without_chance_has_no_line_for_it(folder: Folder, drawn: Drawn) -> None:
    rmu = folder.unlearned("rmu")
    folder.attack(rmu, "prune", [(0, forget(0.5) | {"chance": None})])
    returned(folder.family(), STYLES, drawn)
    (panel,) = drawn.calls["recovery-1"][1][0]
    assert panel.levels == {}


def test_no_difference_seen_and_none_that_can_be_taken(folder: Folder, drawn: Drawn) -> None:
    rmu, npo = folder.unlearned("rmu"), folder.unlearned("npo")
    for parent in (rmu, npo):
        folder.attack(parent, "prune", [(4, forget(0.5, 4))], rows={4: [1.0, 0.0, 1.0, 0.0]})
        folder.attack(parent, "noise", [(4, forget(0.5, 4))])  # without rows nothing is paired
    same, unknown, _, compared = returned(folder.family(), STYLES, drawn)
    assert isinstance(same, Picture)
    assert isinstance(unknown, Picture)
    assert isinstance(compared, Table)
    assert same.caption.endswith(
        "At the end, the paired differences between methods are within their intervals: no difference seen."
    )
    assert unknown.caption.endswith("There is no second method to compare with.")
    assert [row[-1] for row in compared.rows] == ["+0.0 (−71.2 to +71.2)", "not comparable"]  # t(3) · √(1/(4 · 5))


def test_differences_of_what_is_no_accuracy_have_no_table(folder: Folder, drawn: Drawn) -> None:
    rmu, npo = folder.unlearned("rmu"), folder.unlearned("npo")
    for parent in (rmu, npo):
        folder.attack(parent, "prune", [(4, forget(2.0, 4, metric="nll"))], rows={4: [1.0, 2.0, 1.0, 2.0]})
    assert [type(b) for b in returned(folder.family(), STYLES, drawn)] == [Picture, Table]


def test_only_so_many_panels_are_drawn(folder: Folder, drawn: Drawn) -> None:
    """Six of a kind fit into a figure."""
    names = [f"b{i}" for i in range(8)]
    rmu = folder.unlearned("rmu", forget(0.5), *(summary(n, 0.5, "utility") for n in names))
    folder.attack(rmu, "prune", [(0, forget(0.5))])
    point = folder.members[-1].run.manifest.result["points"][0]["eval"]
    point |= {f"f{i}": summary(f"f{i}", 0.5) for i in range(8)}
    family = folder.family(forget(0.5), *(summary(n, 0.5, "utility") for n in names))
    traded(family, STYLES, drawn)
    returned(family, STYLES, drawn)
    assert [len(drawn.calls[name][1][0]) for name in ("tradeoff", "recovery-1")] == [6, 6]


def test_an_attack_that_marks_no_points_has_a_mean_without_an_error(folder: Folder, drawn: Drawn) -> None:
    rmu = folder.unlearned("rmu")
    fq = [{"steps": 4, "value": 0.5, "stderr": 0.1}]
    folder.attack(rmu, "prune", [(0, forget(0.5)), (4, forget(0.5))], ra=0.4, fq=fq)
    _, table = returned(folder.family(), STYLES, drawn)
    assert isinstance(table, Table)
    assert table.rows == [["rmu", "prune", "0", "0.400", "–"]]


def test_what_only_the_original_was_asked_elsewhere_is_no_column(folder: Folder) -> None:
    """Its results are kept for all who come from it."""
    original = forget(0.5), elements(0.5), summary("atlas", 0.25)
    assert folder.family(*original).benchmarks("forget") == ["capitals", "atlas"]
    folder.unlearned("rmu", forget(0.0, 10))
    assert folder.family(*original).benchmarks("forget") == ["capitals"]
