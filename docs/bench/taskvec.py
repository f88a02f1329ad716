"""How fast `ilu taskvec` reads, against `cat`: three sharded checkpoints of 1 GB each, both from the page cache.

    python docs/bench/taskvec.py [--gigabytes 1.0] [--repeats 5] [--dtype float32]

Each repetition times `cat FILES > /dev/null`, then the streaming pass of `ilu taskvec` over the same files (inner
products of τ_u and τ_u→ft, float64), then two bounds: reading and widening to float64, and that with the
subtraction. Prints medians, and the median of the paired ratios. Peak memory is that of the pass in a process of its
own (VmHWM, which would count mapped pages of the page cache too; nothing is mapped), and what it held before the pass.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from safetensors.torch import save_file

from ilu_cli.taskvec import stream
from ilu_cli.taskvec.angles import measure
from ilu_cli.taskvec.delta import Checkpoint
from ilu_cli.taskvec.stored import side_by_side

COLUMNS, ROWS, SHARDS = 4096, 4096, 4
VECTORS = {"u": ("o", "u"), "u→ft": ("u", "a")}


def write(folder: Path, seed: int, numel: int, dtype: torch.dtype) -> None:
    """A checkpoint of `numel` weights in `SHARDS` files, decoder matrices of 4096 x 4096."""
    g = torch.Generator().manual_seed(seed)
    per_shard = max(1, round(numel / (ROWS * COLUMNS) / SHARDS))
    folder.mkdir()
    for shard in range(SHARDS):
        tensors = {
            f"model.layers.{shard * per_shard + i}.mlp.down_proj.weight": torch.randn(ROWS, COLUMNS, generator=g).to(
                dtype
            )
            for i in range(per_shard)
        }
        save_file(tensors, folder / f"model-{shard + 1:05d}-of-{SHARDS:05d}.safetensors")


def memory(key: str) -> int:
    """VmHWM (peak) or VmRSS (now) of this process in bytes: anonymous, file-mapped and shared pages together."""
    status = Path("/proc/self/status").read_text()
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith(key))) * 1024


def one_pass(root: Path) -> float:
    began = time.perf_counter()
    opened = {n: Checkpoint(root / n) for n in "oua"}
    measure(opened, VECTORS, sorted(opened["o"].names))
    return time.perf_counter() - began


def alone(root: Path) -> None:
    """The pass in a process of its own: its seconds and its memory, as JSON."""
    before = memory("VmRSS")
    seconds = one_pass(root)
    print(json.dumps({"seconds": seconds, "peak": memory("VmHWM"), "before": before}))


def bound(root: Path, subtract: bool) -> float:
    """The pass without the products, and without or with the subtraction."""

    def partial(found: list[stream.Difference], first: int, last: int, columns: int) -> torch.Tensor:
        ends = [d.stored for d in found if d.stored]
        needed = list(dict.fromkeys(s for pair in ends for s in pair))
        out = np.empty(min(stream.BLOCK, last - first))
        with side_by_side(needed, first, len(out)) as piece:
            for row in range(first, last, stream.BLOCK):
                wide = piece(min(stream.BLOCK, last - row))
                for end, start in ends if subtract else []:
                    np.subtract(wide[needed.index(end)], wide[needed.index(start)], out=out[: wide.shape[1]])
        return torch.zeros(len(found), len(found), dtype=torch.float64)

    with mock.patch.object(stream, "_partial", partial):
        return one_pass(root)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--gigabytes", type=float, default=1.0)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    args = parser.parse_args()
    dtype = getattr(torch, args.dtype)
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        for seed, part in enumerate("oua"):
            write(root / part, seed, int(args.gigabytes * 1e9 / dtype.itemsize), dtype)
        files = sorted(str(p) for p in root.glob("*/*.safetensors"))
        size = sum(Path(f).stat().st_size for f in files)
        timed: dict[str, list[float]] = {"cat": [], "taskvec": [], "read and widen": [], "read and subtract": []}
        for round_ in range(args.repeats + 1):
            began = time.perf_counter()
            subprocess.run(["sh", "-c", 'cat "$@" > /dev/null', "sh", *files], check=True)
            cat = time.perf_counter() - began
            row = [cat, one_pass(root), bound(root, False), bound(root, True)]
            if round_:  # the first fills the page cache
                for key, seconds in zip(timed, row):
                    timed[key].append(seconds)
        code = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import taskvec as t; "
        code += f"from pathlib import Path; t.alone(Path({name!r}))"
        found = json.loads(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout)
    print(f"{len(files)} files, {size / 1e9:.2f} GB of {args.dtype}, {args.repeats} repetitions, medians")
    for key, seconds in timed.items():
        ratio = statistics.median(c / s for c, s in zip(timed["cat"], seconds))
        print(f"{key:<18} {statistics.median(seconds):6.3f} s  {size / statistics.median(seconds) / 1e9:6.2f} GB/s  "
              f"{ratio:5.0%} of cat")  # fmt: skip
    held, peak = found["before"] / 1e9, found["peak"] / 1e9
    print(f"peak memory of the pass: {peak:.2f} GB, of which {held:.2f} GB before it began")


if __name__ == "__main__":
    main()
