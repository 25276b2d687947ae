"""What the operator sees of a ledger: whether it is whole, and what each device gave."""

import re
from collections.abc import Mapping
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


def as_rows(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same for a table: counts by code as words, no column that is empty for all, no weight."""
    filled = [key for key in records[0] if any(one[key] for one in records)] if records else []
    shown = [key for key in filled if key != "weight"]
    return [
        {key: _words(one[key]) if isinstance(one[key], Mapping) else one[key] for key in shown}
        for one in records
    ]


def _words(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{code} {times}" for code, times in sorted(counts.items()))


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
