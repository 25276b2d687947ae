"""The shared weights as values: initial numbers, one flat array for transport, a digest, a file."""

import hashlib
import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from .axes import Regions, Weights, layout, shape_of, view
from .errors import ArtifactError, UsageError
from .space import Space

Flat = NDArray[np.float32]
Shapes = Mapping[str, tuple[int, ...]]


@runtime_checkable
class Drawing(Protocol):
    """A space that draws its shared weights itself."""

    def initial_values(self, seed: int) -> Mapping[str, Tensor]:
        """Fresh values of the largest architecture's parameters; the same ones for the same seed."""


def initial(space: Space, seed: int) -> Weights:
    """Fresh shared weights: as the space draws them itself, if it does, or else as follows.

    He normal by fan-out for kernels, ones and zeros for norm layers. Linear layers are drawn from
    N(0, 0.01²) (He et al. 2015, Howard et al. 2019), and tensors whose layer states a standard
    deviation (`axes.tag_std`) with that one.
    """
    if isinstance(space, Drawing):
        own = space.initial_values(seed)
        return {name: own[name].detach().to(torch.float32).clone() for name in layout(space)}
    generator = torch.Generator().manual_seed(seed)
    values: Weights = {}
    with torch.device("meta"):
        module = space.build(space.largest())
    for path, layer in module.named_modules():
        for name, parameter in layer.named_parameters(recurse=False):
            full = f"{path}.{name}" if path else name
            values[full] = _drawn(layer, name, parameter.shape, generator)
    return {name: values[name] for name in layout(space)}


def _drawn(layer: nn.Module, name: str, shape: Sequence[int], generator: torch.Generator) -> Tensor:
    std: float | None = getattr(layer, "stds", {}).get(name)
    if std is not None:
        return torch.randn(*shape, generator=generator) * std
    if name == "bias":
        return torch.zeros(*shape)
    if isinstance(layer, nn.Conv1d | nn.Conv2d):
        fan_out = shape[0] * math.prod(shape[2:]) // layer.groups
        return torch.randn(*shape, generator=generator) * math.sqrt(2.0 / fan_out)
    if isinstance(layer, nn.Linear):
        return torch.randn(*shape, generator=generator) * 0.01
    return torch.ones(*shape)


def check_shared(space: Space, weights: Mapping[str, Tensor]) -> None:
    """UsageError unless these are the space's shared weights, all of them, by name and shape."""
    shared = layout(space)
    for name in (*shared, *weights):
        found = tuple(weights[name].shape) if name in weights else "missing"
        expected = shared[name].shape if name in shared else "no such tensor"
        if found != expected:
            raise UsageError(
                f"weights of another space: {name} is {found}; expected: {expected}. Cut or fit them "
                "with `warm_start` first"
            )


def shapes_of(where: Regions) -> dict[str, tuple[int, ...]]:
    """Parameter name → shape of a subnet, in the order in which values travel."""
    return {name: shape_of(region) for name, region in where.items()}


def size_of(shapes: Shapes) -> int:
    """Number of values."""
    return sum(math.prod(shape) for shape in shapes.values())


def gather(weights: Mapping[str, Tensor], where: Regions) -> Flat:
    """The selected values as one float32 array, tensors in the regions' order."""
    flat = np.empty(size_of(shapes_of(where)), dtype=np.float32)
    at = 0
    for name, region in where.items():
        part = view(weights[name], region).detach()
        torch.from_numpy(flat[at : at + part.numel()]).view(part.shape).copy_(part)
        at += part.numel()
    return flat


def part(flat: Flat, shapes: Shapes, names: Collection[str]) -> Flat:
    """The values of some of a flat array's tensors, in its order; itself where it is all of them."""
    if all(name in names for name in shapes):
        return flat
    ends = np.cumsum([math.prod(shape) for shape in shapes.values()])
    parts = np.split(flat, ends[:-1])
    found = [values for name, values in zip(shapes, parts, strict=True) if name in names]
    return np.concatenate([np.empty(0, np.float32), *found])


def split(flat: Flat, shapes: Shapes) -> Weights:
    """The tensors of one flat array; they share its memory. ValueError if the size is not right."""
    if flat.shape != (size_of(shapes),):
        raise ValueError(f"flat array has shape {flat.shape}; these tensors need {size_of(shapes)}")
    parts = torch.from_numpy(flat).split([math.prod(shape) for shape in shapes.values()])  # type: ignore[no-untyped-call]
    return {
        name: part.view(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)
    }


def digest(weights: Mapping[str, Tensor]) -> str:
    """sha256 over names, shapes and bytes, 64 hex digits."""
    found = hashlib.sha256()
    for name in sorted(weights):
        tensor = weights[name].detach().contiguous()
        found.update(f"{name}{tuple(tensor.shape)}".encode())
        found.update(tensor.numpy().tobytes())
    return found.hexdigest()


def save(path: Path, weights: Mapping[str, Tensor], notes: Mapping[str, str]) -> None:
    """Write a safetensors file; the caller makes it atomic."""
    # Without metadata an empty file cannot be read back.
    metadata = {"format": "pt", **notes}
    save_file({name: t.contiguous() for name, t in weights.items()}, path, metadata=metadata)


def load(path: Path) -> Weights:
    """Read a safetensors file; ArtifactError when it is damaged or missing."""
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise ArtifactError(f"weights file {path}: {error}; restore it or start anew") from None
