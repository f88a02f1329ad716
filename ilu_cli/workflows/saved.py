"""What the files of a finished training tell of it."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ilu_cli.engine.reporter import Reporter
from ilu_cli.errors import IluError
from ilu_cli.models.dtypes import lost_in
from ilu_cli.models.subject import Subject, is_adapter
from ilu_cli.runs.files import tensors_in
from ilu_cli.runs.store import Run
from ilu_cli.taskvec.delta import changed_fraction, open_checkpoint


def changed(parent: Subject, run: Run, reporter: Reporter) -> float | None:
    """The share of weights that a finished run changed; None, with a note, if the files cannot be compared."""
    m, base = run.manifest, parent if is_adapter(run.checkpoint) else None
    after = Subject(run.id, "run", run.checkpoint, m.weights, m.beside, run, base)
    try:
        return changed_fraction(open_checkpoint(parent), open_checkpoint(after))
    except (IluError, OSError) as error:
        reporter.note(f"the run is complete; the share of its weights that changed is not known: {error}")
        return None


def lost(parent: Subject, run: Run, trained: Mapping[str, Tensor], dtype: torch.dtype) -> float | None:
    """What the checkpoint's `dtype` loses of the update of the `trained` weights; see `lost_in`.

    None if that is nothing (float32, an adapter), or the parent's weights cannot be compared with them.
    """
    if dtype == torch.float32 or is_adapter(run.checkpoint):
        return None
    wide = {name for name, t in tensors_in(run.checkpoint).items() if t["dtype"] == "F32"}
    try:
        rounded = {name: p for name, p in trained.items() if name not in wide}
        return lost_in(dtype, rounded, open_checkpoint(parent).tensor)
    except (IluError, OSError, KeyError):
        return None
