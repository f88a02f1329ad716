"""A model of which each process holds a part: PyTorch's FSDP2 over every decoder layer, and over what is around them.

A weight is gathered while it is used: a layer's when the layer is run, all others' (embeddings, LM head, last norm)
inside `whole`. Between uses a parameter is a `DTensor`, some rows of which are `mine`.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ilu_cli.errors import UnavailableError, UsageError
from ilu_cli.models.heap import give_back, map_blocks

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

T = TypeVar("T")
SETTINGS = ("set_gradient_divide_factor", "set_force_sum_reduction_for_comms")  # of FSDP2, not from its beginning


class Gathered(nn.Module):
    """Runs a function while what lies around the layers is whole: as a module, so that FSDP's hooks do it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.running = model, False

    def forward(self, run: Callable[[], T]) -> T:
        """What `run` gives."""
        return run()


def whole(module: nn.Module, run: Callable[[], T]) -> T:
    """Run what reads the weights of a model, or of its decoder; of a sharded one all processes must do so together.

    A loss is computed inside, and differentiated afterwards.
    """
    root: Any = module.__dict__.get("gathered")
    if root is None or root.running:
        return run()
    root.running = True
    try:
        found: T = root(run)
        return found
    except BaseException:
        if hasattr(root, "reset_iter_state"):
            root.reset_iter_state()
        raise
    finally:
        root.running = False


def again(module: nn.Module) -> None:
    """Inside `whole`, after a backward pass there, which has let the weights go: gather them again."""
    root: Any = module.__dict__.get("gathered")
    if root is not None and root.running:
        root.unshard()


@contextmanager
def plain(module: nn.Module, params: Sequence[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    """All weights whole at once and FSDP's hooks put away: for derivatives of derivatives, which these do not take.

    Gives the parameters as they are meanwhile. Gradients that are left in them are summed over the processes, and are
    then those of `params`, each process its rows. Of a model that is not sharded nothing is different.
    """
    root: Any = module.__dict__.get("gathered")
    if root is None:
        yield list(params)
        return
    names = {id(p): name for name, p in root.named_parameters()}
    units: list[Any] = [m for m in root.modules() if hasattr(m, "unshard")]
    hooks = [(m._forward_pre_hooks, m._forward_hooks) for m in units]
    root.running = True
    for m in units:
        m.unshard()
        m._forward_pre_hooks, m._forward_hooks = OrderedDict(), OrderedDict()
    meanwhile = [root.get_parameter(names[id(p)]) if is_part(p) else p for p in params]
    try:
        yield meanwhile
    finally:
        for m, (before, after) in zip(units, hooks):
            m._forward_pre_hooks, m._forward_hooks = before, after
        for p, full in zip(params, meanwhile):
            if is_part(p):
                gradient = torch.zeros_like(full) if full.grad is None else full.grad
                dist.all_reduce(gradient)
                p.grad, full.grad = like(gradient, p), None
        for m in units:
            m.reshard()
        root.running = False


def is_sharded(module: nn.Module) -> bool:
    """Whether each process has a part of a model."""
    return "gathered" in module.__dict__


def layers_in(decoder: nn.Module, depth: int) -> nn.ModuleList | None:
    """The list of so many layers, if the decoder has one."""
    return next((m for m in decoder.modules() if isinstance(m, nn.ModuleList) and len(m) == depth), None)


def check_torch() -> None:
    """Look whether this torch shards, and sums gradients as it is needed.

    Raises:
        UnavailableError: if it does not.
    """
    from torch.distributed import fsdp

    if not all(hasattr(getattr(fsdp, "FSDPModule", None), name) for name in SETTINGS):
        raise UnavailableError(f"sharded training is not in torch {torch.__version__}", hint="torch 2.9 has it")


def shard(
    model: Any, mesh: DeviceMesh, device: torch.device, read: Callable[[str], Tensor] | None = None, *,
    offload: bool = False,
) -> Any:  # fmt: skip
    """Spread the first process's model over all, a layer at a time; those of the others may be without weights.

    Args:
        read: gives the first process a weight by its name, if its model is without weights too.
        model: a causal language model, of the same names and shapes everywhere.
        mesh: one dimension, all processes.
        device: where weights are used.
        offload: parts lie in main memory between uses, and are stepped there.

    Raises:
        UsageError: if the processes' models differ.
    """
    from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, OffloadPolicy, fully_shard

    found = list(model.named_parameters(remove_duplicate=False))
    first = {id(p): name for name, p in reversed(found)}
    named = [(name, first[id(p)], tuple(p.shape), p.dtype) for name, p in found]
    every: list[Any] = [None] * mesh.size()
    dist.all_gather_object(every, named)
    decoder = model.get_decoder()
    layers = layers_in(decoder, model.config.num_hidden_layers)
    if any(other != named for other in every) or layers is None:
        raise UsageError("the processes of this launch have models of other shapes", hint="give all the same files")
    if device.type == "cpu":
        map_blocks()
    root, policy = Gathered(model), CPUOffloadPolicy() if offload else OffloadPolicy()
    for unit in [*layers, root]:
        _fill(unit, device, first, read)
        fully_shard(unit, mesh=mesh, reshard_after_forward=True, offload_policy=policy)
    for module in root.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)  # gradients are sums; what they are divided by is of the whole step
            module.set_force_sum_reduction_for_comms(True)
    for place in (model, decoder):
        place.__dict__["gathered"] = root
    give_back()
    return model


@torch.no_grad()
def _fill(
    unit: nn.Module, device: torch.device, names: Mapping[int, str], read: Callable[[str], Tensor] | None
) -> None:
    """Put what the first process has, or reads, into those parameters of a module that are not spread yet.

    Into its buffers too. `names`: of parameters, by their id.
    """
    made: dict[int, tuple[nn.Parameter, nn.Parameter]] = {}
    for module in unit.modules():
        for name, p in module._parameters.items():
            if p is None or is_part(p):
                continue
            if id(p) not in made:  # else it is tied to one before
                if p.is_meta:
                    weight = read(names[id(p)]).to(device, p.dtype) if read else torch.empty_like(p, device=device)
                else:
                    weight = p.detach().to(device).contiguous()
                dist.broadcast(weight, 0)
                made[id(p)] = p, nn.Parameter(weight, requires_grad=p.requires_grad)
            module._parameters[name] = made[id(p)][1]
        for name, b in module._buffers.items():
            if b is not None:
                module._buffers[name] = kept = b.to(device).contiguous()
                dist.broadcast(kept, 0)


def is_part(t: object) -> bool:
    """Whether this process has some rows of a tensor only. (Its class takes half a second to import.)"""
    return hasattr(t, "device_mesh")


def mine(t: Tensor) -> Tensor:
    """The rows of a tensor that this process has, sharing its memory: all, of one that is not sharded."""
    held: Any = t
    found: Tensor = held.detach().to_local() if is_part(t) else t
    return found


def gathered(t: Tensor) -> Tensor:
    """All rows of a tensor. Of a sharded one all processes must ask together."""
    held: Any = t
    found: Tensor = held.detach().full_tensor() if is_part(t) else t
    return found


def like(rows: Tensor, other: Tensor) -> Tensor:
    """A whole tensor sharded as the `other` is, if it is."""
    if not is_part(other):
        return rows
    from torch.distributed.tensor import DTensor

    known: Any = other
    mesh, size = known.device_mesh, -(-len(rows) // known.device_mesh.size())
    part = rows[mesh.get_local_rank() * size :][:size].to(mine(other).device, copy=True)
    return DTensor.from_local(part, mesh, known.placements, run_check=False, shape=other.shape, stride=other.stride())


def summed(value: float, tensors: list[Tensor]) -> float:
    """A number of this process, summed over those that hold parts of these tensors; itself if none is sharded."""
    sharded: Any = next((t for t in tensors if is_part(t)), None)
    if sharded is None:
        return value
    device = "cpu" if sharded.device_mesh.device_type == "cpu" else torch.device("cuda", torch.cuda.current_device())
    total = torch.tensor(value, dtype=torch.float64, device=device)
    dist.all_reduce(total)
    return float(total)
