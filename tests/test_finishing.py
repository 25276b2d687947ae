"""Finishing one class's subnet: what moves, what stays, what is published, and what is refused."""

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from artifacts import draft, write
from fedofa.protos.manifest import Manifest
from fedofa.server.checkpoint import CHECKPOINTS, CheckpointStore
from fedofa.server.config import RunConfig
from fedofa.server.events import read_events
from fedofa.server.finishing import compared
from fedofa.server.finishing.config import FinishConfig
from fedofa.server.finishing.derived import finishing_config
from fedofa.server.finishing.devices import divided
from fedofa.server.finishing.start import OUTCOME, finishing_folder
from fedofa.server.fleet import Fleet
from fedofa.server.jobs import Job, claimed, run_job
from fedofa.server.ledger_report import verdict
from fedofa.server.limits import Limits
from fedofa.server.operate import finish_job, outcome, run_folder
from fedofa.server.registry import Registry
from fedofa.supernet.axes import Weights, regions, view
from fedofa.supernet.cost import Budget, cost
from fedofa.supernet.errors import RunError, UsageError
from fedofa.supernet.space import Arch, plain
from fedofa.supernet.weights import digest
from fleets import Clients, Run, grid_of, raising, sending, small_config, small_fleet

CLASSES = ("big", "small", "small")
WHOLE = FinishConfig(lr_share=1.0)


def config_of(**changes: Any) -> RunConfig:
    fields = {
        "recipe": {"steps": 8, "students": "none"},
        "finish": WHOLE.model_dump(),
        "export": {"formats": ["onnx"], "max_accuracy_drop": 1.0},
    }
    return small_config(**{**fields, **changes})


@dataclass
class Site:
    """An operator's state folder with a trained run; one class has a model that is no real one."""

    state: Path
    config: RunConfig

    @property
    def run(self) -> Path:
        return run_folder(self.state, self.config)

    @property
    def folder(self) -> Path:
        return finishing_folder(self.run, "small")

    @property
    def weights(self) -> Weights:
        found = CheckpointStore(self.run / CHECKPOINTS).latest()
        assert found is not None
        return found.weights

    @property
    def finished(self) -> Weights:
        found = CheckpointStore(self.folder / CHECKPOINTS).latest()
        assert found is not None
        return found.weights

    def copy(self, state: Path) -> "Site":
        shutil.copytree(self.state, state)
        return replace(self, state=state)

    def with_config(self, **changes: Any) -> "Site":
        return replace(self, config=self.config.model_copy(update=changes))

    def publish(self, arch: Arch, weights: str, **fields: Any) -> Manifest:
        """A model of the class, as a specialization would have entered it."""
        made = draft({"onnx_fp32": b"a file"}, f"{self.config.name}.small", "small")
        space = plain(self.config.build_space().to_dict())
        told = {"space": space, "arch": dict(arch), "supernet_sha256": weights, **fields}
        files = write(self.state / "draft", {"onnx_fp32": b"a file"})
        with Registry(self.state / "registry") as registry:
            return registry.publish(made.model_copy(update=told), files)

    def job(self, rounds: int | None = 2, *, resume: bool = False, name: str = "small") -> Job:
        return finish_job(self.state, self.config, name, rounds=rounds, resume=resume)

    def finish(self, rounds: int | None = 2, app: Any = None, **options: Any) -> dict[str, Any]:
        job, devices = self.job(rounds, **options), small_fleet(self.state / "devices", CLASSES)
        run_job(job, grid_of(devices, app or Clients()))
        found: dict[str, Any] = outcome(job, {})
        return found

    def events(self, kind: str) -> list[dict[str, Any]]:
        path = self.folder / "events.jsonl"
        return [event for event, _ in read_events(path) if event["event"] == kind]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Site:
    """A run of one short round, and a target that a small device can hardly expand."""
    state, config = tmp_path_factory.mktemp("site"), config_of(round={"rounds": 1})
    site = Site(state, config)
    devices = small_fleet(state / "devices", CLASSES)
    run = Run(site.run, config, grid_of(devices), keeps_ledger=True)
    run.training.begin()
    run.start()
    site.publish(config.build_space().smallest(), digest(site.weights))
    return site


@pytest.fixture
def site(made: Site, tmp_path: Path) -> Site:
    return made.copy(tmp_path / "state")


@pytest.fixture
def never_better(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is published, so nothing is exported."""
    monkeypatch.setattr(compared, "CHANCE", -1.0)


def bytes_of(site: Site) -> dict[str, str]:
    """Everything of the run's and the registry's files, but the finishings and the lock."""
    found = {}
    for path in sorted(site.state.rglob("*")):
        name = str(path.relative_to(site.state))
        own = name.startswith(("registry/registry.db", "devices", "runs/tiny/finished"))
        if path.is_file() and not own and path.name != "job.lock":
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def test_a_better_model_is_published_with_its_lineage_and_the_run_keeps_its_bytes(
    site: Site,
) -> None:
    before, start = bytes_of(site), digest(site.weights)
    found = site.finish(rounds=6)
    assert {name: now for name, now in bytes_of(site).items() if name in before} == before
    assert found["gain"] == pytest.approx(found["after"] - found["before"])
    assert found["gain"] > found["standard_error"] > 0
    assert (found["published"], found["version"]) == (True, 2)
    with Registry(site.state / "registry") as registry:
        manifest, _ = registry.resolve("small")
        assert registry.manifest("tiny.small", 1).finished is None
    assert (manifest.model, manifest.version) == ("tiny.small", 2)
    assert manifest.arch == dict(site.config.build_space().smallest())
    assert manifest.supernet_sha256 == digest(site.finished) != start
    lineage = manifest.finished
    assert lineage is not None
    assert (lineage.run, lineage.round, lineage.rounds) == ("tiny", 1, 6)
    assert (lineage.supernet_sha256, lineage.version) == (start, 1)
    assert lineage.gain == found["gain"]
    assert manifest.metrics["validation_accuracy.pytorch"] == found["after"]
    assert Manifest.from_json(Path(found["manifest"]).read_bytes()) == manifest
    # Timed by the two devices of the class; without a bound nothing is predicted.
    assert found["latency_ms"].keys() == {"onnx_int8", "onnx_fp32"}
    assert {(t["predicted"], t["devices"]) for t in found["latency_ms"].values()} == {(None, 2)}
    told = verdict(site.folder, None, None)
    assert told["ok"]
    (compared_,) = site.events("compared")
    assert compared_["verdict"].startswith("better: ")
    with pytest.raises(UsageError, match=r"is over; see finished\.json"):
        site.job(resume=True)


def test_only_weights_of_the_target_and_its_expansions_move(site: Site, never_better: None) -> None:
    app, space = Clients(), site.config.build_space()
    found = site.finish(rounds=2, app=app)
    before, after, target = site.weights, site.finished, space.smallest()
    trained = {name: space.arch(body.arch) for (_, name), (body, _) in app.passed.items()}
    assert trained.keys() == {"dev-0", "dev-1", "dev-2"}
    own = finishing_config(site.config, "small", target, 1, 2)
    assert all(space.contains(arch, target) for arch in trained.values())
    assert trained["dev-0"] != target
    assert trained["dev-0"] != space.largest()  # at most three times the target's MACs
    masks = {name: value.new_zeros(value.shape) for name, value in before.items()}
    for arch in trained.values():
        for name, region in regions(space, arch).items():
            view(masks[name], region).fill_(1)
    moved = {name: before[name] != after[name] for name in before}
    assert not any(bool((moved[name] & (masks[name] == 0)).any()) for name in moved)
    of_target = [bool(view(moved[n], r).any()) for n, r in regions(space, target).items()]
    assert all(of_target)
    assert any(bool((mask == 0).any()) for mask in masks.values())
    assert found["devices"]["expanded"] == [n for n, a in trained.items() if a != target]
    assert (own.recipe.combine, own.recipe.students) == ("project", "listed")


def test_a_resumed_finishing_ends_as_one_that_was_not_interrupted(
    site: Site, tmp_path: Path, never_better: None
) -> None:
    other = site.copy(tmp_path / "other")
    whole = site.finish(rounds=3)

    def lost_after_the_first(body: Any, values: Any, message: Any) -> Any:
        if body.round > 1:
            return raising(body, values, message)
        return sending()(body, values, message)

    failing = Clients({f"dev-{place}": lost_after_the_first for place in range(3)})
    with pytest.raises(RunError, match="abandoned"):
        other.finish(rounds=3, app=failing)
    with pytest.raises(UsageError, match=r"already holds 1 rounds of a finishing.*--resume"):
        other.job()
    with pytest.raises(UsageError, match="begun for 3"):
        other.job(rounds=4, resume=True)
    # What the run has become meanwhile makes no difference.
    shutil.rmtree(other.run / CHECKPOINTS)
    resumed = other.finish(rounds=None, resume=True)
    assert digest(other.finished) == digest(site.finished)
    same = ("before", "after", "gain", "standard_error", "examples", "weights", "from")
    assert {key: resumed[key] for key in same} == {key: whole[key] for key in same}
    assert verdict(other.folder, None, None)["ok"]


def test_a_class_that_gets_worse_publishes_nothing_and_says_so(site: Site) -> None:
    backwards = {f"dev-{place}": sending(lambda values: -values) for place in range(3)}
    found = site.finish(rounds=1, app=Clients(backwards))
    assert found["after"] < found["before"]
    assert (found["published"], found["version"], found["manifest"]) == (False, None, None)
    assert found["verdict"].startswith("not better than chance may be (p above 0.16)")
    assert found["verdict"].endswith("nothing was published")
    with Registry(site.state / "registry") as registry:
        assert registry.versions("tiny.small") == [1]
    assert not (site.folder / "models").exists()
    assert json.loads((site.folder / OUTCOME).read_text()) == found


def test_where_nothing_larger_fits_the_target_is_trained_alone(
    site: Site, never_better: None
) -> None:
    app = Clients()
    narrow = site.with_config(finish=FinishConfig(expansion=1.0))
    found = narrow.finish(rounds=1, app=app)
    (told,) = site.events("finishing")
    assert told["expanded"] == []
    assert told["alone"] == found["devices"]["alone"] == ["dev-0", "dev-1", "dev-2"]
    assert told["largest_macs"] == told["target_macs"]
    target = dict(site.config.build_space().smallest())
    assert all(body.arch == target for body, _ in app.passed.values())


def test_plain_and_surgery_without_room_train_the_same_bits(
    site: Site, tmp_path: Path, never_better: None
) -> None:
    other = site.copy(tmp_path / "other").with_config(finish=FinishConfig(method="plain"))
    site.with_config(finish=FinishConfig(expansion=1.0)).finish(rounds=1)
    other.finish(rounds=1)
    assert digest(site.finished) == digest(other.finished)


def test_a_target_that_its_class_may_no_longer_hold_is_said_before_training(site: Site) -> None:
    site.publish(site.config.build_space().largest(), digest(site.weights))
    with pytest.raises(RunError, match=r"its subnet breaks a bound: params .* > 3000"):
        site.finish()
    assert not (site.folder / CHECKPOINTS).exists()


def test_devices_are_divided_by_what_they_can_train_and_too_few_are_refused(site: Site) -> None:
    devices = small_fleet(site.state / "devices", CLASSES)
    run = Run(site.state / "other", site.config, grid_of(devices))
    members, space = dict(run.roll.gather().members), run.training.space
    target = space.smallest()
    few = replace(members["dev-1"], limits=Limits(Budget(params=100), 16))
    just = replace(members["dev-2"], limits=Limits(Budget(macs=cost(space, target).macs), 16))
    fleet = Fleet(members | {"dev-1": few, "dev-2": just})
    own = finishing_config(site.config, "small", target, 1, 2)
    found = divided(own, space, target, fleet)
    assert (found.expanded, found.alone, found.left_out) == (("dev-0",), ("dev-2",), ("dev-1",))
    assert cost(space, target).macs < found.largest_macs <= 3 * cost(space, target).macs
    many = own.model_copy(update={"round": own.round.model_copy(update={"min_replies": 3})})
    with pytest.raises(RunError, match=r"2 of 3 devices .* round\.min_replies = 3"):
        divided(many, space, target, fleet)


def relabelled(site: Site) -> Site:
    return site.with_config(space={**site.config.space, "head_widths": [16, 24]})


def trained_on(site: Site) -> Site:
    store = CheckpointStore(site.run / CHECKPOINTS)
    found = store.latest()
    assert found is not None
    weights = {name: value + 1 for name, value in found.weights.items()}
    store.write(replace(found, round=2, weights=weights))
    return site


def finished_before(site: Site) -> Site:
    told = {
        "run": "tiny", "round": 1, "supernet_sha256": "1" * 64, "version": 1, "rounds": 5,
        "gain": 0.1, "standard_error": 0.01,
    }  # fmt: skip
    made = draft({"onnx_fp32": b"a file"}).model_dump() | {"finished": told}
    finished = Manifest.model_validate(made).finished
    site.publish(site.config.build_space().smallest(), "2" * 64, finished=finished)
    return site


def untrained(site: Site) -> Site:
    shutil.rmtree(site.run / CHECKPOINTS)
    return site


def unpublished(site: Site) -> Site:
    shutil.rmtree(site.state / "registry")
    return site


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (relabelled, "is of another space than the configuration's"),
        (trained_on, "made from other weights than those of round 2.*specialize first"),
        (finished_before, "is finished already, from round 1 for 5 rounds"),
        (untrained, "holds no trained supernet; fedofa run first"),
        (unpublished, r"no model 'tiny\.small' was published.*fedofa specialize first"),
    ],
)
def test_what_cannot_be_finished_is_refused_in_words(
    site: Site, change: Callable[[Site], Site], words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        change(site).job()
    assert not site.folder.exists()


def test_a_wrong_class_a_busy_run_and_tables_that_do_not_go_along_are_refused(site: Site) -> None:
    with pytest.raises(UsageError, match="'smal': the configuration has big, small; did you mean"):
        site.job(name="smal")
    with pytest.raises(UsageError, match=r"no model 'tiny\.big' was published"):
        site.job(name="big")
    with pytest.raises(UsageError, match="holds no finishing to resume"):
        site.job(resume=True)
    with claimed(site.run), pytest.raises(UsageError, match="another job works in it"):
        site.job()
    branches = config_of(branches={"by": "architecture", "copies": 2}).branches
    with pytest.raises(UsageError, match=r"a run with \[branches\] cannot be finished"):
        site.with_config(branches=branches).job()
