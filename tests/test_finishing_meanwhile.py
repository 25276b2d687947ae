"""A model that was published while a finishing was under way is not replaced by what is finished."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from fedofa.server.finishing import finishing
from fedofa.server.finishing.start import check_current, find_start, write_start
from fedofa.server.jobs import Job, run_job
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
