"""Graphs: read as they are written, split once, verified, and refused with the way out."""

import sqlite3
import zipfile

import numpy as np
import pytest
import torch
from torch_geometric.data import HeteroData

from gsdist.data import FETCHABLE, films, published_graphs, wordnet
from gsdist.data.graph_task import memberships, multi_hot, non_links, split_nodes
from gsdist.data.graphs import load_link_task, load_node_task
from gsdist.data.hetero_sbm import hetero_sbm
from gsdist.errors import ConfigError, DataError

# ---- films ----------------------------------------------------------------------------------------

COLUMNS = ("Title", "Year", "Runtime", "Genre", "Director", "Writer", "Cast", "Language", "Country")
ROWS = [
    # title, year, runtime, genre, director, writer, cast, language, country; company
    (
        "The Big Sleep",
        1946,
        114.0,
        "Drama, Crime",
        "Ann A, Jr.",
        "W",
        "Bo, Cy",
        "English",
        "US",
        "X",
    ),
    ("Big Fun", 1951, None, "Comedy", "Ann A", "", "Bo, Cy", "English, French", "US", "X, Inc."),
    ("Fun", None, 90.0, "Action", "Di D", None, "Bo", "French", "FR", None),
    ("Both", 1990, 90.0, "Action, Comedy", "Di D", "W", "Cy", "French", "FR", "Y"),
    ("Nobody", 1990, 90.0, "Drama", "", "W", "", "French", "FR", "Y"),
]


def write_database(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    with sqlite3.connect(path) as connection:
        named = ", ".join(f'"{name}"' for name in COLUMNS)
        connection.execute(f"create table omdb (ID, {named})")
        connection.execute("create table tomatoes (ID, Production)")
        for number, row in enumerate(ROWS):
            connection.execute(f"insert into omdb values ({'?,' * 9}?)", (number, *row[:9]))
            connection.execute("insert into tomatoes values (?, ?)", (number, row[9]))
    connection.close()
    return path


@pytest.fixture
def small_films(tmp_path, monkeypatch):
    path = write_database(tmp_path / "films" / "movies.db")
    monkeypatch.setattr(films, "DATABASE_SHA256", films.file_sha256(path))
    return films.read_films(tmp_path)


def test_names_are_split_at_commas_but_not_from_their_endings(small_films):
    assert [film.director for film in small_films[:2]] == [("Ann A",), ("Ann A",)]
    assert small_films[1].company == ("X",)
    assert small_films[1].languages == ("English", "French")
    assert small_films[2].writer == ()


def test_the_genre_task_keeps_films_of_one_genre_that_name_somebody(small_films):
    task = films.film_genres(small_films)
    assert task.labels.tolist() == [2, 1, 0]
    data = task.graph.data
    # Only who is in two of these films connects anything: Ann A; Bo and Cy.
    assert data["director"].num_nodes == 1 and data["actor"].num_nodes == 2
    assert data["film", "names", "director"].edge_index.tolist() == [[0, 1], [0, 0]]
    acting = set(map(tuple, data["film", "names", "actor"].edge_index.T.tolist()))
    assert acting == {(0, 0), (0, 1), (1, 0), (1, 1), (2, 0)}
    back = data["actor", "rev_names", "film"].edge_index.flip(0)
    assert set(map(tuple, back.T.tolist())) == acting
    features = data["film"].x.to_dense()
    # Decades 194, 195; lengths 6, 7; no title word thrice; English, French; FR, US.
    assert features.tolist() == [
        [1, 0, 0, 1, 1, 0, 0, 1],
        [0, 1, 0, 0, 1, 1, 0, 1],
        [0, 0, 1, 0, 0, 1, 1, 0],
    ]


def test_links_are_taken_out_of_the_message_graph(small_films):
    task = films.film_links(small_films * 4)
    edges = task.graph.data["film", "names", "actor"].edge_index
    assert torch.equal(edges, task.train[:, np.lexsort(task.train.numpy()[::-1])])
    assert task.test.shape == task.test_negatives.shape and task.test.shape[1] > 0


def test_a_fetched_database_is_verified_and_kept(tmp_path, monkeypatch):
    database = write_database(tmp_path / "made.db")

    def archive(requirement, folder, *, time_limit, kind):
        assert (requirement, kind) == (films.PACKAGE, "*.whl")
        with zipfile.ZipFile(folder / "package.whl", "w") as package:
            package.write(database, "bokeh_sampledata/_data/movies.db")
        return folder / "package.whl"

    monkeypatch.setattr(films, "pip_package_archive", archive)
    with pytest.raises(DataError, match="not the published film database"):
        films.fetch(tmp_path / "root", time_limit=1)
    monkeypatch.setattr(films, "DATABASE_SHA256", films.file_sha256(database))
    folder = films.fetch(tmp_path / "root", time_limit=1)
    monkeypatch.delattr(films, "pip_package_archive")  # not needed a second time
    assert films.fetch(tmp_path / "root", time_limit=1) == folder
    assert len(films.read_films(tmp_path / "root")) == len(ROWS)
    assert "films" in FETCHABLE


# ---- WordNet --------------------------------------------------------------------------------------

NOUNS = """\
  1 This line is of the licence
00000010 03 n 02 entity 0 Thing 0 001 ~ 00000020 n 0000 | that which exists; "a thing"
00000020 05 n 01 dog 0 003 @ 00000010 n 0000 + 00000099 v 0101 #m 00000030 n 0000 | an animal
00000030 14 n 0a pack 0 a 0 b 0 c 0 d 0 e 0 f 0 g 0 h 0 thing 0 \
002 @i 00000010 n 0000 %m 00000020 n 0000 | dogs
"""


def test_lines_of_wordnet_are_read_field_by_field():
    entity, dog, pack = wordnet.parse(NOUNS)
    assert entity.words == ("entity", "thing") and entity.lexicographer_file == 3
    assert dog.pointers[1] == ("+", "00000099", "v")
    assert len(pack.words) == 10  # the count is hexadecimal
    assert pack.gloss == "dogs"


def test_the_noun_task_links_synsets_by_pointers_and_words():
    task = wordnet.noun_classes(list(wordnet.parse(NOUNS)))
    data = task.graph.data
    assert task.labels.tolist() == [0, 2, 11]
    assert data["synset", "hypernym", "synset"].edge_index.tolist() == [[1, 2], [0, 0]]
    assert data["synset", "member", "synset"].edge_index.tolist() == [[2], [1]]
    assert data["synset", "has", "word"].edge_index.tolist() == [[0, 2], [0, 0]]  # "thing"


def test_another_wordnet_is_refused(tmp_path):
    (tmp_path / "wordnet").mkdir()
    (tmp_path / "wordnet" / "data.noun").write_text(NOUNS)
    with pytest.raises(DataError, match="WordNet 3.0.*gsdist data wordnet"):
        wordnet.read_nouns(tmp_path)


# ---- published graphs -----------------------------------------------------------------------------


def test_the_split_of_magnn_is_the_published_one():
    train, validation, test = published_graphs.split_as_magnn(4057, 400, 3257)
    assert train[:5].tolist() == [21, 31, 36, 55, 80]
    assert [len(part) for part in (train, validation, test)] == [400, 400, 3257]
    assert sorted(torch.cat([train, validation, test]).tolist()) == list(range(4057))


def pyg_data(name, monkeypatch, data, tmp_path):
    (tmp_path / "processed").mkdir(exist_ok=True)
    monkeypatch.setattr(f"torch_geometric.datasets.{name}", lambda root: [data])


def edges(data, source, destination, pairs):
    index = torch.tensor(pairs).T
    data[source, "to", destination].edge_index = index
    data[destination, "to", source].edge_index = index.flip(0)


def test_imdb_in_the_layout_of_pyg(tmp_path, monkeypatch):
    data = HeteroData()
    for name, count in (("movie", 4), ("director", 2), ("actor", 3)):
        data[name].x = torch.eye(count, 5)
    data["movie"].y = torch.tensor([0, 1, 2, 1])
    for part, chosen in (("train", [0]), ("val", [1]), ("test", [2, 3])):
        data["movie"][f"{part}_mask"] = torch.zeros(4, dtype=torch.bool)
        data["movie"][f"{part}_mask"][chosen] = True
    edges(data, "movie", "director", [(0, 0), (1, 0), (2, 1), (3, 1)])
    edges(data, "movie", "actor", [(0, 0), (1, 1), (2, 2), (3, 2)])
    pyg_data("IMDB", monkeypatch, data, tmp_path)
    task = load_node_task("imdb", tmp_path)
    assert (task.layers, task.head_bias, task.gain) == (2, False, 1.414)
    assert task.test.tolist() == [2, 3]
    assert task.graph.data["movie"].x.is_sparse
    assert "x" not in task.graph.data["actor"] and task.graph.data["actor"].num_nodes == 3
    shown = {
        name: ["".join([view[0][0][0], *(step[2][0] for step in view)]) for view in views]
        for name, views in task.graph.views.items()
    }
    assert shown == {
        "movie": ["mdm", "mam"],
        "director": ["dmd", "dmamd"],
        "actor": ["ama", "amdma"],
    }


def test_last_fm_sends_messages_on_training_links_only(tmp_path, monkeypatch):
    data = HeteroData()
    for name, count in (("user", 3), ("artist", 4), ("tag", 2)):
        data[name].num_nodes = count
    everything = [(user, artist) for user in range(3) for artist in range(3)]
    edges(data, "user", "artist", everything)
    edges(data, "artist", "tag", [(0, 0), (1, 1)])
    data["user", "to", "user"].edge_index = torch.tensor([[0, 1], [1, 0]])
    store = data["user", "to", "artist"]
    store["val_pos_edge_index"], store["test_pos_edge_index"] = (
        torch.tensor([[0], [1]]),
        torch.tensor([[2], [2]]),
    )
    store["val_neg_edge_index"], store["test_neg_edge_index"] = (
        torch.tensor([[0], [3]]),
        torch.tensor([[1], [3]]),
    )
    pyg_data("LastFM", monkeypatch, data, tmp_path)
    task = load_link_task("last-fm", tmp_path)
    expected = set(everything) - {(0, 1), (2, 2)}
    assert set(map(tuple, task.train.T.tolist())) == expected
    for relation, order in (("user", "artist"), 1), (("artist", "user"), -1):
        found = task.graph.data[relation[0], "to", relation[1]].edge_index
        assert {pair[::order] for pair in map(tuple, found.T.tolist())} == expected


# ---- what they share ------------------------------------------------------------------------------


def test_names_that_enough_nodes_have_are_numbered():
    rows, columns, names = memberships([["b", "a", "b"], [], ["b", "c"]], 2)
    assert (rows.tolist(), columns.tolist(), names) == ([0, 2], [0, 0], ["b"])
    matrix = multi_hot(np.array([1, 1, 0]), np.array([2, 2, 0]), (2, 3))
    assert matrix.to_dense().tolist() == [[1, 0, 0], [0, 0, 1]]


def test_parts_are_disjoint_complete_and_follow_the_seed():
    parts = split_nodes(101, shares=(0.2, 0.1), seed=3)
    assert [len(part) for part in parts] == [20, 10, 71]
    assert sorted(torch.cat(parts).tolist()) == list(range(101))
    again, other = (split_nodes(101, shares=(0.2, 0.1), seed=seed) for seed in (3, 4))
    assert torch.equal(parts[0], again[0]) and not torch.equal(parts[0], other[0])


def test_non_links_are_drawn_even_where_few_are_left():
    links = torch.tensor([(a, b) for a in range(4) for b in range(3) if (a, b) != (2, 1)]).T
    assert non_links(links, (4, 3), 5, np.random.default_rng(0)).T.tolist() == [[2, 1]] * 5


def test_the_block_model_follows_its_seed_and_its_classes():
    one, same, other = (hetero_sbm(seed=seed).graph.data for seed in (0, 0, 1))
    relation = ("paper", "has", "author")
    assert torch.equal(one[relation].edge_index, same[relation].edge_index)
    assert not torch.equal(one[relation].edge_index, other[relation].edge_index)
    assert hetero_sbm().labels.bincount().tolist() == [30] * 4


@pytest.mark.parametrize(
    ("load", "name", "message"),
    [
        (load_node_task, "last-fm", "no classes to learn; mv-hetgnn-links"),
        (load_link_task, "wordnet", "no links to predict; films and last-fm"),
    ],
)
def test_graphs_without_the_task_are_refused(load, name, message):
    with pytest.raises(ConfigError, match=message):
        load(name)
