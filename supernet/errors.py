"""The project's errors, one tree, importable without torch.

An error's text is one or two lines for a person: what was wrong, where (file, field, device,
tensor), what is allowed, and what to do. The command lines print it and exit with `exit_code`.
"""


class FedofaError(Exception):
    """Root of every error this project raises on purpose."""

    exit_code = 1


class UsageError(FedofaError):
    """The caller asked for something impossible: a wrong field, budget, file or function."""

    exit_code = 2


class RefusedUpdate(FedofaError):
    """A client's update was not counted. `code` is a stable reason code such as `non_finite`."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(f"{code}: {detail}")
        self.code = code


class ExportError(FedofaError):
    """A subnet could not be exported, or its exported file does not do what the subnet does."""


class ArtifactError(FedofaError):
    """A stored or downloaded artifact is missing, damaged, or fails its golden test."""


class DepotError(FedofaError):
    """The depot refused a request or cannot be reached. `code` is its stable reason code."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(f"{code}: {detail}")
        self.code = code


class RunError(FedofaError):
    """A federated run ended without its result: too few replies, a lost server, a deadline."""
