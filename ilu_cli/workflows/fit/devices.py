"""Accelerators by name: memory, speed and links, as their makers' public data sheets state them.

Sources: NVIDIA H100 (SXM5), H200, A100 (SXM4) and L40S data sheets and the Ada architecture paper for the RTX 4090, all
tensor rates without sparsity and with sums in float32; AMD Instinct MI300X data sheet; Apple's announcements of M1 Max
and M1 Ultra, whose GPUs compute bfloat16 no faster than float32. A laptop's CPU: AMD's product page of the Ryzen 7
7840U, eight cores at 5.1 GHz with two 256-bit multiply-adds each (Zen 4; bfloat16 twice as fast), LPDDR5X-7500 over 128
bits. Speeds of links are those of one direction: `host` is PCIe 4's 16 lanes, `link` what joins a device with the
others of its node, `net` what joins it with other nodes (400 Gb/s for each of the eight of a usual server).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from ilu_cli.errors import UsageError, near

GB, TB, TERA = 1e9, 1e12, 1e12
LINK, NET = 32 * GB, 50 * GB


@dataclass(frozen=True)
class Device:
    """memory in bytes; bf16 and fp32 in FLOP/s, dense; bandwidth, link, net and host in bytes/s."""

    name: str
    memory: int
    bf16: float
    fp32: float
    bandwidth: float
    link: float = LINK
    net: float = NET
    host: float = LINK
    accelerator: bool = True


def _device(
    name: str, memory: int, bf16: float, fp32: float, bandwidth: float, link: float, *, accelerator: bool = True
) -> Device:
    return Device(name, memory * 10**9, bf16 * TERA, fp32 * TERA, bandwidth * TB, link * GB, accelerator=accelerator)


KNOWN = {
    d.name: d
    for d in (
        _device("H100-80GB", 80, 989.4, 66.9, 3.35, 450),
        _device("H200-141GB", 141, 989.4, 66.9, 4.8, 450),
        _device("A100-40GB", 40, 312, 19.5, 1.555, 300),
        _device("A100-80GB", 80, 312, 19.5, 2.039, 300),
        _device("L40S-48GB", 48, 362, 91.6, 0.864, 32),
        _device("RTX-4090-24GB", 24, 165.2, 82.6, 1.008, 32),
        _device("MI300X-192GB", 192, 1307.4, 163.4, 5.3, 448),
        _device("M1-Max-64GB", 64, 10.4, 10.4, 0.4, 10),
        _device("M1-Ultra-128GB", 128, 21, 21, 0.8, 10),
        _device("Ryzen-7840U-16GB", 16, 2.61, 1.306, 0.12, 10, accelerator=False),
    )
}
OWN = re.compile(
    r"\(\s*(CPU\s*,\s*)?([\d.]+)\s*GB\s*,\s*([\d.]+)\s*TFLOPS\s*,\s*([\d.]+)\s*TB/s\s*(?:,\s*([\d.]+)\s*GB/s\s*)?\)"
)
FORM = "1x(80GB,990TFLOPS,3.3TB/s), 1x(80GB,990TFLOPS,3.3TB/s,450GB/s), 1x(CPU,16GB,1TFLOPS,0.1TB/s)"


@dataclass(frozen=True)
class Fleet:
    """So many devices, evenly on so many nodes."""

    device: Device
    count: int
    nodes: int = 1

    @property
    def all(self) -> int:
        """Devices in all."""
        return self.count * self.nodes

    @property
    def label(self) -> str:
        """As it is asked for."""
        return f"{f'{self.nodes}x' if self.nodes > 1 else ''}{self.count}x{self.device.name}"

    def of(self, nodes: int, count: int) -> Fleet:
        """Some of them."""
        return replace(self, nodes=nodes, count=count)

    @property
    def link(self) -> float:
        """Bytes a second, one direction, of the slowest link that a sum over all of them goes through."""
        return self.device.link if self.nodes == 1 else min(self.device.link, self.device.net)


def fleet(text: str) -> Fleet:
    """`8xH100-80GB`, `2x8xH100-80GB` for two nodes, `H100-80GB` for one, or a device of one's own in parentheses.

    Raises:
        UsageError: if there is no such device, or the text is written otherwise.
    """
    match = re.fullmatch(r"(?:(\d+)x)?(?:(\d+)x)?(\S.*|\(.*\))", text.strip())
    first, second, name = match.groups() if match else (None, None, "")
    nodes, count = (int(first), int(second)) if first and second else (1, int(first or 1))
    if not name or not nodes or not count:
        raise UsageError(f"--devices {text}: write it as 8xH100-80GB, 2x8xH100-80GB, or {FORM}")
    return Fleet(_own(name) if name.startswith("(") else _known(name), count, nodes)


def _known(name: str) -> Device:
    by_case = {n.lower(): d for n, d in KNOWN.items()}
    if name.lower() in by_case:
        return by_case[name.lower()]
    raise UsageError(
        f"--devices: {name!r} is not known.{near(name, KNOWN)}", hint=f"one of {', '.join(KNOWN)}, here; or {FORM}"
    )


def _own(text: str) -> Device:
    match = OWN.fullmatch(text)
    if match is None:
        raise UsageError(f"--devices: {text!r} is no device", hint=f"write it as {FORM}")
    cpu, memory, speed, bandwidth, link = match.groups()
    rate, joined = float(speed) * TERA, float(link) * GB if link else LINK
    return Device(text, round(float(memory) * GB), rate, rate, float(bandwidth) * TB, joined, accelerator=not cpu)
