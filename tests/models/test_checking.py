"""Only what was given is scored: nothing missing, nothing random, nothing that is no number; by transformers alone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import odd
import pytest
import torch
from conftest import Ilu
from families import FAMILIES, family_model, make_family
from safetensors.torch import save_file

from ilu_cli.errors import UnavailableError
from ilu_cli.models.checking import check_finite
from ilu_cli.models.load import checked_model, load_model
from ilu_cli.models.subject import find_model
from ilu_cli.taskvec.delta import open_checkpoint

MERGED = {"mixtral", "qwen2_moe"}  # the files of these have the experts one by one


def agrees(folder: Path, *, exact: bool = True) -> None:
    """A folder's weights and logits are those of plain transformers, by name."""
    subject, theirs = find_model(str(folder)), odd.plain(folder)
    checked_model(subject)
    torch.testing.assert_close(odd.logits(load_model(subject)), odd.logits(theirs), rtol=0, atol=0 if exact else 1e-5)
    held, params = open_checkpoint(subject), dict(theirs.named_parameters())
    assert sum(held.weight(n).stored.numel for n in held.names) == sum(p.numel() for p in params.values())
    if theirs.config.model_type not in MERGED:
        assert held.names == set(params)
    for name in held.names & set(params):
        torch.testing.assert_close(held.tensor(name).float(), params[name].data, rtol=0, atol=0 if exact else 1e-6)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_is_whole_and_has_its_names(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    agrees(make_family(name, tmp_path / name))
    assert "not read" not in capsys.readouterr().err


@pytest.mark.parametrize("name", odd.SOUND)
def test_what_transformers_loads_whole_passes_and_is_read_as_it_is(name: str, tmp_path: Path) -> None:
    agrees(odd.SOUND[name](tmp_path / name), exact="lora" not in name and name != "relative_base")


def no_down(w: Any) -> dict[Any, Any]:
    return {n: t for n, t in w.items() if "layers.2.mlp.down" not in n}


BROKEN = {
    "lost": ("llama", no_down, r"lacks 1 weights.*layers\.2\.mlp\.down_proj"),
    "wrapped": ("llama", lambda w: {f"_orig_mod.{n}": t for n, t in w.items()}, r"lacks 39 .*has _orig_mod\."),
    "empty": ("llama", lambda _: {}, "lacks 39 weights"),
    "reshaped": ("llama", lambda w: w | {"lm_head.weight": torch.zeros(401, 32)}, r"lm_head.weight is \[401, 32\]"),
    "lost expert": (
        "mixtral", lambda w: {n: t for n, t in w.items() if ".1.block_sparse_moe.experts.3.w1" not in n},
        "incomplete or of different shapes",
    ),
    "three experts": (
        "mixtral", lambda w: {n: t for n, t in w.items() if "experts.3." not in n}, r"is \[3, 32, 48\], not \[4, 32",
    ),
    "lost norm": ("gpt2", lambda w: {n: t for n, t in w.items() if "ln_f" not in n}, r"lacks 2 .*transformer\.ln_f"),
    "lost tied": (
        "llama-tied", lambda w: {n: t for n, t in w.items() if "embed_tokens" not in n}, r"lacks .*embed_tokens",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", BROKEN)
def test_what_is_missing_or_reshaped_is_refused_in_the_plan_and_at_the_load(what: str, tmp_path: Path) -> None:
    family, change, says = BROKEN[what]
    subject = find_model(str(odd.rewrite(make_family(family, tmp_path / family), change)))
    for look in (checked_model, load_model):
        with pytest.raises(UnavailableError, match=says):
            look(subject)


def test_a_lost_shard_is_named_before_anything_is_read(tmp_path: Path) -> None:
    folder = odd.shards(tmp_path / "model")
    (folder / "model-00002-of-00004.safetensors").unlink()
    with pytest.raises(UnavailableError, match=r"lacks model-00002-of-00004\.safetensors"):
        find_model(str(folder))


def test_weights_that_the_model_does_not_have_are_told_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = odd.rewrite(make_family("llama", tmp_path / "model"), lambda w: w | {"vision.proj": torch.ones(3)})
    checked_model(find_model(str(folder)))
    model = load_model(find_model(str(folder)))
    assert capsys.readouterr().err.count("holds 1 weights that its model does not have, not read: vision.proj") == 1
    torch.testing.assert_close(odd.logits(model), odd.logits(odd.plain(folder)), rtol=0, atol=0)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_weights_that_are_no_numbers_are_refused(value: Any, tmp_path: Path) -> None:
    def change(w: Any) -> Any:
        w["model.layers.1.mlp.up_proj.weight"][3, 2] = value
        return w

    with pytest.raises(UnavailableError, match=r"1 weights with entries that are infinite.*layers\.1\.mlp\.up_proj"):
        load_model(find_model(str(odd.rewrite(make_family("llama", tmp_path / "model"), change))))


def test_logits_that_are_no_numbers_are_refused_although_the_weights_are(tmp_path: Path, ilu: Ilu) -> None:
    def change(w: Any) -> Any:
        return w | {"model.norm.weight": torch.full((32,), 3e38), "lm_head.weight": 1e3 * w["lm_head.weight"]}

    folder = odd.rewrite(make_family("llama", tmp_path / "model"), change)
    with pytest.raises(UnavailableError, match="its logits are infinite or not numbers"):
        load_model(find_model(str(folder)))
    done = ilu("eval", folder, "--bench", "capitals", "--limit", 4)
    assert (done.code, done.out) == (3, "")


def test_a_model_that_transformers_cannot_run_is_refused_by_name() -> None:
    model = family_model("llama")
    model.model.layers[1].mlp.down_proj = torch.nn.Linear(47, 32, bias=False)
    with pytest.raises(UnavailableError, match="folder loads, but transformers cannot run it: RuntimeError: mat1"):
        check_finite(model, Path("folder"))


@pytest.mark.parametrize(
    "wrong",
    [{"layer_types": ["full_attention", "another"] * 2}, {"num_hidden_layers": "four"}, {"hidden_activation": "none"}],
)
def test_an_impossible_configuration_is_refused_by_name(wrong: Any, tmp_path: Path, ilu: Ilu) -> None:
    folder = make_family("gemma2", tmp_path / "model")
    config = json.loads((folder / "config.json").read_text()) | wrong
    (folder / "config.json").write_text(json.dumps(config))
    for command in (["eval", folder, "--bench", "capitals"], ["unlearn", "--model", folder, "--dry-run"]):
        done = ilu(*command)
        assert done.code == UnavailableError.exit_code and f"{folder} " in done.err, done.err


def test_a_score_that_is_no_number_is_no_wrong_answer(tmp_path: Path, ilu: Ilu) -> None:
    """Only the later positions overflow: the model looks sound for a short text, and no answer has a score."""

    def change(w: Any) -> Any:
        w["transformer.wpe.weight"][40:] = 3e38 * torch.linspace(-1, 1, 32)
        return w

    folder = odd.rewrite(make_family("gpt2", tmp_path / "model"), change)
    done = ilu("eval", folder, "--bench", "prose", "--limit", 2)
    assert (done.code, done.out) == (5, "")
    assert "a log-probability of nan" in done.err


def test_adapters_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    def prefix(w: Any) -> dict[Any, Any]:
        return {n.replace("model.model.layers", "model.language_model.layers"): t for n, t in w.items()}

    def half(w: Any) -> dict[Any, Any]:
        return {n: t for n, t in w.items() if "layers.1." not in n}

    whole, file = odd.adapter(tmp_path / "whole"), "adapter_model.safetensors"
    cases = [(prefix, "16 of its weights are missing .* 16 name no weight"), (half, "4 of its weights are missing")]
    for change, says in cases:
        subject = find_model(str(odd.rewrite(odd.copy(whole, tmp_path / change.__name__), change, file)))
        for look in (checked_model, load_model):
            with pytest.raises(UnavailableError, match=says):
                look(subject)


@pytest.mark.parametrize(
    ("base", "says"),
    [(None, "names no base model"), ("", "names no base model"), ("../adapter", "names its own folder")],
)
def test_an_adapter_without_a_base_says_so(base: str | None, says: str, tmp_path: Path, ilu: Ilu) -> None:
    folder = odd.set_base(odd.adapter(tmp_path / "adapter"), base)
    done = ilu("eval", folder, "--bench", "capitals", "--limit", 4)
    assert (done.code, says in done.err) == (3, True)


@pytest.mark.parametrize("text", ["{", "[]", "null"])
def test_a_damaged_adapter_config_is_said_to_be_damaged(text: str, tmp_path: Path) -> None:
    folder = odd.adapter(tmp_path / "adapter")
    (folder / "adapter_config.json").write_text(text)
    with pytest.raises(UnavailableError, match=r"adapter_config\.json is damaged"):
        find_model(str(folder))


def test_the_plan_of_every_command_looks_at_the_files(tmp_path: Path, ilu: Ilu) -> None:
    folder = odd.rewrite(make_family("llama", tmp_path / "model"), no_down)
    lines = [
        ["unlearn", "--method", "npo", "--model", folder, "--set", "train.params=['*']", "--dry-run"],
        ["attack", folder, "--task", "elements", "--steps", 2, "--dry-run"],
        ["eval", folder, "--bench", "capitals", "--dry-run"],
    ]
    for line in lines:
        done = ilu(*line)
        assert (done.code, "would be drawn at random" in done.err) == (3, True), line
    adapted = odd.adapter(tmp_path / "adapter")
    assert ilu("eval", adapted, "--bench", "capitals", "--limit", 4, "--dry-run").code == 0
    assert not Path("runs").exists()


def test_only_a_pickle_is_refused_by_name(tmp_path: Path) -> None:
    folder = make_family("llama", tmp_path / "model")
    shutil.move(folder / "model.safetensors", folder / "pytorch_model.bin")
    with pytest.raises(UnavailableError, match=r"no \*\.safetensors weights .* only pytorch_model\.bin"):
        find_model(str(folder))


def test_a_file_that_the_configuration_names_is_the_one(tmp_path: Path) -> None:
    folder = odd.stray(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"transformers_weights": "model_old.safetensors"}))
    agrees(folder)
    save_file({"x": torch.ones(1)}, folder / "model_old.safetensors", {"format": "pt"})
    with pytest.raises(UnavailableError, match="lacks 39"):
        checked_model(find_model(str(folder)))
