"""`ilu doctor MODEL`: a model's losses and scores against plain transformers."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

from ilu_cli.errors import UsageError, near
from ilu_cli.models.builtin import MODELS
from ilu_cli.models.mirror import in_mirror
from ilu_cli.models.subject import Subject, find_subject
from ilu_cli.paths import is_hub_name
from ilu_cli.recipe.load import shipped
from ilu_cli.runs.store import Store, split_step


def model_named(name: str) -> Subject | None:
    """The run or model of a name; None if it is that of a recipe.

    Raises:
        UnavailableError: if the run or model is damaged or cannot be had.
        UsageError: if there is nothing of that name.
    """
    if name in shipped() or Path(name).is_file():
        return None
    store = Store()
    is_run = any(store.find(text) for text in {name, split_step(name)[0]})
    if is_run or name in MODELS or Path(name).is_dir() or in_mirror(name) or is_hub_name(name):
        return find_subject(name, store)
    raise UsageError(
        f"there is no recipe, run or model {name!r}.{near(name, [*shipped(), *MODELS])}",
        hint=f"shipped recipes: {', '.join(shipped())}; or a file; or a model's folder or name",
    )


def parity_facts(subject: Subject) -> dict[str, Any]:
    """The comparison of `ilu_cli.engine.parity` for a model on disk, whether it holds, and how long it took.

    What is not finite is None.
    """
    from ilu_cli.engine.accel import backend
    from ilu_cli.engine.parity import compare
    from ilu_cli.engine.scoring import Scorer
    from ilu_cli.models.load import load_model, load_tokenizer
    from ilu_cli.models.parts import parts_of

    model = load_model(subject, backend().device)
    scorer = Scorer(model, parts_of(model), load_tokenizer(subject.folder), backend())
    began = time.monotonic()
    found = compare(scorer)
    seconds = round(time.monotonic() - began, 3)
    facts = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in found.facts().items()}
    return {
        "model": subject.label,
        "kind": subject.kind,
        "folder": str(subject.folder),
        "class": type(model).__name__,
        "holds": found.holds,
        **facts,
        "seconds": seconds,
    }
