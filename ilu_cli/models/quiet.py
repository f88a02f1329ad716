"""transformers leaves the terminal to us."""

from __future__ import annotations

import warnings


def quiet_transformers() -> None:
    """No progress bars, no warnings of what is checked here."""
    from transformers.utils import logging

    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers|peft")
    logging.set_verbosity_error()
    logging.disable_progress_bar()
