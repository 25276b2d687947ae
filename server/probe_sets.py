"""`fedofa probes`: the set of probes of a run's space, or of a preset."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from ..specialize.export import PRELOADS
from ..specialize.fork_server import ForkServer
from ..specialize.probes import ProbePlan, make_probes
from ..supernet.errors import UsageError
from ..supernet.families.catalogue import preset
from .config import RunConfig


def make(
    config: RunConfig | None, name: str | None, subnets: int, layers: int, out: Path
) -> dict[str, Any]:
    """Make the set in a new folder; UsageError unless either a run or a preset is given."""
    if (config is None) == (name is None):
        raise UsageError("give either --config RUN.toml or --space PRESET")
    plan = ProbePlan(subnets=subnets, layers=layers)
    if config is not None:
        export = config.export
        space, plan = config.build_space(), replace(plan, formats=export.formats, int4=export.int4)
    else:
        space = preset(str(name))
    with ForkServer(PRELOADS) as converters:
        made = make_probes(space, plan, out, converters)
    return {
        "folder": str(out),
        "subnets": len(made.subnets),
        "layers": len(made.layers),
        "digest": made.digest,
        "next": f"copy the folder to a device: fedofa-device profile --probes {out.name}",
    }
