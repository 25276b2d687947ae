"""Data functions for sensors and sound, whose clients are the people that they come from.

GeoTec HAR (Matey-Sanz et al. 2023): windows of a phone's or a watch's accelerometer and gyroscope.
Free Spoken Digits (Jackson et al. 2018): spoken digits as log-mel spectra.
"""

import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.npyio import NpzFile
from numpy.typing import NDArray

from ..protos.manifest import Normalization
from ..supernet.errors import UsageError
from .data import ClientData, Examples, Floats
from .mel import log_mel
from .partition import held_out

Ints = NDArray[np.int64]

HAR_FILE, FSDD_FILE = "geotec_sp_sw.npz", "fsdd_8khz.npz"
DEVICES = {"phone": "sp", "watch": "sw"}
TEST_SUBJECTS = 5
VALIDATION_FRACTION = 0.2
# Metres per second squared and radians per second; fixed, so that no device's data decide.
HAR_SCALE = Normalization(mean=(0.0,) * 6, std=(5.0, 5.0, 5.0, 1.0, 1.0, 1.0))
FULL_SCALE = np.float32(32768)
BANDS, FRAMES = 40, 64
LOG_POWER = (-11.0, 3.0)
"""Mean and standard deviation of spoken digits' log-mel values, rounded; the same for all bands."""


def har(
    root: str | None,
    *,
    client: int,
    clients: int,
    device: str = "phone",
    test_subjects: int = TEST_SUBJECTS,
    seed: int = 0,
) -> ClientData:
    """One client's windows (6, 128) of GeoTec HAR: accelerometer and gyroscope, 5 activities.

    The last `test_subjects` of the 23 subjects are given to no client; a client is one of the
    others, or several where there are fewer clients; with `test_subjects` = 0 all are clients. Validation takes whole recordings: the
    windows of one overlap. The folder holds geotec_sp_sw.npz.
    """
    everything, subjects, recordings, classes = _har(_path(root, HAR_FILE), device)
    known, _ = _subjects(subjects, test_subjects)
    rows = np.flatnonzero(np.isin(subjects, _share(known, client, clients, "subjects")))
    mine = everything.take(rows)
    # A number for each recording of each subject.
    groups = subjects[rows] * (recordings.max() + 1) + recordings[rows]
    names = np.unique(groups)
    _, out = held_out(len(names), VALIDATION_FRACTION, seed + client)
    held = np.isin(groups, names[out])
    train, validation = mine.take(np.flatnonzero(~held)), mine.take(np.flatnonzero(held))
    return ClientData(train, validation, classes, HAR_SCALE)


def har_test(
    root: str | None, *, device: str = "phone", test_subjects: int = TEST_SUBJECTS
) -> Examples:
    """The windows of the subjects that no client is given."""
    everything, subjects, _, _ = _har(_path(root, HAR_FILE), device)
    _, held = _subjects(subjects, test_subjects)
    return everything.take(np.flatnonzero(np.isin(subjects, held)))


def fsdd(
    root: str | None,
    *,
    client: int,
    clients: int,
    bands: int = BANDS,
    frames: int = FRAMES,
    seed: int = 0,
) -> ClientData:
    """One client's spoken digits as log-mel spectra (bands, frames), a frame every 10 ms.

    A client is one of the 6 speakers, or several where there are fewer clients. The recordings that
    the data set names its test part are given to none. The folder holds fsdd_8khz.npz.
    """
    path = _path(root, FSDD_FILE)
    file = _fsdd(path)
    speakers = np.unique(file["speaker"])
    mine = np.isin(file["speaker"], _share(speakers, client, clients, "speakers"))
    everything = _spoken(file, np.flatnonzero(mine & ~file["is_test"]), bands, frames)
    train, validation = held_out(len(everything), VALIDATION_FRACTION, seed + client)
    mean, std = LOG_POWER
    return ClientData(
        everything.take(train),
        everything.take(validation),
        tuple(str(digit) for digit in range(10)),
        Normalization(mean=(mean,) * bands, std=(std,) * bands),
    )


def fsdd_test(root: str | None, *, bands: int = BANDS, frames: int = FRAMES) -> Examples:
    """The test part: five recordings of each digit by each speaker."""
    file = _fsdd(_path(root, FSDD_FILE))
    return _spoken(file, np.flatnonzero(file["is_test"]), bands, frames)


def _path(root: str | None, name: str) -> Path:
    if root is None:
        raise UsageError("this data set is read from a folder: give it with --data-root")
    return Path(root) / name


def _arrays(path: Path, names: tuple[str, ...]) -> dict[str, NDArray[Any]]:
    expected = f"an .npz file with the arrays {', '.join(names)} expected"
    if not path.is_file():
        raise UsageError(f"{path}: no such file; {expected}")
    try:
        # Opened here: on a damaged file numpy would leave it open.
        with path.open("rb") as opened, NpzFile(opened, allow_pickle=False) as file:
            return {name: file[name] for name in names}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise UsageError(f"{path}: {error}; {expected}") from None


def _check(path: Path, what: str, holds: bool) -> None:
    if not holds:
        raise UsageError(f"{path}: {what} expected")


def _har(path: Path, device: str) -> tuple[Examples, Ints, Ints, tuple[str, ...]]:
    """Windows, subject and recording of each, class names."""
    if device not in DEVICES:
        raise UsageError(f"har: device = {device!r}; allowed: {', '.join(DEVICES)}")
    kinds = tuple(f"{name}_{DEVICES[device]}" for name in ("X", "y", "subject", "execution"))
    file = _arrays(path, (*kinds, "class_names"))
    x, y, subjects, recordings = (file[name] for name in kinds)
    _check(path, f"{kinds[0]} of shape (N, 6, 128)", x.ndim == 3 and x.shape[1:] == (6, 128))
    for name in kinds[1:]:
        column = file[name]
        _check(path, f"{name} of {len(x)} whole numbers", _counts(column, len(x)))
    classes = tuple(str(name) for name in file["class_names"].ravel())
    _check(path, f"y below {len(classes)}", not len(y) or int(y.max()) < len(classes))
    examples = Examples(x.astype(np.float32), y.astype(np.int64))
    return examples, subjects.astype(np.int64), recordings.astype(np.int64), classes


def _counts(values: NDArray[Any], size: int) -> bool:
    """Whether they are `size` whole numbers of at least 0."""
    whole = values.dtype.kind in "iu" and values.shape == (size,)
    return whole and (not size or int(values.min()) >= 0)


def _subjects(subjects: Ints, held: int) -> tuple[Ints, Ints]:
    """(given to clients, held out) of the subjects."""
    found = np.unique(subjects)
    if not 0 <= held < len(found):
        raise UsageError(f"har: test_subjects = {held}; allowed: 0 to {len(found) - 1}")
    given = len(found) - held
    return found[:given], found[given:]


def _share(owners: Ints, client: int, clients: int, what: str) -> Ints:
    """The owners whose examples a client has."""
    if not 0 <= client < clients <= len(owners):
        raise UsageError(
            f"client {client} of {clients}: these data have {len(owners)} {what}; "
            f"clients may be 1 to {len(owners)}"
        )
    return owners[client::clients]


def _fsdd(path: Path) -> Mapping[str, NDArray[Any]]:
    file = _arrays(path, ("wave", "offsets", "y", "speaker", "is_test", "sample_rate"))
    count = len(file["y"]) if file["y"].ndim == 1 else -1
    _check(path, "wave of 16-bit samples", file["wave"].dtype == np.int16)
    for name in ("y", "speaker"):
        _check(path, f"{name} of whole numbers, one a recording", _counts(file[name], count))
    _check(path, "y from 0 to 9", not count or int(file["y"].max()) < 10)
    tests = file["is_test"]
    _check(path, "is_test, one a recording", tests.dtype == np.bool_ and tests.shape == (count,))
    offsets, samples = file["offsets"], len(file["wave"].ravel())
    inside = _counts(offsets, count + 1) and bool((np.diff(offsets.astype(np.int64)) >= 0).all())
    _check(path, f"offsets ascending from 0 to {samples}", inside and int(offsets[-1]) == samples)
    rate = file["sample_rate"]
    _check(path, "sample_rate in Hz", rate.size == 1 and rate.dtype.kind in "iu")
    return file


def _spoken(file: Mapping[str, NDArray[Any]], rows: Ints, bands: int, frames: int) -> Examples:
    for name, value in (("bands", bands), ("frames", frames)):
        if type(value) is not int or value < 1:
            raise UsageError(f"fsdd: {name} = {value!r}; a whole number above 0 expected")
    wave, offsets, rate = file["wave"].ravel(), file["offsets"], int(file["sample_rate"])
    x: Floats = np.empty((len(rows), bands, frames), np.float32)
    for place, row in enumerate(rows):
        recording = wave[offsets[row] : offsets[row + 1]].astype(np.float32) / FULL_SCALE
        x[place] = log_mel(recording, rate, bands, frames)
    return Examples(x, file["y"][rows].astype(np.int64))
