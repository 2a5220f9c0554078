"""Read the nouns of WordNet 3.0 with their relations from a Debian package."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from gsdist.data.download import (
    debian_package_files,
    file_sha256,
    place_file,
    staging_folder,
)
from gsdist.data.graph_task import (
    Graph,
    NodeTask,
    Relation,
    add_links,
    empty_graph,
    memberships,
    multi_hot,
    reverse,
    split_nodes,
)
from gsdist.errors import DataError

__all__ = ["NOUNS_SHA256", "PACKAGE", "Synset", "fetch", "noun_classes", "parse", "read_nouns"]

PACKAGE = "wordnet-base"
NOUNS_SHA256 = "fea17d2f9656611334eac790e5d69e47645fa180c4aa481fb4cd9b3520754ca2"
_FILE = Path("wordnet", "data.noun")
_DEBIAN_FILE = Path("usr", "share", "wordnet", "data.noun")
_FIRST_CLASS, _CLASSES = 3, 26
"""Numbers of the lexicographer files that hold nouns."""
_POINTERS = {"hypernym": ("@", "@i"), "part": ("%p",), "member": ("%m",)}
_MIN_GLOSS_SYNSETS = 5
"""A word of the explanations is a feature when so many synsets have it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Synset:
    """Hold one line of the file."""

    offset: str
    lexicographer_file: int
    words: tuple[str, ...]
    pointers: tuple[tuple[str, str, str], ...]
    """Symbol, offset and part of speech of each related synset."""
    gloss: str


def fetch(root: Path, *, time_limit: float) -> Path:
    """Make sure that the verified file lies below `root` and return its folder.

    Raises:
        DataError: the file cannot be had, or is not the published one.
    """
    path = root / _FILE
    if not path.exists() or file_sha256(path) != NOUNS_SHA256:
        with staging_folder(root) as staging:
            files = debian_package_files(PACKAGE, staging, time_limit=time_limit)
            _verify(files / _DEBIAN_FILE)
            place_file(files / _DEBIAN_FILE, path)
    return path.parent


def read_nouns(root: Path) -> list[Synset]:
    """Read all synsets of nouns of the verified file.

    Raises:
        DataError: not there, or not the published one.
    """
    path = root / _FILE
    if not path.exists():
        raise DataError(
            f"WordNet is not in {root}: run `gsdist data wordnet` (it runs `apt-get download "
            f"{PACKAGE}`, 6 MB)"
        )
    _verify(path)
    return list(parse(path.read_text("ascii")))


def parse(text: str) -> Iterator[Synset]:
    """Read the lines of a data file; the licence at its head begins with spaces."""
    for line in text.splitlines():
        if line.startswith(" "):
            continue
        head, _, gloss = line.partition(" | ")
        fields = head.split()
        count = int(fields[3], 16)
        first = 5 + 2 * count
        pointers = fields[first : first + 4 * int(fields[first - 1])]
        yield Synset(
            offset=fields[0],
            lexicographer_file=int(fields[1]),
            words=tuple(word.lower() for word in fields[4 : 4 + 2 * count : 2]),
            pointers=tuple(
                (pointers[at], pointers[at + 1], pointers[at + 2])
                for at in range(0, len(pointers), 4)
            ),
            gloss=gloss.strip(),
        )


def noun_classes(synsets: list[Synset], *, seed: int = 0) -> NodeTask:
    """Ask in which of 26 lexicographer files (act, animal, artifact, ...) a noun's synset stands.

    10 % are for training, 10 % for validation. Views: synsets below and above, wholes, groups, synsets that
    share a word, and that share a derived verb or adjective. Hypernyms keep the class 96 % of the time.
    """
    number = {synset.offset: index for index, synset in enumerate(synsets)}
    data = empty_graph()
    glosses = (re.findall(r"[a-z]+", synset.gloss.lower()) for synset in synsets)
    rows, columns, words = memberships(glosses, _MIN_GLOSS_SYNSETS)
    data["synset"].x = multi_hot(rows, columns, (len(synsets), len(words)))
    for name, symbols in _POINTERS.items():
        edges = [
            (index, number[offset])
            for index, synset in enumerate(synsets)
            for found, offset, _ in synset.pointers
            if found in symbols
        ]
        add_links(data, _relation(name), np.array(edges, np.int64).reshape(-1, 2).T)
    derived = (
        [speech + offset for _, offset, speech in synset.pointers if speech != "n"]
        for synset in synsets
    )
    for name, values in (("word", (synset.words for synset in synsets)), ("derived", derived)):
        rows, columns, names = memberships(values, 2)
        data[name].num_nodes = len(names)
        add_links(data, ("synset", "has", name), np.stack([rows, columns]))
    shared: tuple[Relation, ...] = (("synset", "has", "word"), ("synset", "has", "derived"))
    pointed = tuple(_relation(name) for name in _POINTERS)
    train, validation, test = split_nodes(len(synsets), shares=(0.1, 0.1), seed=seed)
    return NodeTask(
        graph=Graph(
            data=data,
            views={
                "synset": (
                    *((relation,) for relation in pointed),
                    *((reverse(relation),) for relation in pointed),
                    *((relation, reverse(relation)) for relation in shared),
                )
            },
            inverse=frozenset(reverse(relation) for relation in (*pointed, *shared)),
        ),
        target="synset",
        labels=torch.tensor([synset.lexicographer_file - _FIRST_CLASS for synset in synsets]),
        num_classes=_CLASSES,
        train=train,
        validation=validation,
        test=test,
    )


def _relation(name: str) -> Relation:
    return ("synset", name, "synset")


def _verify(path: Path) -> None:
    found = file_sha256(path)
    if found != NOUNS_SHA256:
        raise DataError(
            f"{path} does not hold the nouns of WordNet 3.0 (SHA-256 {found}, expected "
            f"{NOUNS_SHA256}); delete it and run `gsdist data wordnet`"
        )
