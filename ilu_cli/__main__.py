"""The `ilu` executable, `python -m ilu_cli`, and so `accelerate launch -m ilu_cli`."""

import os

from ilu_cli import stopping


def main() -> None:
    """Run the command line; a signal while it is being imported ends the process with a message.

    Threads that wait for each other sleep: where others work too, they would spin for a core that the one they wait for
    needs (docs/bench/busy.py). OpenMP reads this when torch is loaded; what the environment says goes before.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
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
