"""The data files inside the package. Lines that begin with `# ` are their header: what, origin, licence."""

from __future__ import annotations

from importlib import resources

from ilu_cli.errors import UnavailableError


def _body(name: str) -> str:
    file = resources.files("ilu_cli.data") / "builtin" / name
    try:
        text = file.read_text(encoding="utf-8")
    except OSError as error:
        raise UnavailableError(
            f"the data file {name} is missing from the installation", hint="reinstall ilu"
        ) from error
    return "\n".join(line for line in text.splitlines() if not line.startswith("# "))


def read_table(name: str) -> list[dict[str, str]]:
    """Read a tab-separated file whose first line names the columns.

    Raises:
        UnavailableError: if the file is missing or a row has too few or too many columns.
    """
    columns, *rows = [line.split("\t") for line in _body(name).splitlines() if line.strip()]
    for row in rows:
        if len(row) != len(columns):
            raise UnavailableError(f"{name}: {row} does not have the columns {columns}")
    return [dict(zip(columns, row)) for row in rows]


def read_paragraphs(name: str) -> list[str]:
    """Read paragraphs that are parted by blank lines.

    Raises:
        UnavailableError: if the file is missing.
    """
    return [" ".join(p.split()) for p in _body(name).split("\n\n") if p.strip()]
