"""What is wrong with a device's keys, found before the others would refuse the whole roster for them."""

from collections.abc import Iterable

from ...protos.masks import KEY_BYTES, agreed
from ...protos.secure_messages import Advert, SecrecyError

# Some private key, to try keys with: those of small order give nothing with any.
_PROBE = bytes(range(KEY_BYTES))


def check_keys(found: Advert, others: Iterable[Advert]) -> None:
    """SecrecyError for a key that another device uses, or that gives everybody the same secret."""
    used = {key for one in others for key in (one.seal_key, one.mask_key)}
    for key in (found.seal_key, found.mask_key):
        if key in used:
            raise SecrecyError("key", f"device {found.name} sent a key that is in use already")
        used.add(key)
        try:
            agreed(_PROBE, key, b"fedofa probe")
        except ValueError:
            raise SecrecyError(
                "key", f"device {found.name} sent a key that everybody knows"
            ) from None
