"""Whole runs with codecs, robust rules and the ledger: what devices send, and who is left out."""

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fedofa.protos.codec.config import PRESETS, CodecConfig
from fedofa.server.config import parse_config
from fedofa.server.events import read_events
from fedofa.server.fingerprint import fingerprint
from fedofa.server.jobs import Job
from fedofa.server.ledger_chain import checked
from fedofa.server.ledger_keys import PublicKey
from fedofa.server.ledger_report import by_device, verdict
from fedofa.server.progress import View
from fedofa.server.simulate import simulate
from fedofa.supernet.errors import UsageError
from fedofa.supernet.weights import digest
from fleets import Clients, Run, grid_of, run_of, sending, small_config, small_fleet
from rich.console import Console

CALM = {"steps": 8, "students": "none", "lr": 0.05}
CLASSES = ("big", "big", "big", "big", "big", "small")


def weights_of(folder: Path, **sections: Any) -> tuple[str, Run]:
    run = run_of(folder, small_config(recipe=CALM, **sections)).start()
    return digest(run.training.weights), run


def test_an_exact_codec_changes_nothing_but_the_bytes(tmp_path: Path) -> None:
    plain, one = weights_of(tmp_path / "plain")
    coded, other = weights_of(tmp_path / "coded", codec="exact")
    assert plain == coded
    sent = [[event["bytes_received"] for event in run.events("round")] for run in (one, other)]
    assert all(mine < theirs for mine, theirs in zip(sent[1], sent[0], strict=True))


@pytest.mark.parametrize("name", ["sparse", "fedzip", "qsgd", "int8"])
def test_a_lossy_codec_saves_bytes_and_the_loss_still_falls(name: str, tmp_path: Path) -> None:
    _, run = weights_of(tmp_path, codec=name, round={"rounds": 6})
    rounds = run.events("round")
    assert rounds[-1]["loss"] < rounds[0]["loss"]
    assert all(event["accepted"] == 3 for event in rounds)
    least = {"sparse": 20, "fedzip": 12, "qsgd": 12, "int8": 3}[name]
    assert all(least * event["bytes_received"] < event["bytes_sent"] for event in rounds)


def test_what_a_code_loses_is_kept_on_disk_by_devices_that_have_a_folder(tmp_path: Path) -> None:
    devices = [
        replace(device, memory=str(tmp_path / "memory" / device.name))
        for device in small_fleet(tmp_path)
    ]
    config = small_config(recipe=CALM, codec="sparse", round={"rounds": 3})
    with_folder = Run(tmp_path, config, grid_of(devices)).start()
    names = sorted(path.parent.name for path in (tmp_path / "memory").glob("*/*.safetensors"))
    assert names == ["dev-0", "dev-0", "dev-1", "dev-1", "dev-2", "dev-2"]  # the last two rounds
    without, _ = weights_of(tmp_path / "other", codec="sparse", round={"rounds": 3})
    assert digest(with_folder.training.weights) == without


@pytest.mark.parametrize("values", [np.frombuffer(b"nonsense", np.uint8), np.zeros(0, np.uint8)])
def test_bytes_that_are_no_code_are_refused_and_the_round_goes_on(
    values: Any, tmp_path: Path
) -> None:
    app = Clients({"dev-1": sending(lambda _: values)})
    run = run_of(tmp_path, small_config(recipe=CALM, codec="sparse"), app=app).start()
    assert {event["code"] for event in run.events("update_refused")} == {"codec"}
    assert [event["accepted"] for event in run.events("round")] == [2, 2]


def test_floats_in_place_of_a_code_are_refused(tmp_path: Path) -> None:
    app = Clients({"dev-1": sending(lambda v: np.zeros(len(v), np.float32))})
    run = run_of(tmp_path, small_config(recipe=CALM, codec="sparse"), app=app).start()
    assert {event["code"] for event in run.events("update_refused")} == {"dtype"}


@pytest.mark.parametrize(
    ("codec", "words"),
    [
        ("zip", "codec 'zip' is unknown; known: exact"),
        ({"levels": "uniform"}, "bits is missing"),
        ({"keep": 0}, "codec.keep = 0"),
        ({"name": "int4", "error_memory": True}, "error_memory does not go with levels = uniform"),
        ({"name": "qsgd", "error_memory": True}, "levels a step of 4 apart"),
        ({"name": "lean", "step": 2}, "step = 2 is not used with levels = clusters"),
        ({"name": "qsgd", "step": 0}, "codec.step = 0"),
        ({"name": "qsgd", "rounding": "nearest"}, "step = 4 does not go with rounding = nearest"),
        ({"name": "sparse", "keeep": 0.1}, "keeep"),
    ],
)
def test_an_impossible_codec_is_refused(codec: Any, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        parse_config({"classes": {"phone": {}}, "codec": codec})


def test_a_codec_is_a_preset_with_fields_of_its_own() -> None:
    fields = {"classes": {"phone": {}}, "codec": {"name": "sparse", "keep": 0.1}}
    found = parse_config(fields).codec
    assert found is not None
    assert found.codec() == PRESETS["sparse"].model_copy(update={"keep": 0.1})
    assert found.remembers


@pytest.mark.parametrize("name", list(PRESETS))
def test_errors_that_are_chance_s_are_not_carried_over(name: str) -> None:
    for said in ({}, {"error_memory": False}):
        found = parse_config({"classes": {"phone": {}}, "codec": {"name": name, **said}}).codec
        assert found is not None
        assert found.remembers == (name not in ("int4", "qsgd") and not said)


def test_runs_that_code_alike_may_go_on_where_each_other_ended() -> None:
    def print_of(codec: Any) -> Any:
        found = parse_config({"classes": {"phone": {}}, "codec": codec})
        return fingerprint(found, found.build_space())["codec"]

    # As runs were kept before there was a step.
    assert print_of("lean") == {
        **{k: v for k, v in PRESETS["lean"].model_dump(mode="json").items() if k != "step"},
        "error_memory": True,
    }
    assert print_of("lean") == print_of({"name": "lean", "error_memory": True})
    assert print_of("qsgd") == print_of({"name": "qsgd", "error_memory": False})
    assert print_of("qsgd")["step"] != print_of({"name": "qsgd", "step": 5.0})["step"]


def test_a_preset_s_levels_may_be_others() -> None:
    other = {"name": "qsgd", "levels": "clusters", "bits": 3}
    found = parse_config({"classes": {"phone": {}}, "codec": other}).codec
    assert found is not None
    assert found.codec() == CodecConfig(name="qsgd", levels="clusters", bits=3)
    with pytest.raises(UsageError, match="bits is missing"):
        parse_config({"classes": {"phone": {}}, "codec": {"name": "qsgd", "levels": "clusters"}})


def test_a_client_that_lies_again_and_again_is_named_and_put_into_quarantine(
    tmp_path: Path,
) -> None:
    devices = small_fleet(tmp_path, CLASSES)
    app = Clients({"dev-0": sending(lambda v: -50 * v)})
    config = small_config(
        recipe=CALM,
        round={"rounds": 4, "max_update_ratio": 1000.0},
        aggregation={"rule": "trimmed_mean", "trim": 0.2, "clip": 2.0},
        reputation={"strikes": 2, "quarantine_rounds": 9},
    )
    run = Run(tmp_path, config, grid_of(devices, app)).start()
    assert [e["device"] for e in run.events("update_suspected")] == ["dev-0", "dev-0"]
    quarantined = run.events("quarantined")
    assert [(e["device"], e["round"]) for e in quarantined] == [("dev-0", 2)]
    assert [event["accepted"] for event in run.events("round")] == [6, 6, 5, 5]
    shown = Console(record=True, width=120, file=io.StringIO())
    with View(shown) as view:
        for event, _ in read_events(tmp_path / "events.jsonl"):
            view(event)
    text = shown.export_text()
    assert "round 1: dev-0 suspected" in text
    assert "dev-0 is in quarantine until round 12" in text
    honest = Run(tmp_path / "honest", config, grid_of(devices)).start()
    losses = [one.events("round")[-1]["loss"] for one in (run, honest)]
    assert losses[0] < 1.2 * losses[1]


def job(folder: Path, *, resume: bool = False, rounds: int = 2) -> Job:
    config = small_config(
        recipe={**CALM, "name": "heterofl", "lr_schedule": "constant"},  # may be prolonged
        round={"rounds": rounds},
        simulation={"clients": {"big": 2, "small": 1}},
        codec="sparse",
    )
    return Job("train", str(folder), config.model_dump(mode="json"), resume)


def test_a_run_keeps_a_ledger_that_can_be_verified_also_when_it_goes_on(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    simulate(job(folder))
    first = verdict(folder)
    assert first["ok"], first
    chain = checked(folder / "ledger.jsonl", PublicKey.read(folder / "ledger.pub"))
    simulate(job(folder, resume=True, rounds=4))
    second = verdict(folder, head=chain.head)
    assert second["ok"], second
    rows = {row["device"]: row for row in by_device(folder)}
    assert set(rows) == {"big-0", "big-1", "small-0"}
    assert all(row["accepted"] == 4 for row in rows.values())
    assert sum(row["share"] for row in rows.values()) == pytest.approx(1)
