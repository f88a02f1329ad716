"""Tiny random models of many decoder families, each made from its configuration in transformers.

`SPREAD` makes the logits of a random model as uneven as those of a trained one, so that a wrong mask, scale or cap
shows.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers as T
from tokenizers import ByteLevelBPETokenizer, processors

from ilu_cli import registry

VOCAB, DEPTH, WINDOW = 400, 4, 12
SPREAD = 0.15
COMMON: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": DEPTH,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": SPREAD,
    "bos_token_id": 1,
    "eos_token_id": 0,
    "pad_token_id": None,
}
OLDER: dict[str, Any] = {k: v for k, v in COMMON.items() if k != "num_key_value_heads"}
EXPERTS: dict[str, Any] = {"moe_intermediate_size": 16, "num_experts": 4, "num_experts_per_tok": 2}

FAMILIES: dict[str, Callable[[], Any]] = {
    "llama": lambda: T.LlamaConfig(**COMMON, tie_word_embeddings=False),
    "llama-tied": lambda: T.LlamaConfig(**COMMON, tie_word_embeddings=True),
    "mistral": lambda: T.MistralConfig(**COMMON, sliding_window=WINDOW),
    "qwen2": lambda: T.Qwen2Config(**COMMON, tie_word_embeddings=True),
    "qwen3": lambda: T.Qwen3Config(**COMMON, head_dim=8, tie_word_embeddings=True),
    "gemma": lambda: T.GemmaConfig(**COMMON, head_dim=8),
    "gemma2": lambda: T.Gemma2Config(
        **COMMON | {"initializer_range": 0.5}, head_dim=8, query_pre_attn_scalar=8, sliding_window=WINDOW,
        final_logit_softcapping=5.0, attn_logit_softcapping=20.0,
    ),
    "gemma3": lambda: T.Gemma3TextConfig(**COMMON, head_dim=8, query_pre_attn_scalar=8, sliding_window=WINDOW),
    "phi": lambda: T.PhiConfig(**COMMON),
    "phi3": lambda: T.Phi3Config(**COMMON, sliding_window=WINDOW),
    "gpt2": lambda: T.GPT2Config(
        vocab_size=VOCAB, n_embd=32, n_layer=DEPTH, n_head=4, n_positions=512, initializer_range=SPREAD,
        bos_token_id=0, eos_token_id=0,
    ),
    "gpt_neox": lambda: T.GPTNeoXConfig(**OLDER),
    "opt": lambda: T.OPTConfig(
        vocab_size=VOCAB, hidden_size=32, ffn_dim=48, num_hidden_layers=DEPTH, num_attention_heads=4,
        max_position_embeddings=512, word_embed_proj_dim=32, init_std=SPREAD, bos_token_id=1, eos_token_id=0,
        pad_token_id=2,
    ),
    "bloom": lambda: T.BloomConfig(
        vocab_size=VOCAB, hidden_size=32, n_layer=DEPTH, n_head=4, initializer_range=SPREAD, bos_token_id=1,
        eos_token_id=0,
    ),
    "falcon": lambda: T.FalconConfig(
        **{k: v for k, v in OLDER.items() if k != "intermediate_size"}, alibi=True, multi_query=False,
        new_decoder_architecture=False, parallel_attn=False, bias=True,
    ),
    "mpt": lambda: T.MptConfig(vocab_size=VOCAB, d_model=32, n_heads=4, n_layers=DEPTH, max_seq_len=512,
                               initializer_range=SPREAD),
    "mixtral": lambda: T.MixtralConfig(**COMMON, num_local_experts=4, num_experts_per_tok=2, sliding_window=None),
    "qwen2_moe": lambda: T.Qwen2MoeConfig(**COMMON, **EXPERTS, shared_expert_intermediate_size=16),
    "gpt_oss": lambda: T.GptOssConfig(**COMMON, head_dim=8, num_local_experts=4, num_experts_per_tok=2,
                                      sliding_window=WINDOW),
    "granite": lambda: T.GraniteConfig(**COMMON, logits_scaling=4.0, embedding_multiplier=2.0),
    "cohere": lambda: T.CohereConfig(**COMMON, logit_scale=0.25),
    "cohere2": lambda: T.Cohere2Config(**COMMON | {"head_dim": 8}, logit_scale=0.25, sliding_window=WINDOW),
    "olmo2": lambda: T.Olmo2Config(**COMMON),
    "stablelm": lambda: T.StableLmConfig(**COMMON),
    "smollm3": lambda: T.SmolLM3Config(**COMMON),
    "lfm2": lambda: T.Lfm2Config(
        **COMMON, layer_types=["conv", "full_attention", "conv", "full_attention"], block_auto_adjust_ff_dim=False
    ),
    "mamba": lambda: T.MambaConfig(
        vocab_size=VOCAB, hidden_size=32, state_size=8, num_hidden_layers=DEPTH, initializer_range=SPREAD,
        bos_token_id=1, eos_token_id=0, pad_token_id=0,
    ),
}  # fmt: skip
"""Decoders that `ilu` works with, by model type. `WINDOW` is shorter than the texts of the tests."""

NO_MATRICES = {"mamba"}  # hold other tensors than matrices (A of the state space), so that weight attacks refuse them
WITHOUT_BOS = {"qwen2", "qwen3", "gpt2", "gpt_neox", "qwen2_moe", "mpt", "olmo2"}


def family_tokenizer(*, bos: bool = True, adds_eos: bool = False, chat: str | None = None) -> T.PreTrainedTokenizerFast:
    """A byte-level BPE of 400 tokens that puts BOS before a text, as Llama's does, and EOS behind it if told so."""
    trained = ByteLevelBPETokenizer()
    texts = [row["text"] for name in ("capitals", "elements") for row in registry.task[name].obj().builtin("train")]
    trained.train_from_iterator(texts, vocab_size=VOCAB, special_tokens=["<eos>", "<bos>"], show_progress=False)
    if bos or adds_eos:
        single = f"{'<bos> ' if bos else ''}$A{' <eos>' if adds_eos else ''}"
        special = [("<bos>", 1), ("<eos>", 0)]
        trained._tokenizer.post_processor = processors.TemplateProcessing(single=single, special_tokens=special)
    names = {"eos_token": "<eos>"} | ({"bos_token": "<bos>"} if bos else {})
    tokenizer = T.PreTrainedTokenizerFast(tokenizer_object=trained._tokenizer, **names)
    if chat:
        tokenizer.chat_template = chat
    return tokenizer


def family_model(name: str, *, seed: int = 0) -> Any:
    """A random model of a family, in float32, in evaluation mode."""
    torch.manual_seed(seed)
    return T.AutoModelForCausalLM.from_config(FAMILIES[name]()).float().eval()


def make_family(name: str, folder: Path, *, seed: int = 0, **tokenizer: Any) -> Path:
    """Save a random model of a family with its tokenizer; returns the folder."""
    family_model(name, seed=seed).save_pretrained(folder)
    family_tokenizer(**({"bos": name not in WITHOUT_BOS} | tokenizer)).save_pretrained(folder)
    return folder
