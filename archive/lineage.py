"""Who descends from whom: pure functions over the edges from candidates to their parents."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

Edges = Mapping[str, tuple[str, ...]]
"""Parent ids by candidate id; a candidate without parents may be absent."""


def ancestors(candidate_id: str, edges: Edges) -> list[str]:
    """The candidate last, all its ancestors before it, each after its own parents."""
    return _parents_first([candidate_id], edges)


def depths(edges: Edges) -> dict[str, int]:
    """The longest way from each candidate back to one without parents, in steps."""
    found: dict[str, int] = {}
    for name in _parents_first(edges, edges):
        # A parent without a depth can only be the candidate's own descendant, in a damaged lineage.
        found[name] = max((found.get(parent, 0) + 1 for parent in edges.get(name, ())), default=0)
    return found


def _parents_first(names: Iterable[str], edges: Edges) -> list[str]:
    """Depth-first post-order without recursion; lineages of tuned variants run deep."""
    done: dict[str, None] = {}
    entered: set[str] = set()
    stack = list(reversed(list(names)))
    while stack:
        name = stack[-1]
        waiting = [parent for parent in reversed(edges.get(name, ())) if parent not in entered]
        entered.add(name)
        if waiting:
            stack.extend(waiting)
        else:
            done.setdefault(stack.pop())
    return list(done)
