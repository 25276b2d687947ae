"""The `codec` and `downlink` parts of a run's configuration: how values travel up and down."""

from collections.abc import Mapping
from typing import Self

from pydantic import Field, model_validator

from ..protos.codec.config import BITS_FOR_MEMORY, NEAREST_STEP_MOST, PRESETS, CodecConfig


class CodecSection(CodecConfig):
    """How devices encode their updates; with `error_memory` what a code loses is sent later.

    Where nothing is said it is, but for a code whose error is chance's: that evens out over devices
    and rounds.
    """

    error_memory: bool | None = None

    @model_validator(mode="after")
    def _memory_is_bounded(self) -> Self:
        if self.error_memory and self.can_exceed_update:
            raise ValueError(
                f"error_memory does not go with levels = uniform by chance on {_levels(self)}, "
                "whose error can exceed the update; use rounding = nearest, levels = clusters or "
                f"sign, {BITS_FOR_MEMORY} bits without step, or error_memory = false"
            )
        return self

    @property
    def remembers(self) -> bool:
        """Whether devices keep what a code loses."""
        return not self.can_exceed_update if self.error_memory is None else self.error_memory

    def codec(self) -> CodecConfig:
        """The codec alone, as devices are told it."""
        return _codec_of(self)


class DownlinkSection(CodecConfig):
    """How the difference from what a device holds is encoded; what a code loses is sent later.

    The server keeps what each of `devices` devices holds, in at most twice the room of the shared
    weights each; beyond that it forgets the one that was longest not asked.
    """

    devices: int = Field(1000, ge=1)

    @model_validator(mode="after")
    def _saves_and_is_bounded(self) -> Self:
        if self.keep == 1 and self.levels == "float32":
            raise ValueError(
                f"{self.name} would send every value in full, as is done without downlink; leave it "
                f"out, or use {', '.join(_downwards())}"
            )
        if self.can_exceed_update:
            raise ValueError(
                f"levels = uniform by chance on {_levels(self)}, whose error can exceed the "
                "difference; use rounding = nearest, levels = clusters or sign, or "
                f"{BITS_FOR_MEMORY} bits without step"
            )
        return self

    def codec(self) -> CodecConfig:
        """The codec alone, as devices are told it."""
        return _codec_of(self)


def by_name(field: str, value: object) -> object:
    """A codec may be given by the name of a preset alone, or with fields of its own beside it."""
    fields = {"name": value} if isinstance(value, str) else value
    if not isinstance(fields, Mapping) or "name" not in fields:
        return fields
    if fields["name"] not in list(PRESETS):
        raise ValueError(f"{field} {fields['name']!r} is unknown; known: {', '.join(PRESETS)}")
    # What is not given stays open, for a field may have another default here than in a codec.
    preset = PRESETS[str(fields["name"])].model_dump(exclude_defaults=True)
    if fields.get("levels", preset.get("levels")) != preset.get("levels"):
        # They belong to the preset's levels, and nobody asked for them.
        preset = {key: value for key, value in preset.items() if key not in ("bits", "step")}
    return {**preset, **fields}


def rounded_to_nearest(fields: object) -> object:
    """Uniform levels to the nearest where nothing else is said: chance evens out no error here."""
    if not isinstance(fields, Mapping) or fields.get("levels") != "uniform":
        return fields
    return {"rounding": "nearest", **fields}


def _codec_of(section: CodecConfig) -> CodecConfig:
    return CodecConfig(**{name: getattr(section, name) for name in CodecConfig.model_fields})


def _downwards() -> list[str]:
    """The presets that go downwards as they are."""
    return [
        name
        for name, one in PRESETS.items()
        if name != "exact" and (one.step or 0) <= NEAREST_STEP_MOST
    ]


def _levels(codec: CodecConfig) -> str:
    return f"{codec.bits} bits" if codec.step is None else f"levels a step of {codec.step:g} apart"
