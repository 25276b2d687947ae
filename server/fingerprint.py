"""The parts of a configuration that decide a run's weights: what a resumed run must have kept."""

from ..protos.codec.config import CodecConfig
from ..supernet.space import Space, plain
from .config import RunConfig

FINGERPRINT = (
    "seed",
    "recipe",
    "sampler",
    "server",
    "aggregation",
    "reputation",
    "codec",
    "share",
    "classes",
)
UNTIL_THE_END = ("growing", "ramp", "maxnet", "delayed", "importance")
"""Sampling methods whose draws depend on how many rounds there will be."""


def _fields(codec: CodecConfig) -> dict[str, object]:
    """As checkpoints have had them since before there was a `step`."""
    fields = codec.model_dump(mode="json")
    if codec.step is None:
        del fields["step"]
    return fields


def fingerprint(config: RunConfig, space: Space) -> dict[str, object]:
    """These parts, as JSON values."""
    dump = config.model_dump(mode="json")
    parts = {key: dump[key] for key in FINGERPRINT}
    if not config.recipe.sample_bits:  # as checkpoints were before there were any
        del parts["recipe"]["sample_bits"]
    names = ["max_update_ratio", "max_examples_ratio", "max_weight_share"]
    # Where the end is part of what decides the weights, it is part of the fingerprint.
    server = config.server
    if (
        config.recipe.lr_schedule == "cosine"
        or config.sampler.kind in UNTIL_THE_END
        or (server.optimizer == "momentum" and server.momentum is None)
    ):
        names.append("rounds")
    if config.round.clients is not None:
        names.append("clients")
    if config.round.mode == "async":
        names += ["mode", "buffer", "staleness_power"]
    for name in ("privacy", "secure", "branches"):
        if dump[name] is not None:
            parts[name] = dump[name]
    if config.codec is not None:
        parts["codec"] = {**_fields(config.codec.codec()), "error_memory": config.codec.remembers}
    if config.downlink is not None:
        parts["downlink"] = _fields(config.downlink.codec())
    if config.proxy is not None:
        # Where its data lie may change.
        parts["proxy"] = {key: v for key, v in dump["proxy"].items() if key != "data_root"}
    rounds = {name: dump["round"][name] for name in names}
    return {**parts, "round": rounds, "space": plain(space.to_dict())}
