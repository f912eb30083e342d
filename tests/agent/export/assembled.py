"""A package without kernels: its static files as they are, and operators that are the tasks' own references.

What layers do is to be seen without a compiler. `operators.CALLS` lists the operators that were called, outside of
compiled code.
"""

import importlib
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from agent.export import package as static
from agent.tasks import bundled

ARGUMENTS = {
    "attention": "q, k, v, scale, causal",
    "attention_layernorm": "q, k, v, weight, bias, scale, causal, eps=1e-5",
    "kv_cache": "k_cache, v_cache, q, k_new, v_new, input_pos, scale",
    "layernorm": "x, weight, bias, eps=1e-5",
    "mlp": "x, gate, up, down",
}
AXES = {
    "attention": ["B", "H", "S", "D"],
    "attention_layernorm": ["B", "H", "S", "D"],
    "kv_cache": ["B", "H", "Hkv", "L", "D"],
    "layernorm": ["N", "D"],
    "mlp": ["M", "K", "N"],
}
SCALARS = ("scale", "causal", "eps")
GREATEST = 2048
"""Every axis is proven from 1 to here, in float32."""
FUNCTION = """
def {task}({arguments}):
    if not torch.compiler.is_compiling():
        CALLS.append("{task}")
    return _{task}.reference({given})
"""


def assemble(folder: Path, name: str, tasks: Sequence[str]) -> ModuleType:
    """Write the package to `folder` and import it."""
    home = folder / name
    (home / "references").mkdir(parents=True)
    assert static.__file__ is not None
    for path in Path(static.__file__).parent.glob("*.py"):
        shutil.copy(path, home)
    for task in tasks:
        shutil.copy(bundled() / task / "reference.py", home / "references" / f"{task}.py")
    (home / "references" / "__init__.py").touch()
    (home / "operators.py").write_text(operators(tasks))
    (home / "provenance.json").write_text(json.dumps(provenance(tasks)))
    sys.path.insert(0, str(folder))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(folder))


def operators(tasks: Sequence[str]) -> str:
    imports = "".join(f"from .references import {task} as _{task}\n" for task in tasks)
    return f"import torch\n{imports}NAMES = {tuple(tasks)}\nCALLS = []\n" + "".join(map(function, tasks))


def function(task: str) -> str:
    names = [name.partition("=")[0] for name in ARGUMENTS[task].split(", ")]
    given = ", ".join(f"{name}={name}" if name in SCALARS else name for name in names)
    return FUNCTION.format(task=task, arguments=ARGUMENTS[task], given=given)


def provenance(tasks: Sequence[str]) -> dict[str, object]:
    """Of a package, as far as regions go."""
    return {
        "target": "cpu",
        "tasks": {task: {"candidates": {"one": {"specialisations": [spec(task)]}}} for task in tasks},
    }


def spec(task: str) -> dict[str, object]:
    flags = {"causal": [0, 1]} if "causal" in ARGUMENTS[task] else {}
    bounds = {axis: [1, GREATEST] for axis in AXES[task]}
    return {"dtype": "float32", "statics": {}, "flags": flags, "bounds": bounds}
