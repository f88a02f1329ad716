import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from ilu_cli.errors import UnavailableError, UsageError
from ilu_cli.taskvec import stream
from ilu_cli.taskvec.angles import layer_of, measure, type_of
from ilu_cli.taskvec.delta import Adapted, Checkpoint, changed_fraction, common_names

SHAPES = {
    "model.embed_tokens.weight": (7, 3),
    "model.layers.0.self_attn.q_proj.weight": (4, 5),
    "model.layers.0.mlp.down_proj.weight": (6, 4),
    "model.layers.11.mlp.down_proj.weight": (5, 4),
    "model.layers.11.input_layernorm.weight": (6,),
}
VECTORS = {"u": ("o", "u"), "ft": ("o", "f"), "u→ft": ("u", "a")}


def checkpoint(
    folder: Path, seed: int, files: Any = 1, dtype: Any = torch.float32, near: Any = None, **other: Any
) -> dict[Any, Any]:
    """Random weights, or weights near those of another checkpoint; returns them as float64."""
    rng = np.random.default_rng(seed)
    tensors = {k: torch.tensor(rng.standard_normal(s)) for k, s in SHAPES.items()}
    if near is not None:
        tensors = {k: torch.tensor(near[k]) + 1e-3 * t for k, t in tensors.items()}
    tensors = {k: t.to(dtype) for k, t in (tensors | other).items()}
    folder.mkdir(parents=True, exist_ok=True)
    names = sorted(tensors)
    where = {n: f"part-{i % files}.safetensors" for i, n in enumerate(names)}
    for file in set(where.values()):
        save_file({n: tensors[n] for n in names if where[n] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    return {n: t.double().numpy() for n, t in tensors.items()}


def adapter(
    folder: Path,
    seed: int,
    r: Any = 2,
    alpha: Any = 6,
    modules: Any = ("layers.0.self_attn.q_proj", "layers.11.mlp.down_proj"),
    **config: Any,
) -> Any:
    """A LoRA adapter in peft's format; returns what it adds, by weight."""
    rng, tensors, added = np.random.default_rng(seed), dict[str, Any](), dict[str, Any]()
    for module in modules:
        m, n = SHAPES[f"model.{module}.weight"]
        a, b = (rng.standard_normal(s).astype(np.float32) for s in ((r, n), (m, r)))
        key = f"base_model.model.model.{module}"
        tensors |= {f"{key}.lora_A.weight": torch.tensor(a), f"{key}.lora_B.weight": torch.tensor(b)}
        added[f"model.{module}.weight"] = alpha / r * b.astype(np.float64) @ a.astype(np.float64)
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": r, "lora_alpha": alpha} | config))
    return added


def plus(weights: Any, added: Any) -> dict[Any, Any]:
    return {n: w + added.get(n, 0) for n, w in weights.items()}


def agree(opened: Any, plain: Any, vectors: Any) -> None:
    """Norms and cosines are those of numpy over the concatenated weights: overall, by layer, by type of module."""
    names = common_names(list(opened.values()), None)
    grams = measure(opened, vectors, names)
    groups: list[tuple[str, Callable[[str], str]]] = [("all", lambda _: "all")]
    groups += [(g, f) for f in (layer_of, type_of) for g in {f(n) for n in names}]
    assert {"layer 0", "layer 11", "other", "q_proj", "down_proj", "norms", "embeddings"} <= {g for g, _ in groups}
    for group, group_of in groups:
        gram = grams.by(group_of)[group]
        chosen = [n for n in names if group_of(n) == group]
        flat = {
            v: np.concatenate([(plain[b][n] - plain[a][n]).ravel() for n in chosen]) for v, (a, b) in vectors.items()
        }
        for x, v in flat.items():
            assert gram.norm(x) == pytest.approx(np.linalg.norm(v), rel=1e-9)
            for y, w in flat.items():
                if np.linalg.norm(v) == 0 or np.linalg.norm(w) == 0:
                    assert gram.cosine(x, y) is None
                else:
                    assert gram.cosine(x, y) == pytest.approx(v @ w / np.linalg.norm(v) / np.linalg.norm(w), abs=1e-9)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("block", "piece"), [(4, 8), (1 << 16, 1 << 22)])
def test_norms_and_cosines_are_those_of_numpy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, block: int, piece: int
) -> None:
    monkeypatch.setattr(stream, "BLOCK", block)
    monkeypatch.setattr(stream, "PIECE", piece)
    plain = {n: checkpoint(tmp_path / n, i, files=1 + i % 3, dtype=dtype) for i, n in enumerate("ouf")}
    plain["a"] = checkpoint(tmp_path / "a", 9, dtype=torch.float32, near=plain["u"])
    agree({n: Checkpoint(tmp_path / n) for n in "oufa"}, plain, VECTORS)


def test_a_small_step_after_a_large_one_keeps_its_digits(tmp_path: Path) -> None:
    """τ_u→ft is taken from θ_u itself: a difference of differences would lose what a small step has."""
    o = checkpoint(tmp_path / "o", 0, dtype=torch.float64)
    u = checkpoint(tmp_path / "u", 1, dtype=torch.float64)
    step = {k: torch.tensor(u[k]) + 1e-9 * torch.tensor(o[k]) for k in SHAPES}
    a = checkpoint(tmp_path / "a", 2, dtype=torch.float64, **step)
    agree({n: Checkpoint(tmp_path / n) for n in "oua"}, {"o": o, "u": u, "a": a}, {"u": ("o", "u"), "u→ft": ("u", "a")})


@pytest.mark.parametrize("block", [4, 1 << 16])
def test_adapters_against_adapters_and_against_whole_checkpoints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    monkeypatch.setattr(stream, "BLOCK", block)
    monkeypatch.setattr(stream, "PIECE", 2 * block)
    o = checkpoint(tmp_path / "o", 0)
    first, second = adapter(tmp_path / "l1", 1), adapter(tmp_path / "l2", 2, r=3, modules=("layers.11.mlp.down_proj",))
    whole = checkpoint(tmp_path / "a", 3, near=plus(o, first))
    base = Checkpoint(tmp_path / "o")
    one, two = Adapted(base, tmp_path / "l1"), Adapted(base, tmp_path / "l2")
    stacked = Adapted(one, tmp_path / "l2")
    opened = {"o": base, "u": one, "f": two, "a": Checkpoint(tmp_path / "a"), "s": stacked}
    plain = {"o": o, "u": plus(o, first), "f": plus(o, second), "a": whole, "s": plus(plus(o, first), second)}
    agree(opened, plain, VECTORS | {"o→a": ("o", "a"), "o→s": ("o", "s"), "u→s": ("u", "s"), "s→a": ("s", "a")})
    assert np.allclose(
        one.tensor("model.layers.0.self_attn.q_proj.weight"), plain["u"]["model.layers.0.self_attn.q_proj.weight"]
    )


def test_adapters_on_one_base_read_nothing_of_it(tmp_path: Path) -> None:
    checkpoint(tmp_path / "o", 0)
    adapter(tmp_path / "l1", 1)
    adapter(tmp_path / "l2", 2)
    base = Checkpoint(tmp_path / "o")
    opened = {"o": base, "u": Adapted(base, tmp_path / "l1"), "f": Adapted(base, tmp_path / "l2")}
    names = common_names(list(opened.values()), None)
    (tmp_path / "o" / "part-0.safetensors").unlink()
    gram = measure(opened, {"u": ("o", "u"), "ft": ("o", "f")}, names).total()
    assert gram.norm("u") > 0 and gram.cosine("u", "ft") is not None


@pytest.mark.parametrize(
    ("config", "what"),
    [({"use_dora": True}, "use_dora"), ({"peft_type": "LOHA"}, "LOHA"), ({"modules_to_save": ["x"]}, "modules")],
)
def test_other_adapters_are_refused(tmp_path: Path, config: dict[str, Any], what: str) -> None:
    checkpoint(tmp_path / "o", 0)
    adapter(tmp_path / "l", 1, **config)
    with pytest.raises(UnavailableError, match=what):
        Adapted(Checkpoint(tmp_path / "o"), tmp_path / "l")


def test_a_zero_vector_has_no_cosine(tmp_path: Path) -> None:
    checkpoint(tmp_path / "o", 0)
    checkpoint(tmp_path / "a", 1)
    same = Checkpoint(tmp_path / "o")
    opened = {"o": same, "u": same, "a": Checkpoint(tmp_path / "a")}
    gram = measure(opened, {"u": ("o", "u"), "u→ft": ("u", "a")}, sorted(SHAPES)).total()
    assert gram.cosine("u", "u→ft") is None
    assert gram.norm("u→ft") > 0


def test_other_weights_are_refused_by_name_or_left_out_by_wish(tmp_path: Path) -> None:
    checkpoint(tmp_path / "o", 0)
    checkpoint(tmp_path / "u", 1, extra=torch.ones(2), **{"model.layers.11.input_layernorm.weight": torch.ones(2, 3)})
    pair = [Checkpoint(tmp_path / n) for n in "ou"]
    with pytest.raises(UnavailableError) as caught:
        common_names(pair, None)
    assert "extra is missing" in str(caught.value)
    assert "model.layers.11.input_layernorm.weight is [6]" in str(caught.value)
    assert set(common_names(pair, None, common=True)) == set(SHAPES) - {"model.layers.11.input_layernorm.weight"}


def test_include_selects_and_must_match(tmp_path: Path) -> None:
    checkpoint(tmp_path / "o", 0)
    only = [Checkpoint(tmp_path / "o")]
    assert {layer_of(n) for n in common_names(only, ["*layers.0.*"])} == {"layer 0"}
    with pytest.raises(UsageError, match="matches no weight"):
        common_names(only, ["nothing*"])


@pytest.mark.parametrize("cut", [3, 40, -8])
def test_a_damaged_file_is_named(tmp_path: Path, cut: int) -> None:
    checkpoint(tmp_path / "o", 0)
    path = tmp_path / "o" / "part-0.safetensors"
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(UnavailableError, match=r"part-0.safetensors is damaged"):
        Checkpoint(tmp_path / "o")


def test_changed_fraction_counts_elements(tmp_path: Path) -> None:
    o = checkpoint(tmp_path / "o", 0)
    b = torch.tensor(o["model.layers.11.input_layernorm.weight"])
    b[:3] += 1
    checkpoint(tmp_path / "u", 0, **{"model.layers.11.input_layernorm.weight": b})
    total = sum(np.prod(s) for s in SHAPES.values())
    assert changed_fraction(Checkpoint(tmp_path / "o"), Checkpoint(tmp_path / "u")) == pytest.approx(3 / total)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("model.layers.3.self_attn.q_proj.bias", "q_proj"),
        ("model.norm.weight", "norms"),
        ("transformer.h.1.ln_2.weight", "norms"),
        ("transformer.wte.weight", "embeddings"),
        ("gpt_neox.embed_in.weight", "embeddings"),
        ("embed_out.weight", "head"),
        ("lm_head.weight", "head"),
        ("model.layers.3.mlp.experts.5.up_proj.weight", "up_proj"),
    ],
)
def test_types_of_modules(name: str, kind: str) -> None:
    assert type_of(name) == kind
