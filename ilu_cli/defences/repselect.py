from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from pydantic import NonNegativeFloat, PositiveInt

from ilu_cli import registry
from ilu_cli.defences import Defence, Resumable
from ilu_cli.errors import UsageError
from ilu_cli.models.heap import give_back
from ilu_cli.recipe.specs import Share
from ilu_cli.registry import defence

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ilu_cli.engine.gradients import Gradients, Term, Vector
    from ilu_cli.engine.stream import TrainStream
    from ilu_cli.models.matrices import Matrix
    from ilu_cli.recipe.schema import UnlearnRecipe
    from ilu_cli.recipe.source import Key

    Pair = tuple[nn.Parameter, nn.Parameter]  # B [outputs, r], A [r, inputs]

Collapse = Literal["soft", "hard", "quadratic"]
Sides = Literal["both", "inputs", "outputs"]
WHOLE = 1024  # the smaller side up to which a matrix is decomposed exactly


def problems(own: Any, key: Key, recipe: UnlearnRecipe) -> Iterator[tuple[Key, str]]:
    """Directions of retain data that the recipe lacks, an interval beside a shot of every step, adapters, and defences
    that would change a gradient which is not taken.
    """
    if own.directions == "retain" and recipe.retain is None:
        yield (*key, "directions"), "the recipe has no retain data to take them from"
    if own.shot == "step" and own.every is not None:
        yield (*key, "every"), "a shot of every step is taken at every step: leave it out"
    if recipe.lora is not None:
        yield (*key, "name"), "repselect filters the gradients of a model's own matrices: leave lora out"
    for i, name in enumerate(d.name for d in recipe.defences if own.shot == "data"):
        other = registry.defence[name].obj
        changes = other.gradient is not Defence.gradient and other is not RepSelect
        if changes and (other.moves or i < int(key[-1])):
            hint = "or" if other.moves else "name it after repselect, or"
            message = f"{name} would change nothing: repselect's gradient is that of its shot"
            yield ("defences", i, "name"), f"{message}. Leave it out, {hint} take a shot of every step (shot: step)"


@defence(problems=problems)
class RepSelect(Defence):
    """Forget along directions that nothing else uses: the leading ones of the forget gradient are collapsed.

    RepSelect (arXiv 2606.17168). G, the forget gradient over all forget data, is taken where a simulated attacker has
    got to. In each trained matrix its first `k` singular directions (a share of the smaller side), which other
    knowledge and later fine-tuning run along too, are collapsed (see `collapsed`), and what is left is the forget
    gradient of every step. Trained weights that are no matrices (norms, biases) get none.

    The attacker is a LoRA of rank `rank` on the same matrices, α = r and drawn as by peft, stepped by SGD at
    `attacker_lr` through the forget data once; 0: no attacker. It is `built` beside linear maps, and no gradient of a
    whole matrix is taken for it; of others, or without, its gradient follows from that of the matrix it is added to, at
    W + B·A: ∂B = G·Aᵀ, ∂A = Bᵀ·G. A shot costs a pass for the attacker and one for G before its first step; with `rows`
    the passes are over so many rows of the forget data, null: all.

    `shot`: G is of all `data`, once, or again after `every` steps with a fresh attacker; or of each `step`'s batch,
    without an attacker, as a filter. `directions` may be those of the `retain` gradient at the same place.

    As the authors run it: gate, up and down projections, objective −NLL, W ← W − ηG until the KL divergence on general
    text reaches 0.01 (`train.params`, `train.optimizer: sgd`, `train.budget`), no retain term, 512 directions of an 8 B
    model, attacker at 0.01 (tuned from 0.005 to 0.5). Otherwise than theirs: G is the mean over batches and not their
    sum, so that the learning rate does not depend on how many there are; singular vectors are exact where the smaller
    side is at most 1024 (theirs: randomised always).

    Published: answer probability after relearning on WMDP-bio, Llama-3.1-8B: .168 without it, .040 with it, .154 the
    best other. Their caveat: the mean of the ten lowest of thirty trials, one learning rate of the attacker.
    """

    mlps = True

    def __init__(
        self, *, k: Share = 0.33, collapse: Collapse = "soft", sides: Sides = "both",
        directions: Literal["forget", "retain"] = "forget", attacker_lr: NonNegativeFloat = 0.05, rank: PositiveInt = 8,
        shot: Literal["data", "step"] = "data", every: PositiveInt | None = None, rows: PositiveInt | None = None,
        built: bool = True,
    ) -> None:  # fmt: skip
        self.k, self.collapse, self.sides, self.directions = k, collapse, sides, directions
        self.attacker_lr, self.rank, self.shot, self.every = attacker_lr, rank, shot, every
        self.rows, self.built = rows, built
        self.log, self.filtered = {}, list[Any]()

    def held(self, trained: Sequence[Sequence[int]]) -> tuple[int, int]:
        """The attacker's matrices, the weights before the shot, and whole gradients or what the matrices are added to;
        then what is left of it. One copy more where the attacker cannot be built.
        """
        each = sum(map(math.prod, trained))
        if self.shot == "step":
            filtered = (2 if self.directions == "retain" else 1) * each
            return filtered, filtered
        follows = self.attacker_lr > 0 and not self.built
        shot = (3 if follows or self.directions == "retain" else 2) * each
        return shot, shot + each if self.every else each

    def steps(self, stream: TrainStream) -> int:
        return passes(stream, self.rows) if self.shot == "data" else 0

    def gradient(self, grads: Gradients, forget: Term, retain: Term | None, compute: Callable[[], Tensor]) -> Tensor:
        if self.shot == "step":
            with grads.aside():
                value = compute()
                whole = grads.whole()
                other = self._of_retain(grads, retain, grads.step)
                grads.add(self._filter(grads, whole, other))
            return value
        if not self.filtered or (self.every and grads.step % self.every == 0):
            self.filtered = self._shoot(grads, forget, retain)
            give_back()  # what the shot held beside it
        grads.add([g.clone() for g in self.filtered])  # clipping changes gradients in place
        return grads.accumulate(replace(forget, weight=0.0))

    def _shoot(self, grads: Gradients, forget: Term, retain: Term | None) -> Vector:
        with grads.aside(), grads.shifted(self._attacker(grads, forget)):
            whole = grads.mean(forget, passes(forget.stream, self.rows))
            other = self._of_retain(grads, retain, None)
        return self._filter(grads, whole, other)

    def _attacker(self, grads: Gradients, forget: Term) -> Vector:
        """B·A of each matrix after one pass through the forget data, in the form of the parameters."""
        import torch
        from torch import nn

        from ilu_cli.data.sampling import seed_of
        from ilu_cli.models.beside import linear_maps

        if not self.attacker_lr:
            return [torch.zeros_like(p) for p in grads.params]
        generator = torch.Generator().manual_seed(seed_of(grads.seed, "repselect", grads.step))
        where, pairs = located(grads), list[Any]()
        for i, m in where:
            base = m.of(grads.params[i].detach())
            a = torch.empty(self.rank, base.shape[1]).uniform_(-1, 1, generator=generator) / math.sqrt(base.shape[1])
            pairs.append((nn.Parameter(base.new_zeros(len(base), self.rank)), nn.Parameter(a.to(base))))
        maps = linear_maps(grads.parts.decoder, [m for _, m in where]) if self.built else None
        seen = self._train(grads, forget, where, maps, pairs) if maps else None
        seen = seen or self._follow(grads, forget, where, pairs)
        delta = [torch.zeros_like(p) for p in grads.params]
        for (i, m), (b, a) in zip(where, pairs):
            m.of(delta[i]).copy_((b @ a).detach())
        self.log = {"attacker nll at first": seen[0], "attacker nll at last": seen[-1]}
        return delta

    def _train(
        self, grads: Gradients, forget: Term, where: list[tuple[int, Matrix]], maps: list[nn.Linear], pairs: list[Pair]
    ) -> list[float] | None:
        """Step the pairs B, A in place, built beside the linear maps; return the NLL of each step.

        None, and nothing is done, if a matrix has a gradient although its map does not use it: something else does.
        """
        import torch

        from ilu_cli.engine.gradients import mean_nll
        from ilu_cli.models.beside import beside

        nll, seen, leaves = mean_nll("attacker", forget.stream), list[float](), [x for pair in pairs for x in pair]
        half = torch.bfloat16 if grads.spec.precision == "bf16" else None
        places = {i for i, _ in where}
        with grads.aside(), grads.frozen(but=places), beside(maps, pairs, half):
            for step in range(passes(forget.stream, self.rows)):
                seen.append(float(grads.backend.sum(grads.accumulate(nll, step=step))))
                if any(g is not None for g in grads.take()):
                    return None
                grads.backend.sum_gradients(leaves)
                for x in leaves:
                    if x.grad is not None:  # None: no token has come by
                        x.detach().sub_(x.grad, alpha=self.attacker_lr)
                        x.grad = None
        return seen

    def _follow(
        self, grads: Gradients, forget: Term, where: list[tuple[int, Matrix]], pairs: list[Pair]
    ) -> list[float]:
        """The same, from the gradients of the matrices."""
        import torch

        from ilu_cli.engine.gradients import mean_nll

        nll, seen, params = mean_nll("attacker", forget.stream), list[float](), grads.params
        bases = [m.of(params[i].detach().clone()) for i, m in where]
        with grads.aside(), grads.shifted([torch.zeros_like(p) for p in params]):
            for step in range(passes(forget.stream, self.rows)):
                seen.append(float(grads.backend.sum(grads.accumulate(nll, step=step))))
                whole = grads.whole()
                for (i, m), base, (b, a) in zip(where, bases, ((b.detach(), a.detach()) for b, a in pairs)):
                    g = m.of(whole[i])
                    down, up = g @ a.T, b.T @ g
                    b.sub_(down, alpha=self.attacker_lr)
                    a.sub_(up, alpha=self.attacker_lr)
                    m.of(params[i].detach()).copy_(torch.addmm(base, b, a))
        return seen

    def _filter(self, grads: Gradients, whole: Vector, other: Vector | None) -> Vector:
        """`whole` with every matrix collapsed along its own leading directions, or those of `other`; 0 elsewhere."""
        import torch

        found = [torch.zeros_like(g) for g in whole]
        for i, m in located(grads):
            g = m.of(whole[i]).float()
            u, s, v = leading(g if other is None else m.of(other[i]).float(), self.k, m.name)
            m.of(found[i]).copy_(collapsed(g, u, s, v, self.collapse, self.sides))
        return found

    def _of_retain(self, grads: Gradients, retain: Term | None, step: int | None) -> Vector | None:
        """The gradient of the retain data's NLL, of one step or of all; None if it gives no directions."""
        from ilu_cli.engine.gradients import mean_nll

        if self.directions == "forget" or retain is None:
            return None
        nll = mean_nll("retain", retain.stream)
        if step is None:
            return grads.mean(nll, passes(nll.stream, self.rows))
        grads.accumulate(nll, step=step)
        return grads.whole()

    def state(self) -> Resumable:
        return {"filtered": self.filtered}

    def load(self, state: Resumable) -> None:
        self.filtered = state["filtered"]


def collapsed(g: Tensor, u: Tensor, s: Tensor, v: Tensor, how: Collapse, sides: Sides) -> Tensor:
    """Scale G along singular directions down, from the side of the inputs, of the outputs, or of both.

    G ← G − G·V·D·Vᵀ (inputs), G ← G − U·D·Uᵀ·G (outputs), with D = 1 − S_k/S (soft), 1 − (S_k/S)² (quadratic) or 1
    (hard), so that the k-th direction stays as it is in all but the last. Of G's own directions `soft` from both sides
    leaves S_k²/S.

    Args:
        g: [outputs, inputs]. u: [outputs, k]; s: [k], falling and above 0; v: [inputs, k].
    """
    ratio = s[-1] / s
    taken = {"soft": 1 - ratio, "quadratic": 1 - ratio.square(), "hard": s.new_ones(len(s))}[how]
    if sides != "outputs":
        g = g - (g @ v) * taken @ v.T
    if sides != "inputs":
        g = g - u * taken @ (u.T @ g)
    return g


def leading(g: Tensor, share: float, name: str) -> tuple[Tensor, Tensor, Tensor]:
    """The first singular directions U [outputs, k], S [k], V [inputs, k] of G, k = share of its smaller side.

    There are fewer where G has a lower rank.

    Raises:
        UsageError: if G is 0.
    """
    import torch

    k = max(1, round(share * min(g.shape)))
    if min(g.shape) <= WHOLE:
        u, s, vt = torch.linalg.svd(g, full_matrices=False)
        u, s, v = u[:, :k], s[:k], vt[:k].T
    else:
        with torch.random.fork_rng(devices=[g.device] if g.is_cuda else []):
            torch.manual_seed(0)
            u, s, v = torch.svd_lowrank(g, q=k)
    rank = int((s > s[0] * max(g.shape) * torch.finfo(s.dtype).eps).sum())
    if not rank:
        raise UsageError(
            f"defences.repselect: the gradient of {name} is 0, so there is nothing to forget along",
            hint="leave it out of train.params",
        )
    return u[:, :rank], s[:rank], v[:, :rank]


def passes(stream: TrainStream, rows: int | None = None) -> int:
    """Steps in which every row of a stream is seen at least once, or `rows` of them are."""
    every = max(len(c.items) for c in stream.corpora) * len(stream.corpora)
    return math.ceil(min(every, rows or every) / stream.batch)


def located(grads: Gradients) -> list[tuple[int, Matrix]]:
    """The trained matrices of the layers, each with the number of the parameter that it is (in)."""
    from ilu_cli.models.matrices import matrices_in

    place = {id(p): i for i, p in enumerate(grads.params)}
    params = dict(grads.parts.decoder.named_parameters())
    found = matrices_in(grads.parts.decoder, grads.parts.layers)
    return [(place[id(params[m.param])], m) for m in found if id(params[m.param]) in place]
