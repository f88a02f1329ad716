"""Names that become files: none of them leaves its folder, on any system."""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath, PureWindowsPath

LONGEST = 255  # bytes; what the common file systems take
DEVICE = re.compile(r"(con|prn|aux|nul|com[0-9¹²³]|lpt[0-9¹²³]|conin\$|conout\$)", re.IGNORECASE)
ODD = re.compile(r'[\x00-\x1f\x7f<>:"|?*]')  # what Windows refuses, a drive's colon among it
HUB_PART = r"\w(?:[\w.-]*\w)?"
HUB_NAME = re.compile(rf"(?!.*(?:--|\.\.)){HUB_PART}/{HUB_PART}")
"""`OWNER/NAME` by the hub's own rules: a part begins and ends with a letter, a digit or `_`; no `..`, no `--`."""


def problem_of_name(name: str) -> str:
    """Why a text cannot be the name of one file or folder; "" if it can."""
    if name in ("", ".", ".."):
        return "is no name of a file"
    if "/" in name or "\\" in name:
        return "has a slash, which leads to another folder"
    if name.startswith("~"):
        return "begins with ~, which stands for a home folder"
    if ODD.search(name):
        return "has a character that no file name may have"
    if name[-1] in ". ":
        return "ends with a dot or a space, which Windows drops"
    if DEVICE.fullmatch(name.partition(".")[0].rstrip()):
        return "is the name of a device on Windows"
    if len(name.encode("utf-8", "surrogatepass")) > LONGEST:
        return f"is longer than {LONGEST} bytes"
    return ""


def problem_of_new(folder: Path) -> str:
    """Why a folder cannot be made for something new; "" if it can, as far as looking tells."""
    for part in folder.parts:
        if len(part.encode("utf-8", "surrogatepass")) > LONGEST:
            return f"has a name longer than {LONGEST} bytes"
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        return "exists and is not empty"
    return ""


def as_name(text: str) -> str:
    """A text as a part of a file's name: whatever is neither a letter, a digit, nor one of `_.@=-` becomes `_`."""
    return re.sub(r"[^\w.@=-]+", "_", text)


def problem_of_path(text: str) -> str:
    """Why a text cannot be a path below a folder, as a README or an index names a file; "" if it can. Globs may be.

    Only what leads out is refused: the file may be named as it likes.
    """
    if "\0" in text or not text:
        return "is no path"
    if text.startswith("~") or PurePosixPath(text).is_absolute():
        return "does not begin at its folder"
    windows = PureWindowsPath(text)
    if windows.drive or windows.root:
        return "does not begin at its folder"
    if ".." in windows.parts:  # which parts at both kinds of slash
        return "leads out of its folder by .."
    return ""


def is_hub_name(text: str) -> bool:
    """Whether a text has the form of a name on the hub, `OWNER/NAME`."""
    return bool(HUB_NAME.fullmatch(text)) and not any(map(problem_of_name, text.split("/")))


def leads_out(path: Path, root: Path) -> bool:
    """Whether a file below `root` links to what lies elsewhere; the hub's own cache keeps its blobs beside."""
    top = root.resolve()
    inside = [top, *([top.parent.parent / "blobs"] if top.parent.name == "snapshots" else [])]
    found = path.resolve()
    return not any(found.is_relative_to(folder) for folder in inside)
