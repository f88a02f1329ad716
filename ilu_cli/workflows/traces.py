"""What a pass over a decoder takes, kept on disk: a model is traced once for each form of its batches."""

from __future__ import annotations

from collections import Counter
from dataclasses import fields
from typing import Any

from ilu_cli.models import traced
from ilu_cli.models.kept import told
from ilu_cli.models.traced import LayerCost, Mode, Trace, Work
from ilu_cli.runs.manifest import version
from ilu_cli.runs.results import Row

KNOWN = {"torch", "transformers", "peft"}  # packages whose code their version tells


def kept_trace(model: Any, rows: int, length: int, mode: Mode) -> Trace:
    """`ilu_cli.models.traced.traced`, read from disk (`ilu_cli.models.kept`) if it was found before.

    It is kept by all that it depends on: configuration, modules, names, shapes and which weights are trained, and our
    code. Of a model with code of its own nothing is kept.
    """
    source = _source(model, rows, length, mode)
    return _read(told(source, lambda: _written(traced.traced(model, rows, length, mode))))


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
    versions = [version(name) for name in sorted(packages)]
    how = [rows, length, mode.half, mode.again, mode.packed, mode.grad]
    return ["trace", str(config), attention, kinds, weights, versions, *how]


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
