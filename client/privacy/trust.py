"""What a device checks before it shares a secret: what a server must not talk it into."""

from collections.abc import Mapping
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from ...protos.secure_messages import Advert, Invitation, Roster, SecrecyError, ascending


@dataclass(frozen=True, slots=True)
class Trust:
    """How far a device trusts the server.

    It takes part in no sum whose values fewer than `least_cover` devices cover. With `identity`, an
    Ed25519 key of its own, it signs its adverts; with `known`, device name → public key, it accepts
    only adverts that these devices signed. `known` must not come from the server that it is to guard
    against.
    """

    least_cover: int = 2
    identity: Ed25519PrivateKey | None = None
    known: Mapping[str, Ed25519PublicKey] | None = None

    def sign(self, advert: Advert) -> Advert:
        """The advert with this device's signature, if it has a key."""
        if self.identity is None:
            return advert
        return advert.model_copy(update={"signature": self.identity.sign(advert.signed())})

    def check_invitation(self, found: Invitation) -> None:
        """SecrecyError for an index beyond the devices, or a threshold that protects nobody."""
        if found.holder > found.clients or found.threshold > found.clients:
            raise SecrecyError("roster", f"device {found.holder} of {found.clients}")
        # Two groups that large share a device, and none reveals both secrets of another.
        if 2 * found.threshold <= found.clients:
            raise SecrecyError(
                "threshold", f"{found.threshold} of {found.clients}; more than half is needed"
            )

    def check_roster(self, found: Roster, invited: Invitation, own: Advert) -> None:
        """SecrecyError for a roster that is not for the invitation, or whose sums say too much."""
        if (found.session, found.clients, found.threshold) != (
            invited.session,
            invited.clients,
            invited.threshold,
        ):
            raise SecrecyError("session", "the roster is not for the invitation that was accepted")
        if found.least_cover < self.least_cover:
            raise SecrecyError(
                "threshold",
                f"least_cover = {found.least_cover}; this device asks {self.least_cover}",
            )
        holders = found.holders
        if not ascending(holders) or holders[-1:] > (found.clients,):
            raise SecrecyError("roster", "devices are missing their number, or have another's")
        if len(holders) < found.threshold:
            raise SecrecyError("threshold", f"{len(holders)} devices; {found.threshold} are needed")
        if own not in found.adverts:
            raise SecrecyError("key", "the roster has other keys for this device than it sent")
        keys = [key for advert in found.adverts for key in (advert.seal_key, advert.mask_key)]
        if len(set(keys)) != len(keys):
            raise SecrecyError("key", "two devices have the same key")
        for advert in found.adverts:
            self._check_signature(found, advert)
        _check_cells(found)

    def _check_signature(self, found: Roster, advert: Advert) -> None:
        if advert.session != found.session:
            raise SecrecyError("session", f"device {advert.name}: its keys are of another session")
        if self.known is None:
            return
        key = self.known.get(advert.name)
        if key is None:
            raise SecrecyError("key", f"device {advert.name} is not among the known ones")
        try:
            key.verify(advert.signature, advert.signed())
        except InvalidSignature:
            raise SecrecyError("key", f"device {advert.name} did not sign its keys") from None


def _check_cells(found: Roster) -> None:
    holders = frozenset(found.holders)
    for number, cell in enumerate(found.cells):
        if not ascending(cell.cover) or not holders.issuperset(cell.cover):
            raise SecrecyError("roster", f"cell {number} is covered by unknown devices")
        if len(cell.cover) < found.least_cover:
            raise SecrecyError(
                "threshold",
                f"cell {number} is covered by {len(cell.cover)} devices; at least "
                f"{found.least_cover} are promised",
            )
