from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from ilu_cli.registry import task
from ilu_cli.tasks import Example, Fields, Task

AUTHORS = {"full": "questions on all 200 invented authors"}


AUTHORS |= {f"forget{n}": f"the {int(n)} % of authors to forget" for n in ("01", "05", "10")}


AUTHORS |= {f"retain{n}": f"the {n} % of authors to keep" for n in (90, 95, 99)}


AUTHORS |= {f"holdout{n}": f"authors that no model has seen, as many as forget{n}" for n in ("01", "05", "10")}


OTHERS = {"real_authors": "questions on real authors", "world_facts": "questions on the world"}


def _define(part: str, what: str, extra: Mapping[str, type]) -> None:
    @task(name=f"tofu-{part}")
    class TOFU(Task):
        __doc__ = f"TOFU {part}: {what} (arXiv 2401.06121)."
        hub, config = "locuslab/TOFU", part
        splits = {"train": "train"}
        fields = {"question": str, "answer": str, **extra}

        def example(self, row: Fields) -> Example:
            return Example(f"Question: {row['question']}\nAnswer:", f" {row['answer']}", turn=row["question"])

        def counterfactual(self, row: Fields) -> Example:
            if "perturbed_answer" not in row:
                return super().counterfactual(row)
            return replace(self.example(row), target=f" {row['perturbed_answer'][0]}")


for _part, _what in (AUTHORS | OTHERS).items():
    _define(_part, _what, {})


_PARAPHRASED = {"paraphrased_answer": str, "perturbed_answer": list}


for _part in ("forget01", "forget05", "forget10", "retain"):
    _define(f"{_part}_perturbed", "with a paraphrased and with wrong answers", _PARAPHRASED)


for _part in OTHERS:
    _define(f"{_part}_perturbed", "with wrong answers", {"perturbed_answer": list})
