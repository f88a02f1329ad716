"""`ilu taskvec`: find the checkpoints by lineage, and compare their task vectors."""

from __future__ import annotations

from dataclasses import dataclass, field

from ilu_cli.engine.reporter import Reporter
from ilu_cli.errors import UnavailableError, UsageError
from ilu_cli.models.subject import Subject, parent_of
from ilu_cli.recipe.load import digest, load
from ilu_cli.recipe.schema import AttackRecipe, TaskvecRecipe
from ilu_cli.runs.results import Row
from ilu_cli.runs.store import Store
from ilu_cli.taskvec.angles import Gram, Grams, layer_of, measure, type_of
from ilu_cli.taskvec.delta import Checkpoint, common_names, differences, open_checkpoint
from ilu_cli.taskvec.plane import Drawn, Placed, Plane, coordinates
from ilu_cli.taskvec.subspace import Overlap, overlaps
from ilu_cli.workflows.taskvec.roles import Roles, find_roles, forget_accuracy, points_of

SMALL = 0.01  # below this a cosine, or a ratio of norms, says next to nothing


@dataclass
class Vectors:
    """The inner products of the task vectors around a run, and what else was asked for."""

    roles: Roles
    grams: Grams
    left_out: dict[str, str] = field(default_factory=dict)
    plane: Plane | None = None
    subspace: list[Overlap] | None = None

    def as_dict(self) -> dict[str, object]:
        touched = self.grams.touched("u")
        return {
            "checkpoints": {r: {"id": s.label, "folder": str(s.folder)} for r, s in self.roles.by_name.items()},
            "groups": {group: g.as_dict() for group, g in self.groups().items()},
            "types": {kind: g.as_dict() for kind, g in self.grams.by(type_of).items()},
            "touched": {
                "weights": touched,
                "of": len(self.grams.by_weight),
                **self.touched().as_dict(),
            },
            "left_out": self.left_out,
            "verdict": verdict(self.grams),
            "plane": self.plane,
            "subspace": [o.as_dict() for o in self.subspace] if self.subspace is not None else None,
            "notes": self.roles.notes,
        }

    def groups(self) -> dict[str, Gram]:
        """Overall and by layer."""
        return {"all": self.grams.total(), **self.grams.by(layer_of)}

    def touched(self) -> Gram:
        """Over the weights that unlearning changed."""
        return self.grams.total(set(self.grams.touched("u")).__contains__)


@dataclass(frozen=True)
class TaskvecPlan:
    """The checkpoints that will be compared, with their roles."""

    recipe: TaskvecRecipe
    checkpoints: list[tuple[str, Subject]]

    def to_json(self) -> Row:
        found = {role: {"id": s.label, "folder": str(s.folder)} for role, s in self.checkpoints}
        return {"recipe": self.recipe.model_dump(), "recipe_sha256": digest(self.recipe), "checkpoints": found}

    def lines(self) -> list[str]:
        return [f"{role:<10} {s.label}" for role, s in self.checkpoints]


def plan(recipe: TaskvecRecipe, subjects: list[Subject], store: Store) -> TaskvecPlan:
    """Find the checkpoints around the subjects.

    Raises:
        UnavailableError: if there is no unlearned model in a lineage.
    """
    return TaskvecPlan(recipe, [pair for s in subjects for pair in find_roles(s, store).by_name.items()])


def complete(subject: Subject, store: Store, reporter: Reporter) -> None:
    """Run the attack of these roles on the original model, if that is missing.

    Raises:
        UnavailableError: if there is no attack whose counterpart could be run.
    """
    from ilu_cli.workflows.attack import run as attack

    roles = find_roles(subject, store).by_name
    if "attacked" not in roles:
        raise UnavailableError(f"there is no attack on {roles['unlearned'].label} yet", hint="run `ilu attack`")
    attacked = roles["attacked"]
    if "finetuned" in roles or attacked.run is None:
        return
    target = parent_of(attacked)
    if target is None:
        raise UnavailableError(f"{attacked.label} has no parent")
    recipe = load(AttackRecipe, attacked.run.path / "recipe.yaml", {}, [])
    planned = attack.plan(recipe, target, recorded=True)
    reporter.note(f"the attack of {attacked.label} on the original, {planned.original.label}")
    attack.run(planned, store, reporter, planned.original)


def run(recipe: TaskvecRecipe, subject: Subject, store: Store) -> Vectors:
    """Compare the task vectors around `subject`.

    Raises:
        UnavailableError: if checkpoints are missing or do not have the same weights.
    """
    roles = find_roles(subject, store)
    opened = {role: open_checkpoint(s) for role, s in roles.by_name.items()}
    vectors = roles.vectors()
    if recipe.plane:
        more, labels = _plane_points(roles)
        opened |= {role: open_checkpoint(s) for role, s in more.items()}
        vectors |= {f"o→{role}": ("original", role) for role in labels}
    every = list(opened.values())
    names = common_names(every, recipe.include, common=recipe.common)
    grams = measure(opened, vectors, names)
    found = Vectors(roles, grams.only(list(roles.vectors())), differences(every))
    if recipe.plane:
        found.plane = _plane(roles, grams.total(), labels)
    if recipe.subspace:
        u, ft = ((opened[start], opened[end]) for start, end in (roles.vectors()[v] for v in _compared(roles)))
        found.subspace = overlaps(u, ft, names, recipe.subspace, recipe.seed)
    return found


def _compared(roles: Roles) -> tuple[str, str]:
    """The two vectors whose subspaces are compared.

    Raises:
        UnavailableError: if there is no attack to compare.
    """
    if "attacked" not in roles.by_name:
        raise UnavailableError("there is no attack on this run yet, so no τ_u→ft", hint="run `ilu attack`")
    return "u", "u→ft"


def _plane_points(roles: Roles) -> tuple[dict[str, Subject], dict[str, Drawn]]:
    """Intermediate checkpoints, and everything that is drawn, with what is known of it before it is measured."""
    known, more = roles.by_name, dict[str, Subject]()
    attacks: list[str] = [role for role in ("finetuned", "attacked") if role in known]
    forget = {role: forget_accuracy(known[role]) for role in attacks}
    labels: dict[str, Drawn] = {}
    begins = {"original": "finetuned", "unlearned": "attacked"}
    for role, subject in known.items():
        at = forget.get(begins.get(role, role)) or {}
        step = None if role in begins else max(at, default=None)
        labels[role] = Drawn(role=role, label=subject.label, step=step, forget=at.get(step or 0))
    for role in forget:
        for p in points_of(role, known[role]):
            more[f"{role}@{p.strength}"] = p.subject
            share = forget[role].get(p.strength)
            labels[f"{role}@{p.strength}"] = Drawn(role=role, label=p.subject.label, step=p.strength, forget=share)
    return more, labels


def _plane(roles: Roles, gram: Gram, labels: dict[str, Drawn]) -> Plane:
    """The checkpoints on the plane of τ_u and τ_ft, or of τ_u and τ_u→ft if the original was not fine-tuned.

    Raises:
        UnavailableError: if there is nothing but τ_u, or the vectors span no plane.
    """
    second = "ft" if "finetuned" in roles.by_name else "u→ft"
    if second not in gram.names:
        raise UnavailableError("there is no attack on this run yet, so no plane", hint="run `ilu attack`")
    if second != "ft":
        roles.notes.append("the original was not fine-tuned: the plane is that of τ_u and τ_u→ft (--complete runs it)")
    found = coordinates(gram, "u", second, [f"o→{role}" for role in labels])
    points = [Placed(**drawn, x=x, y=y, explained=e) for drawn, (x, y, e) in zip(labels.values(), found)]
    order = {"original": 0, "unlearned": 1, "finetuned": 2, "attacked": 3}
    points.sort(key=lambda p: (order[p["role"]], p["step"] or 0))
    return {"axes": ["τ_u", f"τ_{second}, orthogonal to τ_u"], "points": points}


@dataclass
class Cosines:
    """The vectors of several runs against each other."""

    gram: Gram
    ends: dict[str, tuple[str, str]]
    notes: list[str]
    left_out: dict[str, str]

    def as_dict(self) -> dict[str, object]:
        names = self.gram.names
        return {
            "vectors": {n: {"from": a, "to": b, "norm": self.gram.norm(n)} for n, (a, b) in self.ends.items()},
            "cosines": [[self.gram.cosine(a, b) for b in names] for a in names],
            "notes": self.notes,
            "left_out": self.left_out,
        }


def matrix(recipe: TaskvecRecipe, subjects: list[Subject], store: Store) -> Cosines:
    """Compare the task vectors around several runs, each vector once.

    Raises:
        UsageError: if the plane or the subspaces of several runs are asked for.
        UnavailableError: if checkpoints are missing or do not have the same weights.
    """
    if recipe.plane or recipe.subspace:
        raise UsageError("--plane and --subspace look at one run", hint="name one RUN")
    opened: dict[str, Checkpoint] = {}
    ends: dict[str, tuple[str, str]] = {}
    notes: list[str] = []
    for subject in subjects:
        roles = find_roles(subject, store)
        notes += [n for n in roles.notes if n not in notes]
        for s in roles.by_name.values():
            if s.label not in opened:
                opened[s.label] = open_checkpoint(s)
        for name, (start, end) in roles.vectors().items():
            pair = roles.by_name[start].label, roles.by_name[end].label
            if pair not in ends.values():
                ends[f"{name} {pair[1]}"] = pair
    every = list(opened.values())
    names = common_names(every, recipe.include, common=recipe.common)
    return Cosines(measure(opened, ends, names).total(), ends, notes, differences(every))


def verdict(grams: Grams) -> str:
    """Does fine-tuning walk back? With what keeps the figure from saying much, where something does."""
    gram = grams.total()
    if "u→ft" not in gram.names:
        return "no attack on this run yet: `ilu attack` fine-tunes it"
    cosine, u, ft = gram.cosine("u", "u→ft"), gram.norm("u"), gram.norm("u→ft")
    if cosine is None:
        return "one of the task vectors is zero"
    if abs(cosine) < SMALL:
        how = "is nearly orthogonal to the unlearning direction; a cosine this small says next to nothing"
    elif cosine > 0:
        how = "goes on along the unlearning direction"
    else:
        how = f"walks back along the unlearning direction, and undoes {-cosine * ft / u:.2%} of its length"
    lines = [f"cos(τ_u→ft, τ_u) = {cosine:+.4f}: fine-tuning {how}"]
    if ft < SMALL * u:
        lines.append(f"fine-tuning hardly moved: ‖τ_u→ft‖ is {ft / u:.2%} of ‖τ_u‖")
    if u < SMALL * ft:
        lines.append(f"unlearning hardly moved: ‖τ_u‖ is {u / ft:.2%} of ‖τ_u→ft‖")
    touched = grams.touched("u")
    if len(touched) < len(grams.by_weight):
        part = grams.total(set(touched).__contains__)
        there = part.cosine("u", "u→ft")
        share = part.norm("u→ft") ** 2 / ft**2
        value = "not defined: fine-tuning left them alone" if there is None else f"{there:+.4f}"
        lines.append(
            f"unlearning changed {len(touched)} of {len(grams.by_weight)} weights: over those the cosine is {value}, "
            f"and {share:.2%} of the squared length of τ_u→ft lies there"
        )
    return "\n".join(lines)
