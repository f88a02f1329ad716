import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from ilu_cli.errors import UnavailableError, UsageError
from ilu_cli.taskvec import delta
from ilu_cli.taskvec.angles import group_of, task_vectors
from ilu_cli.taskvec.delta import Checkpoint, changed_fraction

SHAPES = {"model.embed.weight": (7, 3), "model.layers.0.a": (4, 5), "model.layers.11.b": (6,)}


def checkpoint(folder, seed, files=1, **other):
    rng = np.random.default_rng(seed)
    tensors = {k: torch.tensor(rng.standard_normal(s), dtype=torch.float32) for k, s in SHAPES.items()} | other
    folder.mkdir(parents=True, exist_ok=True)
    names = sorted(tensors)
    for i in range(files):
        save_file({n: tensors[n] for n in names[i::files]}, folder / f"part-{i}.safetensors")
    return {n: t.double().numpy().ravel() for n, t in tensors.items()}


@pytest.mark.parametrize("block", [4, 1 << 22])
def test_norms_and_cosines_are_those_of_numpy(tmp_path, monkeypatch, block):
    monkeypatch.setattr(delta, "BLOCK", block)
    o, u, f, a = (checkpoint(tmp_path / n, i, files=1 + i % 3) for i, n in enumerate("oufa"))
    grams = task_vectors(*(Checkpoint(tmp_path / n) for n in "oufa"))
    for group in ("all", "layer 0", "layer 11", "other"):
        names = [n for n in sorted(SHAPES) if group in ("all", group_of(n))]
        flat = {k: np.concatenate([x[n] for n in names]) for k, x in zip("oufa", (o, u, f, a))}
        vectors = {"u": flat["u"] - flat["o"], "ft": flat["f"] - flat["o"], "u→ft": flat["a"] - flat["u"]}
        for x, v in vectors.items():
            assert grams[group].norm(x) == pytest.approx(np.linalg.norm(v), rel=1e-12)
            for y, w in vectors.items():
                expected = v @ w / np.linalg.norm(v) / np.linalg.norm(w)
                assert grams[group].cosine(x, y) == pytest.approx(expected, rel=1e-10)


def test_a_zero_vector_has_no_cosine(tmp_path):
    checkpoint(tmp_path / "o", 0)
    checkpoint(tmp_path / "a", 1)
    same = Checkpoint(tmp_path / "o")
    gram = task_vectors(same, same, None, Checkpoint(tmp_path / "a"))["all"]
    assert gram.cosine("u", "u→ft") is None
    assert gram.norm("u→ft") > 0


def test_other_weights_are_refused_by_name(tmp_path):
    checkpoint(tmp_path / "o", 0)
    checkpoint(tmp_path / "u", 1, extra=torch.ones(2), **{"model.layers.11.b": torch.ones(2, 3)})
    with pytest.raises(UnavailableError) as caught:
        task_vectors(Checkpoint(tmp_path / "o"), Checkpoint(tmp_path / "u"), None, None)
    assert "extra is missing" in str(caught.value)
    assert "model.layers.11.b is [6]" in str(caught.value)


def test_include_selects_and_must_match(tmp_path):
    for i, n in enumerate("ou"):
        checkpoint(tmp_path / n, i)
    pair = Checkpoint(tmp_path / "o"), Checkpoint(tmp_path / "u"), None, None
    assert set(task_vectors(*pair, include=["*layers.0.*"])) == {"all", "layer 0"}
    with pytest.raises(UsageError, match="matches no weight"):
        task_vectors(*pair, include=["nothing*"])


def test_changed_fraction_counts_elements(tmp_path):
    o = checkpoint(tmp_path / "o", 0)
    b = torch.tensor(o["model.layers.11.b"], dtype=torch.float32)
    b[:3] += 1
    checkpoint(tmp_path / "u", 0, **{"model.layers.11.b": b})
    assert changed_fraction(Checkpoint(tmp_path / "o"), Checkpoint(tmp_path / "u")) == pytest.approx(3 / (21 + 20 + 6))
