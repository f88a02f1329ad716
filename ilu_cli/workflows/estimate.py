"""How many bytes a training takes at its peak, by kind, from counts alone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from ilu_cli.engine.accel import backend
from ilu_cli.engine.stream import TrainStream
from ilu_cli.engine.tiles import CHUNK, ROWS, TILE
from ilu_cli.models.hold import BYTES, held
from ilu_cli.recipe.specs import TrainSpec

MOMENTS = {"adamw": 2, "muon": 2, "momentum": 1, "sgd": 0, "adafactor": 0}  # at most; two vectors are not counted
MOMENT = {32: 4.0, 8: 1 + 4 / 256}  # bytes of one of Adam's; bitsandbytes has a float32 for each 256


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes on one device, by kind. `loading`: while the weights are read, all in float32; before all else is made."""

    weights: int
    copies: int
    gradients: int
    optimizer: int
    activations: int
    logits: int
    caches: int
    loading: int

    @property
    def peak(self) -> int:
        """Bytes at the highest point."""
        training: int = sum(asdict(self).values()) - self.loading
        return max(training, self.loading)


def tokens_of(streams: Iterable[TrainStream], accumulation: int) -> int:
    """Tokens of the largest micro-batch of one process."""
    most = 0
    for s in streams:
        longest = max(c.longest for c in s.corpora)
        most = max(most, -(-s.batch // accumulation) * longest * (2 if s.chosen else 1))
    return most


def estimate(
    model: Any, params: Sequence[nn.Parameter], trained_from: int, tokens: int, spec: TrainSpec, cached: int
) -> MemoryEstimate:
    """Price a training of `params` on micro-batches of so many `tokens`.

    Args:
        model: on the meta device, with its adapter if it gets one.
        trained_from: the first layer that is trained; backward passes through it and all above.
        cached: bytes of the reference cache.
    """
    memory, config, half = spec.memory, model.config, spec.precision == "bf16"
    total, trainable = sum(p.numel() for p in model.parameters()), sum(p.numel() for p in params)
    small = sum(m.weight.numel() for m in held(model, params)) if memory.frozen != "fp32" else 0
    head = config.vocab_size * config.hidden_size * 4 if trained_from == 0 else 0
    return MemoryEstimate(
        weights=int(4 * (total - small) + BYTES[memory.frozen] * small),
        copies=2 * (total - small) if half else 0,
        gradients=4 * trainable,
        optimizer=int(_stepping(spec) * trainable),
        activations=_activations(config, tokens, config.num_hidden_layers - trained_from, spec),
        logits=3 * 4 * max(CHUNK * config.vocab_size, ROWS * TILE) + head,
        caches=cached,
        loading=4 * total,
    )


def _stepping(spec: TrainSpec) -> float:
    """Bytes for each trained weight that stepping takes on the device; if that is the CPU, offloading costs a copy."""
    moments = MOMENTS[spec.optimizer] * MOMENT[spec.memory.optimizer_bits]
    if spec.memory.offload is None:
        return moments
    return moments + 4 if backend().device.type == "cpu" else 0.0


def _activations(config: Any, tokens: int, depth: int, spec: TrainSpec) -> int:
    """What `depth` layers keep for the backward pass; checkpointed, the input of each and the inside of one."""
    hidden, width = int(config.hidden_size), 2 if spec.precision == "bf16" else 4
    inner = int(getattr(config, "intermediate_size", None) or 4 * hidden)
    inside, between = tokens * ((8 * hidden + 4 * inner) * width + 2 * hidden * 4), tokens * hidden * 4
    return inside + depth * between if spec.memory.checkpointing and depth > 1 else inside * depth
