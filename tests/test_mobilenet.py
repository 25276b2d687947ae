"""The mobilenet family: every kind of block trains over a fleet and exports."""

from pathlib import Path

import pytest
from invariants import check_export, check_federated
from strategies import SMALL


@pytest.mark.slow  # with the preset `digits`, nearly every test of a run does
def test_a_fleet_trains_it(tmp_path: Path) -> None:
    check_federated(SMALL, tmp_path)


@pytest.mark.slow
def test_it_exports_with_float_and_int8_files_that_do_what_it_does(tmp_path: Path) -> None:
    check_export(SMALL, SMALL.smallest(), tmp_path)
