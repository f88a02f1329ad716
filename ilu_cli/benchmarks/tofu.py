from __future__ import annotations

import itertools
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from ilu_cli.benchmarks import Benchmark, Figure, Row, by_metric, estimate, interleave
from ilu_cli.errors import UnavailableError
from ilu_cli.metrics.facts import Fact
from ilu_cli.registry import benchmark

if TYPE_CHECKING:
    from ilu_cli.engine.scoring import Scorer

RetainRun = Annotated[str | None, Field(description="run or rows file of a model that never saw the forget set")]
NEW = 128  # tokens of a generated answer
KEPT = {"retain": "retain", "authors": "real_authors", "facts": "world_facts"}
MEASURES = ("prob", "rouge", "truth_ratio")
OF_AUTHOR = 20  # questions of an author, one after another
RANKED = "ratio_geometric"  # what forget quality compares


def _define(name: str, forget: str) -> None:
    @benchmark(name=name)
    class TOFU(Benchmark):
        __doc__ = f"""TOFU {forget}: probability, ROUGE-L recall, truth ratio, model utility (arXiv 2401.06121).

        The headline is the mean P(answer|question)^(1/tokens) on the forget set. `retain_run` names a run of a
        model that never saw it, evaluated with the same benchmark, or its rows file; with it comes forget quality, the
        p-value of a Kolmogorov-Smirnov test between the truth ratios: there with the geometric mean of the wrong
        answers' probabilities, elsewhere with the arithmetic one, as in the authors' code. The prompt is `Question: …
        Answer:`, or with `eval.chat` the question as a user's turn. Answers end without the end-of-sequence token.
        """
        role = "forget"
        metric = "prob"
        kind = "ratio"
        others = (
            "rouge", "truth_ratio", *(f"{part}_{m}" for part in KEPT for m in MEASURES), "utility", "forget_quality",
        )  # fmt: skip
        by_content = ("retain_run",)
        retains = True
        asks = (f"tofu-{forget}",)
        reads = tuple((f"tofu-{d}_perturbed", "train") for d in (forget, *KEPT.values()))

        def __init__(self, *, retain_run: RetainRun = None) -> None:
            self.retain = retain_ratios(retain_run, name) if retain_run else None

        def fingerprint(self, items: list[Row]) -> str:
            kept = {RANKED: self.retain or []}  # rows without the geometric ratio are of another kind
            return super().fingerprint([*items, kept])

        def items(self) -> list[Row]:
            parts = [_questions(part, dataset) for part, dataset in {"forget": forget, **KEPT}.items()]
            self.source = parts[-1][1]
            return interleave([rows for rows, _ in parts])

        def facts(self, items: list[Row]) -> list[Fact | None]:
            """An author of the forget set, who has twenty questions in a row, is a subject."""
            place = itertools.count()
            return [
                Fact(str(next(place) // OF_AUTHOR), i["prompt"], i["answers"][0]) if i["part"] == "forget" else None
                for i in items
            ]

        def score(self, scorer: Scorer, items: list[Row]) -> list[Row]:
            return _scored(scorer, items)

        def also(self, rows: list[Row]) -> dict[str, Figure]:
            from ilu_cli.metrics.tofu import forget_quality, model_utility

            found, groups = super().also(rows), by_metric(rows)
            kept = {name: estimate(rs)[0] for name, rs in groups.items() if name.startswith(tuple(KEPT))}
            if len(kept) == len(KEPT) * len(MEASURES):  # a small limit may leave a part out
                found["utility"] = {"value": model_utility(kept), "stderr": None}
            ours = [r[RANKED] for r in groups.get("truth_ratio", [])]
            if self.retain and len(ours) == len(self.retain):  # of the same questions: an attack may ask a part of them
                found["forget_quality"] = {"value": forget_quality(ours, self.retain), "stderr": None}
            return found


def _questions(part: str, dataset: str) -> tuple[list[Row], str]:
    """The questions of a part, each with its answer, a paraphrase and wrong answers; and where they came from."""
    from ilu_cli.data.sources import load_dataset
    from ilu_cli.recipe.refs import DataRef

    data = load_dataset(DataRef(name=f"tofu-{dataset}_perturbed", source="hub"), "train")
    found = []
    for row, example in zip(data.rows, data.examples()):
        answers = [row["answer"], row.get("paraphrased_answer", row["answer"]), *row["perturbed_answer"]]
        asked = {"prompt": example.prompt, "turn": example.turn}
        found.append({"part": part, **asked, "answers": [f" {a}" for a in answers]})
    return found, data.source


def _scored(scorer: Scorer, items: list[Row]) -> list[Row]:
    from ilu_cli.engine.tokens import encode_pair, token_scores
    from ilu_cli.metrics.text import rouge_l

    prompts = [i["turn" if scorer.chat else "prompt"] for i in items]
    said = scorer.complete(prompts, NEW)
    pairs = [encode_pair(scorer, p, answer) for p, i in zip(prompts, items) for answer in i["answers"]]
    logps = iter([float(s.logp.mean()) for s in token_scores(scorer, pairs)])
    rows = []
    for item, text in zip(items, said):
        answer = item["answers"][0].strip()
        measured = _measures(item["part"], [next(logps) for _ in item["answers"]])
        rows += _rows(item, measured | {"rouge": rouge_l(answer, text, recall=True, stem=True)}, text)
    return rows


def _measures(part: str, logps: list[float]) -> dict[str, float]:
    """Probability and truth ratio from the mean log-probabilities of answer, paraphrase and wrong answers."""
    import math

    from ilu_cli.metrics import tofu

    answer, paraphrase, *wrong = logps
    ratio = tofu.truth_ratio(wrong, paraphrase)
    fact = part in ("authors", "facts")
    return {
        "prob": tofu.share_of_right(answer, wrong) if fact else math.exp(answer),
        "truth_ratio": tofu.closeness(ratio) if part == "forget" else tofu.truthfulness(ratio),
        "ratio": ratio,
        RANKED: tofu.geometric_truth_ratio(wrong, paraphrase),
    }


def _rows(item: Row, measured: dict[str, float], said: str) -> list[Row]:
    """Three rows of an item, one for each measure."""
    prefix = "" if item["part"] == "forget" else f"{item['part']}_"
    ratios = {name: measured[name] for name in ("ratio", RANKED)}
    extra = {"prob": {"prompt": item["prompt"]}, "rouge": {"said": said}, "truth_ratio": ratios}
    rows = [{"metric": prefix + m, "value": measured[m], **extra[m]} for m in MEASURES]
    if not prefix:
        del rows[0]["metric"]  # the headline
    return rows


def retain_ratios(text: str, bench: str) -> list[float]:
    """The geometric truth ratios on the forget set in a rows file, or in the results of a run.

    Raises:
        UnavailableError: if there are none.
    """
    from ilu_cli.runs.results import read_rows, rows_file
    from ilu_cli.runs.store import Store

    path = Path(text)
    if not path.is_file():
        run = Store().find(text)
        if run is None:
            raise UnavailableError(f"retain_run: there is no run or rows file {text!r}.{Store().near(text)}")
        path = rows_file(run.eval, bench)
    hint = f"`ilu eval {text} --bench {bench} --alone` writes it"
    try:
        rows = [r for r in read_rows(path, needed=True) if r.get("metric") == "truth_ratio"]
        if any("ratio" in r and RANKED not in r for r in rows):
            raise UnavailableError(f"retain_run: {path} has arithmetic truth ratios only", hint=hint)
        ratios = [float(r[RANKED]) for r in rows]
    except UnavailableError as error:
        raise error if error.hint == hint else UnavailableError(f"retain_run: {error}", hint=hint) from error
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise UnavailableError(f"retain_run: {path} cannot be read: {error}", hint=hint) from error
    if not ratios:
        raise UnavailableError(f"retain_run: {path} has no truth ratios")
    return ratios


_define("tofu", "forget10")
for _share in ("forget01", "forget05"):
    _define(f"tofu-{_share}", _share)
