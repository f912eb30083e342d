"""A task made of a PyTorch file in the form that KernelBench uses: `Model`, `get_inputs()` and `get_init_inputs()`.

The file is run in processes of its own: once to see what it computes, later by the referee as the reference. One
problem size, as the file has it, and nothing held out. Not covered: seed kernels, of which such a task has none.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from platformdirs import user_cache_path

from sandbox.contract import SCALAR_T, Dtype, ModuleForm, Target, Task, TensorSpec, Workload
from sandbox.errors import BadInput, TaskError, WorkerLost

DESCRIBE_TIMEOUT_S = 600
_FLOATING: tuple[Dtype, ...] = ("float32", "float16", "bfloat16")
_REFERENCE = """\
from sandbox.referee.pytorch_file import PytorchFile

_file = PytorchFile(
    {path!r},
    siblings={siblings!r},
    form={form!r},
    rigid={rigid!r},
)
reference, oracle, compiled, draw = _file.reference, _file.oracle, _file.compiled, _file.draw
rigid = _file.rigid
"""


def load_reference(path: Path, target: Target) -> Task:
    """The task that a PyTorch file describes. BadInput or TaskError where none can be made of it."""
    text = read_text(path)
    found = _described(path, target)
    weights = [spec["name"] for spec in found["weights"]]
    form = ModuleForm(
        init=tuple(found["init"]), mode=found["mode"], arguments=tuple(found["arguments"]), weights=tuple(weights)
    )
    dtype = _working_dtype(found)
    inputs = [*found["inputs"], *found["weights"]]
    return Task(
        name=_identifier(path.stem),
        version=hashlib.sha256(text.encode()).hexdigest()[:12],
        summary=found["summary"] or f"Model of {path.name}",
        target=target,
        axes=(),
        outputs=tuple(_tensors(found["outputs"], dtype, _numbered("out", len(found["outputs"])))),
        inputs=tuple(_tensors(inputs, dtype, _unique([spec["name"] for spec in inputs]))),
        workloads=(Workload(axes={}, dtype=dtype),),
        bytes_moved=str(found["bytes"]),
        flops="0",
        folder=_folder(path, text, form, found["rigid"]),
        module=form,
    )


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


def _described(path: Path, target: Target) -> dict[str, Any]:
    """What sandbox.referee.describing says of the file."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)}
    with tempfile.TemporaryDirectory(prefix="warpsmith-describing-") as scratch:
        out = Path(scratch) / "description.json"
        command = [sys.executable, "-m", "sandbox.referee.describing", str(path.resolve()), target, str(out)]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, env=env, cwd=scratch, timeout=DESCRIBE_TIMEOUT_S, check=False
            )
        except subprocess.TimeoutExpired as exc:
            raise TaskError(f"{path} took more than {DESCRIBE_TIMEOUT_S} s to run once") from exc
        if done.returncode < 0:
            raise WorkerLost(f"the process that runs {path} was killed by signal {-done.returncode}")
        if done.returncode or not out.exists():
            raise TaskError(f"{path}: {_last_line(done.stderr)}")
        found: dict[str, Any] = json.loads(out.read_text())
    return found


def _last_line(errors: str) -> str:
    lines = errors.strip().splitlines() or ["it ended without a word"]
    return lines[-1].removeprefix("sandbox.errors.TaskError: ")


def _folder(path: Path, text: str, form: ModuleForm, rigid: list[int]) -> Path:
    """A folder with a copy of the file and the reference.py that uses it, kept by content."""
    siblings = str(path.resolve().parent)
    key = hashlib.sha256(json.dumps([text, siblings, form.model_dump(), rigid]).encode()).hexdigest()[:16]
    folder = user_cache_path("warpsmith", appauthor=False) / "references" / key
    folder.mkdir(parents=True, exist_ok=True)
    copied = folder / "source.py"
    reference = _REFERENCE.format(path=str(copied), siblings=siblings, form=form.model_dump_json(), rigid=tuple(rigid))
    for place, content in ((copied, text), (folder / "reference.py", reference)):
        draft = place.with_name(f".{place.name}.{os.getpid()}")
        draft.write_text(content, encoding="utf-8")
        draft.replace(place)
    return folder


def _working_dtype(found: dict[str, Any]) -> Dtype:
    """That of the first output, input or weight that has a floating-point one."""
    for spec in (*found["outputs"], *found["inputs"], *found["weights"]):
        if spec["dtype"] in _FLOATING:
            dtype: Dtype = spec["dtype"]
            return dtype
    return "float32"


def _tensors(specs: list[dict[str, Any]], working: Dtype, names: list[str]) -> Iterator[TensorSpec]:
    for spec, name in zip(specs, names, strict=True):
        dtype = SCALAR_T if spec["dtype"] == working else spec["dtype"]
        yield TensorSpec(name=name, shape=tuple(map(str, spec["shape"])), dtype=dtype)


def _identifier(name: str) -> str:
    """`1_Square_matmul_` is `Square_matmul`: what a kernel can be called."""
    found = re.sub(r"\W+", "_", name, flags=re.ASCII).strip("_0123456789")
    return found or "model"


def _numbered(name: str, count: int) -> list[str]:
    return [name] if count == 1 else [f"{name}{i}" for i in range(count)]


def _unique(names: list[str]) -> list[str]:
    """As C identifiers that differ from each other and from the outputs."""
    taken: list[str] = []
    for name in names:
        plain = re.sub(r"\W", "_", name, flags=re.ASCII)
        clash = plain in taken or plain in ("workspace", "scalar_t") or re.fullmatch(r"out\d*", plain)
        taken.append(f"{plain}_{len(taken)}" if clash else plain)
    return taken
