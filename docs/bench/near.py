"""What the built-in model says around the capitals: how many sentences are left out, by why, and the first ten."""

from __future__ import annotations

from ilu_cli.models.subject import find_subject
from ilu_cli.recipe.load import find, load
from ilu_cli.recipe.schema import UnlearnRecipe
from ilu_cli.runs.store import Store
from ilu_cli.workflows import near

recipe = load(UnlearnRecipe, find("quickstart-rmu"), {}, [])
texts, counts = near.make(find_subject(recipe.model.ref, Store()), near.topic_of(recipe), near.ROWS)
print(counts)
print("\n".join(texts[:10]))
