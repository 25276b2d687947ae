"""The configuration that `fedofa init` writes."""

from pathlib import Path

from ..supernet.errors import UsageError

STARTER = """\
# A fedofa run. `fedofa serve` in one terminal, `fedofa-device join` on each device,
# then `fedofa run` and `fedofa specialize`.
name = "digits"
seed = 0

[space]
preset = "digits"            # digits (8x8x1), small (28x28x1), small-32 (32x32x3), mobile (224)

[round]
rounds = 8
min_clients = 6              # wait for so many devices before the first round
min_replies = 3              # a round with fewer good updates is abandoned
deadline_s = 120.0

[recipe]                     # local training on each device
name = "fedofa"              # or a peer's method, such as heterofl or bignas: see docs/recipes.md
lr = 0.3
epochs = 4
batch_size = 32
clip_norm = 1.0
students = "sandwich"        # with in-place distillation; none: the assigned subnet alone

# Few rounds: everybody trains its largest from the first one on. For some 50 rounds and more leave
# students and these two tables out: the recipe then grows from cheap subnets to dear ones.
[sampler]
kind = "cover"

[server]
optimizer = "none"           # none, momentum, adam

# Device classes: upper bounds on the subnet that a device of the class trains and gets.
[classes.gateway]
macs = 1_000_000

[classes.phone]
macs = 300_000

[classes.board]
macs = 130_000

[classes.micro]
macs = 64_000
params = 8_000

[simulation]                 # only for `fedofa simulate`
data = "fedofa.client.datasets:digits"
clients = { gateway = 2, phone = 2, board = 1, micro = 1 }
"""


def write_starter(path: Path) -> None:
    """Write it to a new file; UsageError when there is one already."""
    try:
        with path.open("x") as file:
            file.write(STARTER)
    except FileExistsError:
        raise UsageError(f"{path} exists; give another name or remove it") from None
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror}") from None
