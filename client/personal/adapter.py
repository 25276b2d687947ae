"""What personalization changed in a model: the layers that are touched, and nothing of the others.

A safetensors file, its metadata naming the published manifest that it belongs to: on another one it
would be noise, and is refused.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ...protos.file_layers import Layer, Layers, along_outputs
from ...protos.tensor_file import packed, unpacked
from ...supernet.errors import ArtifactError

ADAPTER_NAME = "adapter"


class _Head(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    base_sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    method: str


@dataclass(frozen=True, slots=True)
class Change:
    """A layer's change: kernel · (1 + gain) + kernel's change, bias + bias's change; None: none.

    `gain` and `bias` have one value for each output channel.
    """

    gain: NDArray[np.float32] | None = None
    kernel: NDArray[np.float32] | None = None
    bias: NDArray[np.float32] | None = None

    def applied(self, layer: Layer) -> Layer:
        """The layer with this change."""
        kernel, bias = layer.kernel, layer.bias
        if self.gain is not None:
            kernel = kernel * along_outputs(1 + self.gain, kernel.ndim)
        if self.kernel is not None:
            kernel = kernel + self.kernel
        if self.bias is not None and bias is not None:
            bias = bias + self.bias
        return Layer(kernel, bias)

    def parts(self) -> dict[str, NDArray[np.float32]]:
        """What there is of it, by name."""
        named = {"gain": self.gain, "kernel": self.kernel, "bias": self.bias}
        return {name: part for name, part in named.items() if part is not None}


@dataclass(frozen=True, slots=True)
class Adapter:
    """Changes by layer, the method that found them, the sha256 of the manifest they belong to."""

    base_sha256: str
    method: str
    changes: Mapping[str, Change]

    def to_bytes(self) -> bytes:
        """The file's content; the same changes always give the same."""
        parts = {
            f"{layer}/{name}": part
            for layer, change in self.changes.items()
            for name, part in change.parts().items()
        }
        head = _Head(base_sha256=self.base_sha256, method=self.method)
        return packed(parts, head.model_dump_json())

    @classmethod
    def from_bytes(cls, content: bytes, layers: Layers, name: str = ADAPTER_NAME) -> Self:
        """Parse and check against the layers that may change; ArtifactError says what is wrong."""
        parts, text = unpacked(content, name)
        try:
            head = _Head.model_validate_json(text)
        except ValidationError:
            raise ArtifactError(
                f"{name}: no changes that fedofa-device personalize wrote"
            ) from None
        found: dict[str, dict[str, NDArray[np.float32]]] = {}
        for key, part in parts.items():
            layer, _, kind = key.rpartition("/")
            _check(f"{name}: {key[:80]}", part, layers.get(layer), kind)
            found.setdefault(layer, {})[kind] = part
        return cls(head.base_sha256, head.method, {n: Change(**each) for n, each in found.items()})


def _check(where: str, part: NDArray[np.float32], held: Layer | None, kind: str) -> None:
    if held is None:
        raise ArtifactError(f"{where}: this model's file has no place for such a layer")
    outputs = held.kernel.shape[:1]
    wanted = {"gain": outputs, "kernel": held.kernel.shape}
    if held.bias is not None:
        wanted["bias"] = outputs
    if part.shape != wanted.get(kind):
        allowed = ", ".join(f"{name} {shape}" for name, shape in wanted.items())
        raise ArtifactError(f"{where} has shape {part.shape}; allowed: {allowed}")
