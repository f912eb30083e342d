"""Words that carry meaning."""

import pytest

from agent.engineer.tokens import tokens


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("Load the tiles, using cp.async", ["load", "tile", "cp", "async"]),
        ("loss of 64 rows", ["loss", "64", "row"]),
        ("BLOCK_M=128", ["block", "m", "128"]),
        ("x·gateᵀ", ["x", "gateᵀ"]),
        ("the of a", []),
        ("", []),
    ],
)
def test_tokens(text, wanted) -> None:
    assert tokens(text) == wanted
