"""Data functions for tables: Adult (Kohavi and Becker 1996), income from a census's answers."""

import csv
import gzip
import zlib
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import numpy as np

from ..protos.manifest import Normalization
from ..supernet.errors import UsageError
from .data import ClientData, Examples, Labels
from .partition import Rows, dirichlet, held_out

VALIDATION_FRACTION = 0.2
CLASSES = ("<=50K", ">50K")
COLUMNS = (
    "age", "workclass", "fnlwgt", "education", "education-num", "marital-status", "occupation",
    "relationship", "race", "sex", "capital-gain", "capital-loss", "hours-per-week",
    "native-country", "class",
)  # fmt: skip
NUMBERS: Mapping[str, tuple[float, float]] = MappingProxyType(
    {
        "age": (39, 14),
        "education-num": (10, 2.6),
        "capital-gain": (0.7, 2.4),
        "capital-loss": (0.35, 1.6),
        "hours-per-week": (40, 12),
    }
)
"""Numbers with their mean and standard deviation; fixed, so that no device's data decide.

Not used: the survey's weights, and education's name, which says what its number says.
"""
LOGARITHMS = ("capital-gain", "capital-loss")
"""Sums of money, mostly 0 and seldom thousands: log(1 + x) of them."""
CATEGORIES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        name: tuple(values.split())
        for name, values in {
            "workclass": "? Federal-gov Local-gov Never-worked Private Self-emp-inc "
            "Self-emp-not-inc State-gov Without-pay",
            "marital-status": "Divorced Married-AF-spouse Married-civ-spouse "
            "Married-spouse-absent Never-married Separated Widowed",
            "occupation": "? Adm-clerical Armed-Forces Craft-repair Exec-managerial "
            "Farming-fishing Handlers-cleaners Machine-op-inspct Other-service Priv-house-serv "
            "Prof-specialty Protective-serv Sales Tech-support Transport-moving",
            "relationship": "Husband Not-in-family Other-relative Own-child Unmarried Wife",
            "race": "Amer-Indian-Eskimo Asian-Pac-Islander Black Other White",
            "sex": "Female Male",
            "native-country": "? Cambodia Canada China Columbia Cuba Dominican-Republic Ecuador "
            "El-Salvador England France Germany Greece Guatemala Haiti Holand-Netherlands "
            "Honduras Hong Hungary India Iran Ireland Italy Jamaica Japan Laos Mexico Nicaragua "
            "Outlying-US(Guam-USVI-etc) Peru Philippines Poland Portugal Puerto-Rico Scotland "
            "South Taiwan Thailand Trinadad&Tobago United-States Vietnam Yugoslavia",
        }.items()
    }
)
FEATURES = len(NUMBERS) + sum(len(values) for values in CATEGORIES.values())
SPLITS = ("dirichlet", "occupation")


def adult(
    root: str | None,
    *,
    client: int,
    clients: int,
    split: str = "dirichlet",
    alpha: float = 0.5,
    seed: int = 0,
) -> ClientData:
    """One client's rows of Adult as 91 numbers: 5 as they are, the answers one-hot; 2 classes.

    `split` is "dirichlet" (labels, by `alpha`) or "occupation": a client is one of 15 occupations,
    or several where there are fewer clients. The folder holds adult.data, as UCI's archive gives
    it, or adult.data.csv or adult.data.csv.gz.
    """
    rows = _rows(root, "data")
    everything = _examples(rows)
    mine = everything.take(_share(rows, everything.y, (client, clients), (split, alpha, seed)))
    train, validation = held_out(len(mine), VALIDATION_FRACTION, seed + client)
    scales = [*NUMBERS.values(), *[(0.0, 1.0)] * (FEATURES - len(NUMBERS))]
    normalization = Normalization(
        mean=tuple(float(mean) for mean, _ in scales), std=tuple(float(std) for _, std in scales)
    )
    return ClientData(mine.take(train), mine.take(validation), CLASSES, normalization)


def adult_test(root: str | None) -> Examples:
    """The 16,281 rows that the data set names its test part (adult.test)."""
    return _examples(_rows(root, "test"))


def _share(
    rows: list[list[str]], y: Labels, place: tuple[int, int], by: tuple[str, float, int]
) -> Rows:
    (client, clients), (split, alpha, seed) = place, by
    if split not in SPLITS:
        raise UsageError(f"adult: split = {split!r}; allowed: {', '.join(SPLITS)}")
    if split == "dirichlet":
        return dirichlet(y, clients, alpha, seed)[client]
    occupations = CATEGORIES["occupation"]
    if clients > len(occupations):
        raise UsageError(
            f"adult: {clients} clients; split by occupation has at most {len(occupations)}"
        )
    at, mine = COLUMNS.index("occupation"), occupations[client::clients]
    return np.array([n for n, row in enumerate(rows) if row[at] in mine], dtype=np.int64)


def _rows(root: str | None, part: str) -> list[list[str]]:
    """The rows of a file, without header and comments."""
    if root is None:
        raise UsageError("this data set is read from a folder: give it with --data-root")
    names = [f"adult.{part}{ending}" for ending in (".csv.gz", ".csv", "")]
    for path in (Path(root) / name for name in names):
        if path.is_file():
            return _parsed(path)
    raise UsageError(f"{root}: no {', '.join(names[:-1])} or {names[-1]} there")


def _parsed(path: Path) -> list[list[str]]:
    opened = gzip.open if path.suffix == ".gz" else open
    try:
        with opened(path, "rt", encoding="utf-8", newline="") as file:
            lines = [[cell.strip() for cell in line] for line in csv.reader(file)]
    except (OSError, EOFError, UnicodeDecodeError, csv.Error, zlib.error) as error:
        raise UsageError(f"{path}: {error}; comma-separated text expected") from None
    found = []
    for number, cells in enumerate(lines, 1):
        if not cells or cells == [""] or cells[0].startswith("|") or cells[0] == COLUMNS[0]:
            continue
        if len(cells) != len(COLUMNS):
            raise UsageError(
                f"{path}: line {number} has {len(cells)} cells; {len(COLUMNS)} expected: "
                f"{', '.join(COLUMNS)}"
            )
        found.append(cells)
    if not found:
        raise UsageError(f"{path}: no rows; {len(COLUMNS)} cells a row expected")
    return found


def _examples(rows: list[list[str]]) -> Examples:
    columns = dict(zip(COLUMNS, zip(*rows, strict=True), strict=True))
    x = np.zeros((len(rows), FEATURES), np.float32)
    for at, name in enumerate(NUMBERS):
        try:
            values = np.array([float(cell) for cell in columns[name]], dtype=np.float32)
        except ValueError as error:
            raise UsageError(f"adult: column {name}: {error}") from None
        x[:, at] = np.log1p(values) if name in LOGARITHMS else values
    start = len(NUMBERS)
    for name, allowed in CATEGORIES.items():
        x[np.arange(len(rows)), start + _places(name, columns[name], allowed)] = 1
        start += len(allowed)
    labels = tuple(label.removesuffix(".") for label in columns["class"])
    return Examples(x, _places("class", labels, CLASSES))


def _places(name: str, values: tuple[str, ...], allowed: tuple[str, ...]) -> Labels:
    place = {value: at for at, value in enumerate(allowed)}
    try:
        return np.array([place[value] for value in values], dtype=np.int64)
    except KeyError as missing:
        raise UsageError(
            f"adult: column {name} holds {missing}; allowed: {', '.join(allowed)}"
        ) from None
