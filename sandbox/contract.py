"""Every record that crosses the wall between the deciding side and the judging side.

All records are frozen pydantic models that refuse unknown fields. Not covered: how any of them is
stored (archive), rendered (agent) or produced (judge).
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Target = Literal["cuda", "cpu"]
Dtype = Literal["float16", "bfloat16", "float32", "int32", "int64", "uint8"]
Operator = Literal["seed", "translate", "propose", "repair", "crossover", "tune", "compose", "import"]

SCALAR_T = "scalar_t"
"""Stands in a tensor's dtype for the floating-point dtype of the workload at hand."""

ITEMSIZE: dict[str, int] = {"float16": 2, "bfloat16": 2, "float32": 4, "int32": 4, "int64": 8, "uint8": 1}
"""Bytes per element."""

JUDGE_VERSION = 2
"""Raised whenever a verdict could come out differently; judgements are keyed by it."""


class Record(BaseModel):
    # An interval over one round is unbounded: JSON has no infinity, so it travels as a string.
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")


# ---------------------------------------------------------------- tasks


class Fill(Record):
    """How a tensor's values are drawn."""

    kind: Literal["activation", "weight", "integers"] = "activation"
    """`activation` follows the check's distribution; `weight` is random in scale and offset; `integers` is uniform."""
    low: str = "0"
    high: str = "1"
    """For `integers`: inclusive bounds, expressions over the axes."""


class TensorSpec(Record):
    """A tensor of a task's signature; always contiguous, row-major."""

    name: str
    shape: tuple[str, ...]
    """Expressions over the task's axes."""
    dtype: str = SCALAR_T
    """`scalar_t`, or a fixed Dtype."""
    fill: Fill = Fill()


class ScalarSpec(Record):
    name: str
    type: Literal["float", "int"]
    default: float | int | None = None


class Workload(Record):
    """One problem size of a task: a value for each axis and scalar, and the dtype of `scalar_t`."""

    axes: dict[str, int]
    scalars: dict[str, float | int] = {}
    dtype: Dtype = "float32"

    @property
    def name(self) -> str:
        """Short and unique within a task, e.g. `B4 H16 S2048 D64 causal=1 float16`."""
        axes = " ".join(f"{k}{v}" for k, v in self.axes.items())
        flags = " ".join(f"{k}={v}" for k, v in self.scalars.items() if isinstance(v, int))
        return " ".join(part for part in (axes, flags, self.dtype) if part)


class Task(Record):
    """An operator to be made fast, for one target.

    Kernel parameters stand in the order outputs, inouts, inputs, axes, scalars, workspace.
    """

    name: str
    version: str
    """Content hash of what defines the task: task.toml and reference.py."""
    summary: str
    target: Target
    axes: tuple[str, ...]
    outputs: tuple[TensorSpec, ...]
    inouts: tuple[TensorSpec, ...] = ()
    inputs: tuple[TensorSpec, ...]
    scalars: tuple[ScalarSpec, ...] = ()
    workloads: tuple[Workload, ...]
    """Timed, and known to proposers."""
    held_out: tuple[Workload, ...] = ()
    """Checked, never shown to a proposer."""
    bytes_moved: str
    """Expression over axes, int scalars and `itemsize`: the fewest bytes that must move."""
    flops: str
    """Expression over axes and int scalars: the operations that must be done."""
    tolerance: float = 3.0
    """A candidate's error may be this many times the error of PyTorch's own operator in the same dtype."""
    folder: Path
    """Where reference.py and the seed kernels lie."""

    @property
    def tensors(self) -> tuple[TensorSpec, ...]:
        """Every tensor in parameter order: outputs, inouts, inputs."""
        return self.outputs + self.inouts + self.inputs


# ---------------------------------------------------------------- candidates


def candidate_id(source: str, target: Target, tunables: dict[str, int]) -> str:
    """The content address of a candidate: sha256 over target, source and tunables, as 64 hex digits."""
    text = json.dumps([target, source, sorted(tunables.items())], ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


class Candidate(Record):
    """A kernel source with values for its tunables, and where it came from."""

    task: str
    target: Target
    source: str
    tunables: dict[str, int] = {}
    parents: tuple[str, ...] = ()
    operator: Operator
    proposer: str
    note: str = ""

    @property
    def id(self) -> str:
        return candidate_id(self.source, self.target, self.tunables)


class Device(Record):
    """What a candidate runs on. For the cpu target the cuda figures are 0."""

    name: str
    """As the driver or /proc/cpuinfo names it, cores included for a CPU."""
    target: Target
    arch: str
    """`sm_90a`, `sm_86`; for a CPU the machine name, such as x86_64."""
    sm_count: int = 0
    smem_optin: int = 0
    """Most dynamic shared memory a block can opt into, bytes."""
    l2_bytes: int = 0
    threads: int = 0
    """OpenMP threads a CPU kernel gets."""
    bandwidth_gbs: float | None = None
    """Peak memory bandwidth, GB/s, for the roofline; None where unknown."""
    tflops: dict[str, float] = {}
    """Peak TFLOP/s by dtype, for the roofline."""


# ---------------------------------------------------------------- builds


class KernelResources(Record):
    """What ptxas reports for one kernel of one specialisation."""

    kernel: str
    registers: int
    spill_bytes: int
    smem_bytes: int
    """Static shared memory."""
    stack_bytes: int = 0


class Artifact(Record):
    """One compiled specialisation: a cubin or a shared library."""

    sha256: str
    path: Path
    arch: str
    macros: dict[str, str]
    kernels: tuple[KernelResources, ...] = ()
    cached: bool = False
    seconds: float = 0.0
    """Time the compiler took, also where the artifact came from the cache."""


# ---------------------------------------------------------------- verdicts


class Interval(Record):
    """A ratio with its confidence interval (95 % unless said otherwise)."""

    ratio: float
    low: float
    high: float


class Measurement(Record):
    """One subject's latency on one workload, over rounds that interleave all subjects."""

    rounds_ms: tuple[float, ...]
    """Median latency of each round, milliseconds; round i of every subject ran side by side."""
    median_ms: float
    low_ms: float
    high_ms: float
    samples: int
    """Timed calls in all."""


class Timing(Record):
    workload: str
    candidate: Measurement
    baselines: dict[str, Measurement]
    """By name: `eager`, `compile`, `library:<call>`, or another name given by the task."""
    roofline_share: float | None = None
    """Floor time at peak rates over measured time; None where the peak is unknown."""
    wall_ms: float | None = None
    """Judge's own wall-clock slope per call, where the deciding clock is device events."""


class Check(Record):
    """One comparison that held."""

    workload: str
    distribution: str
    error: float
    """Largest relative L2 error of a row."""
    yardstick: float
    """The same for PyTorch's own operator in the same dtype."""


class BuildFailed(Record):
    status: Literal["BuildFailed"] = "BuildFailed"
    log: str


class LaunchFailed(Record):
    status: Literal["LaunchFailed"] = "LaunchFailed"
    workload: str
    reason: str


class Incorrect(Record):
    status: Literal["Incorrect"] = "Incorrect"
    workload: str
    distribution: str
    rule: str
    evidence: str


class TimedOut(Record):
    status: Literal["TimedOut"] = "TimedOut"
    stage: str
    seconds: float


class Cheated(Record):
    status: Literal["Cheated"] = "Cheated"
    rule: str
    evidence: str


class Passed(Record):
    status: Literal["Passed"] = "Passed"
    checks: tuple[Check, ...]
    timings: tuple[Timing, ...]
    speedup: dict[str, Interval]
    """Geometric mean over workloads, by `eager`, `compile`, `library` (best call per workload) and other names."""
    latency_ms: float
    """Geometric mean over workloads of the median latency."""
    resources: tuple[KernelResources, ...] = ()
    confirmed: bool = False
    """Measured again, after it had won, on fresh data and with at least ten rounds."""


Verdict = Annotated[BuildFailed | LaunchFailed | Incorrect | TimedOut | Cheated | Passed, Field(discriminator="status")]


class Judgement(Record):
    """A verdict with everything it is keyed by."""

    candidate: str
    task: str
    task_version: str
    target: Target
    device: str
    judge_version: int = JUDGE_VERSION
    verdict: Verdict
    seconds: float
    """From text to verdict."""
    judged_at: str
    """UTC, ISO 8601."""
    versions: dict[str, str] = {}
    """torch, compiler, driver: what the numbers were measured with."""
