"""A device's update as few bytes, and back: what both sides agree on. No torch values, no Flower.

    values ── the largest of each tensor ── few levels ── entropy-coded positions and levels ──► bytes

Tensors of which only the largest values are sent, or whose levels are a `step` apart, come first, then
those that are sent whole, each in the order of `shapes`; the first ones laid end to end are the line
that positions count along. How many values there are and how each stage works follow from `shapes` and
the `CodecConfig`, which both sides know; nothing of that is in the message. All numbers are
little-endian.

    version     1 byte, 1
    sent        4 bytes: how many values are sent with their position; values after them are zero
    scales      2 bytes a tensor, bfloat16 (not with levels = float32)
    codebook    2 bytes a magnitude, bfloat16, ascending (with levels = clusters)
    streams     a byte each, 0 = plain, else 1 and a table (`frequencies`): the classes of the
                gaps; the levels of the values sent by position; those of the whole tensors; with
                levels = float32 instead of the last two the four bytes of all values, lowest first
    words       4 bytes: how many 16-bit words `rans` wrote, and its states and words (`rans`)
    plain       the plain streams, in order, then the low bits of the gaps (`bits`)

Bytes from a stranger cost a decoder the array that they become and a small multiple of the longest
valid message, whatever they say; what is no such message is a CodecError.
"""
