"""Random streams that depend on what they are for, never on how many draws came before."""

import hashlib
import random

import numpy as np


def _seed(parts: tuple[object, ...]) -> int:
    text = "/".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:16], "big")


def stream(*parts: object) -> random.Random:
    """Python's generator for, say, (seed, "assign", round, device)."""
    return random.Random(_seed(parts))  # noqa: S311 - not for secrets


def array_stream(*parts: object) -> np.random.Generator:
    """numpy's generator for the same kind of key."""
    return np.random.default_rng(_seed(parts))
