"""The report of a whole family, as a reader meets it: in a real browser, in Markdown, as files."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from browser import Browser
from conftest import Ilu

from ilu_cli.cli.app import app
from ilu_cli.runs.store import open_run

pytestmark = pytest.mark.slow

FIGURES = {"lineage", "tradeoff", "recovery-1", "losses", "invariance", "plane", "cosines-1", "cosines-2"}
# Of every figure: what is shown of it, and the smallest text in it, in pixels of the screen.
SEEN = """[...document.querySelectorAll("figure")].map(f => {
  const svg = [...f.querySelectorAll("svg")].filter(s => s.getClientRects().length);
  const box = svg[0].getBoundingClientRect();
  const texts = [...svg[0].querySelectorAll("text")].map(
    t => parseFloat(getComputedStyle(t).fontSize) * box.width / svg[0].viewBox.baseVal.width);
  const out = [...svg[0].querySelectorAll("text")].filter(t => {
    const r = t.getBoundingClientRect(); return r.left < box.left - 1 || r.right > box.right + 1; });
  return {name: f.id, drawings: svg.length, left: box.left, right: box.right, height: box.height,
          text: Math.min(...texts), out: out.map(t => t.textContent)};
})"""
BODY = """Math.min(...[...document.querySelectorAll("p, li, td, th, figcaption, summary, h1, h2, h3")].map(
  e => parseFloat(getComputedStyle(e).fontSize)))"""
SMALL = ["--set", "forget.batch=4", "--set", "retain.batch=4", "--set", "forget.max_length=24", "--set",
         "retain.max_length=24", "--steps", "12", "--method", "rmu", "--set", "objective.layer=1", "--set",
         'train.params=["model.layers.[01].mlp.down_proj.weight"]']  # fmt: skip
ATTACK = ["--task", "elements", "--steps", "4", "--set", "attack.batch=4", "--set", "eval.limit=24"]
IRM = ["--irm-env", "gsm8k", "--source", "builtin", "--irm-batch", "2"]


@pytest.fixture(scope="session")
def family(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two methods on the tiny model, each attacked and evaluated, and the report of it all beside the runs."""
    home = tmp_path_factory.mktemp("family")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        for name, value in {"ILU_RUNS": home / "runs", "ILU_CACHE": home / "cache", "HF_HUB_OFFLINE": 1}.items():
            patch.setenv(name, str(value))
        for more in ([], IRM):
            for args in (
                ["unlearn", "--model", str(tiny), *SMALL, *more],
                ["attack", *ATTACK],
                ["eval", "--limit", "24"],
            ):
                app(args, standalone_mode=False)
        app(["report", "--out", "report"], standalone_mode=False)
    return home / "runs"


@pytest.fixture
def of_family(family: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work on the family's runs."""
    monkeypatch.setenv("ILU_RUNS", str(family))
    monkeypatch.setenv("ILU_CACHE", str(family.parent / "cache"))
    return family


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """A real browser."""
    opened = Browser(tmp_path_factory.mktemp("profile"))
    yield opened
    opened.close()


@pytest.fixture(scope="session")
def report(family: Path) -> Path:
    return family.parent / "report" / "report.html"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 400])
def test_it_opens_in_a_browser_and_can_be_read(report: Path, browser: Browser, width: int, scheme: str) -> None:
    check_readable(browser, report, width, scheme, FIGURES)
    background = browser.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (max(map(int, re.findall(r"\d+", background))) < 60) == (scheme == "dark")


def check_readable(browser: Browser, page: Path, width: int, scheme: str, figures: set[str]) -> None:
    """No console error, no request but the page, every figure visible, no text too small or cut off."""
    browser.open(page, width, scheme=scheme)
    seen = browser.evaluate(SEEN)
    assert {f["name"] for f in seen} == figures
    for f in seen:
        assert f["drawings"] == 1 and f["height"] > 40, f
        assert f["left"] >= 0 and f["right"] <= width and f["right"] - f["left"] > 200, f
        assert f["text"] >= 9, f
        assert f["out"] == [], f
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    assert browser.evaluate(BODY) >= 14
    assert browser.console == []
    assert browser.requests == [page.absolute().as_uri()]


def test_a_pipelines_report_has_bands_over_its_seeds(
    tiny: Path, browser: Browser, ilu: Ilu, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two methods of matched utility and the original, each attacked, with two seeds.

    Runs that are not the pipeline's are left out, and its names are used, whichever step of a run was chosen.
    """
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    base = {"command": "unlearn", "objective": {"name": "grad_diff"}, "train": {"steps": 4, "lr": 1e-2, "points": [1]},
            "forget": {"data": "capitals", "batch": 4, "max_length": 24},
            "retain": {"name": "nll", "data": ["prose"], "batch": 4, "max_length": 24}}  # fmt: skip
    attack = {"name": "finetune", "task": "elements", "steps": 8, "batch": 4}
    grid = {"command": "pipeline", "model": {"ref": str(tiny)}, "environments": ["elements"], "seeds": [0, 1],
            "methods": {"GD": {"recipe": "base.yaml"},
                        "GD+ILU": {"recipe": "base.yaml", "set": {"regularizers": [{"name": "irm", "batch": 4}]}}},
            "match": {"benchmark": "prose", "target": 1.0, "tolerance": 1e9},
            "attacks": [{"attack": attack}, {"attack": {"name": "prune", "fractions": [0.1, 0.5]}},
                        {"attack": {"name": "quantize", "bits": [4]}}],
            "eval": {"benchmarks": ["capitals", "prose"], "limit": 12}}  # fmt: skip
    for name, recipe in {"base": base, "grid": grid}.items():
        Path(f"{name}.yaml").write_text(yaml.safe_dump(recipe))
    other = ilu("unlearn", "--recipe", "base.yaml", "--model", tiny, "--steps", 2, "--json")
    assert other.code == 0, other.err
    done = ilu("pipeline", "grid.yaml", "--json")
    assert done.code == 0, done.err
    rows = json.loads(done.out)["rows"]
    assert {step for row in rows for step in row["steps"]} >= {1}
    done = ilu("report", Path(json.loads(done.out)["folder"]).name, "--out", tmp_path / "report", "--json")
    assert done.code == 0, done.err
    page = Path(json.loads(done.out)["html"])
    text = page.with_suffix(".md").read_text()
    assert "Bands: 95% over up to 2 seeds" in text
    attacked = re.findall(r"^\| (.+?) \| (?:fine-tuning on elements|prune|quantize) \| 0, 1 \|", text, re.M)
    original = re.sub(r"([_*])", r"\\\1", str(tiny))
    assert sorted(attacked) == sorted(3 * [original, "GD", "GD+ILU(elements)"])
    assert json.loads(other.out)["run"] not in text
    figures = set(re.findall(r"\]\(figures/([\w-]+)\.svg\)", text))
    assert {"lineage", "tradeoff", "overview", "recovery-1", "recovery-2", "losses", "invariance"} <= figures
    for width in (1280, 400):
        check_readable(browser, page, width, "light", figures)


def test_figures_lie_beside_the_page_and_markdown_says_the_same(report: Path, family: Path) -> None:
    files = {p.name for p in (report.parent / "figures").iterdir()}
    assert files == {f"{name}.{kind}" for name in FIGURES for kind in ("svg", "png")}
    text = report.with_suffix(".md").read_text()
    linked = set(re.findall(r"\]\(figures/([\w-]+)\.svg\)", text))
    assert linked == FIGURES
    page = report.read_text()
    for run in family.glob("*/manifest.json"):
        assert run.parent.name in page and run.parent.name in text
    assert "rmu + irm(gsm8k)" in text and "chance" in page


def test_json_gives_the_paths_and_one_run_is_reported_by_itself(of_family: Path, ilu: Ilu) -> None:
    plain = next(p.name for p in of_family.glob("unlearn-rmu-*") if "irm" not in p.name)
    paths = json.loads(ilu("report", plain, "--json").out)
    text = Path(paths["markdown"]).read_text()
    assert plain in text and "irm(gsm8k)" not in text
    assert "Reference line missing" not in text  # the original's attack belongs to it


def test_what_a_recipe_says_is_escaped(of_family: Path, ilu: Ilu, tmp_path: Path) -> None:
    run = next(of_family.glob("unlearn-rmu-irm*"))
    recipe = (run / "recipe.yaml").read_text()
    evil = yaml.safe_load(recipe)
    evil["regularizers"][0]["env"][0]["name"] = "<script>alert(1)</script>$x_1$ `|"
    try:
        (run / "recipe.yaml").write_text(yaml.safe_dump(evil))
        open_run(run).add("recipe.yaml")  # as if it were its own
        done = ilu("report", run.name, "--out", tmp_path / "report")
        assert done.code == 0, done.err
    finally:
        (run / "recipe.yaml").write_text(recipe)
        open_run(run).add("recipe.yaml")
    page = Path(done.out.splitlines()[-1]).read_text()
    assert "<script" not in page and "&lt;script&gt;alert(1)" in page
    markdown = (tmp_path / "report" / "report.md").read_text()
    assert "<script" not in re.sub(r"```.*?```", "", markdown, flags=re.S).replace("\\<", "")


def test_without_runs_it_says_so(ilu: Ilu) -> None:
    done = ilu("report")
    assert done.code == 3 and "no finished run" in done.err
