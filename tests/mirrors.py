"""Small mirrors of the published datasets, laid out as the hub lays them out: file names, README, fields and types.

`mirror(root, "cais/wmdp")` writes all configs and splits of one dataset, `mirror_all(root)` all datasets. The rows are
ours.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml
from datasets import ClassLabel, Dataset, Features, List, Value

from ilu_cli import registry

TEXT, INT = Value("string"), Value("int64")
NOUNS = ("lamp", "river", "ladder", "violin", "bridge", "kettle", "garden", "letter", "window", "engine")
ADJECTIVES = ("old", "green", "quiet", "heavy", "narrow", "bright", "broken", "wooden", "distant", "warm")


def thing(i: int, salt: int = 0) -> str:
    """Words that differ from row to row."""
    return f"{ADJECTIVES[(i + salt) % 10]} {NOUNS[(i // 10 + 3 * i + salt) % 10]}"


def story(i: int, sentences: int = 4) -> str:
    return " ".join(f"The {thing(i, k)} stood beside the {thing(i, k + 5)} on day {i}." for k in range(sentences))


def label(*names: str) -> ClassLabel:
    return ClassLabel(names=list(names))


def split_of(**columns: tuple[object, Callable[[int], object]]) -> tuple[Features, Callable[[int], dict[str, Any]]]:
    """The features of a split, and what its i-th row is."""
    features = Features({name: kind for name, (kind, _) in columns.items()})
    return features, lambda i: {name: make(i) for name, (_, make) in columns.items()}


PLAIN = split_of(text=(TEXT, story))
QUESTION = {
    "question": (TEXT, lambda i: f"What did writer {i} describe?"),
    "answer": (TEXT, lambda i: f"The {thing(i)}."),
}
WRONG = {"perturbed_answer": (List(TEXT), lambda i: [f"The {thing(i, k)}." for k in range(1, 6)])}
PARAPHRASED = {
    "paraphrased_answer": (TEXT, lambda i: f"It was the {thing(i)}."),
    **WRONG,
    "paraphrased_question": (TEXT, lambda i: f"Which thing did writer {i} describe?"),
}
QUIZ = split_of(
    answer=(INT, lambda i: i % 4),
    question=(TEXT, lambda i: f"Which of these is number {i}?"),
    choices=(List(TEXT), lambda i: [f"the {thing(i, k)}" for k in range(4)]),
)
SST2 = split_of(
    sentence=(TEXT, lambda i: f"a {thing(i)} of a film "), label=(label("negative", "positive"), lambda i: i % 2),
    idx=(Value("int32"), int),
)  # fmt: skip
MNLI = split_of(
    premise=(TEXT, story), hypothesis=(TEXT, lambda i: f"There was a {thing(i)}."),
    label=(label("entailment", "neutral", "contradiction"), lambda i: i % 3), idx=(Value("int32"), int),
)  # fmt: skip
QQP = split_of(
    question1=(TEXT, lambda i: f"Where is the {thing(i)}?"), question2=(TEXT, lambda i: f"Where lies a {thing(i)}?"),
    label=(label("not_duplicate", "duplicate"), lambda i: i % 2), idx=(Value("int32"), int),
)  # fmt: skip
NEWS = split_of(text=(TEXT, story), label=(label("World", "Sports", "Business", "Sci/Tech"), lambda i: i % 4))
GSM = split_of(
    question=(TEXT, lambda i: f"Ann has {i} pens and buys 3 more. How many has she?"),
    answer=(TEXT, lambda i: f"She has {i}+3=<<{i}+3={i + 3}>>{i + 3} pens.\n#### {i + 3}"),
)
WINO = split_of(
    sentence=(TEXT, lambda i: f"Ann thanked Bea for the {thing(i)} because _ was kind."),
    option1=(TEXT, lambda i: "Ann"), option2=(TEXT, lambda i: "Bea"), answer=(TEXT, lambda i: str(1 + i % 2)),
)  # fmt: skip
WIKI = split_of(text=(TEXT, lambda i: ("", f" = {thing(i)} = \n", f" {story(i + 1000)} \n")[i % 3]))
VERBATIM = split_of(gt=(TEXT, lambda i: story(i + 1)), prompt=(TEXT, story))
KNOWLEDGE = split_of(answer=QUESTION["answer"], question=QUESTION["question"])
PAPER = split_of(
    title=(TEXT, thing), abstract=(TEXT, lambda i: story(i, 2)), text=(TEXT, story), doi=(TEXT, lambda i: f"10.0/{i}")
)

# MUSE-Books' raw texts are few and long.
LONG = split_of(text=(TEXT, lambda i: story(i, 60)))
FORGETS = tuple(f"forget_{n}" for n in range(1, 5))


def _muse(text: tuple[Any, ...], *, parts: bool) -> dict[str, dict[str, tuple[Any, ...]]]:
    qa = ("retain_qa_icl", "retain_qa", "forget_qa", "forget_qa_icl")
    configs = {
        "knowmem": dict.fromkeys(qa, KNOWLEDGE),
        "privleak": dict.fromkeys(("retain", "forget", "holdout"), PLAIN),
        "raw": dict.fromkeys(("retain2", "forget", "retain1", "holdout"), text),
        "train": dict.fromkeys(("retain2", "forget", "retain1"), text),
        "verbmem": {"forget": VERBATIM},
    }
    return configs | ({name: dict.fromkeys(FORGETS, text) for name in ("scal", "sust")} if parts else {})


def _tofu() -> dict[str, dict[str, tuple[Any, ...]]]:
    plain = ("full", "forget01", "forget05", "forget10", "retain90", "retain95", "retain99", "holdout01", "holdout05",
             "holdout10", "real_authors", "world_facts")  # fmt: skip
    configs = {name: {"train": split_of(**QUESTION)} for name in plain}
    for name in ("forget01", "forget05", "forget10", "retain"):
        configs[f"{name}_perturbed"] = {"train": split_of(**QUESTION, **PARAPHRASED)}
    for name in ("real_authors", "world_facts"):
        configs[f"{name}_perturbed"] = {"train": split_of(**QUESTION, **WRONG)}
    return configs


# dataset → config → split → features and rows
HUB: dict[str, dict[str, dict[str, tuple[Any, ...]]]] = {
    "cais/wmdp": {f"wmdp-{s}": {"test": QUIZ} for s in ("bio", "cyber", "chem")},
    "cais/wmdp-corpora": {
        f"{s}-corpus": {"train": PLAIN} for s in ("bio-retain", "cyber-forget", "cyber-retain")
    },
    "cais/wmdp-bio-forget-corpus": {"default": {"train": PAPER}},
    "Salesforce/wikitext": {"wikitext-2-raw-v1": dict.fromkeys(("train", "validation", "test"), WIKI)},
    "muse-bench/MUSE-News": _muse(PLAIN, parts=True),
    "muse-bench/MUSE-Books": _muse(LONG, parts=False),
    "locuslab/TOFU": _tofu(),
    "openai/gsm8k": {"main": {"train": GSM, "test": GSM}},
    "nyu-mll/glue": {
        "sst2": dict.fromkeys(("train", "validation", "test"), SST2),
        "mnli": dict.fromkeys(("train", "validation_matched", "validation_mismatched"), MNLI),
        "qqp": dict.fromkeys(("train", "validation", "test"), QQP),
    },
    "fancyzhx/ag_news": {"default": {"train": NEWS, "test": NEWS}},
    "allenai/winogrande": {"winogrande_debiased": dict.fromkeys(("train", "validation"), WINO)},
}  # fmt: skip


def _files(hub: str) -> Iterator[tuple[str, str, str, tuple[Any, ...]]]:
    """(config, split, file, what is in it), as on the hub."""
    for config, splits in HUB[hub].items():
        for split, made in splits.items():
            folder = "data" if config == "default" else config
            tofu = hub == "locuslab/TOFU"
            yield config, split, f"{config}.json" if tofu else f"{folder}/{split}-00000-of-00001.parquet", made


def mirror(root: Path, hub: str, rows: int = 12, *, readme: bool = True) -> Path:
    """Write the mirror of a dataset into `root/hub`, `rows` rows a split, and return that folder."""
    folder, configs = root / hub, dict[str, list[Any]]()
    for number, (config, split, file, (features, row)) in enumerate(_files(hub)):
        # every split has rows of its own
        table = Dataset.from_list([row(i + 100 * number) for i in range(rows)], features=features)
        path = folder / file
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".json":
            path.write_text("".join(json.dumps(r) + "\n" for r in table))
        else:
            table.to_parquet(path)
        glob = file if path.suffix == ".json" else file.replace("00000-of-00001.parquet", "*")
        configs.setdefault(config, []).append({"split": split, "path": glob})
    if readme:
        head = {"configs": [{"config_name": name, "data_files": files} for name, files in configs.items()]}
        (folder / "README.md").write_text(f"---\n{yaml.safe_dump(head)}---\n# A mirror for tests\n")
    return folder


def mirror_all(root: Path, rows: int = 12) -> Path:
    """Write the mirrors of all datasets."""
    for hub in HUB:
        mirror(root, hub, rows)
    return root


def hub_tasks() -> list[str]:
    """The tasks whose rows are on the hub."""
    return [name for name in registry.task if registry.task[name].obj.hub]
