"""Refuse settings out of range, by their names."""

from gsdist.errors import ConfigError

__all__ = ["require_not_negative", "require_positive"]


def require_positive(config: object, *names: str) -> None:
    """Refuse fields that are not positive.

    Raises:
        ConfigError: the first such field.
    """
    for name in names:
        if getattr(config, name) <= 0:
            raise ConfigError(f"{name} must be positive, got {getattr(config, name)}")


def require_not_negative(config: object, *names: str) -> None:
    """Refuse negative fields.

    Raises:
        ConfigError: the first such field.
    """
    for name in names:
        if getattr(config, name) < 0:
            raise ConfigError(f"{name} must be at least 0, got {getattr(config, name)}")
