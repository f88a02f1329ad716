"""A causal language model taken apart: decoder, layers, LM head."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from ilu_cli.errors import UsageError
from ilu_cli.models.kept import source_of, told
from ilu_cli.models.logits import LMHead, check_states, head_of, short_text
from ilu_cli.models.maps import mlp_of
from ilu_cli.models.packed import PackedRows, Packing
from ilu_cli.models.sharded import layers_in, whole


@dataclass(frozen=True)
class Parts:
    """A causal language model taken apart: decoder, its layers, and the LM head.

    `ends_early`: whether the decoder with fewer layers in its list gives what those layers give in it whole.
    `packing`: when it runs a padded batch as one sequence; what comes of it is [B, T, D] all the same. `padded`: why it
    never does, where that was looked at. `identity`: what tells the weights with which it was taken apart, as JSON: by
    it what is found by trying them is kept (`ilu_cli.models.kept`). None: nothing is.
    """

    decoder: nn.Module
    layers: nn.ModuleList
    head: LMHead
    ends_early: bool = field(default=True, kw_only=True)
    packing: Packing | None = field(default=None, kw_only=True)
    padded: str = field(default="", kw_only=True)
    identity: list[Any] | None = field(default=None, kw_only=True, compare=False)

    @property
    def width(self) -> int:
        """D, the units of a layer's output."""
        config: Any = self.decoder.config
        return int(config.hidden_size)

    def hidden_at(self, layer: int, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Run the decoder up to and including `layer` and no further; return its output [B, T, D]."""
        return self.states_at([layer], input_ids, attention_mask)[0]

    def states_at(
        self, layers: Sequence[int], input_ids: torch.Tensor, attention_mask: torch.Tensor
    ) -> list[torch.Tensor]:
        """The outputs [B, T, D] of these layers, in their order, by one pass that ends at the deepest.

        The final norm is run on the deepest for nothing. A decoder that does not end early is run whole.
        """
        return self._outputs({n: self.layers[n] for n in layers}, layers, input_ids, attention_mask)

    def mlp_at(
        self, layers: Sequence[int], input_ids: torch.Tensor, attention_mask: torch.Tensor
    ) -> list[torch.Tensor]:
        """The same of the MLPs in these layers: what each writes, before a norm of the layer's own.

        Raises:
            UsageError: if one of them has no MLP that is known as one.
        """
        modules = {n: mlp_of(self.layers[n], self.width, n) for n in layers}
        found = self._outputs(modules, layers, input_ids, attention_mask)
        return [states.reshape(*input_ids.shape, self.width) for states in found]  # OPT's come as one row of tokens

    def _outputs(
        self, modules: Mapping[int, nn.Module], layers: Sequence[int], input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
    ) -> list[torch.Tensor]:  # fmt: skip
        found: dict[int, torch.Tensor] = {}

        def keep(n: int) -> Callable[[nn.Module, Any, Any], None]:
            def run(_module: nn.Module, _args: Any, output: Any) -> None:
                found[n] = _states(output)

            return run

        depth = max(layers) + 1 if self.ends_early else len(self.layers)
        with ExitStack() as stack:
            for n in layers:
                stack.callback(modules[n].register_forward_hook(keep(n)).remove)
            stack.enter_context(shortened(self.layers, depth))
            self.run(input_ids, attention_mask)
        rows = self._rows(attention_mask)
        return [rows.unpack(found[n]) if rows else found[n] for n in layers]

    def final(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, **extra: Any) -> torch.Tensor:
        """The decoder's last hidden state [B, T, D], which the LM head reads."""
        states: torch.Tensor = self.run(input_ids, attention_mask, **extra).last_hidden_state
        return states

    def run(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, **extra: Any) -> Any:
        """What the decoder returns of right-padded ids and mask [B, T]."""
        rows = None if extra else self._rows(attention_mask)
        if rows is None:
            return self.decoder(input_ids=input_ids, attention_mask=attention_mask, use_cache=False, **extra)
        out = self.decoder(**rows.inputs(input_ids), use_cache=False)
        out.last_hidden_state = rows.unpack(out.last_hidden_state)
        return out

    def _rows(self, mask: torch.Tensor) -> PackedRows | None:
        """As which rows in one sequence a batch is run, if so."""
        return self.packing.rows(mask) if self.packing else None

    def ended(self, states: torch.Tensor) -> torch.Tensor:
        """What the LM head would read if `states` [..., D] were the last layer's output: the final norm, and no layer.

        One layer, or all of a decoder that does not end early, is run on one token, and what it gives is not used.
        """
        ids = torch.zeros(1, 1, dtype=torch.long, device=states.device)
        depth = 1 if self.ends_early else len(self.layers)
        given = {depth - 1: lambda _: states.reshape(1, -1, states.shape[-1])}
        with shortened(self.layers, depth), changed(self.layers, given):
            found: torch.Tensor = Parts.run(self, ids, torch.ones_like(ids)).last_hidden_state
        return found.view(states.shape)


def decoder_layers(model: Any) -> nn.ModuleList:
    """The list of a model's layers, whatever it is called.

    Raises:
        UsageError: if it has none.
    """
    depth = model.config.num_hidden_layers
    layers = layers_in(model.get_decoder(), depth)
    if layers is None:
        raise UsageError(f"{type(model).__name__} is not supported: it has no list of {depth} layers")
    return layers


def parts_of(model: Any, identity: list[Any] | None = None) -> Parts:
    """Take a model apart, after checking that its logits are what we compute from the parts.

    Args:
        identity: as in `Parts`.

    Raises:
        UsageError: if it has no list of layers, no plain LM head, or does more to its states or logits than we know.
    """
    config, name = model.config, type(model).__name__
    if config.get_text_config() is not config or config.is_encoder_decoder:
        raise UsageError(
            f"{name} is not supported: it is more than a decoder of texts",
            hint="save its language model by itself, in its family's ForCausalLM class, and give that folder",
        )
    if _looks_ahead(config):
        raise UsageError(f"{name} is not supported: its tokens see those that follow, so it gives texts no likelihood")
    decoder, head, layers = model.get_decoder(), model.get_output_embeddings(), decoder_layers(model)
    if not isinstance(head, nn.Linear) or decoder is model:
        raise UsageError(f"{name} is not supported: it has no plain LM head")
    parts = Parts(decoder, layers, head_of(model, decoder, head), identity=identity)
    if head.weight.device.type == "meta":
        return parts
    ends_early = told(source_of(model, identity and ["parts", *identity]), lambda: _tried(model, head, parts))
    return replace(parts, ends_early=ends_early)


def _tried(model: Any, head: nn.Linear, parts: Parts) -> bool:
    """Check what enters the LM head, and tell whether the decoder ends early."""
    first: list[torch.Tensor] = []
    handle = parts.layers[0].register_forward_hook(lambda _module, _args, output: first.append(_states(output)))
    try:
        whole(model, lambda: check_states(model, head, parts.final))
    finally:
        handle.remove()
    return _ends_early(parts, first[-1])


@torch.no_grad()
def _ends_early(parts: Parts, first: torch.Tensor) -> bool:
    """Whether the first layer alone gives of the short text what it gave in the whole decoder, `first`."""
    ids, mask = short_text(parts.head.weight)
    try:
        return torch.allclose(whole(parts.decoder, lambda: parts.hidden_at(0, ids, mask)), first, equal_nan=True)
    except torch.OutOfMemoryError:
        raise
    except Exception:  # whatever a decoder may raise that counts on all its layers
        return False


@contextmanager
def shortened(layers: nn.ModuleList, depth: int) -> Iterator[None]:
    """Leave only the first `depth` layers in the list."""
    whole = layers._modules
    layers._modules = dict(itertools.islice(whole.items(), depth))  # anew: others may be going through the old one
    try:
        yield
    finally:
        layers._modules = whole


@contextmanager
def changed(layers: nn.ModuleList, changes: Mapping[int, Callable[[torch.Tensor], torch.Tensor]]) -> Iterator[None]:
    """Replace the output [B, T, D] of these layers by `change(output)`."""

    def hook(change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[nn.Module, Any, Any, Any], Any]:
        def run(_module: nn.Module, _args: Any, given: Any, output: Any) -> Any:
            rows: PackedRows | None = given.get("rows")
            new = rows.pack(change(rows.unpack(_states(output)))) if rows else change(_states(output))
            return (new, *output[1:]) if isinstance(output, tuple) else new

        return run

    with ExitStack() as stack:
        for n, change in changes.items():
            stack.callback(layers[n].register_forward_hook(hook(change), with_kwargs=True).remove)
        yield


def _states(output: Any) -> torch.Tensor:
    """[B, T, D], of what a layer returns: they alone, or first of several."""
    states: torch.Tensor = output[0] if isinstance(output, tuple) else output
    return states


def _looks_ahead(config: Any) -> bool:
    """Whether attention is not causal, as far as a configuration says; the comparison after loading looks again."""
    both = getattr(config, "use_bidirectional_attention", None) in (True, "all")
    return both or config.model_type == "xlnet" or getattr(config, "causal", None) is False
