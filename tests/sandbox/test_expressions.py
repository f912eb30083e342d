import ast
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox.errors import PlanError
from sandbox.expressions import parse_expr, split_arguments


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("S", 1000),
        ("cdiv(S, 64)", 16),
        ("2*S + 3 % 2", 2001),
        ("min(S, 7, D)", 7),
        ("max(S, 7, D)", 1000),
        ("S // 3 - -1", 334),
        ("S > 512 and not D == 64 or D == 128", 1),
        ("not (S and D)", 0),
        ("(S + 1) * (D - 1)", 127127),
        ("not not S", 1),
    ],
)
def test_value(text: str, value: int) -> None:
    assert parse_expr(text, names=["S", "D"]).evaluate({"S": 1000, "D": 128}) == value


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("S +", "got the end"),
        ("cdiv(S)", "cdiv takes two"),
        ("min(S)", "two or more"),
        ("(S", "wanted ')'"),
        ("S D", "got 'D', wanted the end"),
        ("S $ 2", "no part of an expression"),
        ("Q + 1", "unknown name 'Q'"),
        ("1 < S < 3", "got '<'"),
        ("__import__('os')", "no part of an expression"),
        ("", "got the end"),
        ("(" * 200 + "1" + ")" * 200, "nested more than"),
        ("and", "got 'and'"),
        ("9" * 19, "at most 18 digits"),
    ],
)
def test_error_names_line_and_reason(text: str, wanted: str) -> None:
    with pytest.raises(PlanError, match="line 7") as caught:
        parse_expr(text, line=7, names=["S", "D"])
    assert wanted in str(caught.value)


@pytest.mark.parametrize(
    "text", ["S // 0", "S % 0", "cdiv(S, 0)", "(0 - S) // 2", "S*S*S*S*S*S*S*S*S*S*S*S*S*S*S*S*S*S*S*S*S*S"]
)
def test_values_that_do_not_exist_are_errors(text: str) -> None:
    with pytest.raises(PlanError, match="line 3"):
        parse_expr(text, line=3).evaluate({"S": 1000})


_ATOMS = st.one_of(st.integers(0, 50).map(str), st.sampled_from(["a", "b"]))
_EXPRESSIONS = st.recursive(
    _ATOMS,
    lambda inner: st.builds(
        lambda op, x, y: f"({x} {op} {y})",
        st.sampled_from(["+", "-", "*", "<", "<=", "==", "!=", "and", "or"]),
        inner,
        inner,
    ),
    max_leaves=12,
)


@given(_EXPRESSIONS, st.integers(0, 9), st.integers(0, 9))
def test_agrees_with_python(text: str, a: int, b: int) -> None:
    # Python's `and` and `or` give an operand where ours give a truth value, so compare inside bool() there.
    ours = parse_expr(text).evaluate({"a": a, "b": b})
    assert ours == _reference(ast.parse(text, mode="eval").body, {"a": a, "b": b})


def _reference(node: ast.AST, env: dict[str, int]) -> int:
    if isinstance(node, ast.BoolOp):
        values = [bool(_reference(value, env)) for value in node.values]
        return int(all(values) if isinstance(node.op, ast.And) else any(values))
    if isinstance(node, ast.BinOp):
        x, y = _reference(node.left, env), _reference(node.right, env)
        return {ast.Add: x + y, ast.Sub: x - y, ast.Mult: x * y}[type(node.op)]  # type: ignore[index]
    if isinstance(node, ast.Compare):
        x, y = _reference(node.left, env), _reference(node.comparators[0], env)
        return int({ast.Lt: x < y, ast.LtE: x <= y, ast.Eq: x == y, ast.NotEq: x != y}[type(node.ops[0])])  # type: ignore[index]
    return env[node.id] if isinstance(node, ast.Name) else int(ast.literal_eval(node))


def test_cpp_names_every_function_and_prefix() -> None:
    text = parse_expr("cdiv(S, 64) * min(D, 3) // 2 % 5 + (S > 1 and not D)").to_cpp("axis_")
    for part in ("ws_cdiv(axis_S, int64_t(64))", "ws_min(", "ws_div(", "ws_mod(", "&&", "!axis_D"):
        assert part in text


def test_arguments_split_outside_parentheses() -> None:
    assert split_arguments("a, min(b, c), (d, e)") == ["a", "min(b, c)", "(d, e)"]


def test_names() -> None:
    pairs = itertools.chain(parse_expr("min(a, b) + 3*c").names())
    assert sorted(pairs) == ["a", "b", "c"]
