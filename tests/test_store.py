"""The device's store: a model is put in use whole or not at all, and the one before is kept."""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from artifacts import Died, Disk
from delivery import KIND, NEW, OLD, Site, fails, get, in_use, open_site
from fedofa.client.store import MAX_STRIKES, DeviceStore
from fedofa.supernet.errors import ArtifactError, FedofaError, UsageError


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with open_site(tmp_path) as opened:
        yield opened


def test_a_model_that_fails_its_golden_test_is_not_put_in_use(site: Site) -> None:
    site.publish(OLD)
    site.get()
    site.publish(NEW)
    for strike in range(1, MAX_STRIKES + 1):
        with pytest.raises(ArtifactError, match=rf"off by 7.*strike {strike} of 3.*stays in use"):
            site.get(golden=fails)
        assert site.in_use() == OLD[KIND]
    with pytest.raises(ArtifactError, match=r"failed 3 times.*off by 7.*--force"):
        site.get()
    assert site.in_use() == OLD[KIND]
    assert len(list(site.store.folder.glob("versions/*"))) == 1
    site.get(force=True)
    assert site.in_use() == NEW[KIND]
    assert not site.store.state().strikes


def test_a_failed_test_costs_no_second_download(site: Site) -> None:
    site.publish(NEW)
    with pytest.raises(ArtifactError, match="no model is in use"):
        site.get(golden=fails)
    assert site.get().downloaded_bytes == 0
    assert site.in_use() == NEW[KIND]


def test_rollback_returns_to_the_previous_model(site: Site) -> None:
    site.publish(OLD)
    site.get()
    with pytest.raises(UsageError, match="no previous model"):
        site.store.rollback()
    site.publish(NEW)
    site.get()
    assert site.store.rollback().manifest.version == 1
    assert site.in_use() == OLD[KIND]
    assert site.store.rollback().manifest.version == 2


def test_rollback_to_a_damaged_model_is_refused(site: Site) -> None:
    site.publish(OLD)
    old = site.get().model
    site.publish(NEW)
    site.get()
    os.truncate(old.model_path, 5)
    with pytest.raises(ArtifactError, match="damaged"):
        site.store.rollback()
    assert site.in_use() == NEW[KIND]


def test_only_the_models_in_use_and_before_are_kept(site: Site) -> None:
    for number in range(4):
        site.publish({KIND: b"%d" % number})
        site.get()
    kept = sorted(path.name.split("-")[0] for path in site.store.folder.glob("versions/*"))
    assert kept == ["3", "4"]


@pytest.mark.parametrize("dies", [False, True], ids=["error", "death"])
def test_a_failure_at_any_step_leaves_the_old_model_or_the_new_one(
    site: Site, tmp_path: Path, dies: bool
) -> None:
    site.publish(OLD)
    old = DeviceStore(tmp_path / "old", "board")
    get(site.port, old)
    site.publish(NEW)
    seen = set()
    for step in range(1, 300):
        store = DeviceStore(tmp_path / f"device-{step}", "board")
        shutil.copytree(old.root, store.root)
        with pytest.MonkeyPatch.context() as patch:
            disk = Disk(step, dies).watch(patch)
            try:
                get(site.port, store)
            except (FedofaError, OSError, Died):
                assert disk.failed
        now = in_use(store)
        assert now in (OLD[KIND], NEW[KIND])
        seen.add(now)
        previous = store.previous()
        if now == NEW[KIND]:
            assert previous is not None
            previous.verify()
        get(site.port, store)
        assert in_use(store) == NEW[KIND]
        if not disk.failed:
            break
    assert step > 20, "the disk was not watched"
    assert len(seen) == 2


def test_a_second_process_on_the_same_store_is_turned_away(site: Site) -> None:
    site.publish(OLD)
    with site.store.lock(), pytest.raises(ArtifactError, match="another process"):
        site.get()
    assert site.get().activated


def test_a_device_class_is_never_a_path(tmp_path: Path) -> None:
    for name in ("../../etc", "/etc", "a\0b", "x" * 300, "", "."):
        with pytest.raises(UsageError, match="device class"):
            DeviceStore(tmp_path, name)


def test_a_state_file_cannot_point_out_of_the_store(site: Site) -> None:
    site.store.folder.mkdir(parents=True)
    pointer = {"version": "../../evil", "kind": KIND}
    (site.store.folder / "state.json").write_text(json.dumps({"current": pointer}))
    with pytest.raises(ArtifactError, match=r"state\.json is damaged"):
        site.store.current()
