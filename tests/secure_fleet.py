"""Devices and a server in one secure sum, letters handed on by hand."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from fedofa.client.privacy.secure_client import SecureClient
from fedofa.client.privacy.trust import Trust
from fedofa.protos.secure_messages import SecrecyError
from fedofa.server.privacy.secure_server import SecureServer
from fedofa.server.privacy.terms import SecureSums, Terms

SIZE, BOUND = 40, 2.0
STEPS = ("advert", "shares", "masked", "reveal")


def nothing(_: str, letter: bytes) -> bytes:
    return letter


@dataclass
class Fleet:
    """Devices in one round with a server; every device starts a new process for each letter."""

    places: Mapping[str, Any]
    terms: Terms
    values: dict[str, Any] = field(default_factory=dict)
    trust: Mapping[str, Trust] = field(default_factory=dict)
    seed: int = 0
    size: int = SIZE

    def __post_init__(self) -> None:
        rng = np.random.default_rng(self.seed)
        self.entropy = rng.bytes
        for name, at in self.places.items():
            drawn = rng.uniform(-self.terms.bound, self.terms.bound, len(at))
            self.values.setdefault(name, drawn.astype(np.float32))
        self.server = SecureServer(self.terms, self.size, self.places, self.entropy)
        self.states: dict[str, bytes] = {}
        self.sent: dict[str, dict[str, bytes]] = {}

    def device(self, name: str) -> SecureClient:
        return SecureClient(name, self.trust.get(name), self.states.get(name), self.entropy)

    def requests(self, step: str) -> dict[str, bytes]:
        ask = {
            "advert": self.server.invitations,
            "shares": self.server.rosters,
            "masked": self.server.inboxes,
            "reveal": self.server.survivors,
        }
        return ask[step]()

    def answer(self, step: str, name: str, request: bytes) -> bytes:
        device = self.device(name)
        if step == "masked":
            found = device.mask(request, self.values[name])
        else:
            does = {"advert": device.advertise, "shares": device.share, "reveal": device.unmask}
            found = does[step](request)
        self.states[name] = device.state
        return found

    def step(
        self,
        step: str,
        without: Iterable[str] = (),
        changed: Callable[[str, bytes], bytes] = nothing,
    ) -> None:
        """Ask everybody who is left; `without` do not answer, others' answers may be `changed`."""
        take = getattr(self.server, step)
        self.sent[step] = {}
        for name, request in self.requests(step).items():
            if name not in without:
                found = changed(name, self.answer(step, name, request))
                self.sent[step][name] = found
                take(name, found)

    def until(self, last: str, drops: Mapping[str, str] | None = None) -> None:
        """All steps up to and with `last`; `drops` says at which step a device stops answering."""
        gone: set[str] = set()
        for step in STEPS[: STEPS.index(last) + 1]:
            gone |= {name for name, at in (drops or {}).items() if at == step}
            self.step(step, gone)

    def run(self, drops: Mapping[str, str] | None = None) -> SecureSums:
        self.until("reveal", drops)
        return self.server.result()


def equal(devices: int = 5, threshold: int = 3, least: int = 2, **kinds: Any) -> Fleet:
    """Devices that all cover everything."""
    everything = np.arange(SIZE)
    where = {f"d{number}": everything for number in range(devices)}
    return Fleet(where, Terms(threshold, least, BOUND), **kinds)


def unequal(least: int = 2, **kinds: Any) -> Fleet:
    """Five devices: the first values are everybody's, the last ones the two largest devices' only."""
    sizes = {"a": 8, "b": 16, "c": 24, "d": 40, "e": 40}
    where = {name: np.arange(size) for name, size in sizes.items()}
    return Fleet(where, Terms(3, least, BOUND), **kinds)


def refused(code: str, call: Callable[..., object], *args: object) -> str:
    with pytest.raises(SecrecyError) as refusal:
        call(*args)
    assert refusal.value.code == code, str(refusal.value)
    return str(refusal.value)
