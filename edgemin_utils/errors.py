"""The errors that a user can act on. Each message names the thing and the way out."""


class EdgeMINError(Exception):
    """Base of all errors that the command line prints as one line instead of a traceback."""


class SettingError(EdgeMINError, ValueError):
    """A setting or a model's name is unknown, has the wrong type, or has a value that cannot work."""


class DataError(EdgeMINError, ValueError):
    """Rows cannot be read: missing file, wrong column, unknown label, empty or not UTF-8."""


class ModelError(EdgeMINError, ValueError):
    """A model cannot be had or used: unreachable hub, unsupported family, truncated weights."""


class MethodRefused(ModelError):
    """A method does not fit these models, rows or this machine; within a stage the refusal is its result."""


class StageError(EdgeMINError, RuntimeError):
    """A stage was asked for before the one it needs, would replace a finished one, or its record cannot be read."""


class MemoryShortage(EdgeMINError, MemoryError):
    """A stage needs more memory than the machine or the GPU has free."""


class StorageError(EdgeMINError, OSError):
    """The disk is full or the output folder cannot be written."""
