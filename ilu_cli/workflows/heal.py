"""What follows the forgetting (`train.heal`): the same weights are trained on general text.

What forgets along directions that other knowledge does not use stays forgotten under training on other text; then so
does it here, and a larger step that costs more can be afforded. An idea of this project; from distillation as in UNDO
(arXiv 2506.06278), whose teacher is the unlearned model and not, as here, the one before.
"""

from __future__ import annotations

from ilu_cli.engine.accel import backend
from ilu_cli.engine.budget import Facts
from ilu_cli.engine.divergence import kl_term
from ilu_cli.engine.job import drive
from ilu_cli.engine.loop import Trainer
from ilu_cli.engine.reporter import Reporter
from ilu_cli.engine.state import save_state
from ilu_cli.recipe.schema import UnlearnRecipe
from ilu_cli.runs.store import Run
from ilu_cli.workflows.training import Streams


def build_healer(recipe: UnlearnRecipe, streams: Streams, trainer: Trainer, digest: str | None) -> Trainer | None:
    """What trains on when `trainer` is done; None: nothing does.

    To be built before the first step: what the model says of the text then is what it shall say again. `digest` tells
    the model, as for `build_trainer`.
    """
    spec, data = recipe.train.healing, streams.heal
    if spec is None or data is None:
        return None
    parts, source = trainer.grads.parts, [digest, spec.memory.frozen] if digest else None
    term = kl_term("heal", data.stream, spec.steps, parts, backend(), spec.precision, source)
    return Trainer(parts, trainer.params, [term], [], spec, recipe.seed, backend())


def healing(run: Run) -> bool:
    """Whether a run that goes on had come so far."""
    return any((run.state / "heal").glob("step-*.pt"))


def heal(healer: Trainer, trainer: Trainer, run: Run, reporter: Reporter, *, begun: bool) -> None:
    """Train on, or if that was `begun` go on; the manifest says how far the weights are from the start then.

    Raises:
        Interrupted, RunFailed: as `ilu_cli.engine.job.drive`.
    """
    if not begun:
        trainer.let_go()
        if healer.backend.main:
            run.save()  # what the forgetting came to: it is not done again
        save_state(healer, run.state / "heal")
    for _ in drive(healer, run, reporter, "healing", "heal", after=run.manifest.result["steps"]):
        pass
    found: Facts = {"steps": healer.step}
    if trainer.budget:
        found |= trainer.budget.now(trainer.grads)
    run.manifest.result["healed"] = found
    healer.let_go()
