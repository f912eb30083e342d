"""Integer expressions of launch plans and task files: parsed, checked, evaluated, translated to C++.

The grammar stands in docs/kernel-contract.md. Not covered: floating point, strings, chained comparisons.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeAlias

from pydantic import BaseModel, ConfigDict

from sandbox.errors import PlanError

Node: TypeAlias = "int | str | tuple[str, tuple[Node, ...]]"
"""An integer, a name, or an operator with its operands."""

_TOKEN = re.compile(r"\s*(?:(\d+)|([A-Za-z_]\w*)|(//|==|!=|<=|>=|[-+*%<>(),]))")
_COMPARISONS = ("==", "!=", "<=", ">=", "<", ">")
_FUNCTIONS = ("min", "max", "cdiv")
_WORDS = ("and", "or", "not")
_MAX_DEPTH = 50
_MAX_MAGNITUDE = 2**62
_MAX_DIGITS = 18


class Expr(BaseModel):
    """A parsed expression; `line` is the source line it stands on, 0 if there is none."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    text: str
    node: Any
    """A Node; pydantic cannot express a recursive alias."""
    line: int = 0

    def evaluate(self, env: Mapping[str, int]) -> int:
        """The value with the given names; PlanError for an unknown name, a division by 0 or an overflow of int64."""
        try:
            return _evaluate(self.node, env)
        except _Undefined as exc:
            raise PlanError(f"{exc} in {self.text!r} with {dict(env)}", self.line) from exc

    def to_cpp(self, prefix: str = "") -> str:
        """The same over int64_t in C++, with ws_div, ws_mod, ws_cdiv, ws_min and ws_max as functions.

        Every name gets `prefix`.
        """
        return _to_cpp(self.node, prefix)

    def names(self) -> frozenset[str]:
        """Every name the expression uses."""
        return frozenset(_names(self.node))


def parse_expr(text: str, line: int = 0, names: Iterable[str] | None = None) -> Expr:
    """Parse `text`; PlanError where it is no expression or, with `names` given, uses another name."""
    expr = Expr(text=text.strip(), node=_Parser(text, line).whole(), line=line)
    unknown = sorted(expr.names() - set(names)) if names is not None else []
    if unknown:
        raise PlanError(f"unknown name {unknown[0]!r} in {expr.text!r}; known: {', '.join(sorted(names or ()))}", line)
    return expr


def split_arguments(text: str) -> list[str]:
    """Split at the commas outside parentheses: `a, min(b, c)` gives `a` and `min(b, c)`."""
    parts, depth, start = [], 0, 0
    for i, char in enumerate(text):
        depth += {"(": 1, ")": -1}.get(char, 0)
        if char == "," and depth == 0:
            parts.append(text[start:i])
            start = i + 1
    return [part.strip() for part in [*parts, text[start:]]]


class _Undefined(Exception):
    """An expression that parses has no value here."""


class _Parser:
    """Recursive descent, one method per line of the grammar."""

    def __init__(self, text: str, line: int) -> None:
        self.text, self.line, self.at, self.depth = text.strip(), line, 0, 0
        self.tokens = self._tokenise()

    def _tokenise(self) -> list[str]:
        tokens, position = [], 0
        while position < len(self.text):
            match = _TOKEN.match(self.text, position)
            if match is None:
                raise PlanError(
                    f"{self.text[position:].strip()[:10]!r} in {self.text!r} is no part of an expression", self.line
                )
            tokens.append(match.group().strip())
            position = match.end()
        return tokens

    def whole(self) -> Node:
        node = self.either()
        if self.at < len(self.tokens):
            self.fail("the end")
        return node

    def fail(self, wanted: str) -> None:
        got = repr(self.tokens[self.at]) if self.at < len(self.tokens) else "the end"
        raise PlanError(f"got {got}, wanted {wanted} in {self.text!r}", self.line)

    def take(self, *wanted: str) -> str | None:
        if self.at < len(self.tokens) and self.tokens[self.at] in wanted:
            self.at += 1
            return self.tokens[self.at - 1]
        return None

    def chain(self, operand: Callable[[], Node], *operators: str) -> Node:
        node = operand()
        while operator := self.take(*operators):
            node = (operator, (node, operand()))
        return node

    def either(self) -> Node:
        self.depth += 1
        if self.depth > _MAX_DEPTH:
            raise PlanError(f"nested more than {_MAX_DEPTH} deep: {self.text[:60]!r}…", self.line)
        node = self.chain(self.both, "or")
        self.depth -= 1
        return node

    def both(self) -> Node:
        return self.chain(self.negation, "and")

    def negation(self) -> Node:
        negations = 0
        while self.take("not"):
            negations += 1
        node = self.comparison()
        for _ in range(min(negations, 2 - negations % 2)):
            node = ("not", (node,))
        return node

    def comparison(self) -> Node:
        node = self.sum()
        if operator := self.take(*_COMPARISONS):
            node = (operator, (node, self.sum()))
        return node

    def sum(self) -> Node:
        return self.chain(self.product, "+", "-")

    def product(self) -> Node:
        return self.chain(self.unary, "*", "//", "%")

    def unary(self) -> Node:
        negative = False
        while self.take("-"):
            negative = not negative
        node = self.atom()
        return ("-", (0, node)) if negative else node

    def atom(self) -> Node:
        if self.take("("):
            node = self.either()
            if not self.take(")"):
                self.fail("')'")
            return node
        if function := self.take(*_FUNCTIONS):
            return (function, self.arguments(function))
        token = self.tokens[self.at] if self.at < len(self.tokens) else ""
        if not re.fullmatch(r"\w+", token) or token in _WORDS:
            self.fail("a number, a name or '('")
        if token.isdigit() and len(token) > _MAX_DIGITS:
            self.fail(f"a number of at most {_MAX_DIGITS} digits")
        self.at += 1
        return int(token) if token.isdigit() else token

    def arguments(self, function: str) -> tuple[Node, ...]:
        if not self.take("("):
            self.fail(f"'(' after {function}")
        nodes = [self.either()]
        while self.take(","):
            nodes.append(self.either())
        if not self.take(")"):
            self.fail("',' or ')'")
        if (function == "cdiv" and len(nodes) != 2) or len(nodes) < 2:
            wanted = "two" if function == "cdiv" else "two or more"
            raise PlanError(f"{function} takes {wanted} values, got {len(nodes)} in {self.text!r}", self.line)
        return tuple(nodes)


def _evaluate(node: Node, env: Mapping[str, int]) -> int:
    if isinstance(node, int):
        return node
    if isinstance(node, str):
        if node not in env:
            raise _Undefined(f"{node!r} has no value")
        return int(env[node])
    operator, operands = node
    if operator in ("and", "or"):
        left = bool(_evaluate(operands[0], env))
        return int(left) if left == (operator == "or") else int(bool(_evaluate(operands[1], env)))
    value = _apply(operator, [_evaluate(operand, env) for operand in operands])
    if abs(value) > _MAX_MAGNITUDE:
        raise _Undefined("a value beyond 64 bits")
    return value


def _apply(operator: str, values: list[int]) -> int:
    if operator in ("//", "%", "cdiv"):
        numerator, denominator = values
        if numerator < 0 or denominator <= 0:
            raise _Undefined(f"{operator} of {numerator} by {denominator}: wanted operands >= 0 and > 0")
    return _OPERATIONS[operator](values)


_OPERATIONS: dict[str, Callable[[list[int]], int]] = {
    "+": lambda v: v[0] + v[1],
    "-": lambda v: v[0] - v[1],
    "*": lambda v: v[0] * v[1],
    "//": lambda v: v[0] // v[1],
    "%": lambda v: v[0] % v[1],
    "cdiv": lambda v: -(-v[0] // v[1]),
    "min": min,
    "max": max,
    "not": lambda v: int(not v[0]),
    "==": lambda v: int(v[0] == v[1]),
    "!=": lambda v: int(v[0] != v[1]),
    "<": lambda v: int(v[0] < v[1]),
    "<=": lambda v: int(v[0] <= v[1]),
    ">": lambda v: int(v[0] > v[1]),
    ">=": lambda v: int(v[0] >= v[1]),
}

_CPP_FUNCTIONS = {"//": "ws_div", "%": "ws_mod", "cdiv": "ws_cdiv", "min": "ws_min", "max": "ws_max"}
_CPP_LOGIC = {"and": "&&", "or": "||"}


def _to_cpp(node: Node, prefix: str) -> str:
    if isinstance(node, int):
        return f"int64_t({node})"
    if isinstance(node, str):
        return prefix + node
    operator, operands = node
    parts = [_to_cpp(operand, prefix) for operand in operands]
    if operator == "not":
        return f"int64_t(!{parts[0]})"
    if operator in _CPP_FUNCTIONS:
        text = parts[0]
        for part in parts[1:]:
            text = f"{_CPP_FUNCTIONS[operator]}({text}, {part})"
        return text
    if operator in _COMPARISONS or operator in _CPP_LOGIC:
        return f"int64_t({parts[0]} {_CPP_LOGIC.get(operator, operator)} {parts[1]})"
    return f"({parts[0]} {operator} {parts[1]})"


def _names(node: Node) -> Iterable[str]:
    if isinstance(node, str):
        yield node
    elif isinstance(node, tuple):
        for operand in node[1]:
            yield from _names(operand)
