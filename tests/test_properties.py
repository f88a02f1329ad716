"""Laws that hold for any input, tried on what hypothesis makes up; the same inputs in every run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import tiny_tokenizer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ilu_cli.data.encode import Corpus, Encoded, Packed, collate, encode_corpus
from ilu_cli.data.sampling import Sampler, part_of
from ilu_cli.engine.accel import backend
from ilu_cli.engine.scoring import Scorer
from ilu_cli.engine.stream import TrainStream
from ilu_cli.engine.tree import Request, in_rows
from ilu_cli.errors import UsageError
from ilu_cli.models.load import load_model, load_tokenizer
from ilu_cli.models.parts import parts_of
from ilu_cli.models.subject import find_model
from ilu_cli.recipe.load import dump, load, validate
from ilu_cli.recipe.requirement import parse
from ilu_cli.recipe.schema import UnlearnRecipe
from ilu_cli.recipe.source import Layers, RecipeError, flat, read_layers
from ilu_cli.recipe.specs import Form
from ilu_cli.recipe.yaml_text import YamlError, read_yaml
from ilu_cli.tasks import Example

settings.register_profile(
    "law", derandomize=True, deadline=None, max_examples=60, database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip
law = settings.get_profile("law")
TOKENIZER = tiny_tokenizer()

printable = st.text(
    st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="\ufeff\u2028\u2029\x85"), max_size=12
)
scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(10**9), 10**9)
    | st.floats(allow_nan=False, allow_infinity=False)
    | printable
)
nested = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(printable, inner, max_size=3)
)
PARTS = [*"abé0159.-+:,[]{}&*!|>'\"#%@?\\ \n\t~eE\x00\x07\ud800", "\n  ", "- ", "a: ", "&a ", "*a ", "<<: ", "!!int "]
yamlish = st.lists(st.sampled_from(PARTS), max_size=30).map("".join)


@law
@given(yamlish)
def test_any_text_is_read_or_refused_with_a_line(text: str) -> None:
    try:
        root, value = read_yaml(text)
    except YamlError as error:
        assert 1 <= error.line <= text.count("\n") + text.count("\r") + 2
    else:
        assert (root is None) == (value is None) or value is None


@law
@given(st.dictionaries(printable, nested, max_size=4))
def test_what_is_written_is_read_again(value: dict[str, Any]) -> None:
    assert read_yaml(yaml.safe_dump(value, allow_unicode=True))[1] == value


@law
@given(nested)
def test_a_recipe_is_taken_or_every_problem_has_a_place(value: Any) -> None:
    data = {"objective": {"name": "grad_diff"}, "forget": {"data": "capitals"}, "train": value}
    try:
        recipe = validate(UnlearnRecipe, Layers(data, {(): "x.yaml:1"}))
    except RecipeError as error:
        assert error.problems and all(p.where == "x.yaml:1" for p in error.problems)
    else:
        again = Path("again.yaml")
        again.write_text(dump(recipe), encoding="utf-8")
        assert validate(UnlearnRecipe, read_layers(again)) == recipe


keys = st.lists(
    st.sampled_from(["train", "forget", "data", "lr", "steps", "objective", "name", "0", "1", "x", ""]), max_size=4
)


@law
@given(keys, yamlish)
def test_set_writes_what_it_says_or_is_refused(key: list[str], text: str) -> None:
    try:
        recipe = load(UnlearnRecipe, None, BASE, [f"{'.'.join(key)}={text}"])
    except UsageError as error:
        assert error.hint
    else:
        found: Any = recipe.model_dump()
        assert key[0] in found


BASE: dict[str, Any] = {
    "--method": (("objective", "name"), "grad_diff"), "--forget": (("forget", "data"), "capitals"),
    "--retain": (("retain", "name"), "nll"), "--data": (("retain", "data"), "prose"),
}  # fmt: skip


@law
@given(st.floats(1e-12, 1e9), st.integers(1, 10**6))
def test_set_keeps_every_digit(lr: float, steps: int) -> None:
    train = load(UnlearnRecipe, None, BASE, [f"train.lr={lr!r}", f"train.steps={steps}"]).train
    assert (train.lr, train.steps) == (lr, steps)


@law
@given(nested)
def test_flat_keys_lead_to_their_values(value: Any) -> None:
    found = flat({"x": value})
    assert all(key == "x" or key.startswith("x.") for key in found)


numbers = st.integers(0, 999).map(str) | st.sampled_from(
    ["capitals.acc", "parent", "original", "chance", "capitals.acc.stderr"]
)
sums = st.recursive(
    numbers,
    lambda inner: (
        st.tuples(inner, st.sampled_from("+-*/"), inner).map(lambda t: f"({t[0]} {t[1]} {t[2]})")
        | inner.map(lambda x: f"-{x}")
    ),
    max_leaves=8,
)
MEASURED = {"capitals.acc": 0.25, "parent": 0.875, "original": 0.75, "chance": 0.5, "capitals.acc.stderr": 0.0625}


@law
@given(sums, st.sampled_from(["<=", ">=", "<", ">"]), sums)
def test_a_requirement_means_what_python_says_of_it(left: str, sign: str, right: str) -> None:
    text = f"capitals.acc + {left} {sign} {right}"
    requirement = parse(text, {"capitals": {"acc", "chance"}})
    said = text.replace("capitals.acc.stderr", "0.0625").replace("capitals.acc", "0.25")
    for word in ("parent", "original", "chance"):
        said = said.replace(word, str(MEASURED[word]))
    try:
        expected = bool(eval(said, {"__builtins__": {}}))
    except ZeroDivisionError:
        expected = False
    name = {
        "": {"value": 0.25, "stderr": 0.0625, "chance": 0.5},
        "parent": {"value": 0.875},
        "original": {"value": 0.75},
    }
    assert requirement.check(lambda n: name[n.stage][n.part])["passed"] == expected


@law
@given(
    st.lists(st.sampled_from([*"<>=+-*/() 01.9e", "capitals.acc ", "parent", " <= ", "\x00", "é"]), max_size=15).map(
        "".join
    )
)
def test_any_text_is_a_requirement_or_is_refused(text: str) -> None:
    try:
        assert parse(text, {"capitals": {"acc", "chance"}}).names
    except UsageError as error:
        assert "character " in str(error)


texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40).filter(str.strip)


@law
@given(texts, st.integers(8, 24))
def test_a_split_text_loses_no_token(text: str, size: int) -> None:
    whole = TOKENIZER(text)["input_ids"]
    corpus = encode_corpus(TOKENIZER, [Example("", text * 5)], Form(max_length=size, long="split"), "x")
    assert all(len(e.ids) <= size and e.start == 1 for e in corpus.items)
    long = TOKENIZER(text * 5)["input_ids"]
    joined = [i for e in corpus.items for i in e.ids]
    assert (
        joined == long[: len(joined)] and len(long) - len(joined) <= 1 and whole
    )  # a last token has nothing to predict it


@law
@given(texts, texts, st.integers(8, 64))
def test_an_answer_is_scored_and_its_prompt_is_not(prompt: str, answer: str, size: int) -> None:
    [item] = encode_corpus(TOKENIZER, [Example(prompt, " " + answer)], Form(max_length=size), "x").items
    assert 1 <= item.start < len(item.ids) <= size
    target = [*TOKENIZER(" " + answer)["input_ids"], TOKENIZER.eos_token_id]
    apart = TOKENIZER(prompt)["input_ids"] + target[:-1]
    if apart == TOKENIZER(f"{prompt} {answer}")["input_ids"]:  # the two meet between tokens
        if len(target) < size:
            assert item.ids[item.start :] == target
        else:  # no room for the prompt: nothing predicts the first token of the answer
            assert (item.ids, item.start) == (target[:size], 1)


lists = st.lists(st.integers(0, 60), min_size=2, max_size=9)
items_ = lists.flatmap(lambda ids: st.integers(1, len(ids) - 1).map(lambda start: Encoded(ids, start)))
rows = st.lists(items_, min_size=1, max_size=8)


@law
@given(rows, st.integers(0, 60))
def test_masks_are_spans_whatever_the_padding(items: list[Encoded], pad: int) -> None:
    batch = collate(items, pad)
    for i, e in enumerate(items):
        assert batch.ids[i][batch.mask[i]].tolist() == e.ids
        assert batch.ids[i][batch.scored[i]].tolist() == e.ids[e.start :]
    assert not (batch.scored & ~batch.mask).any() and int(batch.scored.sum()) == sum(e.targets for e in items)
    packed = Packed.of(items)
    assert list(packed) == items and packed[-1] == items[-1]


@law
@given(st.lists(st.integers(1, 7), min_size=1, max_size=3), st.integers(1, 6), st.integers(1, 12), st.integers(0, 99))
def test_an_epoch_shows_every_row_once(sizes: list[int], batch: int, steps: int, seed: int) -> None:
    sampler = Sampler(sizes, seed, "x")
    seen = [key for step in range(steps) for key in sampler.rows(step, batch)]
    for d, size in enumerate(sizes):
        mine = [row for dataset, row in seen if dataset == d]
        for epoch in range(len(mine) // size):
            assert sorted(mine[epoch * size : (epoch + 1) * size]) == list(range(size))
    corpora = [
        Corpus([Encoded(list(range(2 + (d + i) % 5)), 1) for i in range(size)], 0) for d, size in enumerate(sizes)
    ]
    stream = TrainStream("x", corpora, batch, seed)
    assert set(stream.visited(steps)) == set(seen) and len(stream.visited(steps)) == len(set(seen))
    assert set(stream.half(1).visited(steps)) == {k for step in range(steps) for k in stream.half(1).keys(step)}


@law
@given(st.integers(0, 30), st.integers(1, 9), st.integers(1, 4))
def test_shares_are_a_partition(count: int, world: int, accumulation: int) -> None:
    items, parts = list(range(count)), world * accumulation
    shares = [part_of(items, p, parts) for p in range(parts)]
    assert [i for share in shares for i in share] == items
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


alike = st.lists(st.integers(1, 4), min_size=2, max_size=9)
asked = alike.flatmap(lambda ids: st.integers(1, len(ids) - 1).map(lambda start: Request(tuple(ids), start)))
requests = st.lists(asked, min_size=1, max_size=12)


@pytest.fixture(scope="module")
def scorer(tiny: Path) -> Scorer:
    model = load_model(find_model(str(tiny)))
    return Scorer(model, parts_of(model), load_tokenizer(tiny), backend())


@settings(law, max_examples=25)
@given(given_=requests)
def test_the_scores_of_trees_are_those_of_plain_passes(scorer: Scorer, given_: list[Request]) -> None:
    found = scorer.score(given_)
    scorer.model.requires_grad_(False)
    for request, (logp, greedy) in zip(given_, found):
        logps = scorer.model(input_ids=torch.tensor([request.ids])).logits[0, :-1].double().log_softmax(-1)
        places = [(t - 1, request.ids[t]) for t in range(request.start, len(request.ids))]
        assert logp == pytest.approx(sum(logps[i, token].item() for i, token in places), abs=1e-4)
        top = [logps[i].topk(2) for i, _ in places]
        if all(float(t.values[0] - t.values[1]) > 1e-4 for t in top):  # no ties
            assert greedy == all(int(t.indices[0]) == token for t, (_, token) in zip(top, places))


@law
@given(requests)
def test_a_tree_holds_the_tokens_of_each_request_on_its_path(given_: list[Request]) -> None:
    for row in in_rows(given_, list(range(len(given_)))):
        for index, scored in zip(row.requests, row.scored):
            request = given_[index]
            assert [token for _, token in scored] == list(request.ids[request.start :])
            for (node, _), t in zip(scored, range(request.start, len(request.ids))):
                above = [j for j in range(node + 1) if node < row.end[j]]  # itself and its ancestors
                assert [row.ids[j] for j in above] == list(request.ids[:t])
