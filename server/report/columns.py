"""The report's tables: which values of a row are shown, under which heading, and in which form."""

from collections.abc import Mapping
from types import MappingProxyType

from .forms import Table
from .forms import column as _c
from .forms import narrow as _n

TABLES: Mapping[str, Table] = MappingProxyType(
    {
        "run": Table(
            "The run",
            "Configurations and versions are in run.json, signed with the run's key. Seed and recipe are the "
            "training's.",
            (
                _n("name", "run"), _n("seed", "seed"), _n("space", "space"),
                _n("recipe", "recipe"), _n("round", "round", "count"),
                _n("devices", "devices", "count"), _c("classes", "classes", "list"),
                _n("method", "search"), _c("search_seed", "the search's seed"),
                _c("abandoned", "rounds given up", "count"),
                _c("unrecorded", "rounds not in the ledger", "count"),
                _c("began_unix_s", "began", "when"), _c("processor", "processor"),
                _c("cores", "cores", "count"), _c("system", "system"), _c("python", "Python"),
                _c("packages", "packages", "list"),
                _c("supernet_sha256", "supernet (sha256)", "digest"),
                _c("ledger_head", "ledger's head", "digest"),
            ),
        ),
        "models": Table(
            "Published models",
            "Accuracy of each file in its runtime, and of its subnet in PyTorch, on the validation "
            "examples of the class's devices: the search chose by these examples. Latency is of one "
            "example, as the class's devices said when they verified the file; what was predicted is for "
            "the slowest of those that had timed probes.",
            (
                _n("class", "class"), _n("kind", "file"), _n("version", "version", "count"),
                _n("macs", "MACs", "count"), _n("params", "parameters", "count"),
                _n("size_bytes", "bytes", "count"), _n("accuracy", "accuracy", "percent"),
                _n("subnet_accuracy", "of the subnet", "percent"),
                _c("examples", "examples", "count"),
                _c("subnet_examples", "examples of the subnet", "count"),
                _c("predicted_ms", "predicted ms, slowest device", "number"),
                _c("slowest_ms", "measured ms, slowest device", "number"),
                _c("median_ms", "median device", "number"), _c("timed_by", "devices that timed", "count"),
                _c("budget", "budget", "bounds"), _c("arch", "architecture"),
            ),
        ),
        "fleets": Table(
            "Fleets",
            "Each fleet's newest plan that was carried out. The loss is of predicted accuracy, in "
            "points, against an artifact of its own for each device, by the devices' weights.",
            (
                _n("fleet", "fleet"), _n("devices", "devices", "count"),
                _n("served", "served", "count"), _n("not_served", "not served", "count"),
                _n("artifacts", "artifacts", "count"),
                _n("artifacts_if_each_had_its_own", "if each had its own", "count"),
                _n("loss_mean", "mean loss", "points"),
                _c("loss_95_percent_below", "95 % lose less than", "points"),
                _n("loss_most", "most", "points"),
                _c("moved", "moved after export", "count"), _c("round", "round", "count"),
                _c("channel", "channel"), _c("measured_subnets", "measured subnets", "count"),
                _c("predictor", "the predictor"),
            ),
        ),
        "artifacts": Table(
            "Artifacts of fleets",
            "Accuracy as the plan predicted it, of the file in its runtime, and of its subnet in "
            "PyTorch, on the validation examples of the devices that can hold it.",
            (
                _n("fleet", "fleet"), _n("class", "class"), _n("kind", "file"),
                _n("version", "version", "count"), _n("devices", "devices", "count"),
                _n("macs", "MACs", "count"), _c("params", "parameters", "count"),
                _n("size_bytes", "bytes", "count"),
                _n("predicted_accuracy", "predicted", "percent"),
                _n("accuracy", "accuracy", "percent"),
                _c("subnet_accuracy", "of the subnet", "percent"), _c("arch", "architecture"),
            ),
        ),
        "finished": Table(
            "Finished classes",
            "A class's subnet, trained further from a round of the run, before and after on the same "
            "validation examples; p is of a one-sided sign test on those that changed.",
            (
                _n("class", "class"), _n("published", "published", "flag"),
                _n("version", "version", "count"), _n("from_version", "from version", "count"),
                _n("from_round", "of round", "count"), _n("rounds", "rounds more", "count"),
                _n("before", "before", "percent"), _n("after", "after", "percent"),
                _n("gain", "gain", "points"), _n("standard_error", "±", "points"),
                _c("p", "p", "number"), _c("examples", "examples", "count"),
                _c("method", "method"), _c("verdict", "verdict"), _c("arch", "architecture"),
            ),
        ),
        "audit": Table(
            "Audit of the search",
            "The search's first choice against random subnets within the same budget, measured in the "
            "same exchange. Intervals are of 95 %. Searched is claimed only where the whole interval "
            "of the improvement is above zero.",
            (
                _n("class", "class"), _n("claim", "claim"),
                _n("improvement_percent", "over random", "signed"),
                _n("improvement_low", "from", "signed"), _n("improvement_high", "to", "signed"),
                _c("over_largest", "over the largest (points)", "points"),
                _c("over_largest_low", "from", "points"), _c("over_largest_high", "to", "points"),
                _c("beats_random", "random ones beaten", "percent"),
                _c("beats_random_low", "from", "percent"), _c("beats_random_high", "to", "percent"),
                _n("random", "random subnets", "count"), _c("searches", "searches", "count"),
                _c("origin", "what was published"),
            ),
        ),
        "held_out": Table(
            "Held-out examples",
            "Measured by devices on examples that nothing was trained on or chosen by.",
            (
                _n("class", "class"), _n("kind", "file"), _n("runtime", "runtime"),
                _n("accuracy", "accuracy", "percent"), _n("examples", "examples", "count"),
                _n("median_ms", "median ms", "number"), _c("p95_ms", "95th percentile ms", "number"),
                _c("timed_runs", "timed runs", "count"),
            ),
        ),
        "calibration": Table(
            "Calibration",
            "Expected calibration error with its standard error, and what a perfectly calibrated "
            "network would show by chance on so many examples; mean negative log-likelihood in nats; "
            "Brier score. pytorch is the float subnet.",
            (
                _n("class", "class"), _n("network", "network"), _n("ece", "ECE", "number"),
                _n("ece_error", "± (standard error)", "number"),
                _n("ece_by_chance", "by chance", "number"), _n("nll", "NLL", "number"),
                _n("brier", "Brier", "number"), _c("examples", "examples", "count"),
            ),
        ),
        "devices": Table(
            "Devices",
            "Data as each device told them (labels by its owner's consent only); what it gave, by the "
            "ledger; and the model of its class.",
            (
                _n("device", "device"), _n("class", "class"),
                _n("examples", "training examples", "count"),
                _c("validation_examples", "validation examples", "count"),
                _c("labels", "labels by class", "list"), _c("asked", "rounds asked", "count"),
                _n("accepted", "good updates", "count"), _n("share", "share of weight", "percent"),
                _c("strikes", "strikes", "count"), _n("version", "model's version", "count"),
                _n("macs", "model's MACs", "count"),
            ),
        ),
        "costs": Table(
            "Cost",
            "MACs are of the networks alone; seconds are the server's, with the waiting for devices.",
            (
                _n("what", "what"), _n("rounds", "rounds done", "count"),
                _n("evaluations", "subnets evaluated", "count"), _n("macs", "MACs", "count"),
                _n("seconds", "seconds", "seconds"), _n("bytes", "bytes sent and received", "count"),
            ),
        ),
        "rounds": Table(
            "Cost of each round",
            "A round that was done again after a kill stands there twice.",
            (
                _c("round", "round", "count"), _c("accepted", "accepted", "count"),
                _c("refused", "refused", "count"), _c("missing", "missing", "count"),
                _c("loss", "loss", "number"), _c("coverage", "weights trained", "percent"),
                _c("train_macs", "MACs", "count"), _c("seconds", "seconds", "seconds"),
                _c("bytes_sent", "bytes sent", "count"),
                _c("bytes_received", "bytes received", "count"),
            ),
        ),
        "evaluations": Table(
            "Cost of measuring, by step and fidelity",
            "Runs are pairs of a subnet (or file) and a device; examples add up over them.",
            (
                _c("step", "step"), _c("fidelity", "fidelity"),
                _c("exchanges", "exchanges", "count"), _c("subnets", "subnets", "count"),
                _c("devices", "devices", "count"), _c("runs", "runs", "count"),
                _c("examples", "examples", "count"), _c("macs", "MACs", "count"),
                _c("seconds", "seconds", "seconds"),
            ),
        ),
        "anytime": Table(
            "The search, evaluation by evaluation",
            "",
            (
                _c("class", "class"), _c("method", "method"),
                _c("evaluation", "evaluation", "count"), _c("macs", "MACs", "count"),
                _c("accuracy", "accuracy", "percent"), _c("best", "best so far", "percent"),
            ),
        ),
        "predictor": Table(
            "The accuracy predictor",
            "Kendall's τ of held-out predictions, of MACs alone, and what measuring once more would "
            "reach; the gain over MACs with its 90 % interval.",
            (
                _c("class", "class"), _c("verdict", "verdict"), _c("subnets", "subnets", "count"),
                _c("tau", "τ", "number"), _c("tau_macs", "τ of MACs", "number"),
                _c("ceiling", "ceiling", "number"), _c("gain_low", "gain from", "number"),
                _c("gain_high", "to", "number"), _c("rmse", "error", "number"),
                _c("rmse_of_mean", "of the mean", "number"),
            ),
        ),
        "fronts": Table(
            "Points of the Pareto fronts",
            "",
            (
                _c("chart", "runtime"), _c("class", "class"), _c("what", "what"),
                _c("x", "cost", "count"), _c("unit", "unit"),
                _c("accuracy", "accuracy", "percent"),
                _c("standard_error", "± (standard error)", "percent"),
                _c("on_front", "on the front", "flag"),
            ),
        ),
        "practices": Table(
            "Best practices",
            "What a run's files can show of them; see docs/report.md.",
            (
                _n("item", "item"), _n("state", "state"), _c("practice", "practice"),
                _n("evidence", "evidence, or what is missing"), _n("advice", "what to do"),
            ),
        ),
        "lineage": Table(
            "Digests",
            "sha256 of each file, its manifest, its architecture's canonical JSON, and the weights that "
            "it was cut from; where those were finished, also of the run's, from which that began.",
            (
                _c("of", "of"), _c("class", "class"), _c("kind", "file"), _c("model", "model"),
                _c("version", "version", "count"), _c("file_sha256", "file", "digest"),
                _c("manifest_sha256", "manifest", "digest"),
                _c("arch_sha256", "architecture", "digest"),
                _c("supernet_sha256", "supernet", "digest"),
                _c("from_sha256", "finished from", "digest"),
            ),
        ),
    }
)  # fmt: skip
"""By the report's own names."""
