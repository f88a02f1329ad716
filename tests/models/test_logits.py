"""What a model does around its LM head is read off the model, or the model is refused by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as T
from conftest import Ilu, present, tiny_model
from families import COMMON, FAMILIES, family_model, family_tokenizer
from torch import nn

from ilu_cli.errors import UsageError
from ilu_cli.models.load import add_adapter
from ilu_cli.models.logits import LMHead, LogitMap, check_states
from ilu_cli.models.parts import parts_of
from ilu_cli.recipe.specs import LoraSpec

VISION = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
          "image_size": 28, "patch_size": 14}  # fmt: skip
KNOWN = {
    "gemma2": (FAMILIES["gemma2"], LogitMap(1.0, 5.0)),
    "gemma2, logits far below the cap": (
        lambda: T.Gemma2Config(**COMMON | {"initializer_range": 1e-3}, head_dim=8), LogitMap(1.0, 30.0)
    ),
    "gemma2, a cap below 1": (
        lambda: T.Gemma2Config(**COMMON, head_dim=8, final_logit_softcapping=0.5), LogitMap(1.0, 0.5)
    ),
    "granite": (FAMILIES["granite"], LogitMap(0.25)),
    "granite, by what no float holds": (lambda: T.GraniteConfig(**COMMON, logits_scaling=3.0), LogitMap(1 / 3)),
    "hyperclova multiplies": (lambda: T.HyperCLOVAXConfig(**COMMON, logits_scaling=4.0), LogitMap(4.0)),
    "cohere": (FAMILIES["cohere"], LogitMap(0.25)),
    "cohere2": (FAMILIES["cohere2"], LogitMap(0.25)),
    "falcon-h1": (
        lambda: T.FalconH1Config(**COMMON, lm_head_multiplier=0.5, mamba_d_ssm=32, mamba_n_heads=4, mamba_d_head=8,
                                 mamba_n_groups=1, mamba_d_state=8),
        LogitMap(0.5),
    ),
    "granite-moe": (
        lambda: T.GraniteMoeConfig(**COMMON, logits_scaling=8.0, num_local_experts=4, num_experts_per_tok=2),
        LogitMap(0.125),
    ),
    "minicpm3 divides hidden states": (
        lambda: T.MiniCPM3Config(**COMMON | {"num_key_value_heads": 4}, q_lora_rank=16, kv_lora_rank=16,
                                 qk_nope_head_dim=8, qk_rope_head_dim=8, v_head_dim=8, dim_model_base=8),
        LogitMap(0.25),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", [*KNOWN, *(n for n in FAMILIES if n not in KNOWN)])
def test_logits_are_those_of_the_model(name: str) -> None:
    make, f = KNOWN.get(name) or (FAMILIES[name], LogitMap())
    torch.manual_seed(0)
    model = T.AutoModelForCausalLM.from_config(make()).float().eval()
    parts, ids = parts_of(model), torch.arange(3, 40)[None]
    found = parts.head.map
    assert found.cap == f.cap
    assert found.scale == pytest.approx(f.scale, rel=1e-11)
    mask = torch.ones_like(ids)
    torch.testing.assert_close(
        parts.head(parts.final(ids, mask)), model(input_ids=ids, attention_mask=mask).logits, rtol=1e-5, atol=1e-5
    )
    with torch.device("meta"):
        empty = T.AutoModelForCausalLM.from_config(make())
    assert parts_of(empty).head.map == found  # a plan knows as well


class Odd(T.LlamaForCausalLM):
    """Llama that does something to its logits."""

    odd: Callable[[torch.Tensor], torch.Tensor]

    def forward(self, input_ids: Any = None, attention_mask: Any = None, **kwargs: Any) -> Any:
        out = super().forward(input_ids, attention_mask, **kwargs)
        out.logits = self.odd(out.logits)
        return out


AFTER = {
    "cut off": lambda z: z.clamp(-30, 30),
    "cut off far out": lambda z: z.clamp(-900, 900),
    "another cap": lambda z: z / (1 + z.abs() / 30),
    "shifted": lambda z: z + 0.1,
    "hardly anything": lambda z: z + 1e-4 * z.tanh(),
    "bent by less than one": lambda z: z + 0.5 * z.tanh() ** 3,
    "squared": lambda z: z * z.abs(),
    "a scale for each word": lambda z: z * torch.linspace(0.9, 1.1, z.shape[-1]),
    "a scale for each position": lambda z: z / torch.arange(1, z.shape[1] + 1)[None, :, None],
    "words left out": lambda z: z.index_fill(-1, torch.tensor([7]), -torch.inf),
    "fewer words": lambda z: z[..., :-3],
    "normalised": lambda z: z.log_softmax(-1),
    "no odd thing": lambda z: z,
}


@pytest.mark.parametrize("what", AFTER)
def test_other_changes_of_logits_are_refused(what: str) -> None:
    model = Odd(tiny_model().config).train(False)
    model.odd = AFTER[what]
    if what == "no odd thing":
        parts_of(model)
        return
    with pytest.raises(UsageError, match="Odd is not supported: its logits are not the"):
        parts_of(model)


class Head(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) * 1.001


class Embedded(T.LlamaForCausalLM):
    """Llama that does something to its embeddings, outside its decoder."""

    def forward(self, input_ids: Any = None, attention_mask: Any = None, **kwargs: Any) -> Any:
        return super().forward(None, attention_mask, inputs_embeds=2 + self.model.embed_tokens(input_ids), **kwargs)


def test_what_else_a_model_does_is_refused() -> None:
    config = tiny_model().config
    model = tiny_model()
    model.lm_head.register_forward_pre_hook(lambda _, args: (nn.functional.rms_norm(args[0], (16,)),))
    with pytest.raises(UsageError, match="LlamaForCausalLM is not supported: it changes its hidden states before"):
        parts_of(model)
    model = tiny_model()
    model.lm_head.__class__ = Head
    with pytest.raises(UsageError, match="its LM head is more than a matrix and a bias"):
        parts_of(model)
    with pytest.raises(UsageError, match="Embedded is not supported: its decoder alone gives other hidden states"):
        parts_of(Embedded(config).train(False))
    phi = family_model("phi")
    phi.lm_head.register_forward_pre_hook(lambda _, args: (args[0] / 2,))  # W h / 2 + b is no f(W h + b)
    with pytest.raises(UsageError, match="it changes its hidden states before"):
        parts_of(phi)


REFUSED: dict[str, Callable[[], T.PreTrainedConfig]] = {
    "Gemma3ForConditionalGeneration": lambda: T.Gemma3Config(
        text_config=T.Gemma3TextConfig(**COMMON, head_dim=8, query_pre_attn_scalar=8), vision_config=VISION,
        mm_tokens_per_image=4,
    ),
    "BertLMHeadModel": lambda: T.BertConfig(vocab_size=400, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
                                            intermediate_size=48, is_decoder=True),
    "BartForCausalLM": lambda: T.BartConfig(  # its loss takes labels that are shifted already
        vocab_size=400, d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4,
        decoder_attention_heads=4, encoder_ffn_dim=48, decoder_ffn_dim=48, is_decoder=True, is_encoder_decoder=False,
    ),
    "TrOCRForCausalLM": lambda: T.TrOCRConfig(vocab_size=400, d_model=32, decoder_layers=2, decoder_attention_heads=4,
                                              decoder_ffn_dim=48),
    "XLMWithLMHeadModel": lambda: T.XLMConfig(vocab_size=400, emb_dim=32, n_layers=2, n_heads=4, n_langs=1),
    "XLNetLMHeadModel": lambda: T.XLNetConfig(vocab_size=400, d_model=32, n_layer=2, n_head=4, d_inner=48),
    "GemmaForCausalLM": lambda: T.GemmaConfig(**COMMON, head_dim=8, use_bidirectional_attention=True),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_a_plan_refuses_by_name(name: str, ilu: Ilu, tmp_path: Path) -> None:
    torch.manual_seed(0)
    T.AutoModelForCausalLM.from_config(REFUSED[name]()).save_pretrained("model")
    family_tokenizer().save_pretrained("model")
    for command in (
        ["unlearn", "--model", "model", "--method", "npo", "--dry-run"],
        ["attack", "model", "--task", "sst2", "--source", "builtin", "--dry-run"],
        ["eval", "model", "--bench", "capitals", "--dry-run"],
        ["eval", "model", "--bench", "capitals"],
    ):
        done = ilu(*command)
        assert done.code == 2, done.err
        assert f"{name} is not supported" in done.err
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("family", "targets", "fits"),
    [
        ("llama", ["lm_head"], False),
        ("llama-tied", ["embed_tokens", "q_proj"], False),
        ("llama", ["embed_tokens"], True),
        ("llama-tied", ["q_proj"], True),
        ("gemma", ["all-linear"], True),
    ],
)
def test_an_adapter_of_the_lm_head_is_refused(family: str, targets: list[str], fits: bool) -> None:
    """Losses read the head's own matrix; a merge would change a tied head that training never saw."""
    spec = LoraSpec(r=2, targets=targets)
    if fits:
        add_adapter(family_model(family), spec, 0)
        return
    with pytest.raises(UsageError, match=r"lora\.targets: the LM head"):
        add_adapter(family_model(family), spec, 0)


def test_what_stands_in_for_a_module_goes_and_leaves_what_it_had_of_its_own() -> None:
    """A decoder whose `forward` is wrapped, as accelerate's hooks do it, keeps the wrapper."""
    model = tiny_model()
    own = model.model.forward
    calls = []

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return own(*args, **kwargs)

    model.model.forward = wrapped
    parts_of(model)
    assert model.model.forward is wrapped
    before = len(calls)
    model(input_ids=torch.arange(4)[None])
    assert len(calls) == before + 1
    assert "forward" not in model.lm_head.__dict__


@pytest.mark.parametrize(("off", "fits"), [(0.3, True), (3.0, False)])
def test_states_may_differ_by_a_ten_thousandth_of_the_largest(off: float, fits: bool) -> None:
    model = tiny_model()

    def decode(ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        states: torch.Tensor = model.model(input_ids=ids, attention_mask=mask).last_hidden_state.clone()
        states[0, 1, 2] += off * 1e-4 * states.abs().max()
        return states

    if fits:
        check_states(model, model.lm_head, decode)
    else:
        with pytest.raises(UsageError, match="its decoder alone gives other hidden states"):
            check_states(model, model.lm_head, decode)


def test_a_causal_xlm_is_refused_for_its_labels() -> None:
    config = T.XLMConfig(vocab_size=400, emb_dim=32, n_layers=2, n_heads=4, n_langs=1, causal=True)
    with torch.device("meta"), pytest.raises(UsageError, match=r"XLMWithLMHeadModel .* loss for labels"):
        parts_of(T.AutoModelForCausalLM.from_config(config))


@pytest.mark.parametrize("trained", [True, False])
def test_a_head_that_is_kept_has_its_bias_copied_where_it_is_trained(trained: bool) -> None:
    weight, bias = (torch.randn(shape, requires_grad=trained) for shape in ((5, 3), (5,)))
    kept = LMHead(weight, bias, LogitMap(2.0)).kept()
    for mine, theirs in ((kept.weight, weight), (present(kept.bias), bias)):
        assert torch.equal(mine, theirs) and not mine.requires_grad
        assert (mine.data_ptr() == theirs.data_ptr()) != trained
    assert kept.map == LogitMap(2.0) and LMHead(weight).kept().bias is None


def test_a_loss_of_routers_beside_that_of_tokens_is_left_out() -> None:
    config = FAMILIES["mixtral"]()
    config.output_router_logits = True
    with torch.device("meta"):
        assert parts_of(T.AutoModelForCausalLM.from_config(config)).head.map == LogitMap()
