"""A device's share of the noise: the server cannot take it out again, nor see a sum without it.

Differential privacy of a sum asks for noise of standard deviation z·C on every value, where C bounds
the L2 norm of each device's update (`server/privacy/private_mean.py` derives why). Here no server
has to be trusted with adding it: of `sharers` devices each adds N(0, z²C²/sharers) to its own clipped
update, and the sum of their shares is N(0, z²C²).

Regions are unequal, and a device adds noise to its own region only. A value that k devices cover gets
k shares, variance k·z²C²/sharers. An update moves the sum by a vector of norm at most C inside its
own region, so that what protects it is the value with the least noise there: `sharers` must be the
least number of devices that cover any published value, *not* the number of devices in the round. It is
`least_cover` of the secure sums, which publish no value that fewer devices reported: then dropouts cost
no privacy, and a value that more devices cover has more noise than it needs. If m devices may collude
with the server, they know their own shares: use `least_cover` - m.

Secure sums cut the noised update to their fixed-point grid, some 10⁷ times finer than the noise, and to
a range of eight of its standard deviations (`fixed_point_range`). That hides the low bits by which float
noise can be told apart (Mironov 2012); its own effect on the privacy loss is left out of the account, as
tiny, not as proven: that would be the discrete Gaussian of Kairouz et al. 2021.

One update alone carries only its share, so that a server that sees updates one by one is held off by
z/√sharers alone: shares belong with secure sums. Without them use `sharers` = 1, each update private
by itself.
"""

import numpy as np

from ...protos.noise import Flat, GaussianNoise, clipped, grid_of


def noised(delta: Flat, bound: float, std: float, noise: GaussianNoise) -> Flat:
    """The update clipped to L2 norm `bound` plus this device's share of the noise, float32.

    `std` is the share's (`share_std`). The sum is rounded to a grid far below the noise. ValueError
    for a value that is no number.
    """
    found = clipped(delta, bound)
    if std == 0:
        return found
    grid = grid_of(std)
    return (np.round((found + noise.draw(len(delta), std)) / grid) * grid).astype(np.float32)
