"""How long each shared weight has gone untrained."""

from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from ..supernet.axes import Layout


class Coverage:
    """How long each shared weight has gone untrained, in rounds."""

    def __init__(self, shared: Layout, ages: Mapping[str, Tensor] | None = None) -> None:
        self.ages = (
            dict(ages)
            if ages is not None
            else {name: torch.zeros(t.shape, dtype=torch.int16) for name, t in shared.items()}
        )

    def update(
        self, trained: Mapping[str, Tensor | bool], kept: Collection[str] = frozenset()
    ) -> float:
        """Note a round's trained weights; returns the fraction of weights trained in it.

        Tensors `kept` out of the merge wait for nothing, and do not count.
        """
        ages = {name: age for name, age in self.ages.items() if name not in kept}
        covered = 0
        for name, age in ages.items():
            mask = torch.as_tensor(trained[name]).expand(age.shape)
            covered += int(mask.sum())
            age.add_(1).clamp_(max=torch.iinfo(torch.int16).max - 1)
            age[mask] = 0
        return covered / sum(age.numel() for age in ages.values())

    def oldest(self) -> int:
        """Rounds since the longest-waiting weight was trained."""
        return max(int(age.max()) for age in self.ages.values())
