"""What is to be finished, and whether it can be."""

from dataclasses import dataclass
from pathlib import Path

from .recovered import own_model
from .start import check_current, check_folder, finishing_folder, read_start


@dataclass(frozen=True, slots=True)
class Order:
    """What is to be finished: a class of the run in `run`, for so many rounds (None: as begun)."""

    run: Path
    registry: Path
    device_class: str
    rounds: int | None
    resume: bool

    @property
    def folder(self) -> Path:
        """The finishing's own folder."""
        return finishing_folder(self.run, self.device_class)

    def check(self) -> None:
        """UsageError where a finishing would overwrite another, or there is none to resume.

        Also where the class has a newer model by now than the one that is to be finished on, and this
        finishing did not publish it.
        """
        check_folder(self.folder, resume=self.resume, rounds=self.rounds)
        if self.resume and (begun := read_start(self.folder)) is not None:
            start, _ = begun
            if own_model(self.folder, self.registry, start) is None:
                check_current(self.folder, self.registry, start)
