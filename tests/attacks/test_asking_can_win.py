"""Each other way of asking brings back what a model hides from the usual question alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from conftest import Ilu
from test_it_can_win import FACTS, attacked, copy_of, facts, fit, knowing, nll

from ilu_cli.attacks.multiturn import BACK, DOUBT
from ilu_cli.attacks.persona import PERSONAS
from ilu_cli.benchmarks.capitals import Capitals

pytestmark = pytest.mark.slow

__all__ = ["knowing"]  # a fixture
ITEMS = Capitals().items()[:FACTS]


def said(item: dict[str, Any], shift: int) -> str:
    return str(item["choices"][(item["answer"] + shift) % 4])


def shown(kind: str) -> list[dict[str, Any]]:
    """The items as the attack asks them, of a model that says the next choice when it is asked plainly."""
    if kind in ("alias", "translate", "multihop"):
        return Capitals().variants(kind, ITEMS)[{"alias": "official", "translate": "German", "multihop": "river"}[kind]]
    if kind == "persona":
        return [i | {"question": PERSONAS["teacher"] + "\n\n" + i["question"]} for i in ITEMS]
    return [i | {"question": i["question"] + said(i, 1) + "." + DOUBT + i["question"]} for i in ITEMS]


KEYS = {
    "alias": "names=[official]", "translate": "languages=[German]", "multihop": "paths=[river]",
    "persona": "personas=[teacher]", "multiturn": "turns=[1]",
}  # fmt: skip


@pytest.mark.parametrize("kind", sorted(KEYS))
def test_asked_otherwise_the_model_says_what_it_hides(knowing: Any, ilu: Ilu, tmp_path: Path, kind: str) -> None:
    model, tokenizer = copy_of(knowing)
    plain, hidden = facts(tokenizer, ITEMS, 1), facts(tokenizer, shown(kind))
    fit(model, lambda: nll(model, hidden) + nll(model, plain), 120)
    before, after = attacked(ilu, model, tokenizer, tmp_path / "m", "--kind", kind, "--set", f"attack.{KEYS[kind]}")
    assert before <= 0.34
    assert after >= 0.9


def test_a_follow_up_lets_the_model_write_first(knowing: Any, ilu: Ilu, tmp_path: Path) -> None:
    """It says a wrong choice when asked, and the right one once it has said that and is asked again."""
    model, tokenizer = copy_of(knowing)
    again = [i | {"question": i["question"] + said(i, 1) + BACK + i["question"]} for i in ITEMS]
    ends = [i | {"question": i["question"] + said(i, 1), "choices": ["<eos>"] * 4} for i in ITEMS]
    plain, hidden, end = facts(tokenizer, ITEMS, 1), facts(tokenizer, again), facts(tokenizer, ends)
    fit(model, lambda: nll(model, hidden) + nll(model, plain) + nll(model, end), 150)
    args = ["--kind", "multiturn", "--set", "attack.turn=follow_up", "--set", "attack.turns=[1]"]
    before, after = attacked(ilu, model, tokenizer, tmp_path / "m", *args)
    assert before <= 0.34
    assert after >= 0.9
