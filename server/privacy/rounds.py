"""Differential privacy over a run's rounds: each round's merge, the bound, and what has been spent.

What is spent is a function of how many rounds count. Which do:

- Where the server adds the noise, those whose merge was published, and abandoned ones too: that a round
  was given up is seen. A round that a killed server left half done published nothing.
- Where devices add it, every round from the moment in which they are asked, since what they send is
  seen by the server, against which they add it. One that is abandoned, or asked again after a kill,
  counts again.

So the count outlives a kill, and a damaged checkpoint whose round is done again: it is in a file beside
the checkpoints, written before anything is seen, and in the checkpoints' notes.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...protos import durable
from ...protos.messages import OwnNoise
from ...protos.noise import GaussianNoise, share_std
from ...supernet.axes import Regions
from ...supernet.errors import ArtifactError
from ...supernet.weights import Shapes
from ..aggregation.placement import Frame
from ..aggregation.update import Merged
from .config import PrivacyConfig, SecureConfig
from .private_mean import PrivateMean, Release, cover, released

SPENT = "spent.json"


class PrivateRounds:
    """A private run between two rounds. `spent` rounds count; `folder` holds its checkpoints.

    With `secure` sums devices clip in either mode, since the server sees no update, and where they add
    noise, each adds a share of it alone.

    `noise` is the server's. Raises UsageError when `rounds` would exceed the budget, ArtifactError
    when the file of what was spent cannot be read: without it nothing may be promised.
    """

    def __init__(
        self,
        config: PrivacyConfig,
        rounds: int,
        folder: Path,
        secure: SecureConfig | None = None,
    ) -> None:
        self.config, self.secure, self._file = config, secure, folder / SPENT
        self.plan = config.plan(rounds, secure)
        self.noise = GaussianNoise()
        self.spent = _read(self._file)
        self._bound = config.first_bound()
        self._open: PrivateMean | None = None

    def resume(self, memory: Mapping[str, Any], rounds: int) -> None:
        """Go on after a checkpoint with the noise that the run began with.

        UsageError when `rounds` of it would exceed the budget.
        """
        chosen = float(memory["noise_multiplier"])
        self.plan = self.config.go_on(chosen, rounds, self.secure)
        self.spent = max(self.spent, int(memory["spent"]))
        if self._bound is not None:
            self._bound = self._bound.at(float(memory["bound"]))

    @property
    def memory(self) -> dict[str, Any]:
        """What a checkpoint must keep, JSON values."""
        return {
            "spent": self.spent,
            "noise_multiplier": self.plan.accountant.noise_multiplier,
            "bound": self.bound,
        }

    @property
    def bound(self) -> float:
        """The coming round's bound on the L2 norm of an update."""
        return self._bound.value if self._bound is not None else self.config.clip

    @property
    def epsilon(self) -> float:
        """What the rounds so far have spent."""
        return self.plan.accountant.epsilon_after(self.spent)

    @property
    def exhausted(self) -> bool:
        """Whether another round would exceed the budget: some were spent on abandoned ones."""
        return self.plan.accountant.epsilon_after(self.spent + 1) > self.config.epsilon

    def own_noise(self) -> OwnNoise | None:
        """What a device does before it sends its update, or None where the server does it."""
        if self.config.mode == "local":
            plan = self.plan
            std = share_std(self.bound, plan.sum_multiplier, plan.sharers)
            return OwnNoise(clip=self.bound, std=std)
        return None if self.secure is None else OwnNoise(clip=self.bound, std=0.0)

    @property
    def value_range(self) -> float:
        """The largest value that a device's update can hold, for secure sums."""
        return self.plan.value_range(self.bound, self.config.mode)

    def fold(self, shapes: Shapes, assigned: Iterable[Regions]) -> PrivateMean:
        """This round's merge; `assigned` are the regions of all that were asked."""
        bound = None if self.config.mode == "local" else self.bound
        self._open = PrivateMean(shapes, assigned, bound, self._release(), self.noise)
        return self._open

    def of_sums(
        self, shapes: Shapes, assigned: Iterable[Regions], total: Tensor, there: Tensor
    ) -> Merged:
        """The same of a sum over devices that clipped (float64, used up), for the values that are `there`.

        Which those are follows from who took part to the end, and from no data.
        """
        frame = Frame(shapes)
        covered = torch.where(there, cover(frame, assigned), 0.0)
        return released(frame, total, covered, self._release(), self.noise)

    def _release(self) -> Release:
        std = self.plan.server_std(self.bound, self.config.mode)
        return Release(std, self.config.rate, self.config.least_cover)

    def asked(self) -> None:
        """Devices are about to be asked for updates."""
        if self.config.mode == "local":
            self._count()

    def abandoned(self) -> None:
        """The round came to nothing."""
        if self.config.mode == "central":
            self._count()

    def published(self, reported: int, assigned: int) -> None:
        """The round's merge is about to be published, of `reported` updates."""
        if self.config.mode == "central":
            self._count()
        if self._bound is not None and self._open is not None:
            self._bound = self._bound.after(self._open.below, reported, assigned, self.noise)

    def _count(self) -> None:
        """One more, on the disk before anything else happens."""
        self.spent += 1
        durable.make_folder(self._file.parent)
        durable.write(self._file, json.dumps({"spent": self.spent}).encode())


def _read(path: Path) -> int:
    try:
        return int(json.loads(path.read_text())["spent"])
    except FileNotFoundError:
        return 0
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtifactError(
            f"{path}: {error}; it says how much of the privacy budget was spent, and without it the "
            "run cannot go on: restore it, or start a new run"
        ) from None
