"""How an attempt, or a launch, ends before its time."""

from alexnet.errors import EXIT_CONFIG, EXIT_STOPPED, AlexnetError


class AttemptFailedError(AlexnetError):
    """The group was lost, for a reason that may be gone when it is started again."""


class NoResourcesError(AttemptFailedError):
    """The cluster has no room for the group: a wrong setting, unless it has had room before."""

    exit_code = EXIT_CONFIG


class ReplanError(AlexnetError):
    """The cluster is no longer what the group was planned for; no work is lost."""


class StoppedError(AlexnetError):
    """Somebody asked for an end, and there was nothing left to wait for."""

    exit_code = EXIT_STOPPED


def one_line(error: BaseException) -> str:
    """Return what an error of a library says, without its line breaks and its traceback."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
