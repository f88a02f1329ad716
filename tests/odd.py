"""Folders of models as they are met: other names, other files, something lost, adapters of all kinds."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import torch
import transformers as T
from families import make_family
from safetensors.torch import load_file, save_file

Tensors = dict[str, torch.Tensor]


def rewrite(folder: Path, change: Callable[[Tensors], Tensors], file: str = "model.safetensors") -> Path:
    """Put other tensors into a file of weights."""
    changed = change(load_file(folder / file))
    save_file({n: t.contiguous() for n, t in changed.items()}, folder / file, {"format": "pt"})
    return folder


def inv_freq(folder: Path) -> Path:
    """Llama-2: every layer stores its rotary frequencies."""
    freq = 1 / 10000 ** (torch.arange(0, 8, 2) / 8)
    extra = {f"model.layers.{i}.self_attn.rotary_emb.inv_freq": freq.clone() for i in range(4)}
    return rewrite(make_family("llama", folder), lambda w: w | extra)


def masks(folder: Path) -> Path:
    """Pythia: causal masks of booleans, and what stands for minus infinity."""
    name = "gpt_neox.layers.{}.attention.{}".format
    extra = {name(i, "bias"): torch.ones(1, 1, 512, 512, dtype=torch.bool).tril() for i in range(4)}
    extra |= {name(i, "masked_bias"): torch.tensor(-1e9) for i in range(4)}
    return rewrite(make_family("gpt_neox", folder), lambda w: w | extra)


def gpt2_hub(folder: Path) -> Path:
    """GPT-2 of the hub: names without `transformer.`, causal masks stored as floats."""
    extra = {f"h.{i}.attn.bias": torch.ones(1, 1, 512, 512).tril() for i in range(4)}
    return rewrite(
        make_family("gpt2", folder), lambda w: {n.removeprefix("transformer."): t for n, t in w.items()} | extra
    )


def gpt2_head(folder: Path) -> Path:
    """GPT-2 whose tied head is stored as well."""
    head = "lm_head.weight"
    return rewrite(make_family("gpt2", folder), lambda w: w | {head: w["transformer.wte.weight"].clone()})


def only_head(folder: Path) -> Path:
    """Tied, and the head is what is stored."""

    def change(w: Tensors) -> Tensors:
        return {"lm_head.weight" if n == "model.embed_tokens.weight" else n: t for n, t in w.items()}

    return rewrite(make_family("llama-tied", folder), change)


def other_head(folder: Path) -> Path:
    """Tied by its configuration, with another head stored: transformers does not tie it."""
    return rewrite(
        make_family("llama-tied", folder), lambda w: w | {"lm_head.weight": 2 * w["model.embed_tokens.weight"]}
    )


def stray(folder: Path) -> Path:
    """An old copy, halved, and shards of an earlier save beside the file that is read."""
    old = {n: t / 2 for n, t in load_file(make_family("llama", folder) / "model.safetensors").items()}
    for name in ("model_old", "consolidated", "model-00001-of-00002"):
        save_file(old, folder / f"{name}.safetensors", {"format": "pt"})
    index = {"weight_map": dict.fromkeys(old, "model-00001-of-00002.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def shards(folder: Path) -> Path:
    """Four shards in bfloat16."""
    make_family("llama", folder)
    model = T.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="40kB")
    return folder


def adapter(folder: Path, base: str = "llama", kind: type[Any] = peft.LoraConfig, **config: Any) -> Path:
    """An adapter with random weights over a model in `BASE` beside it."""
    root = folder.with_name(f"{base}-base")
    if not root.exists():
        make_family(base, root)
    model = T.AutoModelForCausalLM.from_pretrained(root, dtype=torch.float32)
    if kind is peft.LoraConfig:
        config = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "down_proj"]} | config
    torch.manual_seed(1)
    adapted = peft.get_peft_model(model, kind(task_type="CAUSAL_LM", **config))
    for name, p in adapted.named_parameters():
        if p.requires_grad and "lora_A" not in name:
            p.data.add_(torch.randn_like(p) * 0.1)
    adapted.save_pretrained(folder)
    T.AutoTokenizer.from_pretrained(root).save_pretrained(folder)
    return folder


def set_base(folder: Path, base: Any) -> Path:
    """Let an adapter name another base."""
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"base_model_name_or_path": base}))
    return folder


SOUND: dict[str, Callable[[Path], Path]] = {
    "inv_freq": inv_freq,
    "masks": masks,
    "gpt2_hub": gpt2_hub,
    "gpt2_head": gpt2_head,
    "only_head": only_head,
    "other_head": other_head,
    "stray": stray,
    "shards": shards,
    "lora": adapter,
    "rslora": lambda f: adapter(f, use_rslora=True),
    "modules_to_save": lambda f: adapter(f, modules_to_save=["lm_head"]),
    "dora": lambda f: adapter(f, use_dora=True),
    "rank_pattern": lambda f: adapter(f, rank_pattern={"q_proj": 8}),
    "ia3": lambda f: adapter(
        f, kind=peft.IA3Config, target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]
    ),
    "lora_conv1d": lambda f: adapter(f, "gpt2", target_modules=["c_attn", "c_proj"], fan_in_fan_out=True),
    "lora_experts": lambda f: adapter(f, "mixtral", target_modules="all-linear"),
    "relative_base": lambda f: set_base(adapter(f), "../llama-base"),
}
"""Models that transformers and peft load whole, by what is odd about them."""


def plain(folder: Path) -> Any:
    """The model, by transformers and peft alone."""
    file = folder / "adapter_config.json"
    if not file.is_file():
        return T.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    base = Path(json.loads(file.read_text())["base_model_name_or_path"])
    base = base if base.is_dir() else folder / base
    return peft.PeftModel.from_pretrained(plain(base), folder).merge_and_unload().eval()


def logits(model: Any) -> torch.Tensor:
    """[1, 24, V] for tokens 5, 18, 31, …"""
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=(5 + 13 * torch.arange(24))[None].remainder(400)).logits
        return found


def copy(folder: Path, target: Path) -> Path:
    """A copy of a folder."""
    shutil.copytree(folder, target)
    return target
