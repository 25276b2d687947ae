"""From verified files to a manifest: what a file may lose, and the golden test that goes along."""

import math
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import torch

from ..protos.golden import LEAST_STEPS, allowed
from ..protos.manifest import INT4S, INTS, FileEntry, FileKind, Golden, Manifest
from ..protos.messages import DeviceProfile
from ..specialize.export import module_of
from ..specialize.verify import outputs_in_fresh_process
from ..supernet.cost import cost
from ..supernet.errors import ExportError
from ..supernet.randomness import array_stream
from ..supernet.space import Space, plain
from .chosen import Chosen, Work
from .config import RunConfig
from .figures import FileMeasured
from .rounding import module_of_rounded
from .specialize_config import ExportConfig

Figures = Mapping[FileKind, FileMeasured]


Layout = Literal["NC", "NCT", "NCHW"]
LAYOUTS: Mapping[int, Layout] = {1: "NC", 2: "NCT", 3: "NCHW"}
"""By the dimensions of one example: a table's row, a sequence, an image."""


class Manifests:
    """Writes manifests of models from one supernet; `profile` gives the form of the data."""

    def __init__(
        self, config: RunConfig, space: Space, profile: DeviceProfile, supernet_sha256: str
    ) -> None:
        self._config, self._space = config, space
        self._profile, self._supernet = profile, supernet_sha256

    def draft(self, work: Work) -> Manifest:
        """The manifest, its version still to be given; ExportError for files beyond a limit."""
        check_sizes(work.entries, work.chosen)
        check_figures(work.figures, self._config.export)
        name, arch = work.chosen.name, work.chosen.arch
        metrics = {f"validation_accuracy.{k}": f.file.accuracy for k, f in work.figures.items()}
        metrics["validation_accuracy.pytorch"] = work.chosen.measured.accuracy
        return Manifest(
            model=f"{self._config.name}.{name}",
            version=1,
            device_class=name,
            layout=LAYOUTS[len(self._space.input_shape(arch))],
            normalization=self._profile.normalization,
            classes=self._profile.classes,
            space=plain(self._space.to_dict()),
            arch=dict(arch),
            supernet_sha256=self._supernet,
            cost=cost(self._space, arch).to_dict(),
            budget=dict(work.chosen.budget.to_dict()),
            metrics=metrics,
            golden=self._golden(work),
            files=tuple(work.entries),
            finished=work.chosen.finished,
            trainable=work.trainable,
        )

    def _golden(self, work: Work) -> Golden:
        """A drawn input in the range that the devices saw (no device's example), and its output."""
        low, high = work.input_range
        shape = (1, *self._space.input_shape(work.chosen.arch))
        rng = array_stream(self._config.seed, "golden", work.chosen.name)
        x = rng.uniform(low, high, size=shape).astype(np.float32)
        with torch.no_grad():
            reference = module_of(work.subnet)(torch.from_numpy(x)).numpy()
            part, own = work.rounded, None
            if part is not None:
                own = module_of_rounded(self._space, part)(torch.from_numpy(x)).numpy()
        outputs = outputs_in_fresh_process(work.folder, work.entries, x)
        tolerance: dict[FileKind, float] = {}
        references: dict[FileKind, tuple[float, ...]] = {}
        for entry in work.entries:
            kind, output = entry.kind, outputs[entry.kind]
            if output.shape != reference.shape:
                raise ExportError(f"{kind}: output {output.shape}; expected {reference.shape}")
            if own is not None and kind in INT4S.values():
                references[kind] = tuple(own.ravel().tolist())
                steps = LEAST_STEPS * (entry.outputs[0].scale or 0.0)
                tolerance[kind] = max(allowed(output, own, 0.0), steps)
            else:
                told = work.figures[kind].max_difference
                tolerance[kind] = allowed(output, reference, told)
        return Golden(
            input_shape=shape,
            input=tuple(x.ravel().tolist()),
            output=tuple(reference.ravel().tolist()),
            tolerance=tolerance,
            outputs=references,
        )


def check_figures(figures: Figures, limits: ExportConfig) -> None:
    """ExportError where a file does not do on the devices what its subnet does."""
    for kind, figure in figures.items():
        if not math.isfinite(figure.max_difference):
            raise ExportError(f"{kind}: a device's outputs differ beyond measure")
        drop = figure.reference.accuracy - figure.file.accuracy
        if drop > limits.max_accuracy_drop:
            raise ExportError(
                f"{kind} loses {drop:.3f} of accuracy on the devices; "
                f"export.max_accuracy_drop = {limits.max_accuracy_drop}"
            )
        if kind.endswith("fp32") and not figure.max_difference <= limits.max_float_difference:
            raise ExportError(
                f"{kind} is off by {figure.max_difference:.3g} from PyTorch; "
                f"export.max_float_difference = {limits.max_float_difference}"
            )


def needed(work: Work) -> FileKind | None:
    """A file without which there is no model, and which no device could run; None where all could."""
    for entry in work.entries:
        extra = entry.kind in INT4S.values() and entry.kind != work.chosen.kind
        if entry.kind not in work.figures and not extra:
            return entry.kind
    return None


def dispensable(work: Work, limits: ExportConfig) -> dict[FileKind, str]:
    """Files that the model is as good without, and why they are not to be published.

    Those of 4 bits that lose too much, or that no device could run; where the bounds are about a file of
    4 bits, the larger ones of 8 that its size excludes. The file that bounds are about is none of them.
    """
    found: dict[FileKind, str] = {
        entry.kind: "no device that verified the files has a runtime for it"
        for entry in work.entries
        if entry.kind not in work.figures
    }
    for kind, figure in work.figures.items():
        if kind in INT4S.values() and kind != work.chosen.kind:
            try:
                check_figures({kind: figure}, limits)
            except ExportError as error:
                found[kind] = str(error)
    bound = work.chosen.budget.file_bytes
    if bound is not None and work.chosen.needs_int4:
        for entry in work.entries:
            if entry.kind in INTS.values() and entry.size_bytes > bound:
                found[entry.kind] = f"it has {entry.size_bytes} bytes; file_bytes = {bound}"
    return found


def check_sizes(entries: Sequence[FileEntry], chosen: Chosen) -> None:
    """ExportError for a file above the bound: the search went by predicted sizes."""
    bounded = INT4S if chosen.needs_int4 else INTS
    for entry in entries:
        bound = chosen.budget.file_bytes
        if bound is not None and entry.kind in bounded.values() and entry.size_bytes > bound:
            raise ExportError(f"{entry.kind} has {entry.size_bytes} bytes; file_bytes = {bound}")
