"""The reader of Adult: rows become numbers, and rows that make no sense are said."""

import gzip
import os
from pathlib import Path

import numpy as np
import pytest
from fedofa.client.data import client_data
from fedofa.client.table_data import CATEGORIES, FEATURES, NUMBERS, adult, adult_test
from fedofa.protos.device import DataSource
from fedofa.supernet.errors import UsageError
from fedofa.supernet.families.catalogue import PRESETS

DATA = Path(os.environ.get("FEDOFA_DATA", Path(__file__).parents[2] / "shared" / "data"))
ADULT = DATA / "tabular"
OCCUPATIONS = CATEGORIES["occupation"]


def row(number: int, income: str = "<=50K", **changed: object) -> str:
    cells = {
        "age": number,
        "workclass": "Private",
        "fnlwgt": 1,
        "education": "Bachelors",
        "number": 13,
        "marriage": "Never-married",
        "occupation": OCCUPATIONS[number % 15],
        "relationship": "Wife",
        "race": "Other",
        "sex": "Male",
        "gain": 0,
        "loss": 0,
        "hours": 40,
        "country": "Cuba",
    }
    return ", ".join(str(cell) for cell in [*{**cells, **changed}.values(), income])


def table(rows: int) -> str:
    return "\n".join(row(n, (">50K", "<=50K")[n % 2]) for n in range(rows)) + "\n\n"


def write(folder: Path, text: str, name: str = "adult.data") -> str:
    content = text.encode()
    (folder / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    return str(folder)


@pytest.mark.parametrize("split", ["dirichlet", "occupation"])
def test_every_row_is_one_clients(tmp_path: Path, split: str) -> None:
    root = write(tmp_path, table(150))
    parts = [adult(root, client=c, clients=4, split=split) for c in range(4)]
    ages = [e.x[:, 0] for part in parts for e in (part.train, part.validation)]
    assert sorted(np.concatenate(ages).tolist()) == list(range(150))
    if split == "occupation":
        start = len(NUMBERS) + len(CATEGORIES["workclass"]) + len(CATEGORIES["marital-status"])
        columns = [set(part.train.x[:, start : start + 15].argmax(1).tolist()) for part in parts]
        assert [sorted(mine) for mine in columns] == [list(range(c, 15, 4)) for c in range(4)]


def test_a_row_becomes_numbers_logarithms_and_one_answer_to_each_question(tmp_path: Path) -> None:
    text = row(30, ">50K.", gain=100, hours=20, sex="Female") + "\n" + row(31) + "\n"
    x, y = (test := adult_test(write(tmp_path, text, "adult.test"))).x, test.y
    assert y.tolist() == [1, 0]
    assert np.allclose(x[0, :5], [30, 13, np.log(101), 0, 20])
    assert x[:, 5:].sum(1).tolist() == [7, 7]
    assert set(np.unique(x[:, 5:])) == {0, 1}
    # Female and Male are the last two before the countries; race is the same in both rows.
    sexes = slice(-len(CATEGORIES["native-country"]) - 2, -len(CATEGORIES["native-country"]))
    assert x[:, sexes].tolist() == [[1, 0], [0, 1]]
    assert x.shape[1] == FEATURES == 91


@pytest.mark.parametrize("name", ["adult.data.csv.gz", "adult.data.csv", "adult.data"])
def test_headers_and_comments_are_no_rows(tmp_path: Path, name: str) -> None:
    header = "age, workclass" + ", x" * 13
    root = write(tmp_path, f"|1x3 Cross validator\n{header}\n{table(20)}", name)
    mine = adult(root, client=0, clients=1)
    assert len(mine.train) + len(mine.validation) == 20
    scaled = mine.normalized(mine.train.x)
    assert np.allclose(scaled[:, 0], (mine.train.x[:, 0] - 39) / 14)
    assert np.array_equal(scaled[:, 5:], mine.train.x[:, 5:])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (row(3, country="Atlantis"), "column native-country holds 'Atlantis'; allowed: "),
        (row(3, age="old"), "column age: could not convert"),
        (row(3, "50K"), "column class holds '50K'; allowed: <=50K, >50K"),
        ("1, 2, 3", "adult.data: line 1 has 3 cells; 15 expected"),
        ("", "adult.data: no rows"),
        (row(3, hours="nan"), "NaN"),
    ],
)
def test_a_table_that_is_another_one_is_said(tmp_path: Path, text: str, said: str) -> None:
    root = write(tmp_path, text)
    with pytest.raises(UsageError, match=said):
        adult(root, client=0, clients=1)


def test_a_missing_or_damaged_file_and_an_impossible_split_are_said(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no adult\.test\.csv\.gz, adult\.test\.csv or"):
        adult_test(str(tmp_path))
    with pytest.raises(UsageError, match="--data-root"):
        adult_test(None)
    (tmp_path / "adult.test.csv.gz").write_bytes(gzip.compress(table(9).encode())[:60])
    with pytest.raises(UsageError, match=r"adult\.test\.csv\.gz: .*comma-separated text expected"):
        adult_test(str(tmp_path))
    root = write(tmp_path, table(150))
    with pytest.raises(UsageError, match="split = 'age'; allowed: dirichlet, occupation"):
        adult(root, client=0, clients=2, split="age")
    with pytest.raises(UsageError, match="16 clients; split by occupation has at most 15"):
        adult(root, client=0, clients=16, split="occupation")


@pytest.mark.skipif(not ADULT.is_dir(), reason="no tabular in FEDOFA_DATA or ../shared/data")
def test_adult_is_read_from_a_users_folder() -> None:
    name = "fedofa.client.table_data:adult"
    found = client_data(DataSource(name, str(ADULT), 4, 15, {"split": "occupation"}))
    space = PRESETS["mlp-adult"]
    assert found.train.x.shape[1:] == space.input_shape(space.largest())
    assert len(found.train) + len(found.validation) == 4066  # executives and managers
    scaled = found.normalized(found.train.x)[:, : len(NUMBERS)]
    assert np.abs(scaled.mean(0)).max() < 1
    assert 0.5 < scaled.std(0).min() <= scaled.std(0).max() < 2
    test = adult_test(str(ADULT))
    assert np.bincount(test.y).tolist() == [12_435, 3846]
