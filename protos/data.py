"""A device's data: what a data function returns, and how it is loaded and checked.

A data function is named `module:function` and called as
`load(root, client=<index>, clients=<number>, **arguments)`; it returns a `ClientData`.
"""

import importlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..supernet.errors import FedofaError, UsageError
from .device import DataSource
from .manifest import Normalization

Floats = NDArray[np.float32]
Labels = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Examples:
    """Inputs (N, C, H, W) or (N, features), raw, and labels (N,) from 0."""

    x: Floats
    y: Labels

    def __post_init__(self) -> None:
        if self.x.dtype != np.float32 or self.x.ndim < 2:
            raise UsageError(f"data: x is {self.x.dtype}{self.x.shape}; float32 (N, ...) expected")
        if self.y.dtype != np.int64 or self.y.shape != self.x.shape[:1]:
            raise UsageError(f"data: y is {self.y.dtype}{self.y.shape}; int64 ({len(self.x)},)")
        if not np.isfinite(self.x).all():
            raise UsageError("data: x holds NaN or infinity; clean it in the data function")

    def __len__(self) -> int:
        return len(self.y)

    def take(self, rows: NDArray[np.int64]) -> "Examples":
        """The examples at these rows."""
        return Examples(self.x[rows], self.y[rows])


@dataclass(frozen=True, slots=True)
class ClientData:
    """One device's examples: to train on, and to validate subnets on.

    `normalization` is fixed by the task, the same for every device: it goes into the manifest.
    """

    train: Examples
    validation: Examples
    classes: tuple[str, ...]
    normalization: Normalization

    def __post_init__(self) -> None:
        if len(self.train) < 2:
            raise UsageError(f"data: {len(self.train)} training examples; at least 2 are needed")
        for name, part in (("train", self.train), ("validation", self.validation)):
            if len(part) and not (part.y.min() >= 0 and part.y.max() < len(self.classes)):
                raise UsageError(
                    f"data: {name} labels run from {part.y.min()} to {part.y.max()}; "
                    f"allowed: 0 to {len(self.classes) - 1}"
                )
        if len(self.normalization.mean) != len(self.normalization.std):
            raise UsageError("data: normalization needs as many means as standard deviations")

    def normalized(self, x: Floats) -> Floats:
        """(x - mean) / std per channel (dimension 1)."""
        shape = (1, -1) + (1,) * (x.ndim - 2)
        mean = np.asarray(self.normalization.mean, np.float32).reshape(shape)
        std = np.asarray(self.normalization.std, np.float32).reshape(shape)
        scaled: Floats = (x - mean) / std
        return scaled


def load(source: DataSource) -> object:
    """Call the data function; UsageError says what is wrong, in its own words too."""
    if source.root is not None and not Path(source.root).is_dir():
        raise UsageError(f"data folder {source.root} does not exist; give --data-root a folder")
    if not 0 <= source.client < source.clients:
        raise UsageError(
            f"client {source.client} of {source.clients}: must be 0 to {source.clients - 1}"
        )
    function = resolve(source.function)
    keywords = {"client": source.client, "clients": source.clients, **source.arguments}
    accepted = inspect.signature(function).parameters
    if not any(p.kind is p.VAR_KEYWORD for p in accepted.values()):
        unknown = sorted(set(source.arguments) - set(accepted))
        if unknown:
            raise UsageError(
                f"data function {source.function} takes no argument {unknown[0]!r}; "
                f"it takes {', '.join(accepted)}"
            )
        keywords = {key: value for key, value in keywords.items() if key in accepted}
    try:
        return function(source.root, **keywords)
    except FedofaError:
        raise
    except Exception as error:
        # It is the user's function: anything may come, and all of it is a matter of wrong use.
        raise UsageError(
            f"data function {source.function} raised {type(error).__name__}: {error}"
        ) from error


def client_data(source: DataSource) -> ClientData:
    """The device's data; UsageError when the function returns something else."""
    found = load(source)
    if not isinstance(found, ClientData):
        raise UsageError(
            f"data function {source.function} returned {type(found).__name__}; "
            "it must return fedofa.client.data.ClientData"
        )
    return found


def resolve(name: str) -> Callable[..., object]:
    """The function that `module:function` names; UsageError when there is none."""
    module, separator, attribute = name.partition(":")
    if not separator:
        raise UsageError(f"data function {name!r}: write it as module:function")
    try:
        function = getattr(importlib.import_module(module), attribute)
    except ImportError as error:
        raise UsageError(f"data function {name!r}: cannot import {module}: {error}") from None
    except AttributeError:
        raise UsageError(f"data function {name!r}: {module} has no {attribute!r}") from None
    if not callable(function):
        raise UsageError(f"data function {name!r}: {attribute} is not a function")
    return function  # type: ignore[no-any-return]
