import numpy as np
import pytest
import torch

from ilu_cli.taskvec.arithmetic import combine

WEIGHT = torch.tensor([[1.0, 2.0], [3.0, 4.0]], dtype=torch.float64)
A = torch.tensor([[4.0, -1.0], [0.5, 2.0]], dtype=torch.float64)
B = torch.tensor([[-1.0, -3.0], [0.1, 0.2]], dtype=torch.float64)


def test_linear_is_the_weighted_sum() -> None:
    found = combine(WEIGHT, [A, B], [-1.0, 0.5], "linear", None, 0, "w")
    assert torch.equal(found, WEIGHT - A + 0.5 * B)


def test_magnitude_keeps_the_largest_of_each() -> None:
    found = combine(WEIGHT, [A, B], [1.0, 1.0], "magnitude", 0.5, 0, "w")
    assert (found - WEIGHT).tolist() == [[4 - 1, -3], [0, 2]]


def test_ties_by_hand() -> None:
    """Trimmed: A has 4 and 2, B has −1 and −3. The first entry elects +, so B's −1 does not count."""
    found = combine(WEIGHT, [A, B], [1.0, 1.0], "ties", 0.5, 0, "w")
    assert (found - WEIGHT).tolist() == [[4, -3], [0, 2]]
    negated = combine(WEIGHT, [A, B], [1.0, -1.0], "ties", 0.5, 0, "w")  # −B agrees there: the mean of 4 and 1
    assert (negated - WEIGHT).tolist() == [[2.5, 3], [0, 2]]


def test_dare_drops_at_random_rescales_and_depends_on_seed_and_name_only() -> None:
    big = torch.ones(200, 100, dtype=torch.float64)
    first = combine(torch.zeros_like(big), [big], [2.0], "dare", 0.25, 1, "w")
    assert set(np.unique(first.numpy())) == {0.0, 8.0}
    assert float(first.mean()) == pytest.approx(2.0, rel=0.05)
    torch.manual_seed(99)
    assert torch.equal(first, combine(torch.zeros_like(big), [big], [2.0], "dare", 0.25, 1, "w"))
    assert not torch.equal(first, combine(torch.zeros_like(big), [big], [2.0], "dare", 0.25, 2, "w"))
    assert not torch.equal(first, combine(torch.zeros_like(big), [big], [2.0], "dare", 0.25, 1, "v"))
