"""The server's own examples in a run: loaded, checked, learned from and trained on."""

from collections.abc import Mapping, Sequence
from typing import Self

import numpy as np
import torch
from torch import Tensor

from ..protos.data import ClientData, client_data
from ..protos.device import DataSource
from ..supernet.axes import Weights
from ..supernet.errors import UsageError
from ..supernet.optimizers import Sgd
from ..supernet.space import Space
from .aggregation.fedlaw import Lesson
from .books import Books
from .config import RunConfig
from .data_form import DataForm
from .fleet import Fleet
from .intake import Asked
from .optimizer import ServerOptimizer
from .proxy_config import ProxyConfig
from .proxy_loss import ProxySet, SubnetLoss

OWNER = "[proxy]"
FEW_A_CLASS = 20
"""Fewer of a class are remarked on: with 4 of each, learned weights were worse than the mean."""
MOMENTUM = 0.9


class Proxy:
    """What a run makes of its proxy set; `few` says, in words, what is too little of it, or nothing."""

    def __init__(self, run: RunConfig, config: ProxyConfig, space: Space) -> None:
        data = client_data(
            DataSource(
                config.data, config.data_root, config.client, config.clients, config.arguments
            )
        )
        self.form = DataForm.of(data)
        self.form.check(OWNER, space)
        if len(data.normalization.mean) not in (1, data.train.x.shape[1]):
            raise UsageError(
                f"{OWNER}: normalization of {len(data.normalization.mean)} channels; the examples "
                f"have {data.train.x.shape[1]}"
            )
        self.few = _few(data)
        self._run, self._config, self._space = run, config, space
        x = torch.from_numpy(data.normalized(data.train.x))
        self._set = ProxySet(x, torch.from_numpy(data.train.y), config.batch_size)

    @classmethod
    def of(cls, run: RunConfig, space: Space) -> Self | None:
        """The run's proxy set, if it has one; UsageError says what is wrong with it."""
        return None if run.proxy is None else cls(run, run.proxy, space)

    def check_fleet(self, fleet: Fleet) -> None:
        """UsageError where the devices' data are of another form."""
        if fleet.members:
            theirs = fleet.any_profile
            self.form.check_same(OWNER, DataForm.of(theirs), f"device {theirs.device}")

    def lesson(
        self, asked: Sequence[Asked], number: int, optimizer: ServerOptimizer, weights: Weights
    ) -> Lesson | None:
        """What round `number` learns its weights from, where the rule learns any."""
        if self._run.aggregation.rule != "fedlaw":
            return None
        return Lesson(self._loss(asked, number), weights, optimizer.ahead)

    def tuned(self, weights: Weights, asked: Sequence[Asked], books: Books) -> Weights:
        """The shared weights, trained on the proxy set after a round's step if the run wants that.

        Only the round's sandwich of subnets is trained, and no tensor that `share` freezes. A tuning
        that diverges leaves the weights as they were, with a remark.
        """
        if books.number == 1 and self.few:
            books.remark(self.few)
        if not self._config.tune_epochs:
            return weights
        loss, kept = self._loss(asked, books.number), asked[0].kept.names
        leaves = {
            name: weights[name].clone().requires_grad_()
            for name in loss.tensors
            if name not in kept
        }
        sgd = Sgd(list(leaves.values()), self._config.tune_lr, MOMENTUM)
        of = loss.on({**weights, **leaves})
        for epoch in range(self._config.tune_epochs):
            for batch in loss.shuffled(epoch):
                of(batch).backward()  # type: ignore[no-untyped-call]
                sgd.step()
        found = {name: leaf.detach() for name, leaf in leaves.items()}
        if not _finite(found):
            books.remark("training on the proxy set diverged; the weights are those of the merge")
            return weights
        return {**weights, **found}

    def _loss(self, asked: Sequence[Asked], number: int) -> SubnetLoss:
        trained = [one.assigned for one in asked]
        key = (self._run.seed, number)
        return SubnetLoss(self._space, trained, self._set, self._run.recipe, key)


def _few(data: ClientData) -> str:
    count_c = np.bincount(data.train.y, minlength=len(data.classes))
    least = int(count_c.argmin())
    if count_c[least] >= FEW_A_CLASS:
        return ""
    return (
        f"[proxy]: {len(data.train)} examples, of class {data.classes[least]!r} {count_c[least]}; "
        f"with fewer than {FEW_A_CLASS} of a class expect no gain over the plain mean"
    )


def _finite(tensors: Mapping[str, Tensor]) -> bool:
    return all(bool(torch.isfinite(value).all()) for value in tensors.values())
