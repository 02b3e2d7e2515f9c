"""The vector index: the same answers as looking at every vector, whatever was put in and taken out."""

import numpy as np
from hypothesis import given, settings, strategies as st

from services.embedder.ports import Vector
from services.embedder.vectors import Entry, VectorIndex, cosines

DIMENSIONS = 4
Step = tuple[str, int, int, int]  # what, which chunk, which group, which vector


def vector(seed: int) -> Vector:
    values = np.random.default_rng(seed).standard_normal(DIMENSIONS).astype(np.float32)
    return values / np.linalg.norm(values)


def entry(chunk: int, group: int, seed: int) -> Entry:
    return Entry(chunk, group, vector(seed).tobytes())


@st.composite
def steps(draw: st.DrawFn) -> Step:
    kind, chunk = draw(st.sampled_from(["put", "put", "remove", "regroup"])), draw(st.integers(0, 12))
    return kind, chunk, draw(st.integers(1, 3)), draw(st.integers(0, 30))


@given(st.lists(steps(), max_size=40), st.sets(st.integers(1, 4)), st.integers(1, 8))
@settings(max_examples=200, deadline=None)
def test_it_finds_what_looking_at_every_vector_finds(history: list[Step], groups: set[int], count: int) -> None:
    index = VectorIndex(DIMENSIONS)
    model: dict[int, tuple[int, int]] = {}
    for kind, chunk, group, seed in history:
        if kind == "put":
            index.put([entry(chunk, group, seed)])
            model[chunk] = (group, seed)
        elif kind == "remove":
            index.remove([chunk])
            model.pop(chunk, None)
        elif chunk in model:
            index.regroup([chunk], group)
            model[chunk] = (group, model[chunk][1])
    assert len(index) == len(model)
    query = vector(99)
    expected = sorted((float(vector(s) @ query) for g, s in model.values() if g in groups), reverse=True)[:count]
    found = index.search(query, groups, count)
    np.testing.assert_allclose([cosine for _, cosine in found], expected, atol=1e-6)
    assert all(model[chunk][0] in groups for chunk, _ in found)
    assert index.vectors([*model, 777]).keys() == model.keys()


def test_it_grows_and_shrinks_over_its_capacity() -> None:
    index = VectorIndex(DIMENSIONS)
    index.put(entry(n, 1, n) for n in range(1000))
    index.remove(range(990))
    assert sorted(chunk for chunk, _ in index.search(vector(1), {1}, 100)) == list(range(990, 1000))


def test_an_empty_index_finds_nothing() -> None:
    index = VectorIndex(DIMENSIONS)
    assert index.search(vector(1), {1}, 5) == []
    assert cosines(vector(1), []) == []
    index.clear()
    assert index.vectors([1]) == {}
