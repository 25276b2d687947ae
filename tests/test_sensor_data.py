"""Readers of sensor windows and spoken digits: whose examples they are, and what a file must hold."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fedofa.client.data import ClientData, client_data
from fedofa.client.mel import centred, log_mel, mel_bands
from fedofa.client.sensor_data import fsdd, fsdd_test, har, har_test
from fedofa.protos.device import DataSource
from fedofa.supernet.errors import UsageError
from fedofa.supernet.families.catalogue import PRESETS

DATA = Path(os.environ.get("FEDOFA_DATA", Path(__file__).parents[2] / "shared" / "data"))
HAR, FSDD = DATA / "HAR", DATA / "FSDD"
CLASSES = np.array(["SEATED", "STANDING_UP", "WALKING", "TURNING", "SITTING_DOWN"])


def write_har(folder: Path, subjects: int = 8, **changed: Any) -> str:
    """Three recordings of six windows for each subject; a window's values tell whose it is."""
    subject, execution = np.divmod(np.arange(subjects * 18) // 6, 3)
    rows = len(subject)
    x = np.zeros((rows, 6, 128), np.float32)
    x[:, 0, 0], x[:, 0, 1], x[:, 0, 2] = subject, execution, np.arange(rows)
    arrays = {"class_names": CLASSES}
    for device, sign in (("sp", 1), ("sw", -1)):
        arrays[f"X_{device}"] = sign * x
        arrays[f"y_{device}"] = (np.arange(rows) % 5).astype(np.uint8)
        arrays[f"subject_{device}"] = subject.astype(np.uint8)
        arrays[f"execution_{device}"] = execution.astype(np.uint8)
    write(folder / "geotec_sp_sw.npz", arrays, changed)
    return str(folder)


def write(path: Path, arrays: dict[str, Any], changed: dict[str, Any]) -> None:
    kept = {name: value for name, value in {**arrays, **changed}.items() if value is not None}
    np.savez(path, **kept)


def columns(data: ClientData, at: int) -> tuple[set[float], set[float]]:
    return set(data.train.x[:, 0, at].tolist()), set(data.validation.x[:, 0, at].tolist())


def test_every_window_is_one_clients_or_a_test_subjects(tmp_path: Path) -> None:
    root = write_har(tmp_path)
    for clients in (1, 2, 6):
        parts = [har(root, client=c, clients=clients, test_subjects=2) for c in range(clients)]
        examples = [e for p in parts for e in (p.train, p.validation)]
        examples.append(har_test(root, test_subjects=2))
        seen = sorted(np.concatenate([e.x[:, 0, 2] for e in examples]).tolist())
        assert seen == list(range(8 * 18))
        of = [columns(part, 0) for part in parts]
        assert all(len(train | validation) == 6 // clients for train, validation in of)
        assert set().union(*(t | v for t, v in of)) == {0, 1, 2, 3, 4, 5}
    assert set(har_test(root, test_subjects=2).x[:, 0, 0].tolist()) == {6, 7}


def test_no_recording_is_in_training_and_validation(tmp_path: Path) -> None:
    root = write_har(tmp_path)
    for client in range(3):
        mine = har(root, client=client, clients=3)
        recordings = [
            {(float(a), float(b)) for a, b in part.x[:, 0, :2]}
            for part in (mine.train, mine.validation)
        ]
        assert not recordings[0] & recordings[1]
        assert len(mine.validation) == 6
        assert mine.classes == tuple(CLASSES)


def test_the_watch_has_windows_of_its_own(tmp_path: Path) -> None:
    mine = har(write_har(tmp_path), client=0, clients=1, device="watch")
    assert mine.train.x[:, 0, 2].max() <= 0
    assert np.allclose(mine.normalized(mine.train.x)[:, 0], mine.train.x[:, 0] / 5)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"X_sp": None}, "X_sp is not a file"),
        ({"X_sp": np.zeros((144, 3, 128), np.float32)}, r"X_sp of shape \(N, 6, 128\) expected"),
        ({"y_sp": np.zeros(3, np.uint8)}, "y_sp of 144 whole numbers expected"),
        ({"y_sp": np.full(144, 5)}, "y below 5 expected"),
        ({"subject_sp": np.full(144, 0.5)}, "subject_sp of 144 whole numbers"),
        ({"execution_sp": np.full(144, -1)}, "execution_sp of 144 whole numbers"),
        ({"class_names": np.array([{}], object)}, "allow_pickle"),
    ],
)
def test_a_har_file_that_is_another_one_is_said(
    tmp_path: Path, changed: dict[str, Any], said: str
) -> None:
    root = write_har(tmp_path, **changed)
    with pytest.raises(UsageError, match=rf"geotec_sp_sw\.npz: .*{said}"):
        har(root, client=0, clients=1)


def test_a_folder_without_the_file_or_with_a_damaged_one_is_said(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no such file; an \.npz file with the arrays X_sp"):
        har(str(tmp_path), client=0, clients=1)
    with pytest.raises(UsageError, match="--data-root"):
        fsdd_test(None)
    path = Path(write_har(tmp_path)) / "geotec_sp_sw.npz"
    for content in (b"", b"no archive", path.read_bytes()[:5000]):
        path.write_bytes(content)
        with pytest.raises(UsageError, match="expected"):
            har_test(str(tmp_path))


def test_what_the_user_asks_for_must_be_there(tmp_path: Path) -> None:
    root = write_har(tmp_path)
    with pytest.raises(UsageError, match="client 0 of 4: these data have 3 subjects"):
        har(root, client=0, clients=4)
    with pytest.raises(UsageError, match="device = 'ring'; allowed: phone, watch"):
        har_test(root, device="ring")
    with pytest.raises(UsageError, match="test_subjects = 8; allowed: 0 to 7"):
        har_test(root, test_subjects=8)


RATE = 8000


def write_fsdd(folder: Path, speakers: int = 3, **changed: Any) -> str:
    """Ten digits by each speaker, twice; the second time is the test part. A tone tells the digit."""
    digit = np.tile(np.arange(10), 2 * speakers)
    speaker = np.repeat(np.arange(speakers), 20)
    waves = [tone(300 + 300 * d, 1000 + 100 * d) for d in digit]
    arrays = {
        "wave": np.concatenate(waves),
        "offsets": np.cumsum([0, *map(len, waves)]),
        "y": digit.astype(np.uint8),
        "speaker": speaker.astype(np.uint8),
        "is_test": np.arange(len(digit)) // 10 % 2 == 1,
        "sample_rate": np.array(RATE),
    }
    write(folder / "fsdd_8khz.npz", arrays, changed)
    return str(folder)


def tone(hertz: float, samples: int) -> Any:
    return np.round(16000 * np.sin(2 * np.pi * hertz * np.arange(samples) / RATE)).astype(np.int16)


def test_spoken_digits_are_split_by_speaker(tmp_path: Path) -> None:
    root = write_fsdd(tmp_path)
    for clients in (1, 3):
        for client in range(clients):
            mine = fsdd(root, client=client, clients=clients, bands=20, frames=12)
            assert len(mine.train) + len(mine.validation) == 30 // clients
            assert mine.train.x.shape[1:] == (20, 12)
            assert len(mine.normalization.mean) == 20
    test = fsdd_test(root, bands=20, frames=12)
    assert np.bincount(test.y).tolist() == [3] * 10
    # The tone of a digit is where its label says: higher digits are louder in higher bands.
    loudest = test.x[:, :, 6].argmax(1)
    assert all(np.diff(loudest[:10]) > 0)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"wave": np.zeros(9, np.float32)}, "wave of 16-bit samples"),
        ({"y": np.full(60, 11)}, "y from 0 to 9"),
        ({"speaker": np.zeros(2, np.uint8)}, "speaker of whole numbers, one a recording"),
        ({"is_test": np.zeros(60, np.uint8)}, "is_test, one a recording"),
        ({"offsets": np.arange(61)}, "offsets ascending from 0 to"),
        ({"offsets": np.arange(61)[::-1]}, "offsets ascending"),
        ({"sample_rate": np.array(8000.0)}, "sample_rate in Hz"),
    ],
)
def test_a_file_of_recordings_that_is_another_one_is_said(
    tmp_path: Path, changed: dict[str, Any], said: str
) -> None:
    root = write_fsdd(tmp_path, **changed)
    with pytest.raises(UsageError, match=rf"fsdd_8khz\.npz: {said}"):
        fsdd(root, client=0, clients=1)


def test_sizes_of_spectra_that_cannot_be_are_said(tmp_path: Path) -> None:
    root = write_fsdd(tmp_path)
    with pytest.raises(UsageError, match="frames = 0; a whole number above 0"):
        fsdd_test(root, frames=0)
    with pytest.raises(UsageError, match="200 bands at 8000 Hz; the lowest would be empty"):
        fsdd_test(root, bands=200)
    with pytest.raises(UsageError, match="a rate of 44100 Hz; at most 16000"):
        log_mel(np.zeros(100, np.float32), 44100, 8, 4)


def test_the_bands_share_out_every_frequency_between_the_first_and_the_last_centre() -> None:
    filters = mel_bands(40, RATE)
    total = filters.sum(0)
    first, last = filters[0].argmax(), filters[-1].argmax()
    assert np.allclose(total[first + 1 : last], 1)
    assert all(np.diff(filters.argmax(1)) > 0)


def test_a_tone_is_loudest_in_its_own_band_and_twice_as_loud_is_log_4_more() -> None:
    for hertz in (500, 1500, 3000):
        wave = tone(hertz, 4000).astype(np.float32) / 32768
        found = log_mel(wave, RATE, 40, 20)
        assert mel_bands(40, RATE)[found[:, 10].argmax(), round(hertz * 512 / RATE)] > 0.4
        assert np.allclose(
            log_mel(wave / 2, RATE, 40, 20).max(0), found.max(0) - np.log(4), atol=0.01
        )


def test_a_wave_is_cut_and_filled_up_at_both_ends() -> None:
    assert centred(np.arange(9.0, dtype=np.float32), 5).tolist() == [2, 3, 4, 5, 6]
    assert centred(np.ones(3, np.float32), 6).tolist() == [0, 1, 1, 1, 0, 0]
    assert centred(np.ones(0, np.float32), 2).tolist() == [0, 0]


@pytest.mark.skipif(not HAR.is_dir(), reason="no HAR in FEDOFA_DATA or ../shared/data")
def test_geotec_windows_are_read_from_a_users_folder() -> None:
    name = "fedofa.client.sensor_data:har"
    sizes = []
    for client in (0, 17):
        found = client_data(DataSource(name, str(HAR), client, 18, {"device": "watch"}))
        assert found.train.x.shape[1:] == PRESETS["tdnn-har"].input_shape(
            PRESETS["tdnn-har"].largest()
        )
        assert 0.4 < found.normalized(found.train.x).std() < 2
        sizes.append(len(found.train) + len(found.validation))
    assert sizes == [175, 329]
    assert len(har_test(str(HAR))) == 277 + 277 + 300 + 225 + 235


@pytest.mark.skipif(not FSDD.is_dir(), reason="no FSDD in FEDOFA_DATA or ../shared/data")
def test_spoken_digits_are_read_from_a_users_folder() -> None:
    found = client_data(DataSource("fedofa.client.sensor_data:fsdd", str(FSDD), 5, 6))
    assert len(found.train) + len(found.validation) == 450
    space = PRESETS["tdnn-digits"]
    assert found.train.x.shape[1:] == space.input_shape(space.largest())
    scaled = found.normalized(found.train.x)
    assert abs(scaled.mean()) < 1
    assert 0.5 < scaled.std() < 1.5
