"""Importing torchvision, or code that does, beside a CPU build of torch.

torchvision's wheel on the package index is linked against CUDA. Beside a CPU build of torch its
library of operators cannot be loaded; torchvision goes on without it, and then fails while it
registers derivatives for two of the operators that are missing ("operator torchvision::nms does
not exist"). Its models, transforms and data sets need none of them. Declaring the two makes the
import work; calling them still fails, as it should.
"""

import importlib
import sys
from functools import cache
from types import ModuleType

import torch

SYMPTOM = "operator torchvision::"
SCHEMAS = tuple(
    f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor" for name in ("nms", "qnms")
)


def import_module(name: str) -> ModuleType:
    """Import a module by name, declaring torchvision's two operators where it fails without."""
    try:
        return importlib.import_module(name)
    except RuntimeError as error:
        if SYMPTOM not in str(error):
            raise
    _declare()
    # What was imported of it half-way would be found again.
    for part in [m for m in sys.modules if m.partition(".")[0] == "torchvision"]:
        del sys.modules[part]
    return importlib.import_module(name)


@cache
def _declare() -> torch.library.Library:
    library = torch.library.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]
    for schema in SCHEMAS:
        library.define(schema)  # type: ignore[no-untyped-call]
    return library
