"""Whose kernel is it? What can be told from a torch source without running it.

`label`: a source that defines no kernel of its own can only call a library's. `silent_fallback`: a handler that hides
that the kernel failed and lets torch answer instead. Both read the text alone, so they err towards the author: what
they find is certain, what they miss is left to measurement (`label_by_time`). Python is parsed and never run.
"""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping
from typing import Literal

from sandbox.contract import Candidate

Label = Literal["custom", "library"]

LIBRARY_SHARE = 0.5
"""From this share of the device's time in other people's kernels on, the label is `library`."""

_COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.DOTALL)
_KERNEL = re.compile(
    r"__global__\s+(?:[\w:<>,]+(?:\([^()]*\))?\s+)*?(?:void|auto)\s+(?:__launch_bounds__\s*\([^)]*\)\s*)?(\w+)"
)
_LOOP = re.compile(r"\b(?:for|while)\s*\(")
_HOST_LAUNCH = re.compile(r"<<<|cudaLaunchKernel|cuLaunchKernel")
_CATCH = re.compile(r"\bcatch\s*\([^)]*\)\s*\{")
_TORCH_IN_CPP = re.compile(r"\b(?:at|torch)::(?!empty|zeros|Tensor\b|k[A-Z]|TensorOptions|Device)\w+\s*\(")
_ESCAPE = re.compile(r"\b(?:throw|abort|terminate|TORCH_CHECK|exit)\b")

KERNEL_DECORATORS = ("jit", "autotune", "kernel", "njit", "prim_func", "gluon")
"""Last names of what marks a Python function as a kernel: triton.jit, cute.kernel, numba.njit, T.prim_func …"""
_KERNEL_ROOTS = (
    "triton",
    "gluon",
    "numba",
    "cuda",
    "cute",
    "cutlass",
    "tilelang",
    "T",
    "wp",
    "warp",
    "pl",
    "jit",
    "njit",
)
BUILDERS = ("load_inline", "load", "RawKernel", "RawModule", "_compile_kernel", "compile_kernel")
_COMPUTE_ROOTS = ("torch", "F", "nn", "aten")
_NO_COMPUTE = ("empty", "empty_like", "zeros", "no_grad", "cuda", "device", "is_available", "synchronize")


# ---------------------------------------------------------------- label


def label(candidate: Candidate) -> Label:
    """`library` where the source defines no kernel at all, or none that it launches."""
    if candidate.form == "kernel":
        return "custom"
    if candidate.form == "extension":
        return "custom" if _defines_cpp_kernel(candidate.source) else "library"
    return "custom" if _defines_python_kernel(_tree(candidate.source)) else "library"


def label_by_time(seconds: Mapping[str, float], own: Iterable[str]) -> Label:
    """`library` where kernels without an `own` name took LIBRARY_SHARE of the time; `seconds` is by kernel name.

    What a profile of the cpu target calls `own` (worker/torch_calls.py) was spent in none of torch's operators.
    """
    names = frozenset({"own", *own})
    total = sum(seconds.values())
    others = sum(spent for kernel, spent in seconds.items() if names.isdisjoint(_words(kernel)))
    return "library" if total > 0 and others >= LIBRARY_SHARE * total else "custom"


def kernel_names(source: str) -> frozenset[str]:
    """Names of the kernels that a source of any form defines, as a profiler would show them."""
    found = set(_KERNEL.findall(_without_comments(source)))
    tree = _tree(source)
    return frozenset(found | {function.name for function in _python_kernels(tree)} if tree else found)


def _words(kernel: str) -> frozenset[str]:
    """Identifiers in a kernel's name, mangled or not: `_Z9add_twicePfS_i`, `void add_twice<float>(float*)`."""
    mangled = {m[2][: int(m[1])] for m in re.finditer(r"(\d+)(?=(\w+))", kernel)}
    return frozenset(re.findall(r"\w+", kernel)) | mangled


def _without_comments(text: str) -> str:
    return _COMMENT.sub(" ", text)


def _defines_cpp_kernel(source: str) -> bool:
    """Device code that is launched, or on the host a loop."""
    text = _without_comments(source)
    if kernels := _KERNEL.findall(text):
        return _HOST_LAUNCH.search(text) is not None and any(_launched(kernel, text) for kernel in kernels)
    return _LOOP.search(text) is not None


def _launched(kernel: str, text: str) -> bool:
    """Its name stands somewhere besides its own definition."""
    return len(re.findall(rf"\b{kernel}\b", text)) > 1


# ---------------------------------------------------------------- Python


def _tree(source: str) -> ast.Module | None:
    """None where it is no Python that can be parsed; then it will not run either."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _defines_python_kernel(tree: ast.Module | None) -> bool:
    if tree is None:
        return False
    reached = list(_reached(tree))
    used = {node.id for node in reached if isinstance(node, ast.Name)}
    if any(function.name in used for function in _python_kernels(tree)):
        return True
    texts = (node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str))
    return _builds(reached) and any(_defines_kernel_text(text) for text in texts)


def _reached(tree: ast.Module) -> Iterator[ast.AST]:
    """Everything that runs when the file is imported or a class of it used: a function nobody names does not."""
    functions = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
    waiting: list[ast.AST] = [node for node in tree.body if node not in functions.values()]
    while waiting:
        for node in ast.walk(waiting.pop()):
            yield node
            if function := functions.pop(_last_name(node) if isinstance(node, ast.expr) else "", None):
                waiting.append(function)


def _defines_kernel_text(text: str) -> bool:
    """Source in a string: what launches it may stand in another string, so a kernel alone is enough."""
    plain = _without_comments(text)
    return _KERNEL.search(plain) is not None or (_LOOP.search(plain) is not None and "{" in plain)


def _builds(nodes: Iterable[ast.AST]) -> bool:
    return any(_last_name(node.func) in BUILDERS for node in nodes if isinstance(node, ast.Call))


def _python_kernels(tree: ast.AST | None) -> Iterator[ast.FunctionDef]:
    for node in ast.walk(tree) if tree else ():
        if isinstance(node, ast.FunctionDef) and any(_is_kernel_mark(mark) for mark in node.decorator_list):
            yield node


def _is_kernel_mark(mark: ast.expr) -> bool:
    function = mark.func if isinstance(mark, ast.Call) else mark
    return _last_name(function) in KERNEL_DECORATORS and _root(function) in _KERNEL_ROOTS


def _last_name(node: ast.expr) -> str:
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def _root(node: ast.expr) -> str:
    while isinstance(node, ast.Attribute):
        node = node.value
    return node.id if isinstance(node, ast.Name) else ""


# ---------------------------------------------------------------- silent fallback


def silent_fallback(candidate: Candidate) -> str | None:
    """Where a torch source would hide that its kernel failed, in words; None where nothing is found."""
    if candidate.form == "extension":
        return _cpp_fallback(candidate.source)
    if candidate.form == "module" and (tree := _tree(candidate.source)):
        return next(_python_fallbacks(tree), None)
    return None


def _cpp_fallback(source: str) -> str | None:
    text = _COMMENT.sub(lambda match: "\n" * match[0].count("\n"), source)
    for catch in _CATCH.finditer(text):
        body = text[catch.end() : _closing(text, catch.end())]
        if (compute := _TORCH_IN_CPP.search(body)) and not _ESCAPE.search(body):
            line = text.count("\n", 0, catch.start()) + 1
            return f"line {line}: a catch block answers with {compute[0].rstrip('( ')} instead of failing"
    return None


def _closing(text: str, at: int) -> int:
    depth = 1
    while depth and at < len(text):
        depth += {"{": 1, "}": -1}.get(text[at], 0)
        at += 1
    return at


def _python_fallbacks(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.With) and _suppresses(node) and _builds(_calls(node.body)):
            yield f"line {node.lineno}: suppress() hides that the kernel did not build"
        if not isinstance(node, ast.Try) or not any(_calls(node.body)):
            continue
        for handler in node.handlers:
            if _raises(handler.body) or _only_missing_module(handler):
                continue
            where = f"line {handler.lineno}: an except branch"
            if compute := next(_computes(handler.body), None):
                yield f"{where} answers with {_shown(compute)} instead of failing"
            elif any(_last_name(call.func) in BUILDERS for call in _calls(node.body)) and not any(_calls(handler.body)):
                yield f"{where} hides that the kernel did not build"


def _suppresses(node: ast.With) -> bool:
    calls = (item.context_expr for item in node.items if isinstance(item.context_expr, ast.Call))
    return any(_last_name(call.func) == "suppress" for call in calls)


def _shown(compute: ast.expr) -> str:
    """The operator and what it is called on, but not its operands, which can be of any depth."""
    if not isinstance(compute, ast.Call):
        return "a matrix product"
    function, parts = compute.func, []
    while isinstance(function, ast.Attribute):
        parts.append(function.attr)
        function = function.value
    return ".".join([function.id if isinstance(function, ast.Name) else "…", *reversed(parts)])[:80] + "(…)"


def _calls(body: list[ast.stmt]) -> Iterator[ast.Call]:
    return (node for part in body for node in ast.walk(part) if isinstance(node, ast.Call))


def _raises(body: list[ast.stmt]) -> bool:
    return any(isinstance(node, ast.Raise) for part in body for node in ast.walk(part))


def _only_missing_module(handler: ast.ExceptHandler) -> bool:
    names = handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type] if handler.type else []
    return bool(names) and all(_last_name(name) in ("ImportError", "ModuleNotFoundError") for name in names)


def _computes(body: list[ast.stmt]) -> Iterator[ast.expr]:
    """Results that torch worked out, returned or kept: `torch.f(…)`, `F.f(…)`, `self.layer(…)`, `a @ b`."""
    kept = (
        node for part in body for node in ast.walk(part) if isinstance(node, ast.Return | ast.Assign | ast.AugAssign)
    )
    for value in (statement.value for statement in kept if statement.value is not None):
        for node in ast.walk(value):
            if isinstance(node, ast.BinOp) and isinstance(node.op, ast.MatMult):
                yield node
            if isinstance(node, ast.Call) and _is_compute(node.func):
                yield node


def _is_compute(function: ast.expr) -> bool:
    name = _last_name(function)
    if name in (*_NO_COMPUTE, *BUILDERS) or name.startswith(("get_", "is_")):
        return False
    return _root(function) in _COMPUTE_ROOTS or (_root(function) == "self" and isinstance(function, ast.Attribute))
