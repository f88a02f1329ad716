"""Trees of tokens, told by hand: what a row holds, who sees whom, how rows are cut and batched."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from families import family_model

from ilu_cli.engine import layout, tree
from ilu_cli.engine.layout import FULL, SLIDING, Layout, layout_of, short_window
from ilu_cli.engine.tree import Forest, Request, as_tensors, halves, in_rows, take, who_sees_whom

# 5 6 7 [8]  and  5 6 9 4 [3]  share 5 6;  2 1 [0] stands by itself
REQUESTS = [Request((5, 6, 7, 8), 3), Request((5, 6, 9, 4, 3), 1), Request((2, 1, 0), 2)]


def rows_of(requests: Any, **how: Any) -> Any:
    return in_rows(requests, list(range(len(requests))), **how)


def test_a_row_holds_every_shared_beginning_once() -> None:
    [row] = rows_of(REQUESTS)
    assert row.ids == [2, 1, 5, 6, 7, 9, 4]
    assert row.positions == [0, 1, 0, 1, 2, 2, 3]
    assert row.end == [2, 2, 7, 7, 5, 7, 7]
    assert row.requests == [2, 0, 1]
    assert row.scored == [[(1, 0)], [(4, 8)], [(2, 6), (3, 9), (5, 4), (6, 3)]]
    assert row.longest == 4


def test_a_token_sees_itself_and_what_stands_before_it_on_its_path() -> None:
    _, _, end = as_tensors(rows_of(REQUESTS))
    wanted = ["1000000", "1100000", "0010000", "0011000", "0011100", "0011010", "0011011"]
    assert who_sees_whom(end)[0].int().tolist() == [[int(c) for c in line] for line in wanted]


def test_padding_sees_itself_only_and_is_seen_by_nobody() -> None:
    long, short = rows_of(REQUESTS)[0], Forest()
    short.add(2, REQUESTS[2])
    ids, positions, end = as_tensors([long, short])
    assert ids[1].tolist() == [2, 1, 0, 0, 0, 0, 0] and positions[1].tolist() == [0, 1, 0, 0, 0, 0, 0]
    seen = who_sees_whom(end)[1]
    assert torch.equal(seen[2:], torch.eye(7, dtype=torch.bool)[2:])
    assert not seen[:2, 2:].any()


def test_without_trees_a_row_is_one_path() -> None:
    rows = rows_of([*REQUESTS, Request((5, 6), 1), Request((5, 6, 7, 9), 3)], trees=False)
    assert sorted((r.ids, sorted(r.requests)) for r in rows) == [
        ([2, 1], [2]),
        ([5, 6, 7], [0, 3, 4]),
        ([5, 6, 9, 4], [1]),
    ]
    assert [len(r) for r in rows] == [2, 3, 4]  # the shortest first
    assert all(r.positions == list(range(len(r))) and r.end == [len(r)] * len(r) for r in rows)


def test_a_row_is_as_wide_as_width_or_twice_its_longest_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tree, "WIDTH", 6)
    apart = [Request((n, n, n, n), 1) for n in range(1, 6)]  # three tokens each
    assert [len(r) for r in rows_of(apart)] == [3, 6, 6]
    longer = [Request((n,) * 6, 1) for n in range(1, 4)]  # five tokens each: two of them are more than the width
    assert [len(r) for r in rows_of(longer)] == [5, 10]
    assert [len(r) for r in rows_of([Request((1,) * 6, 1), *apart[1:3]])] == [3, 8]  # the longest counts, not the last
    last = Request((9,) * 7, 1)  # six tokens, after six: twice the longest
    assert [len(r) for r in rows_of([*apart[:2], last])] == [12]


def test_a_row_grows_with_what_is_shared_as_long_as_that_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shared: 9 tokens, new: 1 each. With pairs worth 16, L = 9 + √(16 · 9) = 21, so twelve requests in a row."""
    monkeypatch.setattr(tree, "WIDTH", 6)
    monkeypatch.setattr(tree, "WORTH", 16)
    alike = [Request((*range(9), n, 0), 10) for n in range(100, 130)]
    assert [len(r) for r in rows_of(alike)] == [15, 21, 21]
    monkeypatch.setattr(tree, "WORTH", 0)
    assert [len(r) for r in rows_of(alike)] == [17, 20, 20]  # twice the longest


def test_a_batch_has_at_most_so_many_tokens_with_its_padding() -> None:
    def some() -> Any:
        rows = []
        for n in (2, 3, 5):
            rows.append(Forest())
            rows[-1].add(0, Request(tuple(range(n + 1)), 1))
        return rows

    for tokens, wanted in ((1, [5]), (9, [5]), (10, [5, 3]), (14, [5, 3]), (15, [5, 3, 2])):
        assert [len(r) for r in take(some(), tokens)] == wanted


def test_halves_part_the_requests_and_lose_none() -> None:
    [row] = rows_of(REQUESTS)
    first, second = halves(row, REQUESTS)
    assert (first.requests, second.requests) == ([2, 0], [1])
    assert (first.ids, second.ids) == ([2, 1, 5, 6, 7], [5, 6, 9, 4])


def test_a_window_is_counted_along_the_path() -> None:
    made = Layout(SimpleNamespace(sliding_window=2), (FULL, SLIDING))
    _, masks, extra = made.inputs(rows_of(REQUESTS), torch.float32, torch.device("cpu"))
    assert extra["position_ids"].tolist() == [[0, 1, 0, 1, 2, 2, 3]]
    seen = {kind: (mask[0, 0] == 0).int().tolist() for kind, mask in masks.items()}
    assert seen[FULL][6] == [0, 0, 1, 1, 0, 1, 1]
    assert seen[SLIDING][5] == [0, 0, 0, 1, 0, 1, 0]  # 9 and the 6 before it, though 7 lies between them in the row
    assert seen[SLIDING][6] == [0, 0, 0, 0, 0, 1, 1]
    assert masks[FULL].max() == 0 and masks[FULL].min() == torch.finfo(torch.float32).min


def test_one_kind_of_layer_gets_one_mask_and_plain_rows_a_flat_one() -> None:
    rows, cpu = rows_of(REQUESTS), torch.device("cpu")
    _, mask, _ = Layout(SimpleNamespace(sliding_window=2), (SLIDING,)).inputs(rows, torch.float64, cpu)
    assert mask.shape == (1, 1, 7, 7) and mask.dtype == torch.float64
    _, mask, extra = Layout(None).inputs(rows_of(REQUESTS, trees=False), torch.float32, cpu)
    assert mask.tolist() == [[1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1]] and extra == {}


def test_what_long_rope_turns_otherwise_stands_apart() -> None:
    found = list(Layout(None, (FULL,), bound=3).rows(REQUESTS))
    assert [[r.requests for r in rows] for rows in found] == [[[2, 0]], [[1]]]  # four tokens are read of the first
    assert [[r.requests for r in rows] for rows in Layout(None, (FULL,)).rows(REQUESTS)] == [[[2, 0, 1]]]


@pytest.mark.parametrize(
    ("family", "kinds", "why"),
    [
        ("llama", (FULL,), ""),
        ("mistral", (SLIDING,), ""),
        ("qwen2", (FULL,), ""),
        ("gpt_oss", (FULL, SLIDING), ""),
        ("bloom", (), "no positions"),
        ("falcon", (), "alibi"),
        ("lfm2", (), "layers of conv"),
    ],
)
def test_the_layout_of_a_family(family: str, kinds: Any, why: str) -> None:
    decoder = family_model(family).get_decoder()
    found = layout_of(decoder)
    assert found.kinds == kinds and why in found.why and found.trees == bool(kinds)
    assert found.config is decoder.config and bool(found.why) == bool(why)


def test_a_window_of_another_kind_means_plain_rows() -> None:
    decoder = family_model("llama").get_decoder()
    decoder.config.window_size = 256  # as GPT-Neo has it, counted in the row
    assert not layout_of(decoder).trees and "window_size" in layout_of(decoder).why
    assert layout_of(decoder).config is decoder.config


@pytest.mark.parametrize("name", ["use_sliding_window", "max_window_layers", "sliding_window_pattern",
                                  "_sliding_window_pattern"])  # fmt: skip
def test_a_window_that_is_known_may_be_configured_in_several_ways(name: str) -> None:
    decoder = family_model("llama").get_decoder()
    setattr(decoder.config, name, 6)
    assert decoder.config.to_dict()[name] == 6
    assert layout_of(decoder).trees


def test_the_window_is_short_only_while_it_is_checked() -> None:
    config = SimpleNamespace(sliding_window=4096)
    with pytest.raises(KeyError), short_window(config) as shorter:
        assert shorter and config.sliding_window == layout.SHORT
        raise KeyError
    assert config.sliding_window == 4096
    config.sliding_window = None
    with short_window(config) as shorter:
        assert not shorter and config.sliding_window is None
    config.sliding_window = 2
    with short_window(config):
        assert config.sliding_window == 2


def test_the_bound_of_long_rope_is_read_for_all_layers_or_for_each_kind() -> None:
    def bound(given: Any) -> Any:
        return layout.rope_bound(SimpleNamespace(rope_parameters=given))

    long = {"rope_type": "longrope", "original_max_position_embeddings": 9}
    assert bound(long) == 9
    assert bound({FULL: long, SLIDING: long | {"original_max_position_embeddings": 5}}) == 5
    assert bound({FULL: {"rope_type": "default"}}) is bound({"rope_type": "default"}) is bound(None) is None
