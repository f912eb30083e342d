"""Build a composed extension in a fresh process and hold it against eager PyTorch.

The check is of the composition — launches, dispatch, binding — on kernels that were judged before; it is no second
judge, and its tolerances are wider. Not covered: speed.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from agent.export import provenance
from agent.export.signature import arguments
from sandbox.contract import Record, Task, TensorSpec, Workload
from sandbox.errors import BadInput, Infrastructure, ToolchainMissing
from sandbox.expressions import parse_expr
from sandbox.secrecy import without_keys
from sandbox.signature import dtype_of, shape_of

TOLERANCES = {"float32": 2e-4, "float16": 1e-2, "bfloat16": 4e-2}
"""Largest relative L2 error of a row against eager PyTorch in the same dtype."""
LOG_CHARS = 4000


class ExtensionCheck(Record):
    """One workload, run through the operator."""

    workload: str
    error: float | None
    """Largest relative L2 error of a row of any output or in-out; infinite where a value is not finite."""
    ok: bool
    note: str = ""
    """What went wrong, or why the workload was not compared."""


class ExtensionReport(Record):
    """What became of a composed extension; only `ok` ones may be shipped."""

    package: str
    built_s: float
    """Seconds of the first import, which builds."""
    ran: bool
    """False where there is no GPU to run a cuda extension on: built and imported only."""
    checks: tuple[ExtensionCheck, ...] = ()
    ok: bool
    message: str


def verify(
    root: Path, task: Task, workloads: Sequence[Workload] | None = None, timeout_s: float = 900
) -> ExtensionReport:
    """Build, import and run every workload of a task that the tree says it serves, search and held-out unless given.

    A build that fails and outputs that disagree come back as `ok=False`; BadInput where `root` is no composed tree,
    Infrastructure where this machine cannot decide.
    """
    known = provenance.read(root)
    if task.name not in known["tasks"]:
        raise BadInput(f"{root} has {', '.join(known['tasks'])}, wanted {task.name}")
    served = known["tasks"][task.name]["served"]
    chosen = workloads if workloads is not None else (*task.workloads, *task.held_out)
    request = {
        "root": str(root),
        "package": known["package"],
        "function": task.name,
        "target": task.target,
        "reference": str((task.folder / "reference.py").resolve()),
        "workloads": [_spell(task, workload) for workload in chosen if workload.name in served],
    }
    answer, log = _ask(request, timeout_s)
    if answer is None:
        message = f"{known['package']} did not build or import:\n{log[-LOG_CHARS:]}"
        return ExtensionReport(package=known["package"], built_s=0, ran=False, ok=False, message=message)
    return _report(known["package"], answer, [w for w in chosen if w.name not in served])


def _spell(task: Task, workload: Workload) -> dict[str, Any]:
    """A workload in plain values, so that the child needs nothing of ours."""
    return {
        "name": workload.name,
        "tensors": [_tensor(tensor, task, workload) for tensor in arguments(task)],
        "scalars": {s.name: workload.scalars[s.name] for s in task.scalars},
        "tolerance": TOLERANCES[workload.dtype],
    }


def _tensor(tensor: TensorSpec, task: Task, workload: Workload) -> dict[str, Any]:
    integers = tensor.fill.kind == "integers"
    return {
        "name": tensor.name,
        "shape": shape_of(tensor, workload),
        "dtype": dtype_of(tensor, workload),
        "changed": tensor in task.inouts,
        "low": parse_expr(tensor.fill.low).evaluate(workload.axes) if integers else None,
        "high": parse_expr(tensor.fill.high).evaluate(workload.axes) if integers else None,
        "weight": tensor.fill.kind == "weight",
    }


def _ask(request: dict[str, Any], timeout_s: float) -> tuple[dict[str, Any] | None, str]:
    """The child's answer, or None where it ended without one, and what it printed."""
    # ninja may be installed beside the interpreter only.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    for program in (os.environ.get("CXX", "c++"), "ninja"):
        if not shutil.which(program, path=path):
            raise ToolchainMissing(f"building the extension needs {program}; apt-get install g++ ninja-build")
    with tempfile.TemporaryDirectory(prefix="warpsmith-verify-") as folder:
        answer = Path(folder) / "answer.json"
        child = [sys.executable, "-P", str(Path(__file__).with_name("check.py")), str(answer)]
        try:
            done = subprocess.run(
                child,
                input=json.dumps(request),
                capture_output=True,
                text=True,
                timeout=timeout_s,
                # What PyTorch computes in a kernel's place agrees with itself.
                env={**without_keys(), "PATH": path, "TORCH_EXTENSIONS_DIR": folder, "WARPSMITH_FALLBACK": "error"},
                check=False,
                # Ctrl-C drains the run; it must not reach the build and be taken for its failure.
                start_new_session=True,
            )
        except subprocess.TimeoutExpired as exc:
            raise Infrastructure(f"verifying {request['package']} took longer than {timeout_s:g} s") from exc
        log = f"{done.stdout}\n{done.stderr}".strip()
        return (json.loads(answer.read_text()) if answer.is_file() else None), log


def _report(package: str, answer: dict[str, Any], unserved: list[Workload]) -> ExtensionReport:
    checks = [ExtensionCheck.model_validate(check) for check in answer["checks"]]
    failed = [check for check in checks if not check.ok]
    compared = [check for check in checks if check.error is not None]
    left_out = f"; nothing is compiled for {', '.join(w.name for w in unserved)}" if unserved else ""
    if not answer["ran"]:
        message = f"built and imported; not run: no GPU{left_out}"
    elif failed:
        found = "; ".join(f"{c.workload}: {c.note or f'error {c.error:.3g}'}" for c in failed)
        message = f"{len(failed)} of {len(checks)} workloads disagree with eager PyTorch: {found}"
    else:
        message = f"agrees with eager PyTorch on {len(compared)} of {len(checks)} workloads{left_out}"
    return ExtensionReport(
        package=package,
        built_s=answer["built_s"],
        ran=answer["ran"],
        checks=tuple(checks),
        ok=not failed and (bool(compared) or not answer["ran"]),
        message=message,
    )
