"""Every record that crosses the wall between the deciding side and the judging side.

All records are frozen pydantic models that refuse unknown fields. Not covered: how any of them is
stored (archive), rendered (agent) or produced (judge).
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Target = Literal["cuda", "cpu"]
Dtype = Literal["float16", "bfloat16", "float32", "int32", "int64", "uint8"]
Operator = Literal["seed", "translate", "propose", "repair", "crossover", "tune", "compose", "import"]

SCALAR_T = "scalar_t"
"""Stands in a tensor's dtype for the floating-point dtype of the workload at hand."""

ITEMSIZE: dict[str, int] = {"float16": 2, "bfloat16": 2, "float32": 4, "int32": 4, "int64": 8, "uint8": 1}
"""Bytes per element."""

SHAPES = "+"
"""Stands in a task's version before the hash of problem sizes that are not its own."""

JUDGE_VERSION = 8
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


class TensorArgument(Record):
    """An argument of a module's `forward` that is an input of the task."""

    index: int
    """Position among the task's inputs."""
    boolean: bool = False
    """The module takes it as torch.bool; the task holds it as uint8."""


class ValueArgument(Record):
    """An argument of a module's `forward` that is no tensor and always the same."""

    value: Any
    """JSON; a tuple is an object with the one key `tuple`, a dict one with the one key `dict`."""


class ModuleForm(Record):
    """How the inputs of a task that was made of a PyTorch file reach `ModelNew(*init, **keywords)(*arguments)`."""

    init: tuple[Any, ...] = ()
    """JSON, written as in ValueArgument."""
    keywords: dict[str, Any] = {}
    mode: Literal["train", "eval"] = "train"
    arguments: tuple[TensorArgument | ValueArgument, ...]
    weights: tuple[str, ...] = ()
    """Names of the module's parameters and buffers that are the task's trailing inputs."""


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
    module: ModuleForm | None = None
    """For a task made of a PyTorch file."""

    @property
    def tensors(self) -> tuple[TensorSpec, ...]:
        """Every tensor in parameter order: outputs, inouts, inputs."""
        return self.outputs + self.inouts + self.inputs

    def on(self, *workloads: Workload) -> Task:
        """The same operator on other problem sizes, under a version of its own, so that its verdicts stand alone."""
        text = json.dumps([workload.model_dump(mode="json") for workload in workloads], sort_keys=True)
        version = f"{self.version}{SHAPES}{hashlib.sha256(text.encode()).hexdigest()[:12]}"
        return self.model_copy(update={"version": version, "workloads": workloads, "held_out": ()})


# ---------------------------------------------------------------- candidates


Form = Literal["kernel", "extension", "module"]
"""`kernel`: our contract. `extension`: C++ or CUDA with `torch::Tensor forward(...)`. `module`: Python, `ModelNew`."""


def candidate_id(source: str, target: Target, tunables: dict[str, int], form: Form = "kernel") -> str:
    """The content address of a candidate: sha256 over target, source, tunables and form, as 64 hex digits."""
    parts: list[Any] = [target, source, sorted(tunables.items())]
    # Ids of kernels are older than the other forms.
    text = json.dumps(parts if form == "kernel" else [*parts, form], ensure_ascii=False)
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
    form: Form = "kernel"

    @property
    def id(self) -> str:
        return candidate_id(self.source, self.target, self.tunables, self.form)


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
    again: Measurement | None = None
    """Eager a second time in the same rounds: what two measurements of the same thing differ by."""
    missing: dict[str, str] = {}
    """Baselines that could not be timed on this workload, and why."""


class Conditions(Record):
    """The GPU right after a candidate was timed on it."""

    idle_ms: float
    """How long a kernel of next to no work took from its launch to its end: longer where somebody else is busy."""
    sm_mhz: int | None = None
    """This and what follows is empty where NVML does not answer."""
    memory_mhz: int | None = None
    temperature_c: int | None = None
    power_w: float | None = None
    slowed: tuple[str, ...] = ()
    """What held the clocks down."""


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


SanitizerTool = Literal["memcheck", "racecheck", "initcheck", "address"]
"""The first three are compute-sanitizer's; `address` is the compiler's AddressSanitizer, for the cpu target."""


class Fault(Record):
    """One kind of error in one kernel, as a sanitizer reported it."""

    kernel: str
    what: str
    """In the tool's words, such as `Invalid __global__ write of size 4 bytes`."""
    where: str = ""
    """How the address lies to the nearest buffer, or what else took part; empty where the tool does not say."""
    count: int = 1


class SanitizerReport(Record):
    """What one sanitizer said of a candidate's calls."""

    tool: SanitizerTool
    errors: int | None
    """None where the tool came to no result; `excerpt` then says why."""
    kernels: tuple[Fault, ...] = ()
    excerpt: str = ""
    """The first error in the tool's words, without addresses."""
    seconds: float = 0.0


class Counter(Record):
    name: str
    value: float
    unit: str = ""


class KernelCounters(Record):
    """What a profiler counted over one launch of a kernel, or over the calls of a cpu candidate."""

    kernel: str
    counters: tuple[Counter, ...]


class Profile(Record):
    """Hardware counters of a candidate on one workload."""

    tool: Literal["ncu", "perf", "none"]
    workload: str = ""
    kernels: tuple[KernelCounters, ...] = ()
    note: str = ""
    """Why there is nothing, or less than usual."""


class Against(Record):
    """A fused kernel beside the best kernels of its parts, run one after the other."""

    pair: str
    """The candidate that runs them."""
    speedup: Interval | None
    """The pair's latency over the fused kernel's; None where the duel broke off."""
    faster: bool
    """Whether the whole interval lies beyond the judge's gate."""


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
    faster_than: tuple[str, ...] = ()
    """Of a confirmed candidate: the subjects of `speedup` whose interval lies beyond the gate, 1 + max(2 %, what eager
    differs from itself by)."""
    deterministic: bool = True
    """Whether calls on the same data gave the same bits."""
    sanitizers: tuple[SanitizerReport, ...] = ()
    profile: Profile | None = None
    conditions: Conditions | None = None
    """Of a GPU."""
    disturbed: str = ""
    """Why the timings decide nothing, though they were taken again; empty where they stand."""
    against: Against | None = None
    """Of a fused kernel. One that is not faster wins no workload."""
    label: Literal["custom", "library"] = "custom"
    """`library` where the time is spent in kernels of cuBLAS, cuDNN, ATen or another library."""


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
    duplicate_of: str | None = None
    """The candidate that was judged, where this one differs from it in comments and blanks only."""
    stages: dict[str, float] = {}
    """Seconds spent building, waiting for a worker, checking and timing."""
    judged_at: str
    """UTC, ISO 8601."""
    versions: dict[str, str] = {}
    """torch, compiler, driver: what the numbers were measured with."""
