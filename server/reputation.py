"""Strikes and quarantine: a device whose updates are refused or suspected again and again rests."""

from collections.abc import Collection, Mapping
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class ReputationConfig(BaseModel):
    """When a device is put into quarantine, and for how long.

    A refused or suspected update is a strike; `strikes` of them within `window` rounds send the
    device into quarantine for `quarantine_rounds` rounds, twice as many each further time. Strikes
    0 never do.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    strikes: int = Field(3, ge=0)
    window: int = Field(10, ge=1)
    quarantine_rounds: int = Field(5, ge=1)

    @model_validator(mode="after")
    def _can_be_reached(self) -> Self:
        if self.strikes > self.window:
            raise ValueError(
                f"reputation.strikes = {self.strikes} cannot come together within window = "
                f"{self.window} rounds: a device gets one a round"
            )
        return self


class Reputation:
    """Each device's strikes. Its whole state is `memory`, JSON values, for the checkpoint."""

    def __init__(self, config: ReputationConfig, memory: Mapping[str, Any] | None = None) -> None:
        self._config, memory = config, memory or {}
        self._strikes: dict[str, list[tuple[int, str]]] = {
            name: [(int(r), str(code)) for r, code in found]
            for name, found in memory.get("strikes", {}).items()
        }
        self._until: dict[str, int] = dict(memory.get("until", {}))
        self._times: dict[str, int] = dict(memory.get("times", {}))

    @property
    def memory(self) -> dict[str, Any]:
        """What a checkpoint must keep."""
        strikes = {name: [list(one) for one in found] for name, found in self._strikes.items()}
        return {"strikes": strikes, "until": dict(self._until), "times": dict(self._times)}

    def strike(self, device: str, round_: int, code: str) -> int | None:
        """Note a refused or suspected update.

        Returns the round in which the device is asked again when it goes into quarantine now.
        """
        config = self._config
        found = [s for s in self._strikes.get(device, []) if s[0] > round_ - config.window]
        if all(at != round_ for at, _ in found):
            found.append((round_, code))
        self._strikes[device] = found
        if not config.strikes or len(found) < config.strikes:
            return None
        times = self._times[device] = self._times.get(device, 0) + 1
        until = round_ + 1 + config.quarantine_rounds * (1 << (times - 1))
        self._until[device] = until
        del self._strikes[device]
        return until

    def release(self, devices: Collection[str], least: int, round_: int) -> list[str]:
        """Let the soonest due of these devices go until `least` of them do not rest; who they are.

        Rounds that cannot take place would never bring anybody's quarantine to its end. Where there are
        fewer than `least` devices anyway nobody is released.
        """
        resting = sorted(self.resting(round_) & set(devices), key=lambda n: (self._until[n], n))
        short = max(least - (len(devices) - len(resting)), 0)
        if len(devices) < least:
            return []
        for name in resting[:short]:
            del self._until[name]
        return resting[:short]

    def resting(self, round_: int) -> frozenset[str]:
        """Devices that get nothing in this round."""
        return frozenset(name for name, until in self._until.items() if round_ < until)

    def reasons(self, device: str) -> list[tuple[int, str]]:
        """A device's strikes that still count: round and reason code."""
        return list(self._strikes.get(device, []))
