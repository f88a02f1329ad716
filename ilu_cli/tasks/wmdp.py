from __future__ import annotations

from ilu_cli.registry import task
from ilu_cli.tasks import Example, Fields, Task

LETTERS = "ABCD"
SHORTEST = 50  # characters; the published RMU code leaves out texts that are no longer


def _questions(subject: str, title: str, rows: int, size: int) -> None:
    @task(name=f"wmdp-{subject}")
    class WMDP(Task):
        __doc__ = f"WMDP questions on {title}, four choices, {rows} rows (arXiv 2403.03218)."
        hub, config, download = "cais/wmdp", f"wmdp-{subject}", size
        splits = {"test": "test"}
        fields = {"question": str, "choices": list, "answer": int}

        def example(self, row: Fields) -> Example:
            """The prompt of lm-evaluation-harness without its heading: question, lettered choices, `Answer:`."""
            choices = "\n".join(f"{letter}. {text}" for letter, text in zip(LETTERS, row["choices"]))
            letters = tuple(f" {letter}" for letter in LETTERS[: len(row["choices"])])
            return Example(f"{row['question'].strip()}\n{choices}\nAnswer:", letters[row["answer"]], letters)

        def problem(self, row: Fields) -> str:
            count = len(row["choices"])
            return "" if 0 <= row["answer"] < count <= 4 else f"answer is {row['answer']}, with {count} choices"


def _corpus(name: str, title: str, repository: str, part: str | None, size: int, gate: str = "") -> None:
    @task(name=f"wmdp-{name}")
    class Texts(Task):
        __doc__ = f"WMDP corpus: {title} (arXiv 2403.03218)."
        hub, config, download, gated = repository, part, size, gate
        splits = {"train": "train"}
        fields = {"text": str}

        def keep(self, row: Fields) -> bool:
            return len(row["text"]) > SHORTEST


_questions("bio", "biology", 1273, 258_073)
_questions("cyber", "cybersecurity", 1987, 805_692)
_questions("chem", "chemistry", 408, 0)

_REQUEST = "ask for access at huggingface.co/datasets/cais/wmdp-bio-forget-corpus, then `hf auth login`"
_corpus("bio-forget", "papers on hazardous biology", "cais/wmdp-bio-forget-corpus", None, 0, _REQUEST)
_corpus("bio-retain", "papers on other biology", "cais/wmdp-corpora", "bio-retain-corpus", 883_575_398)
_corpus("cyber-forget", "passages on attacks, from GitHub", "cais/wmdp-corpora", "cyber-forget-corpus", 10_762_190)
_corpus("cyber-retain", "other passages from GitHub", "cais/wmdp-corpora", "cyber-retain-corpus", 26_378_599)
