"""Whether the hub is there: asked once and for seconds, where its client would try again for minutes."""

from __future__ import annotations

import os
import threading

PATIENCE = 4.0  # seconds that the hub has for its first answer


def why_silent() -> str:
    """Why the hub is out of reach; empty if it answers, whatever it says.

    Nothing is asked where the user works offline (`HF_HUB_OFFLINE`). Neither name resolution nor a proxy that takes the
    connection and is silent delays this beyond `PATIENCE`.
    """
    from huggingface_hub import constants, get_session

    if constants.HF_HUB_OFFLINE or os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        return "HF_HUB_OFFLINE is set"
    found = [f"{constants.ENDPOINT} cannot be reached: no answer within {PATIENCE:g} s"]

    def ask() -> None:
        try:
            get_session().head(constants.ENDPOINT, timeout=PATIENCE)
            found[0] = ""
        except Exception as error:  # httpx has many
            found[0] = f"{constants.ENDPOINT} cannot be reached: {str(error) or type(error).__name__}"

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(PATIENCE)
    return found[0]


def cache_only_if_silent() -> None:
    """Without an answer the hub's client shall look at its cache only, and not try again for minutes."""
    import datasets
    from huggingface_hub import constants

    if why_silent():
        constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True
