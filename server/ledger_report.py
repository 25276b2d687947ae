"""What the operator sees of a ledger: whether it is whole, and what each device gave."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..supernet.errors import UsageError
from .contributions import contributions
from .ledger_chain import LEDGER, checked, ledger_at, verify
from .ledger_entries import LedgerError
from .ledger_keys import PUBLIC, PublicKey


def verdict(path: Path, key: Path | None = None, head: str | None = None) -> dict[str, Any]:
    """Check a ledger (its file or its run's folder) with a public key (default: beside it).

    `ok` is False with the first bad entry, or True with what the ledger holds. UsageError for a file
    that is not there or a head that is no hash.
    """
    if head is not None and re.fullmatch(r"[0-9a-f]{64}", head) is None:
        raise UsageError(f"head {head[:80]!r}: 64 hex digits, as the run printed them at its end")
    file, public = _files(path, key)
    try:
        found = verify(file, public, head)
    except LedgerError as error:
        return {"ok": False, "ledger": str(file), **_bad(error)}
    return {"ok": True, "ledger": str(file), **asdict(found)}


def by_device(path: Path, key: Path | None = None) -> list[dict[str, Any]]:
    """A record per device; LedgerError when the ledger is not what was written."""
    file, public = _files(path, key)
    return [asdict(one) for one in contributions(checked(file, public))]


def told(found: Mapping[str, Any]) -> dict[str, Any]:
    """A good verdict for people: a sentence first, and nothing that is zero or was not asked for."""
    rounds = f"{found['recorded']:,} round{'' if found['recorded'] == 1 else 's'}"
    counts = {key: found[key] for key in ("superseded", "unrecorded") if found[key]}
    after = found["after_head"]
    head = (
        {} if after is None else {"expected_head": f"is there, {after:,} entries before the last"}
    )
    return {
        "whole": f"{rounds}, signed by {found['key']}",
        **counts,
        **head,
        "head": found["head"],
        "weights": found["weights"],
        "ledger": found["ledger"],
    }


def as_rows(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same for a table of 80 columns: shares in percent, and in words what is zero for most.

    Weights stay in the JSON form.
    """
    return [
        {
            "device": one["device"],
            "asked": one["assigned"],
            "good": one["accepted"],
            "share": f"{one['share']:.1%}",
            "strikes": one["strikes"],
            "besides": ", ".join(_besides(one)),
        }
        for one in records
    ]


def _besides(one: Mapping[str, Any]) -> Iterator[str]:
    for what in ("refused", "suspected"):
        if one[what]:
            counts = (f"{code} {times}" for code, times in sorted(one[what].items()))
            yield f"{what} {', '.join(counts)}"
    for what in ("missing", "unused"):
        if one[what]:
            yield f"{what} {one[what]:,}"
    if one["quarantined"]:
        yield f"in quarantine until round {one['until_round']}"


def _bad(error: LedgerError) -> dict[str, Any]:
    return {
        "entry": error.entry,
        "problem": error.problem,
        "detail": error.detail,
        "error": str(error),
    }


def _files(path: Path, key: Path | None) -> tuple[Path, PublicKey]:
    file = ledger_at(path)
    if not file.is_file():
        raise UsageError(f"ledger {file}: no such file; a run keeps it as RUN_FOLDER/{LEDGER}")
    return file, PublicKey.read(key or file.with_name(PUBLIC))
