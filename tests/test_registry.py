"""What an idea declares is checked at its decorator: every mistake names its file and line."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any, get_args

import pytest
from conftest import noted
from pydantic import PositiveFloat

from ilu_cli import registry
from ilu_cli.declarations import Quantity, reference_bytes
from ilu_cli.engine.view import Reference, View
from ilu_cli.errors import UsageError
from ilu_cli.recipe.load import load
from ilu_cli.recipe.schema import UnlearnRecipe, schema
from ilu_cli.recipe.source import Key
from ilu_cli.recipe.specs import Component, DefenceSpec, RegularizerSpec, RetainSpec
from ilu_cli.recipe.training_attack import TrainingAttack

ADDING = (Path(__file__).parents[1] / "docs" / "adding.md").read_text(encoding="utf-8")


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget what a test registered."""
    for known in registry.ALL:
        len(known)
        monkeypatch.setattr(known, "_entries", dict(known._entries))


def loss(forget: Any) -> Any:
    return forget.nll


def refused(register: Any, obj: Any = loss) -> str:
    with pytest.raises(UsageError) as found:
        register(obj)
    assert str(found.value).startswith(f"{__file__}:"), "it names file and line"
    return f"{found.value} {found.value.hint or ''}"


def test_an_unknown_declaration() -> None:
    said = refused(registry.objective(neeeds="nll", needs="nll", per="token"))
    assert "there is no declaration 'neeeds'. Did you mean 'needs'?" in said


def test_a_need_that_no_view_has() -> None:
    said = refused(registry.objective(needs="nll reference.lgps", per="token"))
    assert "'reference.logps'" in said


def test_a_divisor_that_is_none() -> None:
    said = refused(registry.objective(needs="nll", per="tokens"))
    assert "per='tokens'" in said
    assert "'hidden token'" in said


def test_what_must_be_declared() -> None:
    assert "per= must be declared" in refused(registry.retain_term(needs="nll"))
    assert "needs= is a text" in refused(registry.objective(needs=["nll"], per="token"))
    assert "access='network'" in refused(registry.attack(strength="steps", access="network"))
    assert "least=0" in refused(registry.regularizer(least=0))


def test_a_parameter_that_is_no_keyword() -> None:
    def scaled(forget: Any, scale: float) -> Any:
        return scale * forget.nll

    assert "put a * before it" in refused(registry.objective(needs="nll", per="token"), scaled)


def test_a_parameter_without_annotation() -> None:
    def scaled(forget, *, scale=1.0):  # type: ignore[no-untyped-def]
        return scale * forget.nll

    assert "'scale' has no annotation" in refused(registry.objective(needs="nll", per="token"), scaled)


def test_a_parameter_that_hides_a_key_of_its_kind() -> None:
    def own_batch(retain: Any, *, batch: int = 3) -> Any:
        return retain.nll

    said = refused(registry.retain_term(needs="nll", per="token"), own_batch)
    assert "'batch' is a key that every retain term has" in said


def test_a_second_idea_without_a_name() -> None:
    registry.objective(needs="nll", per="token")(loss)

    def second(forget: Any) -> Any:
        return -forget.nll

    assert "needs a name of its own" in refused(registry.objective(needs="nll", per="token"), second)
    registry.objective(name="second", needs="nll", per="token")(second)
    assert {"test_registry", "second"} <= set(registry.objective)


def test_a_defence_with_positional_parameters() -> None:
    class Bad:
        """Takes its key by position."""

        def __init__(self, rho: float) -> None:
            self.rho = rho

    assert "put a * before it" in refused(registry.defence(), Bad)


@pytest.mark.parametrize(
    ("known", "base"),
    [
        (registry.objective, Component),
        (registry.retain_term, RetainSpec),
        (registry.regularizer, RegularizerSpec),
        (registry.defence, DefenceSpec),
        (registry.attack, TrainingAttack),
    ],
    ids=lambda x: getattr(x, "kind", ""),
)
def test_common_keys_are_those_of_the_recipe(known: Any, base: Any) -> None:
    assert known.common == set(base.model_fields)


def test_a_view_has_everything_that_may_be_needed() -> None:
    for need in get_args(Quantity):
        owner, name = (Reference, need.partition(".")[2]) if need.startswith("reference.") else (View, need)
        assert hasattr(owner, name), need
        assert f"`{need}`" in ADDING, f"docs/adding.md does not name {need}"


def test_bytes_of_the_reference() -> None:
    assert reference_bytes({"hidden", "reference.hidden"}, 10, 3, 16) == 10 * 16 * 4
    assert reference_bytes({"reference.final"}, 10, 3, 16) == 3 * 16 * 4
    assert reference_bytes({"reference.logps", "nll"}, 10, 3, 16) == 0


def test_an_idea_brings_its_own_rules() -> None:
    def rules(own: Any, key: Any, recipe: Any) -> Iterator[Any]:
        if own.scale > recipe.train.lr:
            yield (*key, "scale"), "is above the learning rate"

    def ruled(forget: Any, *, scale: PositiveFloat = 1.0) -> Any:
        """Ascent, scaled below the learning rate."""
        return -scale * forget.nll

    registry.objective(name="ruled", needs="nll", per="token", problems=rules)(ruled)
    given: dict[str, tuple[Key, Any]] = {
        "--method": (("objective", "name"), "ruled"),
        "--forget": (("forget", "data"), "capitals"),
    }
    with pytest.raises(UsageError, match=r"objective\.scale: is above the learning rate"):
        load(UnlearnRecipe, None, given, [])
    assert schema(UnlearnRecipe).model_fields["objective"] is not None


class Point:
    """An entry point, as an installed package announces it."""

    name, dist = "mine", None

    def __init__(self, load: Any) -> None:
        self.load = load


def test_installed_packages_add_ideas(monkeypatch: pytest.MonkeyPatch) -> None:
    def announce() -> None:
        registry.retain_term(name="installed", needs="nll", per="token")(loss)

    asked: list[str] = []
    monkeypatch.setattr(metadata, "entry_points", lambda group: noted(asked, group, [Point(announce)]))
    registry.load_installed.cache_clear()
    monkeypatch.setattr(registry.retain_term, "_loaded", False)
    assert "installed" in registry.retain_term
    assert asked == ["ilu.plugins"]
    registry.load_installed.cache_clear()


def test_an_installed_package_that_does_not_import_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata, "entry_points", lambda group: [Point(lambda: 1 / 0)])
    registry.load_installed.cache_clear()
    with pytest.raises(UsageError, match="plugin 'mine' of the package"):
        registry.load_installed()
    registry.load_installed.cache_clear()
