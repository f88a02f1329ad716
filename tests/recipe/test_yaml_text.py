"""What is read of YAML, and in which line it is wrong."""

from __future__ import annotations

import pytest

from ilu_cli.recipe.yaml_text import DEEPEST, MOST, YamlError, read_yaml, write_yaml


def test_keys_are_text_and_days_and_small_numbers_are_what_they_look_like() -> None:
    text = "no: 1\n2024-01-01: 2024-01-02\n3: {~: 1e-4}\nbase: &b {x: 1}\nmore: {<<: *b, y: 2}\n"
    assert read_yaml(text)[1] == {
        "no": 1, "2024-01-01": "2024-01-02", "3": {"~": 1e-4}, "base": {"x": 1}, "more": {"x": 1, "y": 2},
    }  # fmt: skip
    assert read_yaml("# nothing\n") == (None, None)


@pytest.mark.parametrize(
    ("text", "line", "what"),
    [
        ("a: 1\nb: &x [*x]\n", 2, "an alias of itself"),
        ("a: 1\nb: " + "[" * (DEEPEST + 1), 2, f"more than {DEEPEST} levels"),
        ("a: 1\nb: \0\n", 2, "U+0000"),
        ("a: 1\n? [b]\n: 1\n", 2, "a key is a word"),
        ("a: 1\nb: !!timestamp x\n", 2, "only plain values"),
        ("a: 1\nb: !!int x\n", 2, "'x' is no int"),
        ('a: 1\nb: "\\ud800"\n', 2, "half a surrogate pair"),
        ('a: 1\nb: "\\U00110000"\n', 2, "not valid YAML"),
        ("a: 1\nb: [1, ]]\n", 2, "not valid YAML"),
        ("x" * 200_001, 1, "at most 200,000"),
    ],
)
def test_what_is_wrong_has_a_line(text: str, line: int, what: str) -> None:
    with pytest.raises(YamlError) as found:
        read_yaml(text)
    assert found.value.line == line and what in found.value.what


def test_aliases_are_counted_as_what_they_stand_for() -> None:
    level = "[1, 1, 1, 1, 1, 1, 1, 1, 1, 1]"
    lines = [f"a0: &a0 {level}", *(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 5))]
    assert len(read_yaml("\n".join(lines[:4]))[1]["a3"]) == 10  # 1 + 10 + 100 + 1,000 + 10,000 values, and those above
    with pytest.raises(YamlError, match=f"line 5: .* more than {MOST:,}"):
        read_yaml("\n".join(lines))


def test_what_readers_of_yaml_disagree_about_is_text() -> None:
    """`limit: 0100` was 64 rows and `1:30` was 90."""
    found = read_yaml("[0100, 1:30, 1:30.5, 08, 0x1f, 1_000, -3, 1.5, 1e5, .5, 0]")[1]
    assert found == ["0100", "1:30", "1:30.5", "08", 31, 1000, -3, 1.5, 1e5, 0.5, 0]


@pytest.mark.parametrize("value", ["12e4567", "1e5", "0100", "1:30", "yes", "~", "2026-01-02", "3", 3, 1e-5, 2.5, None])
def test_what_is_written_is_read_again(value: object) -> None:
    """A revision such as 12e4567 was written without quotes, and read as a number."""
    assert read_yaml(write_yaml({"key": value}))[1] == {"key": value}
