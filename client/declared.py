"""What a device's profile file declares; read without torch, so that it is checked at once."""

import tomllib
from pathlib import Path

from pydantic import ValidationError

from ..protos.messages import Declared
from ..protos.probes import read_measurements
from ..supernet.cost import Budget
from ..supernet.errors import ArtifactError, UsageError


def read_profile(path: Path) -> Declared:
    """A profile file (TOML); UsageError names the wrong field and the allowed ones."""
    try:
        fields = tomllib.loads(path.read_text())
        declared = Declared.model_validate(fields)
        Budget.from_dict(declared.budget)
        if declared.measurements is not None:
            # Beside the profile file, unless it says where.
            found = path.parent / Path(declared.measurements).expanduser()
            read_measurements(found)
            declared = declared.model_copy(update={"measurements": str(found.resolve())})
    except FileNotFoundError:
        raise UsageError(f"profile file {path} does not exist") from None
    except OSError as error:
        raise UsageError(f"profile file {path} cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, UsageError, ArtifactError) as error:
        raise UsageError(f"profile file {path}: {error}") from None
    except ValidationError as error:
        first = error.errors()[0]
        wrong = f"{'.'.join(map(str, first['loc']))} = {first['input']!r}: {first['msg']}"
        if first["type"] == "extra_forbidden":
            wrong += (
                f"; allowed: {', '.join(Declared.model_fields)}; "
                f"in [budget]: {', '.join(Budget.__match_args__)}"
            )
        raise UsageError(f"profile file {path}: {wrong}") from None
    return declared
