"""An ensemble of Gaussian processes on one-hot genes, with uncertainty (GP-NAS-ensemble, 2022).

GP-NAS (Li et al., CVPR 2020): y = wᵀx + f(x), a linear part with a normal prior on w and a Gaussian
process f. Each member here has one kernel and one length scale; with covariance

    K = s²·k(x, x'; ℓ) + t²·x·x',   measured with K + diag(error²) + noise²·I,

members count by their marginal likelihood, log p(y) = −½·yᵀK⁻¹y − ½·log|K| − n/2·log 2π, and the
ensemble's variance is that of the mixture. The papers' own mix of codings and bagging is not
published in enough detail to follow; the marginal likelihood takes its place.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ...supernet.space import Arch, Space
from .contract import Matrix, Prediction, Sample, Vector, centred_accuracies
from .features import encode

Kernel = Callable[[Matrix], Matrix]
"""Squared distances over squared length scales → correlations."""
LENGTHS = (0.5, 1.0, 2.0)
"""Times the median distance between the samples."""
NOISES = (0.1, 0.5)
"""Unexplained noise as a part of the accuracies' spread."""
LINEAR_PARTS = (0.1, 1.0)
JITTER = 1e-9


def squared_exponential(d2: Matrix) -> Matrix:
    """exp(−d²/2): smooth."""
    found: Matrix = np.exp(-0.5 * d2)
    return found


def matern(d2: Matrix) -> Matrix:
    """Matérn 3/2: rough."""
    d = np.sqrt(3 * d2)
    found: Matrix = (1 + d) * np.exp(-d)
    return found


@dataclass(frozen=True, slots=True)
class Member:
    """One Gaussian process, solved: `alpha` = K⁻¹y, `inverse` = K⁻¹."""

    kernel: Kernel
    length2: float
    linear: float
    alpha: Vector
    inverse: Matrix

    def covariance(self, a: Matrix, b: Matrix) -> Matrix:
        """Prior covariance between two sets, in units of the accuracies' variance."""
        smooth = self.kernel(_squared_distances(a, b) / self.length2)
        found: Matrix = smooth + self.linear * (a @ b.T) / a.shape[1]
        return found


@dataclass(frozen=True, slots=True)
class Ensemble:
    """Members with their weights, and the scaling of features and accuracies."""

    space: Space
    x: Matrix
    shift: Vector
    scale: Vector
    unit: float
    members: tuple[Member, ...]
    weights: Vector

    def predict(self, archs: Sequence[Arch]) -> Prediction:
        """Mixture mean and standard deviation; far from all samples the prior's."""
        new = (encode(self.space, archs) - self.shift) / self.scale
        mean, second = np.zeros(len(archs)), np.zeros(len(archs))
        for member, weight in zip(self.members, self.weights, strict=True):
            across = member.covariance(new, self.x)
            prior = 1 + member.linear * np.einsum("ij,ij->i", new, new) / new.shape[1]
            m = across @ member.alpha
            v = prior - np.einsum("ij,jk,ik->i", across, member.inverse, across)
            mean += weight * m
            second += weight * (np.maximum(v, 0) + m**2)
        variance = np.maximum(second - mean**2, 0)
        return Prediction(self.unit * mean, self.unit * np.sqrt(variance))


def fit(space: Space, samples: Sequence[Sample]) -> Ensemble:
    """Every combination of kernel, length scale, noise and linear part, weighed by its evidence."""
    y = centred_accuracies(samples)
    raw = encode(space, [sample.arch for sample in samples])
    shift, scale = raw.mean(axis=0), raw.std(axis=0)
    scale[scale < JITTER] = 1.0  # options that no sample differs in
    x = (raw - shift) / scale
    # Where nothing differs, any unit does: the scores are all 0.
    unit = float(y.std()) or 1.0
    distances = _squared_distances(x, x)
    apart = distances[distances > JITTER]
    median2 = float(np.median(apart)) if len(apart) else 1.0
    errors2 = np.array([sample.error for sample in samples]) ** 2 / unit**2
    members, evidence = [], []
    for kernel, length, noise, linear in itertools.product(
        (squared_exponential, matern), LENGTHS, NOISES, LINEAR_PARTS
    ):
        length2 = length**2 * median2
        gram = kernel(distances / length2) + linear * (x @ x.T) / x.shape[1]
        gram += np.diag(errors2 + noise**2)
        lower = np.linalg.cholesky(gram + JITTER * np.eye(len(y)))
        half = np.linalg.inv(lower)
        alpha = half.T @ (half @ (y / unit))
        members.append(Member(kernel, length2, linear, alpha, half.T @ half))
        evidence.append(-0.5 * float(y / unit @ alpha) - float(np.log(np.diag(lower)).sum()))
    weights = np.exp(np.array(evidence) - max(evidence))
    return Ensemble(space, x, shift, scale, unit, tuple(members), weights / weights.sum())


def _squared_distances(a: Matrix, b: Matrix) -> Matrix:
    found: Matrix = np.maximum(
        (a**2).sum(axis=1)[:, None] + (b**2).sum(axis=1)[None] - 2 * a @ b.T, 0
    )
    return found
