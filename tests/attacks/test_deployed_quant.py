"""What the libraries make of a matrix, against their formats by hand; and that one which is not here is named."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Ilu
from gguf import GGMLQuantizationType
from gguf.quants import dequantize, quantize

from ilu_cli.attacks.deployed_quant import FORMATS, PACKAGES, Format, stored

# arXiv 2305.14314, appendix E
NF4 = [
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
]  # fmt: skip
HERE = [name for name in FORMATS if importlib.util.find_spec(PACKAGES[name][0])]


def matrix(rows: int, inputs: int) -> torch.Tensor:
    return 0.02 * torch.randn(rows, inputs, generator=torch.Generator().manual_seed(0))


def nf4(w: torch.Tensor) -> torch.Tensor:
    blocks, code = w.reshape(-1, 64), torch.tensor(NF4)
    most = blocks.abs().amax(1, keepdim=True)
    return (code[((blocks / most)[..., None] - code).abs().argmin(-1)] * most).reshape(w.shape)


def grid(w: torch.Tensor, group: int, steps: float, low: int, high: int) -> torch.Tensor:
    """Symmetric, with `steps` between 0 and the largest of a group."""
    parts = w.reshape(len(w), -1, group)
    scale = parts.abs().amax(-1, keepdim=True) / steps
    return ((parts / scale).round().clamp(low, high) * scale).reshape(w.shape)


def q5_0(w: torch.Tensor) -> torch.Tensor:
    kind = GGMLQuantizationType.Q5_0
    return torch.from_numpy(dequantize(quantize(w.numpy(), kind), kind))


BY_HAND = {
    "nf4": nf4,
    "int8": lambda w: grid(w, w.shape[1], 127.5, -128, 127),
    "int4": lambda w: grid(w, 32, 7.5, -8, 7),
    "q4_k": q5_0,  # 576 is no multiple of 256
}


@pytest.mark.parametrize("name", HERE)
def test_a_matrix_is_what_its_format_says(name: Format) -> None:
    w = matrix(24, 576)
    found = stored(w, name)
    assert found.dtype == torch.float32
    within = torch.ones_like(w, dtype=torch.bool)
    if name == "int4":  # the largest of a group lies halfway between two codes, and may become either
        groups = w.reshape(len(w), -1, 32)
        within = (groups.abs() < groups.abs().amax(-1, keepdim=True)).reshape(w.shape)
        assert float((found - w)[~within].abs().max()) < 0.02 * 5 / 7.5
    torch.testing.assert_close(found[within], BY_HAND[name](w)[within], atol=1e-7, rtol=1e-5)
    assert not found.equal(w)


def test_a_super_block_is_llama_cpps_or_its_library_is_named(tiny: Path, ilu: Ilu) -> None:
    if "q4_k" in HERE:
        w = matrix(24, 512)
        found = stored(w, "q4_k")
        assert 0.05 < float((found - w).norm() / w.norm()) < 0.09  # 4.5 bits of normal numbers
        assert max(len(np.unique(part)) for part in found.reshape(-1, 32).numpy()) <= 16
        assert stored(matrix(4, 20), "q4_k").equal(matrix(4, 20).half().float())
    else:
        done = ilu("attack", tiny, "--kind", "deployed_quant", "--set", "attack.formats=[q4_k]", "--dry-run")
        assert done.code == 2
        assert "attack.formats.0: q4_k needs the package llama_cpp" in done.err


@pytest.mark.parametrize("name", FORMATS)
def test_a_package_that_is_not_here_is_named_in_the_plan(
    tiny: Path, ilu: Ilu, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    package, remedy = PACKAGES[name]
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda n, *a: None if n == package else find(n, *a))
    done = ilu("attack", tiny, "--kind", "deployed_quant", "--set", f"attack.formats=[{name}]", "--dry-run")
    assert done.code == 2
    assert f"attack.formats.0: {name} needs the package {package}, which is not here: {remedy}" in done.err


def test_an_unknown_format_is_named(tiny: Path, ilu: Ilu) -> None:
    done = ilu("attack", tiny, "--kind", "deployed_quant", "--set", "attack.formats=[nf5]", "--dry-run")
    assert done.code == 2
    assert "attack.formats" in done.err and "'nf4'" in done.err
