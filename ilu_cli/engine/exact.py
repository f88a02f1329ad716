"""Sums in float64, on whatever device the numbers are: Apple's has no float64."""

from __future__ import annotations

from torch import Tensor

WITHOUT = ("mps",)  # kinds of devices that have no float64


def exact(values: Tensor) -> Tensor:
    """The values in float64: on their own device, or on the host if that has none."""
    return (values.cpu() if values.device.type in WITHOUT else values).double()
