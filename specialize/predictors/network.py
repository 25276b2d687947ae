"""A small network on one-hot genes (Neural Predictor, Wen et al., ECCV 2020), in numpy.

Several multilayer perceptrons with one hidden layer, each from its own initial weights; their mean
is the score and their spread the uncertainty. Deviations: our architectures are vectors and not
graphs, so no graph convolutions; labels are standardised as there. What the paper does with it,
measuring the best K of a large pool, is `search/predicted.py`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ...supernet.randomness import array_stream
from ...supernet.space import Arch, Space
from .contract import Matrix, Prediction, Sample, Vector, centred_accuracies
from .features import encode

NETWORKS, HIDDEN, STEPS = 5, 32, 300
RATE, DECAY = 0.01, 1e-2
BETAS, EPSILON = (0.9, 0.999), 1e-8


@dataclass(frozen=True, slots=True)
class Network:
    """Stacked weights of all networks: (E, F, H), (E, 1, H), (E, H, 1), (E, 1, 1)."""

    space: Space
    shift: Vector
    scale: Vector
    unit: float
    layers: tuple[Matrix, ...]

    def predict(self, archs: Sequence[Arch]) -> Prediction:
        """Mean and spread over the networks."""
        x = (encode(self.space, archs) - self.shift) / self.scale
        outputs = self.unit * _forward(self.layers, x)[1]
        return Prediction(outputs.mean(axis=0), outputs.std(axis=0))


def fit(space: Space, samples: Sequence[Sample]) -> Network:
    """Full-batch Adam with weight decay, a fixed number of steps, fixed initial weights."""
    y = centred_accuracies(samples)
    raw = encode(space, [sample.arch for sample in samples])
    shift, scale = raw.mean(axis=0), raw.std(axis=0)
    scale[scale == 0] = 1.0
    unit = float(y.std())  # 0 where nothing differs: then every prediction is 0
    layers = _train((raw - shift) / scale, y / (unit or 1.0))
    return Network(space, shift, scale, unit, layers)


def _train(x: Matrix, y: Vector) -> tuple[Matrix, ...]:
    rng = array_stream("network predictor")
    layers = [
        rng.normal(0, np.sqrt(2 / x.shape[1]), (NETWORKS, x.shape[1], HIDDEN)),
        np.zeros((NETWORKS, 1, HIDDEN)),
        rng.normal(0, np.sqrt(1 / HIDDEN), (NETWORKS, HIDDEN, 1)),
        np.zeros((NETWORKS, 1, 1)),
    ]
    first = [np.zeros_like(layer) for layer in layers]
    second = [np.zeros_like(layer) for layer in layers]
    for step in range(1, STEPS + 1):
        for place, gradient in enumerate(gradients(layers, x, y)):
            decayed = gradient + DECAY * layers[place]
            first[place] = BETAS[0] * first[place] + (1 - BETAS[0]) * decayed
            second[place] = BETAS[1] * second[place] + (1 - BETAS[1]) * decayed**2
            mean = first[place] / (1 - BETAS[0] ** step)
            size = np.sqrt(second[place] / (1 - BETAS[1] ** step)) + EPSILON
            layers[place] = layers[place] - RATE * mean / size
    return tuple(layers)


def _forward(layers: Sequence[Matrix], x: Matrix) -> tuple[Matrix, Matrix]:
    """Hidden activations (E, N, H) and outputs (E, N)."""
    into, bias, out, offset = layers
    hidden = np.maximum(x @ into + bias, 0)
    return hidden, (hidden @ out + offset)[..., 0]


def gradients(layers: Sequence[Matrix], x: Matrix, y: Vector) -> list[Matrix]:
    """Of half the mean squared error, by each layer."""
    hidden, outputs = _forward(layers, x)
    error = ((outputs - y) / len(y))[..., None]  # (E, N, 1)
    back = error @ layers[2].transpose(0, 2, 1) * (hidden > 0)
    return [
        x.T @ back,
        back.sum(axis=1, keepdims=True),
        hidden.transpose(0, 2, 1) @ error,
        error.sum(axis=1, keepdims=True),
    ]
