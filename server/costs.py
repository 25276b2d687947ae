"""`fedofa cost`: what architectures cost, from their layer sizes, without building a weight."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..specialize.filesize import OVERHEAD, predicted_size_bytes
from ..supernet.cost import cost
from ..supernet.errors import UsageError
from ..supernet.families.catalogue import preset
from ..supernet.families.mobilenet_presets import ofa_mbv3
from ..supernet.families.published import is_published, read_published, unused_params
from ..supernet.space import Arch, Space

ENDS = ("smallest", "largest")


@dataclass(frozen=True, slots=True)
class Priced:
    """A space by its preset's name, and a width multiplier where it has one."""

    name: str
    width: float | None = None

    def space(self) -> Space:
        """The space; UsageError for an unknown name or a multiplier that it does not have."""
        found = preset(self.name)
        if self.width is None:
            return found
        if self.name != "ofa-mbv3":
            raise UsageError(
                f"--width {self.width}: space {self.name!r} has no width multiplier; "
                "ofa-mbv3 has (other widths: the space's own genes)"
            )
        return ofa_mbv3(self.width)


def price(priced: Priced, text: str, *, layers: bool = False) -> dict[str, Any]:
    """One architecture's costs; `text` is JSON, or `smallest` or `largest`.

    `params` is what publications count; `unused_params` of them are never executed and not in our
    networks or files. `layers` adds each layer's share.
    """
    space = priced.space()
    return _priced(priced.name, space, _arch(priced.name, space, text), layers)


def price_file(priced: Priced, path: Path) -> Iterator[dict[str, Any]]:
    """Costs of each line of a JSONL file, in order; UsageError names the file and the line."""
    space = priced.space()
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--archs {path}: {error}; a file with one JSON object a line") from None
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            arch = _arch(priced.name, space, line)
        except UsageError as error:
            raise UsageError(f"{path}, line {number}: {error}") from None
        yield _priced(priced.name, space, arch, False)


def _arch(name: str, space: Space, text: str) -> Arch:
    if text in ENDS:
        return space.smallest() if text == ENDS[0] else space.largest()
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        raise UsageError(
            f"architecture {text[:80]!r} is no JSON ({error}); give an object, smallest or largest"
        ) from None
    if not isinstance(values, Mapping):
        raise UsageError(f"architecture {text[:80]!r}: a JSON object expected")
    return read_published(name, space, values) if is_published(values) else space.arch(values)


def _priced(name: str, space: Space, arch: Arch, layers: bool) -> dict[str, Any]:
    spent, unused = cost(space, arch), unused_params(name, space, arch)
    plans = space.layers(arch)
    found: dict[str, Any] = {
        "space": name,
        "macs": spent.macs,
        "params": spent.params + unused,
        "unused_params": unused,
        "peak_activation_bytes": spent.peak_activation_bytes,
        "train_activation_bytes": spent.train_activation_bytes,
        "input_shape": list(space.input_shape(arch)),
        "file_bytes": {kind: predicted_size_bytes(kind, plans) for kind in OVERHEAD},
        "arch": dict(arch),
    }
    if layers:
        found["layers"] = [
            {**asdict(plan), "macs": plan.macs, "params": plan.params} for plan in plans
        ]
    return found
