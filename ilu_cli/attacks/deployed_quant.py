from __future__ import annotations

import functools
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from ilu_cli.recipe.specs import Some
from ilu_cli.registry import attack

if TYPE_CHECKING:
    from torch import Tensor

    from ilu_cli.attacks import Attempt
    from ilu_cli.recipe.schema import AttackRecipe
    from ilu_cli.recipe.source import Key

Format = Literal["nf4", "int8", "int4", "q4_k"]
FORMATS: tuple[Format, ...] = ("nf4", "int8", "int4", "q4_k")
PACKAGES = {
    "nf4": ("bitsandbytes", "pip install 'ilu[small]'"),
    "int8": ("torchao", "pip install torchao"),
    "int4": ("torchao", "pip install torchao"),
    "q4_k": ("llama_cpp", "pip install llama-cpp-python"),
}
GROUP = 32  # inputs that share a scale in torchao's int4


def _problems(own: Any, key: Key, _recipe: AttackRecipe) -> Iterator[tuple[Key, str]]:
    for i, name in enumerate(own.formats):
        package, remedy = PACKAGES[name]
        if importlib.util.find_spec(package) is None:
            yield (*key, "formats", i), f"{name} needs the package {package}, which is not here: {remedy}"
        elif name == "q4_k" and not _libraries():
            yield (*key, "formats", i), f"the package llama_cpp that is here has no library ggml-base: {remedy}"


@attack(strength="format", access="weights", unattacked=0, problems=_problems)
def deployed_quant(attempt: Attempt, *, formats: Some[Format] = ["nf4"]) -> Iterator[int]:
    """Quantise the weights as people do who run a model: by bitsandbytes, torchao, or llama.cpp itself.

    `nf4` is bitsandbytes' NF4 in blocks of 64 (arXiv 2305.14314); `int8` and `int4` are torchao's weight-only formats,
    a scale for each row and for each 32 inputs of a row; `q4_k` is llama.cpp's. The library quantises each matrix of
    the decoder's layers, and what it makes of it is evaluated as the numbers it stands for. Departures: embeddings and
    LM head stay (GGUF files and torchao take them too), every matrix gets the same format (Q4_K_M gives some more
    bits), and what is computed in half precision there is in `eval.precision` here. A row that is no multiple of 256 is
    q5_0 instead of q4_k, as llama.cpp has it, or float16; one that is no multiple of 32 stays as it is in int4.
    """
    for name in formats:
        attempt.transform(functools.partial(_stored, name=name))
        attempt.name(name)
        yield FORMATS.index(name) + 1


def _stored(weight: Tensor, _name: str, name: Format) -> Tensor:
    return stored(weight, name)


def stored(weight: Tensor, name: Format) -> Tensor:
    """What a matrix [O, I] is after it was quantised in this format, in float32."""
    if name == "nf4":
        import bitsandbytes.functional as nf4

        codes, state = nf4.quantize_4bit(weight.float().contiguous(), blocksize=64, quant_type="nf4")
        return cast("Tensor", nf4.dequantize_4bit(codes, state))
    return _by_llama_cpp(weight) if name == "q4_k" else _by_torchao(weight, name)


def _by_torchao(weight: Tensor, name: Format) -> Tensor:
    import torch
    from torchao.quantization import Int8WeightOnlyConfig, IntxWeightOnlyConfig, quantize_
    from torchao.quantization.granularity import PerGroup

    outputs, inputs = weight.shape
    if name == "int4" and inputs % GROUP:
        return weight
    int4 = IntxWeightOnlyConfig(weight_dtype=cast("Any", torch).int4, granularity=PerGroup(GROUP))
    linear = torch.nn.Linear(inputs, outputs, bias=False, device=weight.device)
    linear.weight = torch.nn.Parameter(weight.float().clone(), requires_grad=False)
    quantize_(linear, int4 if name == "int4" else Int8WeightOnlyConfig())
    found: Any = linear.weight
    return cast("Tensor", found.dequantize())


def _libraries() -> list[Path]:
    """ggml's own library, as llama-cpp-python brings it."""
    spec = importlib.util.find_spec("llama_cpp")
    folders = map(Path, spec.submodule_search_locations or []) if spec else []
    return [path for folder in folders for path in sorted(folder.glob("lib/*ggml-base.*"))]


@functools.cache
def _quantizer() -> Any:
    import ctypes

    found = ctypes.CDLL(str(_libraries()[0])).ggml_quantize_chunk
    found.restype = ctypes.c_size_t
    size, place = ctypes.c_int64, ctypes.c_void_p
    found.argtypes = [ctypes.c_int, place, place, size, size, size, place]
    return found


def _by_llama_cpp(weight: Tensor) -> Tensor:
    """`ggml_quantize_chunk` without an importance matrix; read back by the package gguf."""
    import numpy as np
    import torch
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
    from gguf.quants import dequantize

    rows, inputs = weight.shape
    kinds = (GGMLQuantizationType.Q4_K, GGMLQuantizationType.Q5_0)
    kind = next((k for k in kinds if inputs % GGML_QUANT_SIZES[k][0] == 0), None)
    if kind is None:
        return weight.half().float()
    block, size = GGML_QUANT_SIZES[kind]
    given = np.ascontiguousarray(weight.float().cpu().numpy())
    codes = np.empty((rows, inputs // block * size), np.uint8)
    _quantizer()(int(kind), given.ctypes.data, codes.ctypes.data, 0, rows, inputs, None)
    return torch.from_numpy(dequantize(codes, kind)).to(weight.device)
