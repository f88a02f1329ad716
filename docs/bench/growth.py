"""How a step's time and memory grow with its work, beside plain transformers; what the LM head and caches hold.

    python docs/bench/growth.py [--repeats 5] [--axes length batch vocabulary width environments]

Random Llamas of four layers, all weights trained by AdamW on random tokens, bf16 autocast; each axis at 1, 2, 4 and 8
times its least size, all sizes in turns. Environments of the invariance penalty are 1 to 4; their size is the number of
streams that a step reads, one more. The exponent k is that of the power law seconds = c · size^k that fits best. Bytes:
the most that a step allocates beyond what it leaves behind.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from measure import exponent, peak, turns
from transformers import LlamaConfig, LlamaForCausalLM

from ilu_cli import registry
from ilu_cli.data.encode import Corpus, Encoded, collate
from ilu_cli.engine.accel import backend
from ilu_cli.engine.gradients import Term
from ilu_cli.engine.head import token_stats
from ilu_cli.engine.loop import Penalty, Trainer
from ilu_cli.engine.reference import fill
from ilu_cli.engine.stream import TrainStream
from ilu_cli.models.logits import LMHead
from ilu_cli.models.parts import parts_of
from ilu_cli.recipe.specs import TrainSpec

FACTORS, ENVIRONMENTS = (1, 2, 4, 8), (1, 2, 3, 4)
ROWS = 64  # of a dataset
LAYERS, HEAD = 4, 32  # layers of a model, width of a head of its attention
STEPS = 1_000


@dataclass(frozen=True)
class World:
    """What a step is made of; the least of each axis."""

    length: int = 64
    batch: int = 8
    vocabulary: int = 4096
    width: int = 128
    environments: int = 0

    def model(self) -> LlamaForCausalLM:
        torch.manual_seed(0)
        heads = self.width // HEAD
        return LlamaForCausalLM(
            LlamaConfig(
                vocab_size=self.vocabulary, hidden_size=self.width, intermediate_size=3 * self.width,
                num_hidden_layers=LAYERS, num_attention_heads=heads, num_key_value_heads=heads,
                max_position_embeddings=8 * self.length, tie_word_embeddings=True,
            )
        )  # fmt: skip

    def stream(self, name: str) -> TrainStream:
        draw = random.Random(name)
        rows = [Encoded([draw.randrange(self.vocabulary) for _ in range(self.length)], 1) for _ in range(ROWS)]
        return TrainStream(name, [Corpus(rows, 0)], self.batch, 0)

    def ours(self) -> Callable[[], object]:
        """A step of our trainer."""
        model = self.model()
        term = Term("nll", self.stream("rows"), lambda view: view.nll, "token")
        irm, environments = registry.regularizer["irm"].obj, [self.stream(f"e{i}") for i in range(self.environments)]
        penalties = [Penalty("irm", environments, irm)] if environments else []
        trained = dict(model.named_parameters())
        trainer = Trainer(
            parts_of(model), trained, [term], penalties, TrainSpec(steps=STEPS, precision="bf16"), 0, backend()
        )
        steps = trainer.run()
        return lambda: next(steps)

    def plain(self) -> Callable[[], object]:
        """The same step by plain transformers."""
        model, stream = self.model(), self.stream("rows")
        optimizer, step = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True), iter(range(STEPS))

        def run() -> None:
            batch = collate([stream.item(k) for k in stream.keys(next(step))])
            labels = batch.ids.masked_fill(~batch.scored, -100)
            with torch.autocast("cpu", torch.bfloat16):
                loss = model(input_ids=batch.ids, attention_mask=batch.mask, labels=labels).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()

        return run


def sizes(axis: str) -> dict[int, World]:
    """The worlds of an axis, by the size that it has in them."""
    least = World()
    if axis == "environments":
        return {n + 1: replace(least, environments=n) for n in ENVIRONMENTS}
    return {n: replace(least, **{axis: n}) for n in (f * getattr(least, axis) for f in FACTORS)}


def times(axis: str, repeats: int) -> dict[str, object]:
    """Median seconds of a step at every size and their exponent, of ours and of plain transformers."""
    worlds = sizes(axis)
    works = {f"ilu {n}": w.ours() for n, w in worlds.items()}
    if axis != "environments":
        works |= {f"plain {n}": w.plain() for n, w in worlds.items()}
    took = {name: statistics.median(seconds) for name, seconds in turns(works, repeats).items()}
    found: dict[str, object] = {"name": f"growth, {axis}", "sizes": list(worlds)}
    for kind in ("ilu", "plain"):
        if seconds := [took[f"{kind} {n}"] for n in worlds if f"{kind} {n}" in took]:
            found[f"{kind}_s"] = [round(s, 4) for s in seconds]
            found[f"{kind}_exponent"] = round(exponent(list(worlds), seconds), 2)
    held = [peak(works[f"ilu {n}"]) for n in worlds]
    return found | {"ilu_bytes": held, "bytes_exponent": round(exponent(list(worlds), held), 2)}


def head(tokens: int, vocabulary: int, width: int) -> int:
    """The most bytes of the LM head with cross-entropy and entropy, forward and backward, without the gradients."""
    torch.manual_seed(0)
    hidden = torch.randn(tokens, width, requires_grad=True)
    weight, targets = torch.randn(vocabulary, width, requires_grad=True), torch.randint(0, vocabulary, (tokens,))

    def fused() -> object:
        with backend().autocast("bf16"):
            nll, entropy = token_stats(hidden, LMHead(weight), targets)
            return torch.autograd.grad((nll - entropy).mean().square(), [hidden, weight])

    return peak(fused)


def heads() -> Iterator[dict[str, object]]:
    """What the LM head holds as tokens and vocabulary grow, beside logits [tokens, vocabulary] in float32."""
    least = {"tokens": 1024, "vocabulary": 16_384, "width": 64}
    for axis in ("tokens", "vocabulary"):
        worlds = [least | {axis: f * least[axis]} for f in FACTORS]
        held = [head(**w) for w in worlds]
        yield {
            "name": f"LM head's memory, {axis}", "sizes": [w[axis] for w in worlds], "ilu_bytes": held,
            "plain_bytes": [4 * w["tokens"] * w["vocabulary"] for w in worlds],
            "bytes_exponent": round(exponent([w[axis] for w in worlds], held), 2),
        }  # fmt: skip


def references() -> dict[str, object]:
    """Bytes of the cached hidden states of the original, as a run takes more steps over the same rows."""
    world = World()
    parts, stream = parts_of(world.model()), world.stream("rows")
    epoch = ROWS // world.batch
    held = []
    for steps in (f * epoch for f in FACTORS):
        cache = fill(stream, {"reference.hidden"}, 2, steps, parts, backend(), "bf16")
        held.append(sum(t.numel() * t.element_size() for t in cache.hidden.values()))
    return {"name": "cache of references, steps", "sizes": [f * epoch for f in FACTORS], "ilu_bytes": held,
            "bytes_exponent": round(exponent(FACTORS, held), 2)}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    axes = ["length", "batch", "vocabulary", "width", "environments"]
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--axes", nargs="*", default=axes, choices=axes)
    given = parser.parse_args()
    for axis in given.axes:
        print(json.dumps(times(axis, given.repeats)), flush=True)
    for found in (*heads(), references()):
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
