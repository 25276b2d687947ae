"""The codec's one error."""

from ..messages import MessageError


class CodecError(MessageError):
    """An update that cannot be encoded, or bytes that are no encoded update of these tensors."""
