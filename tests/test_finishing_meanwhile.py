"""A model that was published while a finishing was under way is not replaced by what is finished."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from fedofa.protos.manifest import Manifest
from fedofa.server import run_record
from fedofa.server.events import EventLog
from fedofa.server.finishing import compared, finishing
from fedofa.server.finishing.start import check_current, find_start, read_start, write_start
from fedofa.server.jobs import Job, run_job
from fedofa.server.model_folders import ModelFolders
from fedofa.server.registry import Registry
from fedofa.supernet.errors import UsageError
from fedofa.supernet.weights import digest
from fleets import grid_of, small_fleet
from test_finishing import CLASSES, Site, made, site  # noqa: F401 - fixtures


def begun(site: Site, rounds: int = 6) -> None:  # noqa: F811
    registry = site.state / "registry"
    write_start(site.folder, *find_start(site.run, registry, site.config, "small", rounds))


def specialized(site: Site) -> None:  # noqa: F811
    site.publish(site.config.build_space().smallest(), digest(site.weights))


def versions(site: Site) -> tuple[list[int], int]:  # noqa: F811
    with Registry(site.state / "registry") as registry:
        return registry.versions("tiny.small"), registry.resolve("small")[0].version


def test_a_resumed_finishing_of_an_older_model_is_refused_before_training(site: Site) -> None:  # noqa: F811
    begun(site)
    job = site.job(None, resume=True)
    specialized(site)
    words = (
        "at version 2, and .* finishes version 1: the class was specialized anew meanwhile. Move"
    )
    with pytest.raises(UsageError, match=words):
        site.job(None, resume=True)
    devices = small_fleet(site.state / "devices", CLASSES)
    with pytest.raises(UsageError, match=words):  # submitted before the other was published
        run_job(job, grid_of(devices))
    assert not (site.folder / "checkpoints").exists()
    assert versions(site) == ([1, 2], 2)
    shutil.move(site.folder, site.state / "away")
    assert isinstance(site.job(), Job)


def test_a_model_published_during_the_training_is_not_replaced(
    site: Site,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    verify = finishing.Production.verify

    def slow(work: Any, tell: Any) -> Any:
        specialized(site)
        return verify(work, tell)

    monkeypatch.setattr(finishing.Production, "verify", slow)
    with pytest.raises(UsageError, match="specialized anew meanwhile"):
        site.finish(rounds=6)
    assert versions(site) == ([1, 2], 2)


def test_one_that_was_published_already_is_said_to_be(site: Site, tmp_path: Path) -> None:  # noqa: F811
    begun(site)
    start, _ = find_start(site.run, site.state / "registry", site.config, "small", 6)
    told = {
        "run": "tiny", "round": 1, "supernet_sha256": start.supernet_sha256, "version": 1,
        "rounds": 6, "gain": 0.1, "standard_error": 0.01,
    }  # fmt: skip
    finished = finishing.Finished.model_validate(told)
    site.publish(site.config.build_space().smallest(), "2" * 64, finished=finished)
    with pytest.raises(UsageError, match=r"it was finished meanwhile.*after fedofa specialize"):
        check_current(site.folder, site.state / "registry", start)


class Killed(BaseException):
    """What stands for kill -9."""


def killed(*_: Any, **__: Any) -> Any:
    raise Killed


@pytest.fixture
def always_better(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compared, "CHANCE", 2.0)


def published_and_killed(site: Site, patch: pytest.MonkeyPatch) -> Manifest:  # noqa: F811
    """Trained to its end, and its model in the registry; no folder of it, and no finished.json."""
    with patch.context() as now:
        now.setattr(finishing._Finishing, "_published", killed)
        with pytest.raises(Killed):
            site.finish(rounds=1)
    start = read_start(site.folder)
    assert start is not None
    told = {
        "run": "tiny", "round": 1, "supernet_sha256": start[0].supernet_sha256, "version": 1,
        "rounds": 1, "gain": 0.25, "standard_error": 0.0625,
    }  # fmt: skip
    return site.publish(
        start[0].arch,
        digest(site.finished),
        finished=finishing.Finished.model_validate(told),
        metrics={"validation_accuracy.pytorch": 0.75},
    )


@pytest.mark.parametrize("newer", [False, True])
def test_one_that_was_killed_right_after_publishing_is_ended_by_resume(
    newer: bool,
    site: Site,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also where the class was specialized anew before it is resumed."""
    manifest = published_and_killed(site, monkeypatch)
    if newer:
        specialized(site)
    else:
        figures = {"gain": 0.25, "standard_error": 0.0625, "p": 0.01, "verdict": "better: so much"}
        EventLog(site.folder / "events.jsonl")("compared", **figures)
    monkeypatch.setattr(finishing.Roll, "gather", killed)  # no device is asked
    found = site.finish(None, resume=True)
    assert json.loads((site.folder / "finished.json").read_text()) == found
    assert (found["published"], found["version"], found["gain"]) == (True, 2, 0.25)
    assert found["verdict"].endswith("; version 2 was published before this finishing was cut off")
    if newer:
        assert (found["before"], found["after"], found["p"]) == (0.5, 0.75, None)
    else:
        assert (found["p"], found["verdict"].startswith("better: so much;")) == (0.01, True)
    assert found["devices"]["alone"] or found["devices"]["expanded"]
    path = Path(found["manifest"])
    assert path == site.folder / "models/small/manifest.json"
    assert Manifest.from_json(path.read_bytes()) == manifest
    names = {"manifest.json", *(entry.name for entry in manifest.named().values())}
    assert {one.name for one in path.parent.iterdir()} == names
    job = run_record.read(site.folder).newest("finish")
    assert job is not None
    assert job.published is not None
    assert job.published.manifests.keys() == {"small"}
    assert versions(site)[0] == ([1, 2, 3] if newer else [1, 2])
    with pytest.raises(UsageError, match=r"is over; see finished\.json"):
        site.job(resume=True)


@pytest.mark.usefixtures("always_better")
def test_a_folder_that_cannot_be_written_after_publishing_is_no_failed_publication(
    site: Site,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(*_: Any) -> Any:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ModelFolders, "publish", full)
    found = site.finish(rounds=1)
    assert (found["published"], found["version"]) == (True, 2)
    assert versions(site) == ([1, 2], 2)
    assert site.events("class_failed") == []
    (told,) = site.events("folder_failed")
    assert (told["version"], "No space left" in told["reason"]) == (2, True)
    assert told["folder"] == str(site.folder / "models/small")
    assert [(event["done"], event["total"]) for event in site.events("publishing")] == [(1, 1)]
