"""How much larger than predicted the files of a run were, kept in its folder: what plans reckon with.

Predictions are good to a few per cent for the networks that they were fitted to, and too low for others
(`specialize/filesize.py`). Every delivery to a fleet notes what came out, also where nobody could be served.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from ..protos import durable
from ..protos.manifest import FileKind
from ..supernet.errors import UsageError

FILE = "file_sizes.json"
Ratio = Annotated[float, Field(gt=0, allow_inf_nan=False)]
_FORM = TypeAdapter(dict[FileKind, Ratio], config=ConfigDict(strict=True))


def most(folder: Path) -> Mapping[FileKind, float]:
    """Kind of file → the most that one was, over its predicted size. UsageError: a damaged file."""
    path = folder / FILE
    if not path.exists():
        return {}
    try:
        return _FORM.validate_json(path.read_bytes())
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}; remove it and plan again") from None
    except ValidationError as error:
        why = error.errors()[0]["msg"]
        raise UsageError(f"{path}: {why}; remove it and plan again") from None


def note(
    folder: Path, before: Mapping[FileKind, float], made: Iterable[tuple[FileKind, float]]
) -> None:
    """Keep the most of what `most` gave before and of each file made now: its kind, size over predicted."""
    found = dict(before)
    for kind, ratio in made:
        found[kind] = max(ratio, found.get(kind, ratio))
    if found != before:
        durable.write(folder / FILE, json.dumps(found).encode())
