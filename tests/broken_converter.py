"""A converter that crashes its process for one class, importable from a process of its own."""

import os
from collections.abc import Sequence
from pathlib import Path

from fedofa.specialize.export import FloatExport, Subnet, export_floats


def export_or_crash(subnet: Subnet, formats: Sequence[str], folder: Path) -> FloatExport:
    if folder.name.endswith("crashing"):
        os.abort()
    return export_floats(subnet, formats, folder)


def export_or_crash_by_name(subnet: Subnet, formats: Sequence[str], folder: Path) -> FloatExport:
    """Crashes for the class that the environment names."""
    if folder.name.endswith(os.environ["CRASHING"]):
        os.abort()
    return export_floats(subnet, formats, folder)
