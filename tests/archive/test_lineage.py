"""Ancestors and depths, for any shape of lineage."""

from hypothesis import given
from hypothesis import strategies as st

from archive.lineage import ancestors, depths


@st.composite
def lineages(draw: st.DrawFn) -> dict[str, tuple[str, ...]]:
    """Candidates "0", "1", … whose parents have smaller numbers."""
    size = draw(st.integers(1, 12))
    parents = [draw(st.lists(st.integers(0, n - 1), unique=True, max_size=3)) if n else [] for n in range(size)]
    return {str(n): tuple(map(str, names)) for n, names in enumerate(parents)}


@given(lineages())
def test_ancestors_stand_once_and_after_their_parents(edges: dict[str, tuple[str, ...]]) -> None:
    for name in edges:
        line = ancestors(name, edges)
        assert line[-1] == name
        assert len(set(line)) == len(line)
        for place, each in enumerate(line):
            assert set(edges[each]) <= set(line[:place])


@given(lineages())
def test_depth_is_one_more_than_the_deepest_parents(edges: dict[str, tuple[str, ...]]) -> None:
    deep = depths(edges)
    assert all(deep[name] == max((deep[p] + 1 for p in edges[name]), default=0) for name in edges)


def test_long_chain_and_circle_come_to_an_end() -> None:
    chain = {str(n): (str(n - 1),) for n in range(1, 50_000)}
    assert depths(chain)["49999"] == 49_999
    assert len(ancestors("a", {"a": ("b",), "b": ("a",)})) == 2
    assert set(depths({"a": ("b",), "b": ("a",)})) == {"a", "b"}
