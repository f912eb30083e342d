"""A task made of a PyTorch file in the form that KernelBench uses: `Model`, `get_inputs()` and `get_init_inputs()`.

The file is run in processes of its own: once to see what it computes, later by the referee as the reference. What is
searched on is the problem size of the file; batch sizes that the model also takes are held out. Not covered: seed
kernels, of which such a task has none, and sizes other than the batch.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from platformdirs import user_cache_path

from sandbox.contract import SCALAR_T, Dtype, Fill, ModuleForm, Record, Target, Task, TensorSpec, Workload
from sandbox.errors import BadInput, TaskError, WorkerLost
from sandbox.secrecy import without_keys
from sandbox.signature import C_TYPES

DESCRIBE_TIMEOUT_S = 600
_AXES = ("B", "batch", "batch_size", "rows")
"""What the batch axis may be called; the first that no tensor is called."""
_FLOATING: tuple[Dtype, ...] = ("float32", "float16", "bfloat16")
_WORDS = """
alignas alignof and asm auto bool break case catch char class const constexpr continue default delete do double else
enum explicit export extern false float for friend goto if inline int long main mutable namespace new not operator or
private protected public register restrict return scalar_t short signed sizeof static struct switch template this
throw true try typedef typename union unsigned using virtual void volatile while workspace xor
abs acos acosh asin asinh atan atanh cbrt ceil cos cosh erf erfc exp exp2 expm1 fabs floor fma fmax fmin fmod log
log10 log1p log2 max min pow round rsqrt sin sinh sqrt tan tanh trunc
"""
RESERVED = frozenset(_WORDS.split())
"""What C++, or a header that every kernel includes, already means by a name."""
_REFERENCE = """\
from pathlib import Path

from sandbox.referee.pytorch_file import PytorchFile

_file = PytorchFile(
    str(Path(__file__).with_name("source.py")),
    siblings={siblings!r},
    form={form!r},
    rigid={rigid!r},
    axis={axis!r},
    batched={batched!r},
)
reference, oracle, compiled, draw = _file.reference, _file.oracle, _file.compiled, _file.draw
rigid = _file.rigid
"""


class Imported(Record):
    """A task, and what else its file told."""

    task: Task
    why_fixed: str = ""
    """Why the batch size is no axis, where it is none."""


def load_reference(path: Path, target: Target) -> Task:
    """The task that a PyTorch file describes for a `ModelNew`: its own problem size, and buffers stay in the module.

    BadInput where none can be made of it.
    """
    return read(path, target, kernels=False).task


def load(path: Path, target: Target) -> Task:
    """The task of a PyTorch file for kernels of the contract."""
    return read(path, target).task


def read(path: Path, target: Target, kernels: bool = True) -> Imported:
    """The task of a PyTorch file; for `kernels` of the contract buffers are inputs, and the batch may be an axis."""
    text = read_text(path)
    found = _described(path, target, kernels)
    weights = [spec["name"] for spec in found["weights"]]
    form = ModuleForm(
        init=tuple(found["init"]),
        keywords=found["keywords"],
        mode=found["mode"],
        arguments=tuple(found["arguments"]),
        weights=tuple(weights),
    )
    dtype = _working_dtype(found)
    inputs, batch = [*found["inputs"], *found["weights"]], found["batch"]
    results = _numbered("out", len(found["outputs"]))
    names = unique([spec["name"] for spec in inputs], taken=results)
    axis = next(name for name in (*_AXES, *(f"B{i}" for i in range(len(names)))) if name not in names) if batch else ""
    reference = _REFERENCE.format(
        siblings=str(path.resolve().parent),
        form=form.model_dump_json(),
        rigid=tuple(found["rigid"]),
        axis=axis,
        batched=tuple(batch["arguments"]) if batch else (),
    )
    task = Task(
        name=_identifier(path.stem),
        version=hashlib.sha256((text + (json.dumps(batch) if batch else "")).encode()).hexdigest()[:12],
        summary=found["summary"] or f"Model of {path.name}",
        target=target,
        axes=(axis,) if batch else (),
        outputs=tuple(_tensors(found["outputs"], dtype, results, axis)),
        inputs=tuple(_tensors(inputs, dtype, names, axis)),
        workloads=(Workload(axes={axis: batch["size"]} if batch else {}, dtype=dtype),),
        held_out=tuple(Workload(axes={axis: size}, dtype=dtype) for size in batch["others"]) if batch else (),
        bytes_moved=_bytes(found, axis),
        flops="0",
        folder=kept({"source.py": text, "reference.py": reference}),
        module=form,
    )
    if kernels:
        require_spellable(path, task)
    return Imported(task=task, why_fixed=found["why_fixed"])


def read_text(path: Path) -> str:
    """A file's text. BadInput where there is none, or none that can be read."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as exc:
        raise BadInput(f"no file {path}") from exc
    except UnicodeDecodeError as exc:
        raise BadInput(f"{path} is not UTF-8: {exc.reason} at byte {exc.start}") from exc
    except OSError as exc:
        raise BadInput(f"cannot read {path}: {exc.strerror}") from exc
    if not text.strip():
        raise BadInput(f"{path} is empty")
    return text


def _described(path: Path, target: Target, kernels: bool) -> dict[str, Any]:
    """What sandbox.referee.describing says of the file."""
    env = {**without_keys(), "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)}
    with tempfile.TemporaryDirectory(prefix="warpsmith-describing-") as scratch:
        out = Path(scratch) / "description.json"
        purpose = "kernels" if kernels else "modules"
        command = [sys.executable, "-m", "sandbox.referee.describing", str(path.resolve()), target, str(out), purpose]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, env=env, cwd=scratch, timeout=DESCRIBE_TIMEOUT_S, check=False
            )
        except subprocess.TimeoutExpired as exc:
            raise TaskError(f"{path} took more than {DESCRIBE_TIMEOUT_S} s to run once") from exc
        if done.returncode < 0:
            raise WorkerLost(
                f"the process that runs {path} was killed by signal {-done.returncode}{_hint(done.returncode)}"
            )
        if done.returncode or not out.exists():
            raise TaskError(_fault(path, done.stderr))
        found: dict[str, Any] = json.loads(out.read_text())
    return found


def _hint(returncode: int) -> str:
    return ", most likely for want of memory" if returncode == -signal.SIGKILL else ""


def _fault(path: Path, errors: str) -> str:
    """The exception of a traceback, its first line, with the line of the file that it goes back to."""
    lines = errors.strip().splitlines()
    frames = [i for i, line in enumerate(lines) if line.startswith('  File "')]
    said = next((line for line in lines[frames[-1] :] if line[:1].strip()), "") if frames else ""
    at = re.findall(rf'File "{re.escape(str(path.resolve()))}", line (\d+)', errors)
    where = f"{path}: line {at[-1]}" if at else str(path)
    last = lines[-1] if lines else "it ended the process that ran it, without a word"
    return f"{where}: {(said or last).removeprefix('sandbox.errors.TaskError: ')}"


def kept(texts: dict[str, str]) -> Path:
    """A folder with these files, kept by content."""
    key = hashlib.sha256(json.dumps(texts).encode()).hexdigest()[:16]
    folder = user_cache_path("warpsmith", appauthor=False) / "references" / key
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in texts.items():
        draft = folder / f".{name}.{os.getpid()}"
        draft.write_text(content, encoding="utf-8")
        draft.replace(folder / name)
    return folder


def require_spellable(path: Path, task: Task) -> None:
    """TaskError where a kernel's parameters cannot be declared in the dtypes of the task."""
    for tensor in task.tensors:
        if tensor.dtype not in (SCALAR_T, *C_TYPES):
            raise TaskError(
                f"{path}: {tensor.name} is {tensor.dtype} beside {task.workloads[0].dtype}; wanted one half type"
            )
    if task.target == "cpu" and task.workloads[0].dtype != "float32":
        raise TaskError(f"{path}: it computes in {task.workloads[0].dtype}; kernels for target 'cpu' are float32")


def _bytes(found: dict[str, Any], axis: str) -> str:
    """The fewest bytes that must move; what does not grow with the batch is counted once."""
    if not axis:
        return str(found["bytes"])
    growing = f"{found['batch_bytes']}*{axis}//{found['batch']['size']}"
    return f"{found['bytes']} + {growing}" if found["bytes"] else growing


def _working_dtype(found: dict[str, Any]) -> Dtype:
    """That of the first output, input or weight that has a floating-point one."""
    for spec in (*found["outputs"], *found["inputs"], *found["weights"]):
        if spec["dtype"] in _FLOATING:
            dtype: Dtype = spec["dtype"]
            return dtype
    return "float32"


def _tensors(specs: list[dict[str, Any]], working: Dtype, names: list[str], axis: str) -> Iterator[TensorSpec]:
    for spec, name in zip(specs, names, strict=True):
        yield TensorSpec(
            name=name,
            shape=tuple(size.replace("B", axis) for size in spec["shape"]),
            dtype=SCALAR_T if spec["dtype"] == working else spec["dtype"],
            fill=Fill(kind="integers", low=str(spec["low"]), high=str(spec["high"])) if "low" in spec else Fill(),
        )


def _identifier(name: str) -> str:
    """`1_Square_matmul_` is `Square_matmul`: what a kernel can be called."""
    found = re.sub(r"\W+", "_", name, flags=re.ASCII).lstrip("_0123456789").rstrip("_") or "model"
    return f"{found}_task" if found in RESERVED else found


def _numbered(name: str, count: int) -> list[str]:
    return [name] if count == 1 else [f"{name}{i}" for i in range(count)]


def unique(names: list[str], taken: Sequence[str] = ()) -> list[str]:
    """As C identifiers that differ from each other, from those `taken` and from what C++ means by a name."""
    found: list[str] = []
    for name in names:
        plain = re.sub(r"\W", "_", name, flags=re.ASCII)
        clash = plain in found or plain in taken or plain in RESERVED
        found.append(f"{plain}_{len(found)}" if clash else plain)
    return found
