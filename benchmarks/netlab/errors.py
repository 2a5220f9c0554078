"""Define what the network lab raises beside `ConfigError`."""

from gsdist.errors import GsdistError

__all__ = ["LabError", "LabUnavailable", "RateError"]


class LabError(GsdistError, RuntimeError):
    """Report that a step of building or using the lab failed."""


class LabUnavailable(LabError):
    """Report what this machine lacks for a network lab, and the way out."""


class RateError(LabError):
    """Report a link that is not as fast as asked, so that nothing is measured over it."""
