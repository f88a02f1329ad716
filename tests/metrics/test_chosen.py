"""The worst of equal attacks, chosen on other questions, is not below the truth; the plain one is."""

from __future__ import annotations

import numpy as np
import pytest

from ilu_cli.metrics.chosen import chosen_elsewhere


def test_six_equal_attacks_look_worse_than_they_are_and_do_not_elsewhere() -> None:
    """FQ 0.5, 170 questions that are as hard for one attack as for another: 2,000 data sets, standard errors 0.001."""
    rng, plain, found = np.random.default_rng(0), [], []
    for _ in range(2000):
        hard = rng.normal(0, 1.5, 170)
        forgotten = (hard + rng.normal(0, 1, (6, 170)) > 0).astype(float)
        plain.append(forgotten.mean(1).min() - 0.5)
        found.append(chosen_elsewhere(forgotten).mean() - 0.5)
    assert np.mean(plain) < -0.025
    assert abs(np.mean(found)) < 0.003


def test_an_attack_that_is_truly_worse_is_found() -> None:
    rng = np.random.default_rng(1)
    forgotten = (rng.random((4, 200)) < np.array([0.7, 0.3, 0.7, 0.7])[:, None]).astype(float)
    assert chosen_elsewhere(forgotten) == pytest.approx(forgotten[1])


def test_by_hand_and_the_order_of_the_candidates_does_not_matter() -> None:
    """A is 0 on its first question and 1 on the other, B the reverse: what a half thinks lower is 1 on the other."""
    a = np.array([0.0, 1.0])
    assert chosen_elsewhere(np.stack([a, 1 - a])) == pytest.approx([1, 1])
    rng = np.random.default_rng(3)
    values = (rng.random((5, 40)) < 0.5).astype(float)
    assert chosen_elsewhere(values) == pytest.approx(chosen_elsewhere(values[::-1]))
    assert chosen_elsewhere(np.stack([values[0]] * 3)) == pytest.approx(values[0])  # ties are averaged


def test_one_candidate_or_one_question() -> None:
    values = np.array([[0.2, 0.4, 0.6]])
    assert chosen_elsewhere(values) == pytest.approx(values[0])
    assert chosen_elsewhere(np.array([[0.7], [0.3]])) == pytest.approx([0.3])
