"""`ilu push`: a run's checkpoint, card and recipe to the hub, in one commit."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ilu_cli.data.hub import why_silent
from ilu_cli.errors import UnavailableError
from ilu_cli.runs.files import stray_files
from ilu_cli.runs.results import Row
from ilu_cli.runs.store import Run


@dataclass(frozen=True)
class PushPlan:
    """What will be uploaded: the files by their path in the repository, and the card."""

    run: Run
    name: str
    files: dict[str, Path]
    card: str

    @property
    def bytes(self) -> int:
        """The size of all files, without the card."""
        return sum(p.stat().st_size for p in self.files.values())

    def to_json(self) -> Row:
        return {"run": self.run.id, "files": [*self.files, "README.md"]}

    def lines(self) -> list[str]:
        return [f"{len(self.files) + 1} files, {self.bytes / 1e6:.1f} MB, to {self.name}"]


def plan(run: Run, name: str) -> PushPlan:
    """Verify the hashes and collect the files.

    Raises:
        UnavailableError: if the run is unfinished, kept no weights, or a weight file has changed.
    """
    run.verify()
    run.check("eval")
    if not run.manifest.weights:
        raise UnavailableError(f"run {run.id} kept no weights", hint="make it again with its checkpoint kept")
    folder, left_out = run.checkpoint, {"README.md", *stray_files(run.checkpoint)}
    found = {p.relative_to(folder).as_posix(): p for p in sorted(folder.rglob("*")) if p.is_file()}
    files = {name: p for name, p in found.items() if name not in left_out}
    files["recipe.yaml"] = run.path / "recipe.yaml"
    return PushPlan(run, name, files, run.card(name))


def upload(push: PushPlan, *, private: bool) -> str:
    """Create the repository if it is not there, and commit.

    Returns:
        The address of the repository.

    Raises:
        UnavailableError: if the hub is out of reach or refuses.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    api = HfApi()
    if why := why_silent():
        raise UnavailableError(
            f"nothing can be pushed: {why}", hint="check the network, HF_ENDPOINT and HF_HUB_OFFLINE"
        )
    try:
        made = api.create_repo(push.name, private=private, exist_ok=True)
        operations: list[Any] = [CommitOperationAdd(k, str(p)) for k, p in push.files.items()]
        operations.append(CommitOperationAdd("README.md", push.card.encode()))
        api.create_commit(made.repo_id, operations, commit_message=f"{push.run.id}, made by ilu")
    except Exception as error:  # the hub client raises its own errors, httpx's and OSError
        first = (str(error).splitlines() or [""])[0]
        raise UnavailableError(
            f"the hub did not take {push.name}: {type(error).__name__}: {first}",
            hint="check the name, and that HF_TOKEN or `hf auth login` gives write access",
        ) from error
    return str(made)
