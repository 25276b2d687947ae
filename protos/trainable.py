"""The file beside a model's files from which a device can train it further for itself.

A safetensors file: the values of the network as its files hold it (norm layers folded, logits adjusted,
channels equalized), and in its metadata where each layer lies in each of them. Devices that only
run a model never load it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from ..supernet.errors import ArtifactError
from .file_layers import Placed
from .tensor_file import packed, unpacked

TRAINABLE_NAME = "trainable.safetensors"
TRAINABLE = "trainable"
"""What the registry calls this file, where the others go by their kind."""


class _Places(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    kinds: dict[str, dict[str, Placed]]


@dataclass(frozen=True, slots=True)
class Trainable:
    """Values by the network's own names, and by kind of file the layers that have a place in it."""

    values: Mapping[str, NDArray[np.float32]]
    placed: Mapping[str, Mapping[str, Placed]]

    def to_bytes(self) -> bytes:
        """The file's content; the same values and places always give the same."""
        places = _Places(kinds={kind: dict(each) for kind, each in self.placed.items()})
        return packed(self.values, places.model_dump_json(exclude_none=True))

    @classmethod
    def from_bytes(cls, content: bytes) -> Self:
        """Parse and check; ArtifactError says what is wrong with it."""
        values, text = unpacked(content, TRAINABLE_NAME)
        try:
            return cls(values, _Places.model_validate_json(text).kinds)
        except ValidationError as error:
            first = str(error).splitlines()[0]
            raise ArtifactError(f"{TRAINABLE_NAME}: {first}") from None
