"""`fedofa report --check`: each item is said, and the page is written beside that."""

import json
from pathlib import Path

from fedofa.server.cli import app
from fedofa.server.report import command
from fedofa.server.report.page import render
from reported import asked, copied
from typer.testing import CliRunner


def test_check_says_each_item_and_fails_while_one_is_not_met(reported_run: Path) -> None:
    code, text = asked("--run", str(reported_run), "--check")
    assert code == 1
    assert "not met  test-part" in text
    assert "-> measure each class's model" in text
    assert "met  lineage" in text
    code, text = asked("--run", str(reported_run), "--check", "--json")
    assert code == 1
    assert {row["item"]: row["state"] for row in json.loads(text)}["random-baseline"] == "not met"


def test_check_writes_the_page_too_where_the_lineage_is_whole(
    reported_run: Path, tmp_path: Path
) -> None:
    page = tmp_path / "report.html"
    code, text = asked("--run", str(reported_run), "--check", "--html", str(page))
    assert code == 1
    assert text.startswith(f"wrote {page}\n")
    assert "not met  test-part" in text
    assert page.read_text() == render(command.report_of(reported_run))
    page.unlink()
    folder = copied(reported_run, tmp_path / "copy")
    (folder / "models/big/model.int8.onnx").write_bytes(b"x")
    found = CliRunner().invoke(
        app, ["report", "--run", str(folder), "--check", "--html", str(page)]
    )
    assert (found.exit_code, page.exists()) == (1, False)
    assert f"{page} was not written: links of the lineage are broken" in found.stderr
    assert "not met  lineage" in found.stdout
