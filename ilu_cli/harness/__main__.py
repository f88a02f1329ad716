"""`python -m ilu_cli.harness`: lm-eval's own command line, with the backend `ilu` (`--model ilu`)."""

from lm_eval.__main__ import cli_evaluate

import ilu_cli.harness.lm  # noqa: F401  (registers the backend)

cli_evaluate()
