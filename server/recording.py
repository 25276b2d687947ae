"""Enters jobs into a run's record (`run_record.py`)."""

import hashlib
import os
import platform
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from ..protos.manifest import Manifest
from .config import RunConfig
from .ledger_chain import LEDGER, noted_head
from .ledger_keys import run_key
from .run_record import (
    RECORD,
    Environment,
    JobRecord,
    Kind,
    LogMark,
    Published,
    RunRecord,
    read,
    write,
)

PACKAGES = (
    "fedofa",
    "torch",
    "flwr",
    "numpy",
    "scikit-learn",
    "litert-torch",
    "ai-edge-litert",
    "ai-edge-quantizer",
    "onnx",
    "onnxscript",
    "onnxruntime",
)
CPUINFO = Path("/proc/cpuinfo")


@dataclass(frozen=True, slots=True)
class Scribe:
    """Enters one job; `logs` are the event logs that it writes to, `fleet` the one that it is for."""

    kind: Kind
    logs: Sequence[Path]
    fleet: str | None = None
    began_unix_s: float = field(default_factory=time.time)

    def begins(self, folder: Path, config: RunConfig, round_: int, weights: str) -> None:
        """The job begins to work on the supernet in this folder: its round, its weights' digest."""
        self._enter(folder, config, self._job(folder, config, round_, weights))

    def ends(
        self,
        folder: Path,
        config: RunConfig,
        round_: int,
        weights: str,
        published: Published | None = None,
    ) -> None:
        """The job is done, and left this."""
        job = self._job(folder, config, round_, weights)
        done = {"seconds": max(0.0, time.time() - self.began_unix_s), "published": published}
        self._enter(folder, config, job.model_copy(update=done))

    def _job(self, folder: Path, config: RunConfig, round_: int, weights: str) -> JobRecord:
        return JobRecord(
            kind=self.kind,
            began_unix_s=self.began_unix_s,
            config=config.model_dump(mode="json"),
            environment=environment(),
            round=round_,
            weights=weights,
            head=noted_head(folder / LEDGER),
            logs={os.path.relpath(path, folder): _mark(path) for path in self.logs},
            fleet=self.fleet,
        )

    def _enter(self, folder: Path, config: RunConfig, job: JobRecord) -> None:
        key = run_key(folder, new=not (folder / LEDGER).exists())
        known = read(folder) if (folder / RECORD).exists() else RunRecord(run=config.name)
        write(folder, known.with_job(job), key)


def published(
    results_path: Path, models: Iterable[Manifest], registry: str, channel: str
) -> Published:
    """What a job left, by its digests."""
    return Published(
        results_sha256=hashlib.sha256(results_path.read_bytes()).hexdigest(),
        manifests={one.device_class: hashlib.sha256(one.to_json()).hexdigest() for one in models},
        registry=registry,
        channel=channel,
    )


def environment() -> Environment:
    """This process's: versions, system, processor; packages that are not installed are left out."""
    return Environment(
        python=platform.python_version(),
        system=f"{platform.system()} {platform.release()}",
        processor=_processor(),
        cores=os.cpu_count() or 1,
        packages=_versions(),
    )


def _versions() -> Mapping[str, str]:
    found = {}
    for name in PACKAGES:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def _processor() -> str:
    """The processor's model where the system tells it, else its architecture."""
    with suppress(OSError):
        for line in CPUINFO.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()


def _mark(path: Path) -> LogMark:
    data = path.read_bytes()
    return LogMark(size_bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
