"""The file beside a model's files from which a device can train it further for itself.

A safetensors file: the values of the network as its files hold it (norm layers folded, logits adjusted,
channels equalized), and in its metadata where each layer lies in each of them. Devices that only
run a model never load it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from ..supernet.errors import ArtifactError
from .file_layers import Placed
from .tensor_file import packed, unpacked

TRAINABLE_NAME = "trainable.safetensors"


class _Kind(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    layers: dict[str, Placed]
    logits: tuple[float, float] | None = None


class _Kinds(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    kinds: dict[str, _Kind]


@dataclass(frozen=True, slots=True)
class Trainable:
    """Values by the network's own names; by kind of file the layers that have a place in it.

    `logits` holds, for files whose outputs are integers, the least and the greatest that they can give.
    """

    values: Mapping[str, NDArray[np.float32]]
    placed: Mapping[str, Mapping[str, Placed]]
    logits: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    def to_bytes(self) -> bytes:
        """The file's content; the same values and places always give the same."""
        kinds = {
            kind: _Kind(layers=dict(layers), logits=self.logits.get(kind))
            for kind, layers in self.placed.items()
        }
        return packed(self.values, _Kinds(kinds=kinds).model_dump_json(exclude_none=True))

    @classmethod
    def from_bytes(cls, content: bytes) -> Self:
        """Parse and check; ArtifactError says what is wrong with it."""
        values, text = unpacked(content, TRAINABLE_NAME)
        try:
            kinds = _Kinds.model_validate_json(text).kinds
        except ValidationError as error:
            first = str(error).splitlines()[0]
            raise ArtifactError(f"{TRAINABLE_NAME}: {first}") from None
        return cls(
            values,
            {kind: each.layers for kind, each in kinds.items()},
            {kind: each.logits for kind, each in kinds.items() if each.logits is not None},
        )
