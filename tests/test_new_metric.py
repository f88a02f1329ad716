"""A benchmark outside the package with a metric of its own: it counts, is compared and reported, in one file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import Ilu

from ilu_cli import registry
from ilu_cli.errors import UsageError
from ilu_cli.recipe.load import digest, dump, load
from ilu_cli.recipe.schema import EvalRecipe
from ilu_cli.registry import load_plugin
from ilu_cli.workflows.evaluate import find_benchmark

pytestmark = pytest.mark.slow

OVERLAP = '''\
from ilu_cli.benchmarks import Benchmark
from ilu_cli.registry import benchmark
from ilu_cli.tasks.capitals import Capitals


@benchmark()
class Overlap(Benchmark):
    """The share of a capital's letters that a greedy continuation of forty tokens has."""

    role = "forget"
    metric = "letter_overlap"
    kind = "share"
    others = ("length",)

    def items(self):
        return [{"prompt": row["text"], "capital": row["capital"]} for row in Capitals().builtin("train")[:10]]

    def score(self, scorer, items):
        rows = []
        for item, said in zip(items, scorer.complete([i["prompt"] for i in items], 40)):
            letters = set(item["capital"].lower())
            rows.append(item | {"value": len(letters & set(said.lower())) / len(letters)})
            rows.append({"metric": "length", "value": float(len(said))})
        return rows
'''
TRAINED = (
    "--set",
    "forget.batch=4",
    "--set",
    "forget.max_length=24",
)


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Forget what the plugins of this test registered."""
    len(registry.benchmark)
    monkeypatch.setattr(registry.benchmark, "_entries", dict(registry.benchmark._entries))
    yield


def values(folder: Path) -> list[float]:
    """The values of the headline, read by hand."""
    rows = [json.loads(line) for line in (folder / "overlap.rows.jsonl").read_text().splitlines()]
    return [r["value"] for r in rows if "metric" not in r]


def mean(found: list[float]) -> float:
    return sum(found) / len(found)


def test_a_share_of_its_own_counts_in_fq_and_ra_and_is_compared_and_reported(
    tiny: Path, ilu: Ilu, tmp_path: Path
) -> None:
    (tmp_path / "overlap.py").write_text(OVERLAP)
    plugin = ("--plugin", "overlap.py")
    runs = []
    for lr in ("1e-5", "1e-1"):
        done = ilu("unlearn", "--method", "grad_ascent", "--model", tiny, "--steps", 2, "--lr", lr, *TRAINED)
        assert done.code == 0, done.err
        runs.append(Path(done.out.strip()))
    evaluated = ilu(
        "eval", runs[0], *plugin, "--bench", "overlap", "--require", "overlap.letter_overlap >= 0", "--json"
    )
    assert evaluated.code == 0, evaluated.err
    found = json.loads(evaluated.out)["results"]["overlap"]
    assert (found["metric"], found["kind"], found["n"]) == ("letter_overlap", "share", 10)
    assert found["value"] == pytest.approx(mean(values(runs[0] / "eval")))
    assert found["also"]["length"]["kind"] == "ratio"

    attacks = []
    for run in runs:
        done = ilu("attack", run, *plugin, "--task", "elements", "--steps", 4, "--set", "attack.batch=4",
                   "--set", "eval.benchmarks=[overlap]", "--no-reference", "--json")  # fmt: skip
        assert done.code == 0, done.err
        attacks.append(json.loads(done.out))
    for a in attacks:
        folder = Path(a["path"]) / "eval"
        by_hand = {s: 1 - mean(values(folder / f"steps-{s:07d}")) for s in (0, 1, 2, 4)}
        assert {f["steps"]: f["value"] for f in a["fq"]} == pytest.approx(by_hand)
        assert a["marks"] == [1, 2, 4]
        assert a["ra"] == pytest.approx((by_hand[1] + by_hand[2] + by_hand[4]) / 3)
        assert a["worst"] == pytest.approx(min(by_hand[s] for s in (1, 2, 4)))

    done = ilu("compare", *(a["path"] for a in attacks), *plugin, "--bench", "overlap", "--json")
    assert done.code == 0, done.err
    numbers = {n["name"]: n for n in json.loads(done.out)["comparisons"][0]["numbers"]}
    assert set(numbers) == {"overlap.letter_overlap", "overlap.length", "overlap.RA"}
    assert numbers["overlap.RA"]["role"] == "robust"
    assert [numbers["overlap.RA"][k] for k in ("a", "b")] == pytest.approx([a["ra"] for a in attacks])
    assert numbers["overlap.letter_overlap"]["relative"] is False

    done = ilu("report", *(a["run"] for a in attacks), "--out", "report")  # from what is on disk: without the plugin
    assert done.code == 0, done.err
    text = (tmp_path / "report" / "report.md").read_text()
    assert "% of overlap are answered by" in text.split("\n\n")[1]  # the headline
    assert "| model | overlap (forget) |" in text
    for run, a in zip(runs, attacks):
        before, end = (values(f) for f in (run / "eval", Path(a["path"]) / "eval" / "steps-0000004"))
        assert f"| {mean(before):.1%} (" in text  # in percent, with Wilson's interval
        assert f"| {mean(end):.1%} (" in text
        assert f"| {a['ra']:.3f} (" in text


def test_a_metric_without_a_kind_and_a_kind_that_is_none_are_refused(tmp_path: Path) -> None:
    for old, new, said in (
        ('    kind = "share"\n', "", "the metric 'letter_overlap' has no kind"),
        ('kind = "share"', 'kind = "percent"', "kind 'percent' is none of share, ratio, loss"),
        ('others = ("length",)', 'kinds = {"length": "words"}', "kind 'words' is none of share, ratio, loss"),
    ):
        file = tmp_path / "wrong.py"
        file.write_text(OVERLAP.replace(old, new))
        with pytest.raises(UsageError, match=said):
            load_plugin(file)


def test_a_share_beyond_1_is_refused_before_it_is_counted(tiny: Path, ilu: Ilu, tmp_path: Path) -> None:
    (tmp_path / "overlap.py").write_text(OVERLAP.replace("/ len(letters)}", "+ 2.0}"))
    done = ilu("eval", tiny, "--plugin", "overlap.py", "--bench", "overlap")
    assert done.code == 2
    assert "overlap: letter_overlap is declared as a share, and a row has the value" in done.err
    assert not list(tmp_path.rglob("overlap.json"))


def test_a_loss_is_a_perplexity_without_a_line_more(tiny: Path, ilu: Ilu, tmp_path: Path) -> None:
    """exp(Σ value / Σ weight) of rows that say the NLL and the tokens, lower being better."""
    source = OVERLAP.replace('"share"', '"loss"').replace('role = "forget"', 'role = "utility"')
    source = source.replace('"value": len(letters & set(said.lower())) / len(letters)', '"value": 3.0, "weight": 2')
    (tmp_path / "overlap.py").write_text(source)
    done = ilu("eval", tiny, "--plugin", "overlap.py", "--bench", "overlap", "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)["results"]["overlap"]
    assert (found["kind"], found["value"], found["stderr"]) == ("loss", pytest.approx(4.4816890703), 0.0)
    assert registry.benchmark["overlap"].obj.higher == "reads worse"


KEYED = (
    OVERLAP.replace(
        "from ilu_cli.registry import benchmark\n",
        "from ilu_cli.registry import benchmark\n\n\n"
        "def problems(own, key, recipe):\n"
        "    if own.words > 50:\n"
        "        yield (*key, 'words'), 'fifty are enough'\n",
    )
    .replace("@benchmark()", "@benchmark(problems=problems)")
    .replace(
        "    def items", "    def __init__(self, *, words: int = 40):\n        self.words = words\n\n    def items"
    )
    .replace(", 40)", ", self.words)")
)


def asked(tmp_path: Path, item: str) -> Path:
    path = tmp_path / "asked.yaml"
    path.write_text(f"command: eval\neval:\n  benchmarks: [{item}]\n")
    return path


def test_a_benchmark_has_keys_and_rules_of_its_own(tiny: Path, ilu: Ilu, tmp_path: Path) -> None:
    (tmp_path / "overlap.py").write_text(KEYED)

    def evaluated(item: str) -> dict[str, Any]:
        done = ilu("eval", tiny, "--plugin", "overlap.py", "--recipe", asked(tmp_path, item), "--json")
        assert done.code == 0, done.err
        found: dict[str, Any] = json.loads(done.out)["results"]["overlap"]
        return found

    forty, five, again = (evaluated(item) for item in ("overlap", "{name: overlap, words: 5}", "overlap"))
    assert five["also"]["length"]["value"] < forty["also"]["length"]["value"] == again["also"]["length"]["value"]
    assert five["key"] != forty["key"]

    for item, said in (
        ("{name: overlap, words: 51}", "asked.yaml:3: eval.benchmarks.0.words: fifty are enough"),
        ("{name: overlap, word: 5}", "asked.yaml:3: eval.benchmarks.0.word: unknown key. Did you mean 'words'?"),
        ("{name: overlap, words: many}", "eval.benchmarks.0.words: input should be a valid integer"),
        ("{name: overlap, words: 5}, overlap", "eval.benchmarks.1: 'overlap' is named twice"),
        ("{name: overlop, words: 5}", "unknown name 'overlop'. Did you mean 'overlap'?"),
        ("{words: 5}", "eval.benchmarks.0: a name, or a mapping with a `name` is needed"),
    ):
        done = ilu("eval", tiny, "--plugin", "overlap.py", "--recipe", asked(tmp_path, item), "--dry-run")
        assert done.code == 2 and said in done.err, (item, done.err)


def test_a_benchmark_that_needs_a_key_is_not_run_by_its_name_alone(tiny: Path, ilu: Ilu, tmp_path: Path) -> None:
    (tmp_path / "overlap.py").write_text(KEYED.replace("words: int = 40", "words: int"))
    for wrong in (("--bench", "overlap"), ("--require", "overlap.letter_overlap >= 0")):
        done = ilu("eval", tiny, "--plugin", "overlap.py", *wrong)
        assert done.code == 2
        assert "'overlap' needs keys of its own: in eval.benchmarks, {name: overlap, words: …}" in done.err


def test_a_key_without_annotation_is_refused_with_its_place(tmp_path: Path) -> None:
    file = tmp_path / "overlap.py"
    file.write_text(KEYED.replace("words: int = 40", "words=40"))
    line = file.read_text().splitlines().index("@benchmark(problems=problems)") + 1
    with pytest.raises(UsageError, match=f"overlap.py:{line}: the parameter 'words' has no annotation"):
        load_plugin(file)


def test_keys_at_their_default_change_no_hash_and_the_older_place_means_the_same(tmp_path: Path) -> None:
    def recipe(item: str, more: str = "") -> EvalRecipe:
        path = asked(tmp_path, item)
        path.write_text(path.read_text() + more)
        return load(EvalRecipe, path, {}, [])

    plain = recipe("tofu, capitals")
    for same in ("{name: tofu}, capitals", "{name: tofu, retain_run: null}, {name: capitals}"):
        assert digest(recipe(same)) == digest(plain)
    own = recipe("{name: tofu, retain_run: mine}, capitals", "  retain_run: theirs\n")
    assert digest(own) != digest(plain)
    assert own.eval.keys_of("tofu") == {"retain_run": "mine"}
    assert recipe("tofu, capitals", "  retain_run: theirs\n").eval.keys_of("tofu") == {"retain_run": "theirs"}
    assert own.eval.keys_of("capitals") == plain.eval.keys_of("tofu") == {}
    (tmp_path / "again.yaml").write_text(dump(own))
    assert load(EvalRecipe, tmp_path / "again.yaml", {}, []) == own


def test_a_key_may_be_a_dataset_and_each_makes_results_of_its_own(tmp_path: Path) -> None:
    source = KEYED.replace("words: int = 40", 'words: TaskRef = DataRef(name="prose")').replace(
        "own.words > 50", "own.words.limit"
    )
    (tmp_path / "overlap.py").write_text("from ilu_cli.recipe.refs import DataRef, TaskRef\n" + source)
    load_plugin(tmp_path / "overlap.py")
    prints = []
    for item in ("overlap", "{name: overlap, words: elements}", "{name: overlap, words: {name: capitals}}"):
        keys = load(EvalRecipe, asked(tmp_path, item), {}, []).eval.keys_of("overlap")
        prints.append(find_benchmark("overlap", None, keys).fingerprint([{"prompt": "a"}]))
    assert len(set(prints)) == 3


def test_results_with_a_retain_run_go_by_what_it_says_and_keep_their_fingerprint(tmp_path: Path) -> None:
    """sha256 of the class, the items and the ratios: as before `retain_run` was a key, whatever the file is called."""
    row = {"metric": "truth_ratio", "value": 0.5, "ratio": 0.5}
    items = [{"prompt": "a"}]
    for name, ratio in (("one", 0.25), ("two", 0.25), ("three", 0.75)):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(row | {"ratio_geometric": ratio}) + "\n")
        bench = find_benchmark("tofu", None, {"retain_run": str(tmp_path / f"{name}.jsonl")})
        by_hand = f'["TOFU", [{{"prompt": "a"}}, {{"ratio_geometric": [{ratio}]}}]]'
        assert bench.fingerprint(items) == hashlib.sha256(by_hand.encode()).hexdigest()


@pytest.mark.parametrize("name", ["first_overlap", "first overlap", "overlap"])
def test_an_unknown_key_is_told_those_of_its_own_benchmark(tmp_path: Path, name: str) -> None:
    """Also where one name ends as another does, or has a sign that a JSON schema writes otherwise."""
    for key, named in (("letters", "first_overlap"), ("signs", "first overlap"), ("words", "overlap")):
        file = tmp_path / f"{key}.py"
        file.write_text(
            KEYED.replace("words", key).replace("benchmark(problems", f"benchmark(name={named!r}, problems")
        )
        load_plugin(file)
    own = {"first_overlap": "letters", "first overlap": "signs", "overlap": "words"}[name]
    with pytest.raises(UsageError, match=f"Known here: name, {own}$"):
        load(EvalRecipe, asked(tmp_path, f"{{name: {name}, zzz: 5}}"), {}, [])
