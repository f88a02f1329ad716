"""Weights that are shares of the forget term's gradient, against plain autograd; and penalties that do nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Ilu, gradient, items_of, stream, tiny_model, trainer

from ilu_cli.care.steps import weak_penalties
from ilu_cli.engine.gradients import Term
from ilu_cli.engine.loop import Penalty, Trainer
from ilu_cli.engine.shares import Lengths
from ilu_cli.engine.state import load_state, save_state
from ilu_cli.errors import RunFailed

DATA = {"forget": [5, 8, 6, 7], "retain": [9, 4, 6, 6], "env": [6, 6, 5, 8]}


def data(name: str) -> Any:
    return stream(items_of(DATA[name], seed=len(name)), batch=4, name=name)


def made(*parts: str, share: float | None = None, **spec: object) -> Trainer:
    """Of the parts by name; retain term and penalty at weight 1, or with a share."""
    on = 1.0 if share is None else share
    terms = [Term("forget", data("forget"), lambda v: -v.nll, "token", defended=True)] if "forget" in parts else []
    if "retain" in parts:
        terms.append(Term("retain", data("retain"), lambda v: v.nll, "token", on, share=share is not None))
    square = Penalty("irm", [data("env")], lambda e: e.of_means("gap", lambda d: d.square().sum()), lambda _: on)
    square.share = share is not None
    found: Trainer = trainer(tiny_model(), terms, [square] if "env" in parts else [], **spec)
    return found


@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_share_makes_the_gradient_so_much_as_long_as_the_forget_terms(float64: None, accumulation: int) -> None:
    forget, retain, env = (gradient(made(part)) for part in ("forget", "retain", "env"))
    parts = {"retain": retain, "irm": env}
    t = made("forget", "retain", "env", share=0.5, accumulation=accumulation)
    log = t.backward()
    found = torch.cat(
        [torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten() for p in t.params.values()]
    )
    wanted = forget + sum(0.5 * forget.norm() / g.norm() * g for g in parts.values())
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-12)
    for name, g in parts.items():
        assert log[f"weight[{name}]"] == pytest.approx(float(0.5 * forget.norm() / g.norm()), rel=1e-9)
        assert log[f"gradient[{name}]"] == pytest.approx(float(0.5 * forget.norm()), rel=1e-9)


def test_a_plain_penalty_tells_its_length_and_adds_what_it_did(float64: None) -> None:
    forget, env = gradient(made("forget")), gradient(made("env"))
    t = made("forget", "env")
    log = t.backward()
    assert log["gradient[irm]"] == pytest.approx(float(env.norm()), rel=1e-9)
    torch.testing.assert_close(
        torch.cat([p.grad.flatten() for p in t.params.values() if p.grad is not None]), forget + env
    )


def test_a_lazy_penalty_has_the_share_of_all_its_steps(float64: None) -> None:
    forget, env = gradient(made("forget")), gradient(made("env"))
    t = made("forget", "env", share=0.5)
    t.penalties[0].every = 2
    log = t.backward()
    found = torch.cat([p.grad.flatten() for p in t.params.values() if p.grad is not None])
    torch.testing.assert_close(found, forget + 2 * 0.5 * forget.norm() / env.norm() * env, rtol=1e-9, atol=1e-12)
    assert log["gradient[irm]"] == pytest.approx(float(0.5 * forget.norm()), rel=1e-9)
    t.step = 1
    assert "gradient[irm]" not in t.backward()


def test_a_state_keeps_the_lengths(tmp_path: Path) -> None:
    t, other = made("forget", "env", share=0.5, steps=3), made("forget", "env", share=0.5, steps=3)
    for log in t.run():
        if log.step == 2:
            save_state(t, tmp_path)
    assert load_state(other, tmp_path) == 2
    assert [log.losses["weight[irm]"] for log in other.run()] == [log.losses["weight[irm]"]]


def test_lengths_run() -> None:
    lengths = Lengths()
    for forget, part in ((2.0, 4.0), (4.0, 8.0)):
        lengths.see("forget", forget)
        lengths.see("irm", part)
    assert lengths.means == {"forget": pytest.approx(2.2), "irm": pytest.approx(4.4)}
    assert lengths.weight("irm", 0.3) == pytest.approx(0.15)
    assert lengths.weight("irm", 0.0) == 0.0


def test_no_share_of_a_gradient_of_zero() -> None:
    t = made("forget", "env", share=0.5)
    t.penalties[0].function = lambda e: e.of_means("gap", lambda d: 0 * d.sum())
    with pytest.raises(RunFailed, match="gradient of irm is 0"):
        t.backward()


def test_a_penalty_that_does_nothing_is_told() -> None:
    def told(*shares: float) -> list[str]:
        return [w.id for w in weak_penalties("m", [{"grad_norm": 2.0, "gradient[irm]": 2 * s} for s in shares])]

    assert told(0.001, 0.002, 0.5) == ["penalty-too-weak"]
    assert told(0.02, 0.02, 0.001) == []
    assert told(0.0, 0.0) == []
    assert told(0.0, 0.001, 0.001) == ["penalty-too-weak"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--irm-env", "gsm8k", "--irm-weight", "share:half"], "share"),
        (["--irm-env", "gsm8k", "--irm-weight", "much"], "share"),
        (["--set", "retain.weight=share:2", "--set", "retain.dual={limit: 1}"], "not moved by a bound"),
    ],
)
def test_what_is_no_weight_is_refused(ilu: Ilu, flags: list[str], message: str) -> None:
    done = ilu("unlearn", "--method", "npo", "--dry-run", *flags)
    assert done.code == 2, done.err
    assert message in done.err


def test_a_share_by_its_flag(ilu: Ilu, tiny: Any) -> None:
    flags = [
        "--irm-env",
        "gsm8k",
        "--irm-weight",
        "share:0.5",
        "--steps",
        "3",
        "--set",
        "forget.batch=4",
        "--source",
        "builtin",
    ]
    done = ilu("unlearn", "--method", "npo", "--model", tiny, "--set", "retain.weight=share:2", *flags)
    assert done.code == 0, done.err
    rows = [json.loads(line) for line in (Path(done.out.strip()) / "metrics.jsonl").read_text().splitlines()]
    first = rows[0]["gradient[retain]"] / rows[0]["gradient[irm]"]
    assert first == pytest.approx(4, rel=1e-6)
    assert all(row["weight[irm]"] > 0 for row in rows)
