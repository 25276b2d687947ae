"""Which copy a configuration trains: learned from feedback, balanced (Balanced Mixture of SuperNets).

V[a, m] is a running mean (0.9) of how well configuration a does on copy m, 1 before anything is known.
p(m | a) = softmax_m(T · V[a, ·]), then again and again divided by the columns' marginals and normalised
by rows, until the Kullback-Leibler divergence of the marginal from uniform is below 1e-4: no copy gets
most of the configurations. T grows linearly from 1 to 100 over the rounds.

Deviation: V follows exp(-loss), of the mean training loss that a device reports with its update, in place
of the accuracy on a validation batch: it is in (0, 1] too, and asks nothing more of the devices.
"""

import math

import numpy as np
from numpy.typing import NDArray

KEEP = 0.9
COLDEST, HOTTEST = 1.0, 100.0
TOLERANCE = 1e-4
MOST_STEPS = 10_000
Floats = NDArray[np.float64]


def temperature(progress: float) -> float:
    """T, the inverse temperature; `progress` runs from 0 to 1."""
    return COLDEST + (HOTTEST - COLDEST) * progress


def unevenness(p_am: Floats) -> float:
    """Kullback-Leibler divergence of the copies' marginal from the uniform one, in nats, ≥ 0."""
    marginal = p_am.mean(axis=0)
    known = marginal[marginal > 0]
    return max(0.0, float((known * np.log(known * p_am.shape[1])).sum()))


def balanced(v_am: Floats, inverse_temperature: float) -> Floats:
    """p(m | a), (configurations, copies): rows add up to 1, columns to equal sums.

    Ends after 10,000 steps at the latest: `unevenness` tells what is left.
    """
    logits = inverse_temperature * (v_am - v_am.max(axis=1, keepdims=True))
    p_am = np.exp(logits)
    p_am /= p_am.sum(axis=1, keepdims=True)
    for _ in range(MOST_STEPS):
        if unevenness(p_am) < TOLERANCE:
            break
        p_am = p_am / p_am.mean(axis=0)
        p_am /= p_am.sum(axis=1, keepdims=True)
    return np.asarray(p_am, dtype=np.float64)


def followed(value: float, loss: float) -> float:
    """V after one more report."""
    return KEEP * value + (1 - KEEP) * math.exp(-max(loss, 0.0))
