"""How memory is saved in training, at the price of time, of rounding, or of where things lie."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from ilu_cli.recipe.source import Key
from ilu_cli.recipe.spec import Spec

BACKEND = "needs the package bitsandbytes, which is not here: pip install 'ilu[small]'"


class MemorySpec(Spec):
    """What is kept smaller, computed again, or kept elsewhere. What is trained is stepped in float32 always."""

    checkpointing: bool = Field(
        False, description="keep of each layer only its input, and compute the rest again in the backward pass"
    )
    frozen: Literal["fp32", "bf16", "nf4"] = Field(
        "fp32",
        description="how matrices of the layers are kept that are not trained. bf16: what autocast makes of them, so "
        "that no step changes; nf4: rounded to 4 bits, under an adapter (QLoRA, arXiv 2305.14314)",
    )
    optimizer_bits: Literal[32, 8] = Field(
        32,
        description="Adam's moments; 8: quantised in blocks of 256 (arXiv 2110.02861)",
        json_schema_extra={"maximum": 32},
    )
    offload: Literal["optimizer"] | None = Field(
        None, description="optimizer: Adam's moments lie in main memory, and steps are taken there"
    )

    def problems(
        self, key: Key, precision: str, optimizer: str, *, adapter: bool, partial: bool
    ) -> Iterator[tuple[Key, str]]:
        """What is impossible or does nothing. `partial`: some weights are not trained, if not for an `adapter`."""
        if self.frozen != "fp32" and not (adapter or partial):
            yield (*key, "frozen"), f"every weight is trained, so none is kept in {self.frozen}"
        elif self.frozen == "nf4" and not adapter:
            yield (*key, "frozen"), "weights in 4 bits cannot be saved with trained ones: train an adapter (lora)"
        if self.frozen == "bf16" and precision == "fp32":
            yield (*key, "frozen"), "bf16 is what autocast computes in: it needs precision bf16"
        if optimizer != "adamw" and (self.optimizer_bits != 32 or self.offload):
            yield key, f"optimizer_bits and offload are of AdamW's moments, and the optimiser is {optimizer}"
        for name in self._needing():
            if importlib.util.find_spec("bitsandbytes") is None:
                yield (*key, name), f"{getattr(self, name)} {BACKEND}"

    def _needing(self) -> Iterator[str]:
        yield from ["frozen"] if self.frozen == "nf4" else []
        yield from ["optimizer_bits"] if self.optimizer_bits == 8 else []
