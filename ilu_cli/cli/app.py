"""The `ilu` executable: its subcommands, and errors turned into messages and exit codes."""

from __future__ import annotations

import os
import sys
import traceback
from typing import Any, NoReturn

import typer
import typer.core

from ilu_cli import stopping
from ilu_cli.cli import (
    attack,
    compare,
    console,
    doctor,
    evaluate,
    fetch,
    pipeline,
    plan,
    push,
    report,
    reproduce,
    runs,
    schema,
    taskvec,
    taskvec_apply,
    unlearn,
)
from ilu_cli.cli import list as list_
from ilu_cli.cli.failures import as_known
from ilu_cli.engine import peers
from ilu_cli.errors import IluError, Interrupted, RunFailed, UsageError, plain

TOGETHER = ("unlearn", "attack", "eval", "compare", "taskvec", "reproduce")
"""The commands that the processes of a launch do together; any other the first does alone."""


class Commands(typer.core.TyperGroup):
    """A command's name may be two words, as `taskvec apply`; any other word behind `taskvec` is a RUN."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Click's own, with two words as one command where there is one of that name."""
        two = " ".join(args[:2])
        found = super().resolve_command(ctx, [two, *args[2:]] if two in self.commands else args)
        if found[0] not in TOGETHER and not peers.alone(str(found[0])):
            raise typer.Exit
        return found


app = typer.Typer(
    cls=Commands,
    help="Unlearn a language model so that it stays forgotten: unlearn, attack, measure, explain.",
    epilog="Exit codes: 0 fine, 2 usage or recipe, 3 model, run or data not available, 4 a requirement failed, "
    "5 run failed, 130 interrupted.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command("unlearn")(unlearn.unlearn)
app.command("attack")(attack.attack)
app.command("eval")(evaluate.evaluate)
app.command("compare", cls=compare.Compare)(compare.compare)
app.command("taskvec")(taskvec.taskvec)
app.command("taskvec apply")(taskvec_apply.taskvec_apply)
app.command("taskvec-apply", hidden=True)(taskvec_apply.taskvec_apply)
app.command("pipeline")(pipeline.pipeline)
app.command("plan")(plan.plan)
app.command("fetch")(fetch.fetch)
app.command("doctor")(doctor.doctor)
app.command("report")(report.report)
app.command("reproduce")(reproduce.reproduce)
app.command("push")(push.push)
app.command("list")(list_.list_)
app.add_typer(runs.app, name="runs")
app.command("schema")(schema.schema)


def _version(wanted: bool) -> None:
    if wanted:
        from ilu_cli import __version__

        print(f"ilu {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    debug: bool = typer.Option(False, "--debug", envvar="ILU_DEBUG", help="Show tracebacks."),
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Show the version."),
) -> None:
    """`debug` is read in `_fail`, where even an error of parsing the command line arrives."""


def main() -> None:
    """Run the command line; every error becomes a message on stderr and a documented exit code."""
    try:
        stopping.install()
        peers.begin()
        code = app(prog_name="ilu", standalone_mode=False) or 0
        if code == 130:  # Typer makes an exit code of an interruption
            raise KeyboardInterrupt
        sys.exit(code)
    except KeyboardInterrupt:
        _fail(Interrupted("interrupted", hint="nothing is lost: give the same command again"), 130)
    except typer.Abort:
        _fail(RunFailed("the input ended"), 1)
    except IluError as error:
        known = as_known(error)
        _fail(known, known.exit_code)
    except BrokenPipeError:  # the reader of our output has gone away
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception as error:
        # Typer's errors of usage, whose class is private; they show the usage as well.
        if hasattr(error, "show") and hasattr(error, "exit_code") and hasattr(error, "format_message"):
            told = plain(error.format_message())
            vars(error)["format_message"] = lambda: told  # which `show` asks for
            if _speaks(known := UsageError(told)) is None:
                sys.exit(known.exit_code)
            error.show()
            _tell(error.exit_code, told, None)
        known = Interrupted("interrupted") if stopping.asked.is_set() else as_known(error)
        _fail(known, known.exit_code)


def _fail(error: IluError, code: int) -> NoReturn:
    if os.environ.get("ILU_DEBUG") or "--debug" in sys.argv:
        traceback.print_exc()
    if _speaks(error) is None:
        sys.exit(error.exit_code)
    print(f"error: {plain(str(error))}", file=sys.stderr)
    if error.hint:
        print(f"hint:  {plain(error.hint)}", file=sys.stderr)
    if peers.launched():
        print(f"where: {peers.where()}", file=sys.stderr)
    _tell(code, str(error), error.hint)


def _speaks(error: IluError) -> IluError | None:
    """The error if this process is to print it: of those of a launch one does, and the launcher stops the others."""
    if peers.launched():
        stopping.too_late()
    return peers.ends(error)


def _tell(code: int, message: str, hint: str | None) -> NoReturn:
    """Exit; with `--json` the error is the one object on stdout."""
    if "--json" in sys.argv:
        print(console.json_text({"error": {"code": code, "message": message, "hint": hint}}))
    sys.exit(code)
