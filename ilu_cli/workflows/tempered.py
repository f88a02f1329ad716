"""What the environments of a recipe cost at the best temperature; see `ilu_cli.engine.temper`."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ilu_cli.engine.accel import backend
from ilu_cli.engine.loop import Trainer
from ilu_cli.engine.stream import TrainStream
from ilu_cli.engine.temper import per_sequence
from ilu_cli.recipe.schema import UnlearnRecipe
from ilu_cli.workflows.training import Streams


def tempered_environments(recipe: UnlearnRecipe, streams: Streams) -> list[TrainStream]:
    """The environments of a penalty that scaling the logits alone can satisfy, where one process has all weights."""
    if backend().world > 1:
        return []
    pairs = zip(recipe.regularizers, streams.environments)
    return [env.stream for reg, envs in pairs if reg.params().get("variant") == "logit" for env in envs]


def best_temperature(
    env: TrainStream, trainer: Trainer, recipe: UnlearnRecipe, source: Any = None
) -> tuple[Tensor, Tensor]:
    """What each of its first sequences costs, with the weights that are in place now; `source` as for `kept`."""
    return per_sequence(env, trainer.grads.parts, trainer.backend, recipe.train.precision, source)
