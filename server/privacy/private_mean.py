"""A differentially private merge of unequal regions: clip, add up, add noise, divide by the assigned.

**What is protected.** One client: its whole part in a round. Neighbouring runs have the same clients with
the same assignments, but one of them has no change: it replies with zeros (zero-out adjacency, Kairouz et
al. 2021, of whose sum the account is that of adding or removing a client).

**Sensitivity.** Client i changes the values of its region by a vector of L2 norm at most C, clipped over
the region as a whole, with weight 1. Put into the supernet's flat array, zero elsewhere, it has the same
norm, whatever the region. So the sum over clients moves by at most C when one has no change, and noise
N(0, z²C²) on every value of the sum is a Gaussian mechanism of noise multiplier z (McMahan et al. 2018).

The *mean* over those that reported is not so simple, and not what is noised: whether a client
reports, and how many examples weigh in, decide its denominators, so that one client would move the others'
contributions too, by more than C / count. Here weights are all 1, which hides the number of examples, and
each value is divided by how many clients were **assigned** to cover it, in expectation where clients
are drawn at random. That depends on no data, and dividing what is already noised costs no privacy.

- Unequal noise: a value that k clients cover gets noise of z·C/k in its mean, few clients much. Values
  assigned to fewer than `least_cover` keep their bytes, a rule that depends on no data either.
- Dropouts: a client that does not report counts as zero. Privacy is the same, steps are shorter by its
  share. Which values count as trained follows from the assignment, too.
- One bound for all: large subnets make longer updates, so that they are clipped more.

**Not protected**: what else a device sends (profile, loss, norm statistics, evaluation, activation
ranges). Assignments must not follow from replies, as those of the sampler `importance` and of a
device's reputation do. Noise must not be guessable: `GaussianNoise` takes the system's randomness, never
the run's seed, which devices are told.

**Floating point.** Noise made of floats betrays low bits of what it hides (Mironov 2012). The noised sum
is rounded to a grid of about a millionth of its noise, which all such bits lie below. That closes the
known attack; it is no proof.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ...protos.noise import GaussianNoise, clipped, grid_of, norm_of
from ...supernet.axes import Regions
from ...supernet.weights import Shapes, shapes_of, size_of
from ..aggregation.placement import Frame
from ..aggregation.update import Merged, Update


@dataclass(frozen=True, slots=True)
class Release:
    """How one round's sum is published.

    `noise_std` is the standard deviation of the noise that the *server* adds to each value of the sum,
    z·C; 0 where devices added their shares. `rate` is the probability with which each assigned client
    is drawn (1: all are).
    """

    noise_std: float
    rate: float = 1.0
    least_cover: int = 1


def cover(frame: Frame, assigned: Iterable[Regions]) -> Tensor:
    """How many clients are assigned to cover each shared value, float32, in the supernet's order."""
    counts = torch.zeros(frame.size)
    parts = frame.tensors(counts)
    for where in assigned:
        ones = np.ones(size_of(shapes_of(where)), np.float32)
        frame.add(counts, parts, ones, where, 1.0)
    return counts


class PrivateMean:
    """The merge as a fold: clips each update's change to `bound`; the result is noised.

    Without a `bound` updates are added as they are: devices clipped them, and noised them. `assigned` are the regions of everybody that was assigned this round, or could have been drawn for it:
    not of those that replied. `below` counts the updates that were not longer than the bound. Sums are
    float64: 8 bytes a shared value.
    """

    def __init__(
        self,
        shapes: Shapes,
        assigned: Iterable[Regions],
        bound: float | None,
        release: Release,
        noise: GaussianNoise,
    ) -> None:
        self._frame, self._bound, self._release, self._noise = Frame(shapes), bound, release, noise
        self._cover = cover(self._frame, assigned)
        self._total = torch.zeros(self._frame.size, dtype=torch.float64)
        self._parts = self._frame.tensors(self._total)
        self.below = 0

    def add(self, update: Update) -> None:
        """Count one client's change, clipped; its weight is 1, whatever `update.weight` says.

        ValueError for a value that is no number (validate before), and for an update that was scaled:
        a bound that follows the fleet's updates makes one client move the others'.
        """
        if update.scale != 1.0:
            raise ValueError(
                "an update that was clipped by the fleet's bound cannot be made private"
            )
        delta = update.delta
        if self._bound is not None:
            self.below += norm_of(delta) <= self._bound
            delta = clipped(delta, self._bound)
        self._frame.add(self._total, self._parts, delta, update.where, 1.0)

    def result(self) -> Merged:
        """The published change. Also without a single update: that nobody took part is private too."""
        return released(self._frame, self._total, self._cover, self._release, self._noise)


def released(
    frame: Frame, total: Tensor, covered: Tensor, release: Release, noise: GaussianNoise
) -> Merged:
    """The change that is published of a sum over clients (float64, used up), clipped by C each."""
    public = covered >= max(release.least_cover, 1)
    if release.noise_std:
        total += torch.from_numpy(noise.draw(frame.size, release.noise_std))
        grid = grid_of(release.noise_std)
        total.div_(grid).round_().mul_(grid)
    total /= (covered * release.rate).clamp_(min=torch.finfo(torch.float32).tiny)
    delta = torch.where(public, total, 0.0).to(torch.float32)
    return frame.merged(delta, public)
