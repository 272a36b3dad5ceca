"""Errors written for the person who reads them at 3 a.m.: one paragraph, naming the culprit.

Every error the program expects is a PoseError. The command line prints its text and exits with its code;
anything else is a bug and keeps its traceback.
"""


class PoseError(Exception):
    """An expected failure, with the exit code the command line returns for it."""

    exit_code = 1


class ConfigError(PoseError):
    """params.yaml, a profile, `--set` or a command's argument asks for something impossible."""

    exit_code = 2


class DataError(PoseError):
    """An archive, an image or an annotation is not what it should be."""

    exit_code = 3


class TrainingError(PoseError):
    """Training stopped: a non-finite loss, a full disk, a broken checkpoint."""

    exit_code = 4


class ExportError(PoseError):
    """An exported model does not repeat what the trained network says."""

    exit_code = 5


class RegistryError(PoseError):
    """MLflow is unreachable, or a model version is missing, incomplete or locked."""

    exit_code = 6


class RegistryAwayError(RegistryError):
    """MLflow does not answer as expected; it may later."""
