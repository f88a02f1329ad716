"""Inner products by name, by hand: which vectors, which weights, in which order."""

from __future__ import annotations

import pytest
import torch

from ilu_cli.taskvec.angles import Gram, Grams, type_of


def gram() -> Gram:
    """u = (3, 4), v = (4, 3), o = 0."""
    return Gram(["u", "v", "o"], torch.tensor([[25.0, 24, 0], [24, 25, 0], [0, 0, 0]], dtype=torch.float64))


def test_norms_and_cosines() -> None:
    g = gram()
    assert (g.norm("u"), g.norm("o"), g.inner("u", "v"), g.inner("v", "u")) == (5, 0, 24, 24)
    assert g.cosine("u", "v") == pytest.approx(24 / 25)
    assert g.cosine("u", "o") is None
    assert g.pairs() == [("u", "v"), ("u", "o"), ("v", "o")]
    assert g.as_dict() == {
        "norms": {"u": 5, "v": 5, "o": 0},
        "cosines": {"u·v": pytest.approx(0.96), "u·o": None, "v·o": None},
    }


def test_a_norm_that_rounding_made_negative_is_zero() -> None:
    assert Gram(["u"], torch.tensor([[-1e-30]], dtype=torch.float64)).norm("u") == 0


def test_some_of_the_vectors_in_another_order() -> None:
    some = Gram(["u", "v", "w"], torch.arange(9.0).view(3, 3)).only(["w", "u"])
    assert some.names == ["w", "u"]
    assert some.products.tolist() == [[8, 6], [2, 0]]


def grams() -> Grams:
    def of(a: float, b: float, c: float) -> torch.Tensor:
        return torch.tensor([[a, b], [b, c]], dtype=torch.float64)

    weights = {
        "x.layers.10.a.weight": of(1, 2, 3),
        "x.layers.2.a.weight": of(10, 20, 0),
        "x.layers.2.b.weight": of(0, 0, 5),
    }
    return Grams(["u", "v"], {"embed.weight": of(100, 0, 7), **weights})


def test_sums_over_weights() -> None:
    assert grams().total().products.tolist() == [[111, 22], [22, 15]]
    assert grams().total(lambda name: ".2." in name).products.tolist() == [[10, 20], [20, 5]]
    none = grams().total(lambda name: False)
    assert (none.names, none.products.tolist(), none.products.dtype) == (["u", "v"], [[0, 0], [0, 0]], torch.float64)


def test_groups_stand_in_the_order_of_the_layers_and_others_last() -> None:
    groups = {"embed": "other", "x.layers.10": "layer 10", "x.layers.2": "layer 2"}
    found = grams().by(lambda name: next(g for start, g in groups.items() if name.startswith(start)))
    assert list(found) == ["layer 2", "layer 10", "other"]
    assert [g.products.tolist() for g in found.values()] == [
        [[10, 20], [20, 5]],
        [[1, 2], [2, 3]],
        [[100, 0], [0, 7]],
    ]
    mixed = {"embed": "norms", "x.layers.10": "layer 10", "x.layers.2": "layer 0"}
    found = grams().by(lambda name: next(g for start, g in mixed.items() if name.startswith(start)))
    assert list(found) == ["norms", "layer 0", "layer 10"]
    assert list(grams().by(lambda name: "norms" if "embed" in name else "attention")) == ["attention", "norms"]


def test_some_vectors_of_all_weights_and_the_weights_that_one_touches() -> None:
    some = grams().only(["v"])
    assert some.names == ["v"]
    assert {name: g.tolist() for name, g in some.by_weight.items()} == {
        "embed.weight": [[7]],
        "x.layers.10.a.weight": [[3]],
        "x.layers.2.a.weight": [[0]],
        "x.layers.2.b.weight": [[5]],
    }
    assert grams().touched("u") == ["embed.weight", "x.layers.10.a.weight", "x.layers.2.a.weight"]
    assert grams().touched("v") == ["embed.weight", "x.layers.10.a.weight", "x.layers.2.b.weight"]


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("model.layers.3.self_attn.q_proj.weight", "q_proj"),
        ("model.layers.3.mlp.down_proj.bias", "down_proj"),
        ("model.layers.3.input_layernorm.weight", "norms"),
        ("transformer.h.0.ln_1.weight", "norms"),
        ("transformer.wte.weight", "embeddings"),
        ("transformer.wpe.weight", "embeddings"),
        ("model.embed_tokens.weight", "embeddings"),
        ("lm_head.weight", "head"),
        ("embed_out.weight", "head"),
        ("weight", "weight"),
    ],
)
def test_the_type_of_a_weight(name: str, kind: str) -> None:
    assert type_of(name) == kind
