"""Errors that people can act on. Each is one line, and each has its process exit code."""

EXIT_OK = 0
EXIT_FAILED = 1
EXIT_CONFIG = 2
EXIT_DATA = 3
EXIT_STOPPED = 75  # EX_TEMPFAIL: stopped with a checkpoint, run it again to go on


class AlexnetError(Exception):
    """The job cannot go on, for a reason that is told in one line."""

    exit_code = EXIT_FAILED


class ConfigError(AlexnetError, ValueError):
    """A setting, or a combination of settings, that cannot work."""

    exit_code = EXIT_CONFIG


class DataError(AlexnetError):
    """Images, shards or checkpoints that cannot be used as they are."""

    exit_code = EXIT_DATA


class CheckpointError(AlexnetError):
    """A checkpoint could not be written, or not often enough."""


class BadNumbersError(AlexnetError):
    """Training has come to numbers that are not finite."""
