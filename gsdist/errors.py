"""Define every exception gsdist raises on purpose.

Errors a user can cause are also `ValueError` or `TypeError`, so that code which knows nothing of gsdist can
still catch them. Each message names the value, what was expected and the way out.
"""

__all__ = [
    "CheckpointError",
    "CollectiveError",
    "CollectiveTimeout",
    "ConfigError",
    "ConfigMismatch",
    "DataError",
    "DeviceError",
    "GsdistError",
    "InputTypeError",
    "NonFiniteGradient",
    "PeerLost",
    "UnsupportedSetup",
    "WireFormatError",
]


class GsdistError(Exception):
    """Group all errors raised by gsdist."""


class ConfigError(GsdistError, ValueError):
    """Reject a configuration or argument value."""


class InputTypeError(GsdistError, TypeError):
    """Reject an argument of the wrong type, dtype, device or layout."""


class WireFormatError(GsdistError, ValueError):
    """Reject sketches or bytes of another format, seed, shape or version."""


class ConfigMismatch(GsdistError, ValueError):
    """Report that the ranks of one job disagree about what they are running."""


class CollectiveError(GsdistError, RuntimeError):
    """Report a collective operation that failed or ran past its deadline."""


class CollectiveTimeout(CollectiveError):
    """Report a collective operation that some rank did not come to before the deadline."""


class PeerLost(CollectiveError):
    """Report a rank whose connection broke: it has died, left or been cut off."""


class NonFiniteGradient(GsdistError, ArithmeticError):
    """Report that some rank's gradient holds NaN or infinity; no state was changed."""


class CheckpointError(GsdistError, RuntimeError):
    """Report a checkpoint that cannot be written, found, verified or loaded."""


class UnsupportedSetup(GsdistError, TypeError):
    """Refuse a model, optimizer or wrapper that gsdist cannot serve correctly."""


class DataError(GsdistError, RuntimeError):
    """Report a data set that is missing, incomplete or not the published one."""


class DeviceError(GsdistError, RuntimeError):
    """Report a GPU that has no kernels, or one that did not start them."""
