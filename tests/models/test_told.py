"""What is found of a model by trying it is found once: of other weights, other code or another kind of model anew."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from families import make_family
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from ilu_cli.care.content import Lines, Shared
from ilu_cli.engine.accel import backend
from ilu_cli.engine.packing import packed
from ilu_cli.engine.parity import check
from ilu_cli.engine.prefix import Begun, begin
from ilu_cli.engine.scoring import Scorer
from ilu_cli.errors import UnavailableError
from ilu_cli.models import kept as module
from ilu_cli.models.kept import source_of, told
from ilu_cli.models.load import checked_model, identity_of, load_model, load_tokenizer
from ilu_cli.models.parts import Parts, parts_of
from ilu_cli.models.subject import find_model
from ilu_cli.workflows.content import shared

ROWS = [(3, 4, 5, 6), (7, 8)]


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    monkeypatch.setenv("ILU_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def layers(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows with every layer that is run."""
    run: list[int] = []
    forward = LlamaDecoderLayer.forward

    def counted(self: Any, *args: Any, **kwargs: Any) -> Any:
        run.append(1)
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(LlamaDecoderLayer, "forward", counted)
    return run


def taken(folder: Path) -> tuple[Parts, Parts, Parts]:
    """A model as a run takes it: compared, apart; packed; begun after its first layer."""
    subject = find_model(str(folder))
    model = load_model(subject)
    parts = parts_of(model, identity_of(subject))
    scorer = Scorer(model, parts, load_tokenizer(folder), backend())
    assert check(scorer, print).holds
    begun = begin(parts, 1, ROWS, backend(), "fp32", ["states", subject.digest])
    return parts, packed(begun), begun


def test_of_the_same_weights_no_layer_is_run_again_and_all_is_the_same(tmp_path: Path, layers: list[int]) -> None:
    folder = make_family("llama", tmp_path / "m")
    first = taken(folder)
    assert (made := len(layers)) > 0
    again = taken(folder)
    assert len(layers) == made
    assert isinstance(again[2], Begun) and again[2].tuples == first[2].tuples  # type: ignore[attr-defined]
    assert again[0].ends_early is first[0].ends_early is True
    assert again[1].packing == first[1].packing is not None
    configs: list[Any] = [taken[1].decoder.config for taken in (first, again)]
    assert configs[0]._attn_implementation == configs[1]._attn_implementation != "sdpa"


def test_of_other_weights_everything_is(tmp_path: Path, layers: list[int]) -> None:
    taken(make_family("llama", tmp_path / "m"))
    made = len(layers)
    taken(make_family("llama", tmp_path / "n", seed=1))
    assert len(layers) == 2 * made


def test_a_weight_that_became_no_number_is_found(tmp_path: Path) -> None:
    folder = make_family("llama", tmp_path / "m")
    taken(folder)
    file = folder / "model.safetensors"
    weights = load_file(file)
    next(iter(weights.values())).view(-1)[0] = torch.nan
    save_file(weights, file, {"format": "pt"})
    for _ in range(2):  # what failed is not kept
        with pytest.raises(UnavailableError, match="infinite or not numbers"):
            load_model(find_model(str(folder)))


def test_files_are_compared_with_their_model_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, loads = make_family("llama", tmp_path / "m"), list[int]()
    load = LlamaForCausalLM.from_pretrained.__func__

    def counted(kind: Any, *args: Any, **kwargs: Any) -> Any:
        loads.append(1)
        return load(kind, *args, **kwargs)

    monkeypatch.setattr(LlamaForCausalLM, "from_pretrained", classmethod(counted))
    for _ in range(2):
        checked_model(find_model(str(folder)))
    assert len(loads) == 1
    file, config = folder / "model.safetensors", folder / "config.json"
    weights = load_file(file)
    lost = next(n for n in weights if n.endswith("down_proj.weight"))
    save_file({n: w for n, w in weights.items() if n != lost}, file, {"format": "pt"})
    for _ in range(2):
        with pytest.raises(UnavailableError, match=f"lacks 1 weights .*{lost}"):
            checked_model(find_model(str(folder)))
    save_file(weights, file, {"format": "pt"})
    config.write_text(json.dumps(json.loads(config.read_text()) | {"intermediate_size": 7}))
    with pytest.raises(UnavailableError, match="of another shape than its config"):
        checked_model(find_model(str(folder)))


def test_what_was_told_is_told_again_by_the_same_code_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []

    def find() -> list[Any]:
        made.append(1)
        return [True, None, 0.5]

    assert told(["a"], find) == told(["a"], find) == [True, None, 0.5] and len(made) == 1
    told(["b"], find)
    told(None, find)
    told(None, find)
    monkeypatch.setattr(module, "code", lambda: "other code")
    told(["a"], find)
    assert len(made) == 5

    def fails() -> None:
        made.append(1)
        raise ValueError("no")

    for _ in range(2):
        with pytest.raises(ValueError, match="no"):
            told(["c"], fails)
    assert len(made) == 7


def test_the_source_tells_kind_device_and_attention_and_no_code_of_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load_model(find_model(str(make_family("llama", tmp_path / "m"))))
    assert source_of(model, ["x"]) == ["LlamaForCausalLM", "cpu", "sdpa", "x"]
    model.set_attn_implementation("eager")
    assert source_of(model, ["x"]) == ["LlamaForCausalLM", "cpu", "eager", "x"]
    assert source_of(model, None) is None
    monkeypatch.setattr(type(model), "__module__", "transformers_modules.m.modeling")
    assert source_of(model, ["x"]) is None


def test_rows_of_one_dataset_in_another_are_looked_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = ["one two three four five", "six seven eight nine ten"]
    made: list[int] = []

    def counted(left: Lines, right: Lines) -> Shared:
        made.append(1)
        return of(left, right)

    of = Shared.of
    monkeypatch.setattr(Shared, "of", counted)
    for _ in range(2):
        found = shared(Lines("retain", "a", texts), Lines("forget", "b", [f"so {texts[1]}", *texts[:1]]))
        assert found.rows == {0: 1, 1: 0} and found.left.label == "retain data a"
    assert len(made) == 1
    assert shared(Lines("retain", "a", texts[:1]), Lines("forget", "b", texts[1:])).rows == {}
    assert len(made) == 2
