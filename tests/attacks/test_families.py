"""Every kind of attack on every decoder family; weight transforms against the weights that plain transformers loads."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Ilu
from families import FAMILIES, NO_MATRICES, family_model, make_family
from transformers import AutoModelForCausalLM

from ilu_cli import registry
from ilu_cli.data.sampling import seed_of
from ilu_cli.engine.probe import Lens
from ilu_cli.engine.reporter import Reporter
from ilu_cli.errors import UsageError
from ilu_cli.models.load import empty_model
from ilu_cli.models.matrices import matrices
from ilu_cli.models.parts import parts_of
from ilu_cli.models.subject import find_model
from ilu_cli.recipe.evaluation import EvalSpec
from ilu_cli.runs.store import Store
from ilu_cli.workflows.attack.attempt import Attempted
from ilu_cli.workflows.attack.seen import Seen

pytestmark = pytest.mark.slow

UNLEARN = ["--method", "rmu", "--steps", 1, "--set", "forget.batch=2", "--set", "forget.max_length=32", "--set",
           "retain.batch=2", "--set", "retain.max_length=32", "--set", "train.precision=fp32", "--set",
           "retain.data=[elements]"]  # fmt: skip
EVERYWHERE = ("quantize", "ablate", "logit_lens", "steer", "patch")  # what reads a family's own modules
KINDS = {
    "quantize": ["attack.bits=[4]"],
    "prune": ["attack.fractions=[0.3]"],
    "noise": ["attack.sigmas=[0.1]"],
    "ablate": ["attack.directions=[1]", "attack.prompts=4"],
    "logit_lens": ["attack.layers=[0,3]"],
    "interpolate": ["attack.ts=[0.5]"],
    "strip": ["attack.directions=[2]"],
    "steer": ["attack.prompts=4"],
    "patch": ["attack.layers=[0,3]"],
    "multiturn": ["attack.turns=[1]"],
    "finetune": ["attack.task={name: sst2, source: builtin}", "attack.steps=2", "attack.batch=2",
                 "attack.max_length=32", "attack.test_rows=4", "attack.precision=fp32"],
}  # fmt: skip


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_every_kind_of_attack_gives_numbers(family: str, ilu: Ilu, tmp_path: Path) -> None:
    model = make_family(family, tmp_path / family)
    done = ilu("unlearn", *UNLEARN, "--model", model)
    assert done.code == 0, done.err
    model = Path(done.out.strip())
    for kind in KINDS if family in ("llama", "gpt2", "mixtral", "mamba") else EVERYWHERE:
        sets = KINDS[kind]
        every = [*sets, "eval.benchmarks=[capitals]", "eval.limit=2", "eval.precision=fp32"]
        asked = [x for text in every for x in ("--set", text)]
        done = ilu("attack", model, "--kind", kind, *asked, "--no-reference", "--json")
        if family in NO_MATRICES and registry.attack[kind].declared.access == "weights":
            assert done.code == 2 and "cannot be changed matrix by matrix" in done.err
            continue
        assert done.code == 0, f"{kind}: {done.err}"
        points = json.loads(done.out)["points"]
        assert all(math.isfinite(p["eval"]["capitals"]["value"]) for p in points)


def in_layers(family: str, folder: Path) -> dict[str, torch.Tensor]:
    """By hand: the matrices [outputs, inputs] in the layers, as views of the weights that plain transformers loads."""
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    names = [n for n, p in plain.named_parameters() if p.ndim > 1 and not n.endswith("bias")]
    names = [n for n in names if any(word in n for word in (".layers.", ".h.", ".blocks."))]
    whole = {n: plain.state_dict()[n] for n in names if ".".join(n.split(".")[-3:-1]) not in ("mlp.gate", "mlp.router")}
    found = {}
    for name, w in whole.items():
        if family == "gpt2":
            found[name] = w.T
        elif ".experts." in name:
            found |= {f"{name}.{e}": one.T if family == "gpt_oss" else one for e, one in enumerate(w)}
        else:
            found[name] = w.reshape(len(w), -1)
    return found


def grid(w: np.ndarray, bits: int, group: int) -> np.ndarray:
    """Round-to-nearest, number by number: the largest of a group of an output's inputs is 2^(bits−1) − 1 steps."""
    out = w.copy()
    for row in out:
        for i in range(0, len(row), group):
            step = np.abs(row[i : i + group]).max() / np.float32(2 ** (bits - 1) - 1)
            row[i : i + group] = np.round(row[i : i + group] / step) * step if step else 0
    return out


def cut(w: np.ndarray, share: float) -> np.ndarray:
    return np.where(np.abs(w) <= np.sort(np.abs(w), axis=None)[int(share * w.size) - 1], 0, w)


def drawn(w: np.ndarray, name: str, sigma: float, seed: int) -> np.ndarray:
    g = torch.Generator().manual_seed(seed_of(seed, "noise", name))
    found: np.ndarray = w + sigma * w.std(ddof=1) * torch.randn(*w.shape, generator=g).numpy()
    return found


@pytest.mark.parametrize("family", sorted(set(FAMILIES) - NO_MATRICES))
def test_transforms_are_what_they_say_on_the_weights_before_the_attack(family: str, tmp_path: Path) -> None:
    folder = make_family(family, tmp_path / family)
    subject, run = find_model(str(folder)), Store().create("attack", "x")
    attempt = Attempted(subject, subject, Seen([]), run, Reporter(), 5, EvalSpec(), "")
    wanted = in_layers(family, folder)
    same = {n: w.clone() for n, w in attempt.model.state_dict().items()}
    # each twice: the second strength must not start from what the first one left
    attacks: dict[str, tuple[dict[str, Any], Callable[[str, np.ndarray], np.ndarray]]] = {
        "quantize": ({"bits": [2, 4], "group": 16}, lambda n, w: grid(w, 4, 16)),
        "prune": ({"fractions": [0.9, 0.3]}, lambda n, w: cut(w, 0.3)),
        "noise": ({"sigmas": [2.0, 0.1]}, lambda n, w: drawn(w, n, 0.1, 5)),
    }
    for kind, (keys, by_hand) in attacks.items():
        assert len(list(registry.attack[kind].obj(attempt, **keys))) == 2
        now = in_layers_of(attempt, wanted, family)
        for name, w in wanted.items():
            torch.testing.assert_close(now[name], torch.tensor(by_hand(name, w.numpy())), rtol=1e-5, atol=1e-7)
    changed = {n for n, w in attempt.model.state_dict().items() if not w.equal(same[n])}
    assert changed == {n.rpartition(".")[0] if n.rpartition(".")[2].isdigit() else n for n in wanted}
    assert [f.name for f in run.path.iterdir() if f.suffix == ".pt"] == []


def in_layers_of(attempt: Attempted, names: dict[str, torch.Tensor], family: str) -> dict[str, torch.Tensor]:
    """The attempt's weights by the names of the matrices, turned by hand."""
    state, found = attempt.model.state_dict(), {}
    for name in names:
        stack, _, number = name.rpartition(".")
        w = state[stack][int(number)] if number.isdigit() else state[name]
        turned = family == "gpt2" or (family == "gpt_oss" and number.isdigit())
        found[name] = w.T if turned else w.reshape(len(w), -1)
    return found


def test_a_tensor_whose_inputs_are_not_known_is_refused_in_the_plan(ilu: Ilu, tmp_path: Path) -> None:
    import transformers as T

    config = T.JetMoeConfig(vocab_size=64, hidden_size=16, num_hidden_layers=2, num_key_value_heads=2, kv_channels=4,
                            intermediate_size=16, num_local_experts=2, num_experts_per_tok=1)  # fmt: skip
    T.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "m")
    make_family("llama", tmp_path / "l")
    for file in (tmp_path / "l").glob("token*"):
        file.rename(tmp_path / "m" / file.name)
    with pytest.raises(UsageError, match="which of its dimensions are the inputs is not known"):
        matrices(empty_model(tmp_path / "m"))
    for more in (["--dry-run"], []):
        done = ilu("attack", tmp_path / "m", "--kind", "quantize", *more)
        assert done.code == 2
        assert "JetMoeParallelExperts" in done.err
    assert not (tmp_path / "runs").is_dir() or not list((tmp_path / "runs").iterdir())


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_a_lens_is_the_model_with_fewer_layers(family: str) -> None:
    """The shorter model is made from its own configuration, and takes the weights that it has."""
    whole, config = family_model(family), FAMILIES[family]()
    config.num_hidden_layers = 2
    if len(getattr(config, "layer_types", None) or []) > 2:
        config.layer_types = config.layer_types[:2]
    short = AutoModelForCausalLM.from_config(config).float().eval()
    assert short.load_state_dict(whole.state_dict(), strict=False).missing_keys == []
    ids, mask = torch.tensor([[5, 9, 7, 30, 12, 44]]), torch.ones(1, 6, dtype=torch.long)
    parts = parts_of(whole)
    before = parts.final(ids, mask)
    with torch.no_grad():
        torch.testing.assert_close(Lens.of(parts, 2).final(ids, mask), parts_of(short).final(ids, mask))
    assert parts.final(ids, mask).equal(before)


@pytest.mark.parametrize("family", ["gpt_neox", "mixtral", "phi", "llama-tied", "gpt2"])
def test_the_original_is_there_for_a_while(family: str, tmp_path: Path) -> None:
    now, then = (make_family(family, tmp_path / str(n), seed=n) for n in (0, 1))
    run = Store().create("attack", "x")
    subject, origin = find_model(str(now)), find_model(str(then))
    attempt = Attempted(subject, origin, Seen([]), run, Reporter(), 5, EvalSpec(), "")
    plain = [AutoModelForCausalLM.from_pretrained(f, dtype=torch.float32).state_dict() for f in (now, then)]
    with attempt.original():
        assert all(w.equal(plain[1][n]) for n, w in attempt.model.state_dict().items())
    assert all(w.equal(plain[0][n]) for n, w in attempt.model.state_dict().items())


def test_an_original_of_another_shape_is_refused_in_the_plan(ilu: Ilu, tmp_path: Path) -> None:
    now = make_family("llama", tmp_path / "now")
    run = ilu("unlearn", *UNLEARN, "--model", now).out.strip()
    other = find_model(str(make_family("llama-tied", tmp_path / "other")))
    manifest = Path(run) / "manifest.json"
    found = json.loads(manifest.read_text())
    found["base"] = other.record("original")
    del found["sha256"]
    manifest.write_text(json.dumps(found))
    done = ilu("attack", run, "--kind", "ablate", "--dry-run")
    assert done.code == 3
    assert "they do not fit: lm_head.weight" in done.err
    assert ilu("attack", run, "--kind", "quantize", "--dry-run").code == 0
