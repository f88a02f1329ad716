"""transformers and torch leave the terminal to us."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


def quiet_transformers() -> None:
    """No progress bars, no warnings of what is checked here."""
    from transformers.utils import logging as theirs

    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers|peft")
    theirs.set_verbosity_error()
    theirs.disable_progress_bar()


@contextmanager
def quiet_fakes() -> Iterator[None]:
    """No traceback in the log where an operation has no rule for tensors without data: the error itself is raised."""
    log = logging.getLogger("torch._subclasses.fake_tensor")
    before, log.disabled = log.disabled, True
    try:
        yield
    finally:
        log.disabled = before
