"""Hold what a report page is put together from."""

from collections.abc import Sequence
from dataclasses import dataclass, field

__all__ = ["Figure", "Section", "Table"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """Hold a table of plain text."""

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Figure:
    """Hold a plot as an SVG element."""

    title: str
    svg: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Section:
    """Hold what one result file has to show."""

    title: str
    text: str = ""
    tables: Sequence[Table] = ()
    figures: Sequence[Figure] = field(default=())
