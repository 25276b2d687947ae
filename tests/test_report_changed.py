"""A file that was changed and is still good JSON: named under the lineage, and nothing is told from it."""

import gc
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fedofa.server import contributions
from fedofa.server.ledger_entries import Round
from fedofa.server.report import command, content
from fedofa.server.report.columns import TABLES
from reported import asked, broken, copied, facts_of, signed_again

BRACKETS = "[" * 200_000
OF_RESULTS = {
    "test-part", "anytime", "random-baseline", "same-protocol", "claims", "predictor",
    "shipped-files",
}  # fmt: skip
OF_EVENTS = {"data-cards", "splits", "training-cost", "search-cost"}
OF_LEDGER = {"data-cards", "ledger", "training-cost"}


def without_audit(text: str) -> str:
    rows = json.loads(text)
    del rows[0]["audit"]
    return json.dumps(rows)


def of_no_arch(text: str) -> str:
    rows = json.loads(text)
    rows[0]["arch"] = {"depth": 99}
    return json.dumps(rows)


def event(kind: str, change: Callable[[dict[str, Any]], object]) -> Callable[[str], str]:
    """The first event of a kind changed."""

    def apply(text: str) -> str:
        lines = text.splitlines()
        place = next(at for at, line in enumerate(lines) if json.loads(line)["event"] == kind)
        fields = json.loads(lines[place])
        change(fields)
        return "\n".join([*lines[:place], json.dumps(fields), *lines[place + 1 :]])

    return apply


CHANGES: dict[str, tuple[str, Callable[[str], str], set[str]]] = {
    "no row": ("specialized.json", lambda _: "[{}]", OF_RESULTS),
    "no audit": ("specialized.json", without_audit, OF_RESULTS),
    "no arch": ("specialized.json", of_no_arch, OF_RESULTS),
    "brackets": ("specialized.json", lambda _: BRACKETS, OF_RESULTS),
    "round without macs": ("events.jsonl", event("round", lambda e: e.pop("train_macs")), OF_EVENTS),
    "round x": ("events.jsonl", event("round", lambda e: e.update(round="x")), OF_EVENTS),
    "measured": ("events.jsonl", event("measured", lambda e: e.pop("macs")), OF_EVENTS),
    "joined": ("events.jsonl", event("device_joined", lambda e: e.pop("device")), OF_EVENTS),
    "deep event": ("events.jsonl", lambda text: f"{BRACKETS}\n{text}", OF_EVENTS),
    "ledger": ("ledger.jsonl", lambda text: text.replace('"accepted":{', '"accepted": {', 1), OF_LEDGER),
    "deep ledger": ("ledger.jsonl", lambda text: f"{BRACKETS}\n{text}", OF_LEDGER),
}  # fmt: skip


@pytest.mark.parametrize("name", CHANGES)
def test_a_changed_file_is_named_and_only_what_rests_on_it_is_not_judged(
    name: str, reported_run: Path, tmp_path: Path
) -> None:
    folder = copied(reported_run, tmp_path)
    file, change, resting = CHANGES[name]
    path = folder / file
    path.write_text(change(path.read_text()))
    code, text = asked("--run", str(folder))
    assert (code, "broken links in the lineage" in text, str(path) in text) == (1, True, True)
    code, text = asked("--run", str(folder), "--check")
    assert (code, "not met  lineage" in text) == (1, True)
    report = command.report_of(folder)
    assert [name for name in TABLES if report[name]] == ["practices", "lineage"]
    before = {
        row["item"]: row["state"] for row in content.build(facts_of(reported_run))["practices"]
    }
    for row in report["practices"]:
        if row["item"] in resting:
            assert (row["state"], str(path) in row["evidence"]) == ("not met", True)
        elif row["item"] != "lineage":
            assert row["state"] == before[row["item"]]


@pytest.mark.parametrize("name", ["specialized.json", "events.jsonl"])
def test_a_missing_file_is_named_under_the_lineage_of_the_check(
    name: str, reported_run: Path, tmp_path: Path
) -> None:
    folder = copied(reported_run, tmp_path)
    (folder / name).unlink()
    code, text = asked("--run", str(folder), "--check")
    assert (code, "not met  lineage" in text, str(folder / name) in text) == (1, True, True)


def test_a_record_of_brackets_and_a_missing_public_key_are_errors_that_say_what_to_do(
    reported_run: Path, tmp_path: Path
) -> None:
    folder = copied(reported_run, tmp_path)
    (folder / "ledger.pub").unlink()
    code, text = asked("--run", str(folder))
    assert (code, "--key" in text, "restore it: run.json is signed" in text) == (2, False, True)
    (folder / "run.json").write_text(BRACKETS)
    code, text = asked("--run", str(folder))
    assert (code, "run.json: not a whole record" in text) == (1, True)


def test_a_damaged_registry_is_a_broken_link(reported_run: Path, tmp_path: Path) -> None:
    folder = copied(reported_run, tmp_path)
    registry = Path(facts_of(folder).job.published.registry)  # type: ignore[union-attr]
    (registry / "registry.db").write_bytes(b"no database" * 500)
    code, text = asked("--run", str(folder), "--check")
    assert (code, "not met  lineage" in text) == (1, True)
    assert f"registry {registry}" in broken(folder)


def test_another_runs_configuration_of_another_version_is_no_seed_of_this_one(
    reported_run: Path, tmp_path: Path
) -> None:
    folder = copied(reported_run, tmp_path)
    shutil.copytree(folder, folder.parent / "older")

    def older(record: dict[str, Any]) -> None:
        for job in record["jobs"]:
            job["config"] = {"name": "older"}

    signed_again(folder.parent / "older", older)
    assert facts_of(folder).seeds == facts_of(reported_run).seeds


def test_the_ledger_is_folded_once_however_many_files_lead_back_to_it(
    reported_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folded: list[int] = []
    count = contributions._count_round

    def counting(found: Any, entry: Any) -> None:
        folded.append(entry.round)
        count(found, entry)

    monkeypatch.setattr(contributions, "_count_round", counting)
    report = content.build(facts_of(reported_run))
    assert len(report["lineage"]) == 4
    assert folded == [1, 2]


def entries_in_memory() -> int:
    gc.collect()
    return sum(type(one) is Round for one in gc.get_objects())


def test_no_entry_of_the_ledger_is_kept(reported_run: Path) -> None:
    """Of 10,000 devices each has a place in every round's entry."""
    before = entries_in_memory()
    found = facts_of(reported_run)
    assert found.book is not None
    assert entries_in_memory() == before
