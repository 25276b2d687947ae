"""The form of examples that all of a run's data must have: shape, classes, normalization."""

from dataclasses import dataclass
from typing import Any, Self

from ..protos.data import ClientData
from ..protos.manifest import Normalization
from ..protos.messages import DeviceProfile
from ..supernet.errors import UsageError
from ..supernet.space import Space


@dataclass(frozen=True, slots=True)
class DataForm:
    """Shape of one raw example, names of the classes, and the normalization of the inputs."""

    input_shape: tuple[int, ...]
    classes: tuple[str, ...]
    normalization: Normalization

    @classmethod
    def of(cls, owned: DeviceProfile | ClientData) -> Self:
        """The form of what a device says it has, or of data."""
        shape = owned.train.x.shape[1:] if isinstance(owned, ClientData) else owned.input_shape
        return cls(tuple(shape), owned.classes, owned.normalization)

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        normalization = self.normalization.model_dump(mode="json")
        shape, classes = list(self.input_shape), list(self.classes)
        return {"input_shape": shape, "classes": classes, "normalization": normalization}

    def check(self, owner: str, space: Space) -> None:
        """UsageError where the space cannot take the examples that `owner` has."""
        largest = space.input_shape(space.largest())
        if len(self.input_shape) != len(largest) or self.input_shape[0] != largest[0]:
            raise UsageError(
                f"{owner}: examples of shape {self.input_shape}; the space needs {largest}"
            )
        outputs = space.layers(space.largest())[-1].out_channels
        if len(self.classes) != outputs:
            raise UsageError(f"{owner}: {len(self.classes)} classes; the space has {outputs}")

    def check_same(self, owner: str, other: "DataForm", others: str) -> None:
        """UsageError where `owner`'s data differ in form from those of `others`."""
        if self != other:
            raise UsageError(
                f"{owner}: data of another form than {others}'s "
                "(shape, classes and normalization must agree)"
            )
