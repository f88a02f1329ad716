"""The `ilu` executable, `python -m ilu_cli`, and so `accelerate launch -m ilu_cli`."""

import os

from ilu_cli import stopping
from ilu_cli.models.heap import collect_rarely

WAITING = {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "3000"}
"""Threads that wait for each other sleep: where others work too, they would spin for a core that the one they wait for
needs. GNU's OpenMP lets them spin for some tens of microseconds first, which is what most waits of a step take
(docs/bench/busy.py). OpenMP reads this when torch is loaded; what the environment says goes before.
"""
LARGE_PAGES = "THP_MEM_ALLOC_ENABLE"
"""Torch asks for large pages for large tensors, where Linux leaves that to programs: each step makes its gradients
anew, for which the kernel would hand out a hundred thousand small ones.
"""


def main() -> None:
    """Run the command line; a signal while it is being imported ends the process with a message."""
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ |= WAITING | os.environ
    os.environ.setdefault(LARGE_PAGES, "1")
    collect_rarely()
    try:
        stopping.install()
        from ilu_cli.cli.app import main as run
    except BaseException:
        if stopping.asked.is_set():
            stopping.end_at_once()
        raise
    try:
        run()
    except SystemExit as end:
        if end.code == stopping.CODE:
            stopping.leave()
        stopping.too_late()
        raise


if __name__ == "__main__":
    main()
