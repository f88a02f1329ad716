"""What a pass over a decoder takes, kept on disk: a model is traced once for each form of its batches."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

from ilu_cli.engine.kept import Tensors, kept
from ilu_cli.models import hold, names, traced
from ilu_cli.models.traced import LayerCost, Mode, Trace, Work
from ilu_cli.runs.manifest import version
from ilu_cli.runs.results import Row

KNOWN = {"torch", "transformers", "peft"}  # packages whose code their version tells


def kept_trace(model: Any, rows: int, length: int, mode: Mode) -> Trace:
    """`ilu_cli.models.traced.traced`, read from disk (`ilu_cli.engine.kept`) if it was found before.

    It is kept by all that it depends on: configuration, modules, names, shapes and which weights are trained, and our
    code that traces. Of a model with code of its own nothing is kept.
    """

    def compute() -> Tensors:
        found = json.dumps(_written(traced.traced(model, rows, length, mode)))
        return {"json": torch.tensor(list(found.encode()), dtype=torch.uint8)}

    found = kept(_source(model, rows, length, mode), compute)["json"]
    return _read(json.loads(found.numpy().tobytes()))


def _source(model: Any, rows: int, length: int, mode: Mode) -> list[Any] | None:
    """What tells a trace; None if it cannot be told."""
    kinds = [(name, type(m).__module__, type(m).__qualname__) for name, m in model.named_modules()]
    packages = {module.partition(".")[0] for _, module, _ in kinds}
    if not packages <= KNOWN:
        return None
    config = {k: v for k, v in model.config.to_dict().items() if k != "_name_or_path"}
    attention = model.config._attn_implementation
    weights = [
        (name, list(p.shape), p.requires_grad, p.is_floating_point(), id(p) in mode.small)
        for name, p in model.named_parameters(remove_duplicate=False)
    ]
    told = json.dumps([config, attention, kinds, weights], sort_keys=True, default=str)
    code = b"".join(Path(module.__file__ or "").read_bytes() for module in (traced, hold, names))
    digests = [hashlib.sha256(text).hexdigest() for text in (told.encode(), code)]
    versions = [version(name) for name in sorted(packages)]
    return ["trace", *digests, versions, rows, length, mode.half, mode.again, mode.packed, mode.grad]


def _written(found: Trace) -> Row:
    layers = [{f.name: _plain(getattr(cost, f.name)) for f in fields(LayerCost)} for cost in found.layers]
    return {"around": found.around, "layers": layers, "after": found.after, "outside": _plain(found.outside)}


def _plain(value: int | Work) -> Any:
    return value if isinstance(value, int) else [[*key, count] for key, count in value.items()]


def _read(told: Row) -> Trace:
    layers = [LayerCost(**{name: _value(v) for name, v in cost.items()}) for cost in told["layers"]]
    return Trace(told["around"], layers, told["after"], _value(told["outside"]))


def _value(told: Any) -> Any:
    return told if isinstance(told, int) else Counter({(flops, moved): count for flops, moved, count in told})
