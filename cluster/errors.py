"""How an attempt, or a launch, ends before its time."""

import re

from alexnet.errors import EXIT_CONFIG, EXIT_STOPPED, AlexnetError

COLOUR = re.compile(r"\x1b\[[0-9;]*m")


class AttemptFailedError(AlexnetError):
    """The group was lost, for a reason that may be gone when it is started again."""


class NoResourcesError(AttemptFailedError):
    """The cluster has no room for the group: a wrong setting, unless it has had room before."""

    exit_code = EXIT_CONFIG


class ReplanError(AlexnetError):
    """The cluster is no longer what the group was planned for; no work is lost."""

    def __init__(self, message: str, most: int | None = None) -> None:
        """Tell how many ranks there is room for now, if it is more."""
        super().__init__(message)
        self.most = most


class StoppedError(AlexnetError):
    """Somebody asked for an end, and there was nothing left to wait for."""

    exit_code = EXIT_STOPPED


def one_line(error: BaseException) -> str:
    """Return what an error of a library says: its first line, or what ends its traceback."""
    text = COLOUR.sub("", str(error))
    lines = [line.strip() for line in text.splitlines() if re.search(r"\w", line)]
    if not lines:
        return type(error).__name__
    return lines[-1] if any(line.startswith("File ") for line in lines) else lines[0]


def refusal(error: Exception) -> str:
    """Return in one line why a cluster of Ray could not be joined."""
    if "InvalidAuthToken" in f"{error} {error.__cause__}":
        return (
            "refused: the token in RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token is "
            "missing or not that cluster's"
        )
    return " ".join(str(error).split())
