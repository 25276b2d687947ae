"""Batch-norm statistics of a subnet from many devices, merged exactly.

After shared training a subnet's running statistics mean nothing; each subnet needs its own (the
recalibration of Yu & Huang 2019, BigNAS, once-for-all). Each device runs the subnet on its own
batches, normalizing by batch statistics, and returns per channel n, Σx and Σx² of what each norm
layer saw. Sums add up, so merging devices gives what one place would compute over all batches.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from .subnet import batch_norms

Vector = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Moments:
    """Count, sum and sum of squares per channel, float64, of one norm layer's inputs."""

    count: int
    total: Vector
    squares: Vector

    def __add__(self, other: "Moments") -> "Moments":
        return Moments(
            self.count + other.count, self.total + other.total, self.squares + other.squares
        )

    @property
    def mean(self) -> Vector:
        """Mean per channel."""
        return self.total / self.count

    @property
    def variance(self) -> Vector:
        """Population variance per channel, never below zero."""
        return np.maximum(self.squares / self.count - self.mean**2, 0.0)


def collect(module: nn.Module, batches: Iterable[Tensor]) -> dict[str, Moments]:
    """Norm layer name → moments of its inputs over these batches (each of 2 or more examples).

    Normalizes by batch statistics throughout; leaves the module's own statistics and modes alone.
    Names are in the module's order, which is the order in which statistics travel.
    """
    layers, found = batch_norms(module), dict[str, Moments]()

    def watch(name: str) -> torch.utils.hooks.RemovableHandle:
        def note(_layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            found[name] = found[name] + _of(inputs[0]) if name in found else _of(inputs[0])

        return layers[name].register_forward_pre_hook(note)

    handles = [watch(name) for name in layers]
    tracked = {name: layer.track_running_stats for name, layer in layers.items()}
    modes = {part: part.training for part in module.modules()}
    try:
        module.train()
        for layer in layers.values():
            layer.track_running_stats = False
        with torch.no_grad():
            for x in batches:
                module(x)
    finally:
        for handle in handles:
            handle.remove()
        for name, layer in layers.items():
            layer.track_running_stats = tracked[name]
        for part, training in modes.items():
            part.training = training
    return {name: found[name] for name in layers if name in found}


def _of(x: Tensor) -> Moments:
    dims = [dim for dim in range(x.dim()) if dim != 1]
    wide = x.detach().double()
    return Moments(
        count=x.numel() // x.shape[1],
        total=wide.sum(dims).numpy(),
        squares=wide.square().sum(dims).numpy(),
    )


def merge(parts: Iterable[Mapping[str, Moments]]) -> dict[str, Moments]:
    """Layer-wise sum of several devices' moments; ValueError when their layers differ."""
    merged: dict[str, Moments] = {}
    for part in parts:
        if merged and part.keys() != merged.keys():
            raise ValueError(f"moments name other layers: {sorted(part.keys() ^ merged.keys())}")
        merged = {name: merged[name] + m if name in merged else m for name, m in part.items()}
    return merged


def load(module: nn.Module, moments: Mapping[str, Moments]) -> None:
    """Set every norm layer's running statistics; ValueError when a layer is missing."""
    layers = batch_norms(module)
    if layers.keys() != moments.keys():
        raise ValueError(
            f"moments do not match the module: {sorted(layers.keys() ^ moments.keys())}"
        )
    for name, layer in layers.items():
        if layer.running_mean is None or layer.running_var is None:
            raise ValueError(f"{name} keeps no running statistics")
        layer.running_mean.copy_(torch.from_numpy(moments[name].mean))
        layer.running_var.copy_(torch.from_numpy(moments[name].variance))
