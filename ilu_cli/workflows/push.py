"""`ilu push`: a run's checkpoint, card and recipe to the hub, in one commit."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ilu_cli.data.hub import why_silent
from ilu_cli.errors import UnavailableError, UsageError
from ilu_cli.paths import is_hub_name
from ilu_cli.runs import ledger
from ilu_cli.runs.results import Row
from ilu_cli.runs.store import Run


@dataclass(frozen=True)
class PushPlan:
    """What will be uploaded: the files by their path in the repository, and the card."""

    run: Run
    name: str
    private: bool
    files: dict[str, Path]
    card: str

    @property
    def sizes(self) -> dict[str, int]:
        """Every file that is uploaded, with its bytes."""
        return {name: p.stat().st_size for name, p in self.files.items()} | {"README.md": len(self.card.encode())}

    def to_json(self) -> Row:
        return {"run": self.run.id, "repository": self.name, "private": self.private, "files": self.sizes}

    def lines(self) -> list[str]:
        return [f"{size:>15,}  {name}" for name, size in self.sizes.items()]


def plan(run: Run, name: str, *, private: bool = True) -> PushPlan:
    """Verify the hashes and collect the files: those of the checkpoint that the run made, and its recipe.

    Raises:
        UnavailableError: if the run is unfinished, kept no weights, a file has changed, or is a link.
        UsageError: if the name is none of the hub.
    """
    if not is_hub_name(name):
        raise UsageError(f"{name!r} is no name on the hub", hint="write OWNER/NAME: letters, digits, and - _ . within")
    run.verify()
    run.check("eval")
    if not run.manifest.weights:
        raise UnavailableError(f"run {run.id} kept no weights", hint="make it again with its checkpoint kept")
    files = {name: run.checkpoint / name for name in made(run)} | {"recipe.yaml": run.path / "recipe.yaml"}
    if link := next((p for p in files.values() if p.is_symlink()), None):
        raise UnavailableError(f"{link} is a link, so it is no file of the run", hint="put the file itself there")
    return PushPlan(run, name, private, files, run.card(name))


def made(run: Run) -> list[str]:
    """The files of the checkpoint that the run lists; of a run from before there were lists, those of its manifest."""
    listed, top = ledger.read(run.path) if run.manifest.listed else None, "checkpoint/"
    if listed is None:
        return sorted({**run.manifest.weights, **run.manifest.beside})
    return [name.removeprefix(top) for name in listed if name.startswith(top) and name != f"{top}README.md"]


def upload(push: PushPlan) -> str:
    """Create the repository if it is not there, and commit.

    Returns:
        The address of the repository.

    Raises:
        UnavailableError: if the hub is out of reach or refuses.
        UsageError: if it is to be private, and the repository is public.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    api = HfApi()
    if why := why_silent():
        raise UnavailableError(
            f"nothing can be pushed: {why}", hint="check the network, HF_ENDPOINT and HF_HUB_OFFLINE"
        )
    try:
        there = api.create_repo(push.name, private=push.private, exist_ok=True)
        if push.private and not api.repo_info(there.repo_id).private:
            raise UsageError(f"{push.name} is there already, and everybody can read it", hint="--public publishes")
        operations: list[Any] = [CommitOperationAdd(k, str(p)) for k, p in push.files.items()]
        operations.append(CommitOperationAdd("README.md", push.card.encode()))
        api.create_commit(there.repo_id, operations, commit_message=f"{push.run.id}, made by ilu")
    except UsageError:
        raise
    except Exception as error:  # the hub client raises its own errors, httpx's and OSError
        first = (str(error).splitlines() or [""])[0]
        raise UnavailableError(
            f"the hub did not take {push.name}: {type(error).__name__}: {first}",
            hint="check the name, and that HF_TOKEN or `hf auth login` gives write access",
        ) from error
    return str(there)
