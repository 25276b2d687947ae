"""Which tensors leave the devices: what a configuration may say, and what whole runs then do."""

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from declared_spaces import LOW_RANK, TRUSTED
from fedofa.client.app import app as honest_app
from fedofa.client.device import data as data_of
from fedofa.client.local_tensors import local_tensors
from fedofa.protos.device import Device
from fedofa.protos.messages import Personal, TrainReply
from fedofa.server.accuracies import Accuracies
from fedofa.server.checkpoint import Checkpoint
from fedofa.server.config import RunConfig, parse_config
from fedofa.server.evaluation import FederatedEvaluator, Target
from fedofa.server.figures import Measured
from fedofa.server.jobs import Job, run_job
from fedofa.server.operate import specialize_job, train_job
from fedofa.server.sharing import Kept
from fedofa.supernet.axes import layout, regions
from fedofa.supernet.batchnorm import collect, load
from fedofa.supernet.cost import Budget
from fedofa.supernet.errors import UsageError
from fedofa.supernet.patches import UNKNOWN, gathered
from fedofa.supernet.space import Space
from fedofa.supernet.subnet import extract
from fedofa.supernet.weights import digest, initial, part
from fleets import Clients, Run, grid_of, sending, small_config, small_fleet
from flwr.app import Context, Message
from flwr.common.serde import message_to_proto

CALM = {"steps": 4, "students": "none", "lr": 0.05}
HEAD = ("head.classifier.bias", "head.classifier.weight")


def kept(share: Any, number: int = 1, space: Any = "digits") -> Kept:
    preset = {"preset": space} if isinstance(space, str) else space
    config = parse_config({"classes": {"phone": {}}, "share": share, "space": preset})
    return config.share.plan(config.build_space()).in_round(number)


def test_presets_name_the_tensors_that_they_keep() -> None:
    assert kept("local-head") == Kept(local=frozenset(HEAD))
    assert kept("body-only") == Kept(frozen=frozenset(HEAD))
    norms = kept("local-bn").local
    assert norms == {n for n in layout(small_config().build_space()) if ".bn." in n} | norms
    assert all(".bn." in name for name in norms)
    assert kept("local-head", space="small-resnet").local == {
        "classifier.weight",
        "classifier.bias",
    }


def test_the_first_rule_that_matches_counts_and_a_presets_come_last() -> None:
    rules = {"*.bias": "aggregate", "head.*": {"policy": "freeze"}, "preset": "local-head"}
    found = kept(rules)
    assert found.local == set()
    assert found.frozen == {
        n for n in layout(parse_config({"classes": {"a": {}}}).build_space())
        if n.startswith("head.") and not n.endswith("bias")
    }  # fmt: skip
    assert kept({"preset": "local-head", "head.classifier.bias": "freeze"}) == Kept(
        frozenset(HEAD[1:]), frozenset(HEAD[:1])
    )


def test_a_policy_may_end_after_a_round() -> None:
    share = {"head.classifier.*": {"policy": "keep_local", "aggregate_after": 3}}
    assert [bool(kept(share, number).names) for number in (1, 3, 4)] == [True, True, False]


@pytest.mark.parametrize(
    ("share", "words"),
    [
        ("locl-head", "preset 'locl-head' is unknown; known: local-head, local-bn"),
        ({"hed.*": "freeze"}, r"'hed.\*' matches no shared tensor; near: head.\*"),
        ({"xyz": "freeze"}, r"'xyz' matches no shared tensor; there are stem.\*, stages.\*, head"),
        ({"head.*": "local"}, r"'head.\*': policy: Input should be 'aggregate', 'keep_local'"),
        ({"head": {"classifier": "freeze"}}, "'head': .*; quote a name that has dots in it"),
        ({"head.*": {"policy": "freeze", "after": 2}}, "after: Extra inputs are not permitted"),
        ({"head.*": 3}, r"'head.\*' = 3; a policy, or"),
        ({"head.*": {"policy": "freeze", "aggregate_after": 0}}, "aggregate_after: Input should"),
        ({"*": {"policy": "aggregate", "aggregate_after": 2}}, "aggregate_after says when"),
        ({"head.*": "freeze", "head.classifier.*": "keep_local"}, "'head.classifier.*' has no eff"),
        ({"*": "keep_local"}, "nothing is left to aggregate of"),
        ({"*": {"policy": "freeze", "aggregate_after": 1}}, "nothing is left to aggregate of"),
        ("fedsa-lora", r"needs low-rank factors, tensors named \*lora_\[aA\]\* and"),
    ],
)
def test_a_share_that_makes_no_sense_is_refused(share: Any, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        kept(share)


def test_local_batch_normalization_needs_some() -> None:
    with pytest.raises(UsageError, match=r"local-bn .* family vit has none here"):
        kept("local-bn", space="small-vit")


def test_a_share_comes_back_from_its_dump_and_its_order_counts_in_a_resumed_run(
    tmp_path: Path,
) -> None:
    shares = [
        {"*.bias": "aggregate", "head.*": "freeze"},
        {"head.*": "freeze", "*.bias": "aggregate"},
    ]
    one, other = (small_config(share=share) for share in shares)
    assert parse_config(one.model_dump(mode="json")) == one
    prints = [Run(tmp_path, c, grid_of([])).training.fingerprint() for c in (one, other)]
    assert prints[0] != prints[1]


def fleet_with_folders(folder: Path) -> list[Device]:
    return [
        replace(device, memory=str(folder / "memory" / device.name))
        for device in small_fleet(folder, ("big", "small"))
    ]


def run_with(folder: Path, share: Any, app: Any = honest_app, **sections: Any) -> Run:
    config = small_config(share=share, **{"recipe": CALM, **sections})
    return Run(folder, config, grid_of(fleet_with_folders(folder), app)).start()


def test_aggregating_all_is_the_run_without_a_share_bit_for_bit(tmp_path: Path) -> None:
    runs = [run_with(tmp_path / str(n), s) for n, s in enumerate(({}, {"*": "aggregate"}))]
    assert digest(runs[0].training.weights) == digest(runs[1].training.weights)
    rounds = [[e["bytes_received"] for e in run.events("round")] for run in runs]
    assert rounds[0] == rounds[1]
    assert not (tmp_path / "1" / "memory").exists()


class Wire:
    """The devices' app; keeps every reply's bytes as they are serialized."""

    def __init__(self) -> None:
        self.replies: list[bytes] = []

    def __call__(self, message: Message, context: Context) -> Message:
        reply = honest_app(message=message, context=context)
        self.replies.append(message_to_proto(reply).SerializeToString())
        return reply

    def holds(self, values: Any) -> bool:
        """Whether any four neighbouring numbers of these occur in a reply."""
        parts = [values[at : at + 4].tobytes() for at in range(0, len(values) - 3, 4)]
        return any(part in reply for part in parts for reply in self.replies)


def own_of(run: Run, device: Device, names: tuple[str, ...] = HEAD) -> Any:
    """A device's own values of these tensors after the last round, one after the other."""
    space = run.training.space
    own = local_tensors(device, run.config.name, space).after(run.training.round, names)
    where = {name: r for name, r in regions(space, space.largest()).items() if name in names}
    values = gathered(own, where, UNKNOWN)
    return values[~np.isnan(values)]


def measured(run: Run) -> list[Any]:
    training, fleet = run.training, run.roll.fleet()
    found = Checkpoint(training.round, training.weights, {}, {}, {})
    work = Accuracies(run.config, training.space, found, run.exchange, fleet, run.log)
    return work.run(run.folder)


SEARCH = {"samples": 8, "population": 4, "generations": 1, "finalists": 1, "random_baseline": 1}


def test_what_is_kept_local_is_in_no_byte_of_any_reply(tmp_path: Path) -> None:
    wire = Wire()
    run = run_with(tmp_path, "local-head", wire, round={"rounds": 1})
    accuracy(run, personal=True, archs=[run.training.space.smallest()])
    assert len(wire.replies) == 2 * 4  # profile, training, moments, evaluation
    devices = fleet_with_folders(tmp_path)
    first, others = initial(run.training.space, 0)[HEAD[1]], [own_of(run, d) for d in devices]
    for own in others:
        assert len(own) > 100
        assert not np.isin(own[:40], first.numpy()).any()  # trained on the device
        assert not wire.holds(own)
    # The scan finds what does leave: the same tensors where nothing is kept.
    plain = Wire()
    honest = Clients()
    run_with(
        tmp_path / "plain",
        {},
        lambda message, context: plain(message, context),
        round={"rounds": 1},
    )
    run_with(tmp_path / "again", {}, honest, round={"rounds": 1})
    body, values = honest.passed[1, "dev-0"]
    head = part(np.asarray(values), dict(body.tensors), HEAD)
    assert plain.holds(head)
    assert (head == others[0]).all()  # in round 1 a kept head is trained as a shared one would be


def test_the_server_keeps_what_it_has_of_tensors_that_stay_and_of_no_others(tmp_path: Path) -> None:
    run = run_with(tmp_path, {"head.classifier.*": "keep_local", "stem.*": "freeze"})
    first = initial(run.training.space, run.config.seed)
    same = {name for name, w in run.training.weights.items() if torch.equal(w, first[name])}
    stay = {n for n in first if n in HEAD or n.startswith("stem.")}
    assert stay <= same
    assert len(same - stay) < 3  # biases of a single class at most
    rounds = run.events("round")
    assert all(e["bytes_received"] < e["bytes_sent"] for e in rounds)


def test_tensors_that_stay_do_not_count_as_waiting_for_training(tmp_path: Path) -> None:
    config: dict[str, Any] = {"round": {"rounds": 2}, "sampler": {"kind": "sandwich"}}
    config |= {"recipe": {"steps": 1, "students": "smallest"}}
    for number, share in enumerate(({}, "local-head", "body-only")):
        rounds = run_with(tmp_path / str(number), share, **config).events("round")
        assert [(e["coverage"], e["oldest"]) for e in rounds] == [(1.0, 0)] * 2


def test_a_policy_that_ends_brings_its_tensors_into_the_merge(tmp_path: Path) -> None:
    share = {"head.classifier.*": {"policy": "freeze", "aggregate_after": 2}}
    run = run_with(tmp_path, share, round={"rounds": 3})
    first = initial(run.training.space, run.config.seed)[HEAD[1]]
    assert torch.equal(run.store.read(2).weights[HEAD[1]], first)
    assert not torch.equal(run.training.weights[HEAD[1]], first)


def test_an_update_with_a_tensor_that_was_to_stay_is_refused(tmp_path: Path) -> None:
    def leaking(body: Any, values: Any, message: Message) -> Message:
        return sending(tensors=(*body.tensors, (HEAD[1], (2, 2))))(body, values, message)

    def smuggling(body: Any, values: Any, message: Message) -> Message:
        return sending(lambda v: np.append(v, np.float32(1)))(body, values, message)

    for trick, code, words in (
        (leaking, "schema", "it was not to send 'head.classifier.weight'"),
        (smuggling, "shape", ""),
    ):
        app = Clients({"dev-1": trick})
        run = run_with(tmp_path / code, "local-head", app, round={"rounds": 1})
        (refused,) = run.events("update_refused")
        assert (refused["device"], refused["code"]) == ("dev-1", code)
        assert words in refused["reason"]


def test_a_stranger_is_not_echoed_to_the_terminal(tmp_path: Path) -> None:
    def shouting(body: Any, values: Any, message: Message) -> Message:
        return sending(tensors=(("\x1b[31m" + 500 * "x", (1,)),))(body, values, message)

    run = run_with(tmp_path, {}, Clients({"dev-0": shouting}), round={"rounds": 1})
    (event,) = run.events("update_refused")
    assert "\x1b" not in event["reason"]
    assert len(event["reason"]) < 250


@pytest.mark.parametrize("share", ["local-head", "local-bn", "body-only"])
def test_a_resumed_run_ends_as_one_that_was_not_cut(share: str, tmp_path: Path) -> None:
    fields: dict[str, Any] = {"share": share, "recipe": {**CALM, "lr_schedule": "constant"}}
    fields |= {"server": {"optimizer": "none"}, "sampler": {"kind": "uniform"}, "codec": "sparse"}
    whole = Run(
        tmp_path / "whole", small_config(round={"rounds": 3}, **fields),
        grid_of(fleet_with_folders(tmp_path / "whole")),
    ).start()  # fmt: skip
    folder = tmp_path / "cut"
    first = Run(
        folder, small_config(round={"rounds": 2}, **fields), grid_of(fleet_with_folders(folder))
    )
    first.start()
    # The server dies in round 3, when its devices have trained already.
    config = small_config(round={"rounds": 3}, **fields)
    cut = Run(folder, config, grid_of(fleet_with_folders(folder)))
    assert cut.training.resume()
    fleet = cut.roll.gather()
    for request in cut.training.requests(cut.training.assignments(fleet)):
        assert all(answer.body for answer in cut.exchange.ask([request], TrainReply, 9.0))
    after = Run(folder, config, grid_of(fleet_with_folders(folder)))
    assert after.training.resume()
    after.start()
    assert digest(after.training.weights) == digest(whole.training.weights)
    if share != "body-only":
        names = tuple(sorted(after.training.share.in_round(1).local))
        for one, other in zip(*map(fleet_with_folders, (tmp_path / "whole", folder)), strict=True):
            assert (own_of(whole, one, names) == own_of(after, other, names)).all()


def answers_alone(run: Run, device: Device, space: Space, arch: Any, names: Any) -> int:
    """Right answers of a device's own model, made by hand from its files."""
    own = local_tensors(device, run.config.name, space).after(run.training.round, names)
    shared = {name: value.clone() for name, value in run.training.weights.items()}
    for name, patch in own.items():
        grid = np.ix_(*patch.places)
        mine, theirs = patch.values, shared[name].numpy()
        theirs[grid] = np.where(np.isnan(mine), theirs[grid], mine)
    module, data = extract(space, arch, shared), data_of(device)
    x = torch.from_numpy(data.normalized(data.train.x))
    load(module, collect(module, [b for b in x.split(64) if len(b) > 1]))  # type: ignore[no-untyped-call]
    with torch.no_grad():
        found = module.eval()(torch.from_numpy(data.normalized(data.validation.x))).argmax(1)
    return int((found.numpy() == data.validation.y).sum())


def accuracy(run: Run, *, personal: bool, archs: Any) -> dict[int, Measured]:
    """What subnets score on the devices."""
    training = run.training
    found = FederatedEvaluator(
        run.exchange, run.roll.fleet(), training.space, training.weights, run.log
    )
    targets = [Target(arch, Budget(params=3000)) for arch in archs]
    statistics = found.statistics(targets)
    if personal:
        names = tuple(training.share.in_round(training.round + 1).local)
        found.personal = Personal(run=run.config.name, round=training.round, tensors=names)
    return found.accuracy(targets, statistics)


@pytest.mark.parametrize("share", ["local-head", "local-bn"])
def test_the_personalised_accuracy_is_that_of_the_devices_own_models(
    share: str, tmp_path: Path
) -> None:
    run = run_with(tmp_path, share)
    space = run.training.space
    names = run.training.share.in_round(1).local
    archs = [space.smallest(), space.sample_within(space.largest(), random.Random(5))]
    found = accuracy(run, personal=True, archs=archs)
    devices = fleet_with_folders(tmp_path)
    for place, arch in enumerate(archs):
        by_hand = [answers_alone(run, device, space, arch, names) for device in devices]
        assert found[place].correct == sum(by_hand)
    others = accuracy(run, personal=False, archs=archs)
    assert {place: m.examples for place, m in others.items()} == {
        place: m.examples for place, m in found.items()
    }
    assert share == "local-bn" or others != found


def test_a_device_without_tensors_of_its_own_is_not_measured(tmp_path: Path) -> None:
    run = run_with(tmp_path, "local-head", round={"rounds": 1})
    for path in (tmp_path / "memory" / "dev-1").rglob("*.safetensors"):
        path.unlink()
    archs = [run.training.space.smallest()]
    both = [accuracy(run, personal=personal, archs=archs)[0] for personal in (True, False)]
    (told,) = run.events("no_answer")
    assert told["device"] == "dev-1"
    assert "dev-1 keeps no tensors of run tiny: it has no model of its own" in told["reason"]
    validation = run.roll.fleet().members["dev-0"].profile.validation_examples
    assert both[0].examples == validation < both[1].examples


@pytest.mark.parametrize("share", ["local-head", "body-only"])
def test_a_report_names_both_accuracies_where_there_are_two(share: str, tmp_path: Path) -> None:
    run = run_with(tmp_path, share, round={"rounds": 1}, search=SEARCH)
    for one in measured(run):
        mine = one.personalised if share == "local-head" else one.globally
        assert mine == one.choice.best.measured
        assert (one.personalised is None) == (share == "body-only")
        assert one.globally is not None
    rows = json.loads((run.folder / "accuracies.json").read_text())
    assert [row["class"] for row in rows] == ["big", "small"]
    for row in rows:
        assert row["kept_on_devices"] == (list(HEAD) if share == "local-head" else [])
        assert (row["personalised"] is None) == (share == "body-only")
        assert 0 <= row["global"] <= 1


def test_no_model_is_exported_that_would_have_untrained_tensors(tmp_path: Path) -> None:
    config = small_config(share="local-head")
    words = r"share keeps head.classifier.bias, head.classifier.weight on the devices: .*evaluate"
    with pytest.raises(UsageError, match=words):
        train_job(tmp_path, config, resume=False, then_specialize=True)
    with pytest.raises(UsageError, match=words):
        specialize_job(tmp_path, config)
    assert train_job(tmp_path, config, resume=False, then_evaluate=True).evaluate
    ends = {"head.classifier.*": {"policy": "keep_local", "aggregate_after": 1}}
    ended = small_config(share=ends, round={"rounds": 2})
    assert train_job(tmp_path, ended, resume=False, then_specialize=True).registry
    # The server looks at the checkpoint itself: this one is from before the policy's end.
    run_with(tmp_path, ends, round={"rounds": 1})
    registry = str(tmp_path / "registry")
    job = Job("specialize", str(tmp_path), ended.model_dump(mode="json"), registry=registry)
    later = {"head.classifier.*": {"policy": "keep_local", "aggregate_after": 2}}
    job = replace(job, config=small_config(share=later).model_dump(mode="json"))
    with pytest.raises(UsageError, match=words):
        run_job(job, grid_of(fleet_with_folders(tmp_path)))


def low_rank_config(**sections: Any) -> RunConfig:
    fields = {"space": {"family": "declared", **LOW_RANK}, "recipe": CALM, **sections}
    return small_config(classes={"big": {}, "small": {"params": 5300}}, **fields)


def test_low_rank_factors_are_shared_by_half_and_the_base_is_frozen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEDOFA_MODULES", TRUSTED)
    run = {}
    for name, share in (
        ("half", "fedsa-lora"),
        ("both", {"*lora_*": "aggregate", "head.*": "keep_local", "*": "freeze"}),
    ):
        folder = tmp_path / name
        grid = grid_of(fleet_with_folders(folder))
        run[name] = Run(folder, low_rank_config(share=share), grid).start()
    received = {n: [e["bytes_received"] for e in r.events("round")] for n, r in run.items()}
    assert [2 * b for b in received["half"]] == received["both"]
    first, last = initial(run["half"].training.space, 0), run["half"].training.weights
    moved = {name for name in first if not torch.equal(first[name], last[name])}
    assert moved == {"lora_A.weight"}
    kept_names = {*kept("fedsa-lora", space={"family": "declared", **LOW_RANK}).local}
    assert kept_names == {"lora_B.weight", "head.weight", "head.bias"}


def test_a_runs_name_cannot_lead_out_of_a_devices_folder(tmp_path: Path) -> None:
    device = fleet_with_folders(tmp_path)[0]
    for name in ("../other", "", "a/b", ".."):
        with pytest.raises(UsageError, match="letters, digits"):
            local_tensors(device, name, small_config().build_space())
