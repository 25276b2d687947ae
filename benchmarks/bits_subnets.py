"""Subnets of every budget from a supernet trained once: what the benchmark of bits exports."""

import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from fedofa.client.data import Floats, Labels
from fedofa.client.device import data as data_of
from fedofa.server.limits import Limits
from fedofa.server.samplers.drawing import largest_fit
from fedofa.specialize.compensate import compensated
from fedofa.supernet import kernel_inputs
from fedofa.supernet.axes import regions, take
from fedofa.supernet.batch import resized
from fedofa.supernet.batchnorm import Moments, collect, load
from fedofa.supernet.called_layers import narrow
from fedofa.supernet.cost import Budget
from fedofa.supernet.fake_quant import rounded
from fedofa.supernet.kernel_inputs import observed
from fedofa.supernet.space import Arch, Space
from fedofa.supernet.subnet import static
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from .accuracy_run import configuration
from .accuracy_tasks import TASKS, Task, data_folder
from .federation import Federation, fleet_of, rounds_for
from .subnet_accuracy import BATCH, Pooled, pooled

SEED = 0
CALIBRATION_EACH, STATISTICS_EACH, VALIDATION_EACH = 16, 50, 200

Change = Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]]


@dataclass(frozen=True, slots=True)
class Measurable:
    """A task's trained weights, and the examples to prepare and to measure subnets with.

    `parts` are each device's own inputs for activation ranges.
    """

    task: Task
    weights: dict[str, Tensor]
    parts: tuple[Floats, ...]
    statistics: Pooled
    validation: Pooled
    test: Pooled

    @property
    def space(self) -> Space:
        """Of all its subnets."""
        return self.task.space

    def archs(self) -> Iterator[tuple[str, Arch]]:
        """Each budget and the largest subnet within it."""
        for name, macs in self.task.budgets().items():
            yield (
                name,
                largest_fit(
                    self.space, Limits(Budget(macs=macs), self.task.recipe["batch_size"]), SEED
                ),
            )

    def module(self, arch: Arch, change: Change | None = None) -> nn.Module:
        """The subnet in evaluation mode, norm statistics measured with its weights as changed."""
        own = take(self.weights, regions(self.space, arch))
        module = static(self.space, arch, change(own) if change else own)
        load(module, self._moments(arch, module))
        return module.eval()

    def corrected(self, arch: Arch, change: Change) -> nn.Module:
        """The subnet as it is, but for norm statistics, which are those with its weights as changed."""
        own = take(self.weights, regions(self.space, arch))
        module = static(self.space, arch, own)
        load(module, self._moments(arch, static(self.space, arch, change(own))))
        return module.eval()

    def narrowed(self, arch: Arch) -> nn.Module:
        """With kernels of 4 bits as a run rounds them: by second moments or nearest, whichever is likelier."""
        widths, inputs = narrow(self.space, arch), list(observed(self.space, arch))
        x = resized(torch.from_numpy(self.statistics.x), self.space.input_shape(arch))
        moments = kernel_inputs.collect(self.module(arch), inputs, torch.split(x, BATCH))

        def compensate(weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
            levels = {n: compensated(weights[n], mine, widths[n]) for n, mine in moments.items()}
            return rounded({**weights, **levels}, widths)

        changes: tuple[Change, ...] = (partial(rounded, widths=widths), compensate)
        nearest, other = (self.module(arch, change) for change in changes)
        if self.nll(arch, other, self.validation) < self.nll(arch, nearest, self.validation):
            return other
        return nearest

    def nll(self, arch: Arch, module: nn.Module, data: Pooled) -> float:
        """Mean negative log-likelihood."""
        x = resized(torch.from_numpy(data.x), self.space.input_shape(arch))
        with torch.no_grad():
            logits = torch.cat([module(batch) for batch in torch.split(x, BATCH)])
        return float(F.cross_entropy(logits, torch.from_numpy(data.y).long()))

    def _moments(self, arch: Arch, module: nn.Module) -> Mapping[str, Moments]:
        x = resized(torch.from_numpy(self.statistics.x), self.space.input_shape(arch))
        return collect(module, torch.split(x, BATCH))

    def inputs(self, arch: Arch, x: Floats) -> Floats:
        """At the subnet's resolution."""
        found: Floats = resized(torch.from_numpy(x), self.space.input_shape(arch)).numpy()
        return found


def measurable(
    name: str,
    kept: Path,
    test_examples: int,
    change: Mapping[str, Any] = MappingProxyType({}),
    seed: int = SEED,
) -> Measurable:
    """Train a task's supernet as for the table of recipes, or read what was kept in that folder.

    `change` is of the recipe.
    """
    task = TASKS[name]
    devices = fleet_of(task.source(seed), list(task.budgets()))
    told = "".join(f"-{key}-{value}" for key, value in {**change, "seed": seed}.items())
    told = told.replace(" ", "")
    path = kept / f"{name}-{task.budget_macs:.4g}{told}.safetensors"
    if not path.exists():
        with tempfile.TemporaryDirectory() as folder:
            make = partial(configuration, task, "fedofa", seed, change=change)
            rounds = rounds_for(Federation(make(rounds=8), devices, Path(folder)), task.budget_macs)
            federation = Federation(make(rounds=rounds), devices, Path(folder))
            federation.train()
        kept.mkdir(parents=True, exist_ok=True)
        save_file({k: v.contiguous() for k, v in federation.training.weights.items()}, path)
    clients = [data_of(device) for device in devices.values()]
    train: list[tuple[Floats, Labels]] = [
        (c.normalized(c.train.x[:1000]), c.train.y[:1000]) for c in clients
    ]
    validation: list[tuple[Floats, Labels]] = [
        (c.normalized(c.validation.x), c.validation.y) for c in clients
    ]
    held_out = task.test(str(data_folder() / task.folder))
    chosen = torch.randperm(len(held_out.y), generator=torch.Generator().manual_seed(SEED))
    rows = chosen[:test_examples].numpy()
    return Measurable(
        task,
        load_file(path),
        tuple(x[:CALIBRATION_EACH] for x, _ in train),
        pooled(train, STATISTICS_EACH, SEED),
        pooled(validation, VALIDATION_EACH, SEED),
        Pooled(clients[0].normalized(held_out.x[rows]), held_out.y[rows]),
    )
