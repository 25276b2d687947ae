"""How an update becomes bytes: which values are sent, on how many levels, and how they are packed.

Importable without torch.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

BITS_LEAST, BITS_MOST, BITS_FOR_MEMORY = 2, 8, 8
STEP_MOST, NEAREST_STEP_MOST = 64.0, 1.5
"""To the nearest, half a step must be less than a root mean square: some value is as large as that."""


class CodecConfig(BaseModel):
    """The stages of a codec; `name` says what it is called.

    Which values: of every tensor the share `keep` of largest magnitude, at least one; tensors of
    fewer than `whole_below` values whole. The others arrive as zeros.

    Levels: `float32` sends the values as they are. `uniform` sends them on 2^bits - 1 evenly spaced
    levels around zero, up to the tensor's largest magnitude; `rounding` up or down by chance, so
    that the expected value is the true one, or to the nearest. `clusters` fits 2^(bits-1) - 1
    magnitudes to the whole update by k-means, each with both signs, and zero (FedZip). `sign` sends
    a bit a value: its sign, times the mean magnitude of the tensor's sent values.

    With `step` uniform levels lie step · √(Σ vᵢ² / n) apart, over all n values that are sent, or as far
    as it takes for the last of them to reach a tensor's largest; what becomes zero is not sent. By
    chance this is QSGD (Alistarh et al. 2017) with s = √n / step levels; there a norm belongs to a
    bucket of values and integers are coded by Elias' code, here to the update, and by `rans`.

    Entropy coding: with `rans` positions and levels take the room that their frequency deserves;
    with `none` each takes the same number of bits, which is faster.

    What is lost of an update is always smaller than the update, and an error memory therefore
    bounded, but for `uniform` by chance: on few levels its error is larger (`can_exceed_update`).
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    name: str = "exact"
    keep: float = Field(1.0, gt=0, le=1)
    whole_below: int = Field(0, ge=0)
    levels: Literal["float32", "uniform", "clusters", "sign"] = "float32"
    bits: int | None = Field(None, ge=BITS_LEAST, le=BITS_MOST)
    step: float | None = Field(None, gt=0, le=STEP_MOST)
    rounding: Literal["chance", "nearest"] = "chance"
    entropy: Literal["rans", "none"] = "rans"

    @model_validator(mode="after")
    def _makes_sense(self) -> Self:
        counted = self.levels in ("uniform", "clusters")
        if counted and self.bits is None:
            raise ValueError(
                f"bits is missing; levels = {self.levels} needs {BITS_LEAST} to {BITS_MOST}"
            )
        if not counted and self.bits is not None:
            raise ValueError(
                f"bits = {self.bits} is not used with levels = {self.levels}; allowed with "
                "uniform, clusters"
            )
        if self.step is not None and self.levels != "uniform":
            raise ValueError(
                f"step = {self.step:g} is not used with levels = {self.levels}; allowed with uniform"
            )
        if (self.step or 0) > NEAREST_STEP_MOST and self.rounding == "nearest":
            raise ValueError(
                f"step = {self.step:g} does not go with rounding = nearest: of values that are alike "
                "none would ever be sent. Allowed with it: up to "
                f"{NEAREST_STEP_MOST:g}; by chance, up to {STEP_MOST:g}"
            )
        if self.rounding != "chance" and self.levels != "uniform":
            raise ValueError(
                f"rounding = {self.rounding} is not used with levels = {self.levels}; allowed with "
                "uniform"
            )
        if self.whole_below and self.keep == 1 and self.step is None:
            raise ValueError(
                f"whole_below = {self.whole_below} is not used with keep = 1, which sends every "
                "tensor whole"
            )
        return self

    @property
    def can_exceed_update(self) -> bool:
        """Whether chance decides an error that can exceed the update: such a one is not carried over."""
        coarse = self.step is not None or (self.bits or 0) < BITS_FOR_MEMORY
        return self.levels == "uniform" and self.rounding == "chance" and coarse

    def magnitudes(self) -> int:
        """How many levels above zero there are; none where values are sent as they are."""
        if self.levels == "float32":
            return 0
        return 1 if self.bits is None else 2 ** (self.bits - 1) - 1


PRESETS: Mapping[str, CodecConfig] = MappingProxyType(
    {
        preset.name: preset
        for preset in (
            CodecConfig(name="exact"),
            CodecConfig(name="int8", levels="uniform", bits=8),
            CodecConfig(name="int4", levels="uniform", bits=4),
            CodecConfig(name="qsgd", levels="uniform", bits=8, step=4.0),
            CodecConfig(name="lean", keep=0.4, whole_below=128, levels="clusters", bits=3),
            CodecConfig(name="fedzip", keep=0.2, levels="clusters", bits=2),
            CodecConfig(name="sparse", keep=0.02, whole_below=128, levels="clusters", bits=3),
            CodecConfig(name="sparsest", keep=0.01, levels="sign"),
        )
    }
)
