"""Where a layer's MLP is, told by what it is, against its name in every family."""

from __future__ import annotations

import pytest
import torch
from families import FAMILIES, family_model
from torch import nn

from ilu_cli.errors import UsageError
from ilu_cli.models.maps import mlp_of
from ilu_cli.models.parts import parts_of

NAMES = {"opt": "fc2", "mpt": "ffn", "lfm2": "feed_forward", "mamba": "mixer"}


@pytest.mark.parametrize("name", FAMILIES)
def test_the_mlp_is_the_module_of_that_name_and_its_output_is_read(name: str) -> None:
    parts = parts_of(family_model(name))
    named = [layer.get_submodule(NAMES.get(name, "mlp")) for layer in parts.layers]
    assert [mlp_of(layer, parts.width, n) for n, layer in enumerate(parts.layers)] == named
    ids = torch.tensor([[3, 5, 7, 9], [4, 6, 8, 2]])
    seen: list[torch.Tensor] = []
    handle = named[0].register_forward_hook(lambda _m, _a, out: seen.append(out[0] if isinstance(out, tuple) else out))
    with torch.no_grad():
        [found] = parts.mlp_at([0], ids, torch.ones_like(ids))
    handle.remove()
    assert found.shape == (2, 4, parts.width)
    torch.testing.assert_close(found.flatten(), seen[0].flatten(), rtol=0, atol=0)


def test_a_layer_without_one_is_refused() -> None:
    with pytest.raises(UsageError, match=r"layer 3 \(Sequential\) has 0 modules that write as an MLP does"):
        mlp_of(nn.Sequential(nn.LayerNorm(8)), 8, 3)
