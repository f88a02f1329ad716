"""A causal language model taken apart: decoder, layers, LM head."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ilu_cli.errors import UsageError


@dataclass(frozen=True)
class Parts:
    """A causal language model taken apart: decoder, its layers, and the LM head as a plain matrix."""

    decoder: nn.Module
    layers: nn.ModuleList
    head: nn.Linear

    def hidden_at(self, layer: int, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Run the decoder up to and including `layer` and no further; return its output [B, T, D]."""
        captured: list[torch.Tensor] = []

        def stop(_module: nn.Module, _args: Any, output: Any) -> None:
            captured.append(output[0] if isinstance(output, tuple) else output)
            raise _Reached

        handle = self.layers[layer].register_forward_hook(stop)
        try:
            self.decoder(input_ids=input_ids, attention_mask=attention_mask, use_cache=False)
        except _Reached:
            pass
        finally:
            handle.remove()
        return captured[0]

    def final(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, **extra: Any) -> torch.Tensor:
        """The decoder's last hidden state [B, T, D], which the LM head reads."""
        return self.decoder(
            input_ids=input_ids, attention_mask=attention_mask, use_cache=False, **extra
        ).last_hidden_state


class _Reached(Exception):
    """The wanted layer has been run."""


def parts_of(model: Any) -> Parts:
    """Take a model apart.

    Raises:
        UsageError: if it has no plain LM head or no list of layers.
    """
    decoder, head, depth = model.get_decoder(), model.get_output_embeddings(), model.config.num_hidden_layers
    layers = next((m for m in decoder.modules() if isinstance(m, nn.ModuleList) and len(m) == depth), None)
    if not isinstance(head, nn.Linear) or layers is None:
        raise UsageError(
            f"{type(model).__name__} is not supported: it has no plain LM head or no list of {depth} layers"
        )
    return Parts(decoder, layers, head)


@torch.no_grad()
def check_plain_head(model: Any, parts: Parts) -> None:
    """Check that logits are the LM head's product and nothing more (no soft cap, no scale), as our loss assumes.

    Raises:
        UsageError: if they are not.
    """
    ids = torch.arange(4, device=parts.head.weight.device).remainder(parts.head.out_features)[None]
    mask = torch.ones_like(ids)
    ours = parts.head(parts.final(ids, mask))
    theirs = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
    if not torch.allclose(ours, theirs, rtol=1e-3, atol=1e-3):
        raise UsageError(f"{type(model).__name__} is not supported: it transforms its logits after the LM head")
