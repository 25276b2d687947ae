"""What devices measured on examples that nobody trained or searched on: `fedofa-device run --json`.

A run itself has no test part: its accuracies are of validation examples, which the search chose by.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ...protos.manifest import FileKind
from ...protos.probes import LEAST_S, MOST_S
from ...supernet.errors import UsageError
from ..ledger_entries import Sha256
from ..run_record import Published
from .facts import Facts
from .pulled import instead

HOW = "fedofa-device run --device-class NAME --input FILE.npy --labels FILE.npy --json"

LEAST_MS, MOST_MS = 1000 * LEAST_S, 1000 * MOST_S
"""As probes are bounded."""
MOST = 10**12
"""Of examples and of timed runs."""
RUNTIME = r"^[A-Za-z0-9][A-Za-z0-9 ._+-]{0,63}$"


class LatencyMs(BaseModel):
    """Of single runs, milliseconds."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    median: float = Field(ge=LEAST_MS, le=MOST_MS)
    p95: float = Field(ge=LEAST_MS, le=MOST_MS)
    runs: int = Field(ge=1, le=MOST)


class HeldOut(BaseModel):
    """One file of a published model, measured by its device; accuracy 0 to 1 over `examples`."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    device_class: str
    kind: FileKind
    manifest_sha256: Sha256
    examples: int = Field(ge=1, le=MOST)
    accuracy: float = Field(ge=0, le=1)
    latency_ms: LatencyMs
    runtime: str = Field(pattern=RUNTIME)

    def to_row(self) -> dict[str, Any]:
        """As the report has it."""
        return {
            "class": self.device_class,
            "kind": self.kind,
            "runtime": self.runtime,
            "accuracy": self.accuracy,
            "examples": self.examples,
            "median_ms": self.latency_ms.median,
            "p95_ms": self.latency_ms.p95,
            "timed_runs": self.latency_ms.runs,
        }


def read(
    paths: Sequence[Path], facts: Facts, artifacts: Mapping[str, str] = MappingProxyType({})
) -> tuple[HeldOut, ...]:
    """Measurements of the run's models; UsageError for what is none, or another model's.

    `artifacts`: class → sha256 of the manifest of each artifact of the run's fleets.
    """
    published = facts.job.published
    known = {**artifacts, **({} if published is None else published.manifests)}
    found = []
    for path in paths:
        try:
            one = HeldOut.model_validate(json.loads(path.read_bytes()))
        except OSError as error:
            raise UsageError(f"--held-out {path}: {error.strerror}") from None
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"]) or "document"
            raise UsageError(f"--held-out {path}: {where}: {first['msg']}; made by {HOW}") from None
        except (ValueError, RecursionError) as error:
            raise UsageError(f"--held-out {path}: no JSON ({error}); made by {HOW}") from None
        if known.get(one.device_class) != one.manifest_sha256:
            raise UsageError(f"--held-out {path}: {_foreign(one, published)}")
        found.append(one)
    return tuple(found)


def _foreign(one: HeldOut, published: Published | None) -> str:
    """What is to be said of a measurement that is not of this report's model."""
    what = f"it is of the model with manifest {one.manifest_sha256[:12]}…"
    now = instead(published, one.device_class, one.manifest_sha256)
    if now is not None:
        return (
            f"{what}: {now}; this report is about what the newest specialization published for "
            f"{one.device_class!r}, and pulling again brings the same. Leave the file out, or fedofa "
            "specialize, pull and measure that"
        )
    return (
        f"{what}, which this run did not publish for {one.device_class!r}; pull and measure again"
    )
