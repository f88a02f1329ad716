"""What is found without data, against PyTorch's own counter and against what autograd really keeps."""

from __future__ import annotations

import gc
import itertools
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as T
from conftest import noted, with_data
from families import FAMILIES, make_family
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from ilu_cli.engine.head import token_stats
from ilu_cli.models.load import add_adapter, empty_model, trained_params
from ilu_cli.models.logits import LMHead
from ilu_cli.models.packed import NAME
from ilu_cli.models.parts import parts_of
from ilu_cli.models.traced import Mode, Work, formula, trace, traced
from ilu_cli.recipe.specs import LoraSpec, TrainSpec
from ilu_cli.workflows.estimate import TrainingPrice
from ilu_cli.workflows.fit.roofline import Head, flops_of, head_work, work_of
from ilu_cli.workflows.moments import Ground
from ilu_cli.workflows.passes import ASKED, Passing

ROWS, LENGTH = 3, 10


def model(device: str = "cpu", **keys: Any) -> Any:
    """Attention is written out, of which PyTorch's counter sees every product."""
    config = T.LlamaConfig(
        vocab_size=50, hidden_size=32, intermediate_size=48, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, **keys,
    )  # fmt: skip
    with torch.device(device):
        return T.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()


def counted(real: Any, deepest: int | None) -> int:
    """FLOPs of a decoder's pass and its backward pass, as PyTorch counts them."""
    parts, ids = parts_of(real), torch.zeros(ROWS, LENGTH, dtype=torch.long)
    with FlopCounterMode(display=False) as counter:
        mask = torch.ones_like(ids)
        out = parts.final(ids, mask) if deepest is None else parts.hidden_at(deepest, ids, mask)
        out.square().sum().backward()
    return int(counter.get_total_flops())


@pytest.mark.parametrize(
    ("params", "lora", "deepest"),
    [(None, False, None), (["model.layers.[12].mlp.down_proj.weight"], False, 2), (None, True, None)],
    ids=["all weights", "RMU's early exit", "LoRA"],
)
def test_flops_are_those_of_pytorchs_counter(params: list[str] | None, lora: bool, deepest: int | None) -> None:
    real, empty = model(), model("meta")
    for m in (real, empty):
        if lora:
            add_adapter(m, LoraSpec(r=4), 0)
        trained_params(m, params, lora)
    found = trace(empty, ROWS, LENGTH, Mode(half=False))
    work = work_of(Passing("forget", ROWS, LENGTH, 0, deepest), found, Head(50, 32, True))
    assert flops_of(work) == counted(real, deepest)


@pytest.mark.parametrize("trained", [False, True])
def test_flops_of_the_head_are_those_of_pytorchs_counter(trained: bool) -> None:
    hidden, weight = torch.randn(7, 5, requires_grad=True), torch.randn(11, 5, requires_grad=trained)
    with FlopCounterMode(display=False) as counter:
        token_stats(hidden, LMHead(weight), torch.zeros(7, dtype=torch.long))[0].sum().backward()
    work = head_work(Passing("forget", 1, 8, 7), Head(11, 5, trained), backward=True)
    assert flops_of(work) == counter.get_total_flops()


def kept_by_autograd(layer: Any, x: Tensor, *args: Any, **kwargs: Any) -> int:
    """Bytes of all storages that a layer saves and gives, but for its weights, its input and what else it is given."""
    beside = [t for t in kwargs.values() if isinstance(t, Tensor)]
    given = [*layer.parameters(), x, *beside, *kwargs["position_embeddings"]]
    known = {t.untyped_storage().data_ptr() for t in given}
    saved: dict[int, Tensor] = {}

    def pack(t: Tensor) -> Tensor:
        saved[t.untyped_storage().data_ptr()] = t
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        out = layer(x, *args, **kwargs)
    pack(out)
    return sum(t.untyped_storage().nbytes() for key, t in saved.items() if key not in known)


def kept_by_the_second_layer(real: Any) -> int:
    """The same of that layer, as the model calls it on ROWS of LENGTH."""
    found = list[int]()
    layer, forward = real.model.layers[1], real.model.layers[1].forward

    def looked(x: Tensor, *args: Any, **kwargs: Any) -> Any:
        layer.forward = forward
        found.append(kept_by_autograd(layer, x.detach().requires_grad_(), *args, **kwargs))
        return forward(x, *args, **kwargs)

    layer.forward = looked
    ids = torch.zeros(ROWS, LENGTH, dtype=torch.long)
    real.model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)
    return found[0]


def test_bytes_that_a_layer_keeps_are_those_that_autograd_keeps() -> None:
    cost = trace(model("meta"), ROWS, LENGTH, Mode(half=False)).layers[1]
    assert cost.kept == kept_by_the_second_layer(model())
    assert cost.copies == cost.cached == 0


def test_short_rows_that_attend_in_float32_are_counted_so() -> None:
    """As a training on a CPU runs them; to a tenth of what autograd keeps."""
    real, empty = model(), model("meta")
    for m in (real, empty):
        m.set_attn_implementation("sdpa")
    real.set_attn_implementation(NAME)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        kept = kept_by_the_second_layer(real)
    plain, packed = (trace(empty, ROWS, LENGTH, Mode(half=True, packed=on)).layers[1].kept for on in (False, True))
    assert packed == pytest.approx(kept, rel=0.1)
    wider = ROWS * LENGTH * 4 * 32 * (4 - 2)  # queries, keys, values and what attention gives
    assert wider <= packed - plain < 1.5 * wider
    assert empty.config._attn_implementation == "sdpa"


def test_under_autocast_the_copies_are_two_bytes_of_each_matrix_that_gradients_go_through() -> None:
    empty = model("meta")
    trained_params(empty, ["model.layers.2.mlp.down_proj.weight"], False)
    matrices = 2 * (32 * 32 * 2 + 32 * 16 * 2 + 3 * 32 * 48)
    layers = trace(empty, ROWS, LENGTH, Mode(half=True)).layers
    assert [c.copies for c in layers] == [0, 0, 0, matrices]  # of layer 2 nothing but the last matrix has a gradient
    assert [c.cached for c in layers] == [0, 0, 2 * 32 * 48, matrices]
    assert [c.kept > 0 for c in layers] == [False, False, True, True]
    small = frozenset(id(p) for name, p in empty.named_parameters() if ".layers.3." in name and p.ndim == 2)
    assert trace(empty, ROWS, LENGTH, Mode(half=True, small=small)).layers[3].copies == 0


def test_layers_that_are_computed_again_keep_their_output_alone_and_cost_a_forward_pass_more() -> None:
    empty = model("meta")
    plain, again = (trace(empty, ROWS, LENGTH, Mode(half=True, again=on)).layers[1] for on in (False, True))
    assert again.kept == 4 * ROWS * LENGTH * 32 < plain.kept / 4
    more = flops_of(again.work_back) - flops_of(plain.work_back)
    last = 2 * ROWS * LENGTH * 32 * 48  # whose output the backward pass does not read
    assert flops_of(plain.work) - last <= more <= flops_of(plain.work)
    assert all("forward" not in vars(layer) for layer in empty.model.layers)


def most_allocated(run: Callable[[], Any]) -> int:
    """The most bytes that PyTorch's allocator had given out at a time, by its profiler."""
    run()  # what is made once
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        found = run()
    events = [e for e in seen.profiler.kineto_results.events() if e.name() == "[memory]"]
    del found
    sizes: list[int] = [e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())]
    return max(itertools.accumulate(sizes))


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("deepest", [1, 2])
def test_bytes_of_a_pass_without_gradients_are_those_of_pytorchs_allocator(*, half: bool, deepest: int) -> None:
    """As priced: what lies around the layers, a layer's input, and the most inside one."""
    real, empty = (model(device) for device in ("cpu", "meta"))
    for m in (real, empty):
        m.set_attn_implementation("sdpa")
        trained_params(m, ["model.layers.1.mlp.down_proj.weight"], False)
    rows, length = 16, 40
    parts, ids = parts_of(real), torch.zeros(rows, length, dtype=torch.long)
    mask = torch.ones_like(ids)
    mask[0, -1] = 0  # so that there is one

    def run() -> Tensor:
        with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
            return parts.hidden_at(deepest, ids, mask)

    price = TrainingPrice(empty, [p for p in empty.parameters() if p.requires_grad], TrainSpec(
        precision="bf16" if half else "fp32"), 7, Ground())  # fmt: skip
    (moment,) = price.steps([Passing(ASKED, rows, length, 0, deepest)])
    assert moment.activations == pytest.approx(most_allocated(run), rel=0.01)
    assert (moment.gradients, moment.optimizer, moment.logits) == (0, 0, 0)
    assert (moment.when, moment.caches) == ("asking the original", 7)


def test_a_model_whose_code_looks_at_values_is_priced_by_its_widths() -> None:
    config = T.MixtralConfig(
        vocab_size=50, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, num_local_experts=4,
    )  # fmt: skip
    with torch.device("meta"):
        mixed = T.AutoModelForCausalLM.from_config(config, experts_implementation="eager")
    mode = Mode(half=True)
    assert traced(mixed, ROWS, LENGTH, mode) == formula(mixed, ROWS, LENGTH, mode)
    assert all(c.kept == 0 for c in formula(mixed, ROWS, LENGTH, Mode(half=True, grad=False)).layers)


def test_of_what_cannot_be_run_without_data_torch_logs_no_traceback() -> None:
    """A product of experts' matrices in float32."""
    with torch.device("meta"):
        mixed = T.AutoModelForCausalLM.from_config(FAMILIES["mixtral"]()).eval()
    said, log = list[logging.LogRecord](), logging.getLogger("torch._subclasses.fake_tensor")
    log.addFilter(lambda record: noted(said, record, False))
    try:
        traced(mixed, ROWS, LENGTH, Mode(half=False))
    finally:
        log.filters.clear()
    assert said == []


@pytest.mark.parametrize("again", [False, True])
def test_bytes_are_the_same_whenever_the_collector_runs(*, again: bool) -> None:
    """What a trace lets go is gone at once: no cycle holds it until the collector comes."""
    found, often = [], gc.get_threshold()
    for threshold in (0, 1):  # never, and at nearly every object
        empty = model("meta")
        add_adapter(empty, LoraSpec(r=2), 0)
        gc.collect()
        gc.set_threshold(threshold, 1, 1)
        try:
            found.append(trace(empty, ROWS, LENGTH, Mode(half=True, again=again)))
        finally:
            gc.set_threshold(*often)
    assert found[0] == found[1]


WANT_DATA = {"mixtral", "qwen2_moe", "gpt_oss"}  # of which the experts' kernels take both types only without


@pytest.mark.parametrize("family", sorted(set(FAMILIES) - WANT_DATA))
@pytest.mark.parametrize(
    "mode", [Mode(True), Mode(False, again=True), Mode(True, packed=True), Mode(False, grad=False)], ids=str
)
def test_it_is_the_same_on_tensors_with_data(tmp_path: Path, family: str, mode: Mode) -> None:
    """But for looks at the mask's values, which tensors without data do not let anyone have."""
    model = empty_model(make_family(family, tmp_path))
    found, other = trace(model, ROWS, LENGTH, mode), with_data(model, ROWS, LENGTH, mode)
    assert replace(found, outside=Work()) == replace(other, outside=Work())
    looks = other.outside - found.outside
    assert found.outside <= other.outside and all(flops == 0 and moved <= 9 * ROWS * LENGTH for flops, moved in looks)
