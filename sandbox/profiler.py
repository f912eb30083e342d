"""Hardware counters of a candidate on one workload: Nsight Compute on cuda, perf on cpu, a note where neither works.

Counters explain a measurement and never decide about one: the profiler replays a kernel many times from a flushed
cache, and its `duration` is not the judge's latency. Needs no privilege where the driver does not reserve the counters
for administrators (RmProfilingAdminOnly: 0). Not covered: registers and spills of the compiler's report (resources.py).
"""

from __future__ import annotations

import csv
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass

from sandbox.contract import Counter, Device, KernelCounters, Profile
from sandbox.errors import WorkerLost
from sandbox.instruments import REPORT_PATH, Call, find, once, prepare, run_under
from sandbox.launch import Launcher, Order, Worker
from sandbox.peer import PeerDied, PeerTimedOut

TOP_STALLS = 3
_CALL_TIMEOUT_S = 120.0
_PERF_S = 0.5
"""How long perf watches calls that follow each other."""


@dataclass(frozen=True)
class Metric:
    """A counter of Nsight Compute, and what it is called here."""

    metric: str
    name: str
    unit: str
    scale: float = 1.0


# Base units, which --csv implies: ns, byte, %.
METRICS = (
    Metric("gpu__time_duration.sum", "duration", "µs", 1e-3),
    Metric("sm__throughput.avg.pct_of_peak_sustained_elapsed", "SM throughput", "%"),
    Metric("gpu__compute_memory_throughput.avg.pct_of_peak_sustained_elapsed", "memory throughput", "%"),
    Metric("dram__throughput.avg.pct_of_peak_sustained_elapsed", "DRAM throughput", "%"),
    Metric("dram__bytes_read.sum", "DRAM read", "MB", 1e-6),
    Metric("dram__bytes_write.sum", "DRAM written", "MB", 1e-6),
    Metric("lts__t_sector_hit_rate.pct", "L2 hit rate", "%"),
    Metric("sm__warps_active.avg.pct_of_peak_sustained_active", "achieved occupancy", "%"),
    Metric("launch__registers_per_thread", "registers", "a thread"),
    Metric("launch__shared_mem_per_block_static", "static shared memory", "B a block"),
    Metric("launch__shared_mem_per_block_dynamic", "dynamic shared memory", "B a block"),
    Metric("sm__pipe_tensor_cycles_active.avg.pct_of_peak_sustained_active", "tensor pipes busy", "%"),
    Metric("l1tex__data_bank_conflicts_pipe_lsu_mem_shared_op_ld.sum", "bank conflicts, loads", ""),
    Metric("l1tex__data_bank_conflicts_pipe_lsu_mem_shared_op_st.sum", "bank conflicts, stores", ""),
    Metric("l1tex__t_bytes_pipe_lsu_mem_local_op_ld.sum", "local memory read (spills)", "kB", 1e-3),
    Metric("l1tex__t_bytes_pipe_lsu_mem_local_op_st.sum", "local memory written (spills)", "kB", 1e-3),
)
STALLS = (
    *("barrier", "branch_resolving", "dispatch_stall", "drain", "imc_miss", "lg_throttle", "long_scoreboard"),
    *("math_pipe_throttle", "membar", "mio_throttle", "no_instruction", "short_scoreboard", "sleeping"),
    *("tex_throttle", "wait", "gmma"),
)
_STALL = "smsp__average_warps_issue_stalled_{}_per_issue_active.ratio"
_STALL_UNIT = "warps stalled an issue"


def profile(launcher: Launcher, device: Device, prepared: Call) -> Profile:
    """Counters of one call. What keeps a profiler from working is the profile's note, never an error."""
    if device.target == "cpu":
        return _perf(launcher, device, prepared)
    program = find("ncu", launcher)
    if program is None:
        return Profile(tool="none", workload=prepared.workload, note="not profiled: ncu not found")
    # Clocks stay as they are when the judge measures.
    options = ("--csv", "--log-file", REPORT_PATH, "--clock-control", "none", "--metrics", ",".join(wanted(device)))
    outcome = run_under(launcher, device, [prepared], (program, *options), complete, _CALL_TIMEOUT_S)
    return read_ncu(outcome.report, prepared.workload, outcome.trouble)


def wanted(device: Device) -> list[str]:
    """The counters to ask for; one reason to stall exists on Hopper only."""
    stalls = [stall for stall in STALLS if stall != "gmma" or device.arch.startswith("sm_90")]
    return [*(entry.metric for entry in METRICS), *map(_STALL.format, stalls)]


# ---------------------------------------------------------------- Nsight Compute's reports


def complete(report: str) -> bool:
    """Whether the tool has said all it will say: the table comes last, some time after it left the process."""
    if "==ERROR==" in report or "No kernels were profiled" in report:
        return True
    return "==PROF== Disconnected" in report and "Metric Value" in report and report.endswith("\n")


def read_ncu(report: str, workload: str, trouble: str = "") -> Profile:
    """The table that `ncu --csv --metrics …` writes, one row for each kernel launch and counter, as a record."""
    table = [line for line in report.splitlines() if line.startswith('"')]
    launches: dict[tuple[str, str], dict[str, float]] = {}
    for row in csv.DictReader(table):
        number = _number(row.get("Metric Value") or "")
        if number is not None:
            launch = launches.setdefault((row["ID"], _base_name(row["Kernel Name"])), {})
            launch[row["Metric Name"]] = number
    kernels = tuple(
        KernelCounters(kernel=key[1], counters=tuple(_counters(values))) for key, values in launches.items()
    )
    if not kernels:
        return Profile(tool="none", workload=workload, note=f"not profiled: {_why(report, trouble)}")
    return Profile(tool="ncu", workload=workload, kernels=kernels, note=trouble)


def _number(text: str) -> float | None:
    """A value with its thousands separated by commas; None for `n/a` and other words."""
    try:
        return float(text.replace(",", ""))
    except ValueError:
        return None


def _base_name(kernel: str) -> str:
    """`scale` of `void scale<4>(float *, int)`."""
    return re.sub(r"^(?:void )?(\w+).*", r"\1", kernel)


def _counters(values: dict[str, float]) -> Iterator[Counter]:
    for entry in METRICS:
        if entry.metric in values:
            yield Counter(name=entry.name, value=values[entry.metric] * entry.scale, unit=entry.unit)
    stalls = {name: values[_STALL.format(name)] for name in STALLS if _STALL.format(name) in values}
    for name in sorted(stalls, key=stalls.__getitem__, reverse=True)[:TOP_STALLS]:
        yield Counter(name=f"stall {name.replace('_', ' ')}", value=stalls[name], unit=_STALL_UNIT)


def _why(report: str, trouble: str) -> str:
    """What Nsight Compute says where it counted nothing."""
    if "ERR_NVGPUCTRPERM" in report:
        return "the driver keeps its counters for administrators (RmProfilingAdminOnly)"
    said = re.findall(r"==(?:ERROR|WARNING)== (.+)", report)
    return trouble or "; ".join(said)[:500] or "ncu wrote no counters"


# ---------------------------------------------------------------- perf

PERF_EVENTS = ("task-clock", "context-switches", "cycles", "instructions", "cache-misses", "branch-misses")


def _perf(launcher: Launcher, device: Device, call: Call) -> Profile:
    """Counters of all threads of a worker while it makes call after call."""
    program = shutil.which("perf")
    if program is None:
        return Profile(tool="none", workload=call.workload, note="not profiled: perf not found")
    order = Order(device=device, memory_bytes=(4 << 30) + 4 * call.arena_bytes)
    try:
        with launcher.worker(order) as worker:
            if failure := prepare(worker.peer, call, private=False) or once(worker.peer, call, _CALL_TIMEOUT_S):
                return Profile(tool="none", workload=call.workload, note=f"not profiled: {failure}")
            report = _watched(program, worker, call)
    except (WorkerLost, PeerDied, PeerTimedOut, OSError) as exc:
        return Profile(tool="none", workload=call.workload, note=f"not profiled: {exc}")
    return read_perf(report, call.workload, str(call.load["entry"]))


def _watched(program: str, worker: Worker, call: Call) -> str:
    """perf attaches from outside, so that Python's start is not counted."""
    pids = ",".join(map(str, worker.peer.processes()))
    command = [program, "stat", "-x,", "-e", ",".join(PERF_EVENTS), "-p", pids, "--", "sleep", str(_PERF_S)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as perf:
        while perf.poll() is None:
            once(worker.peer, call, _CALL_TIMEOUT_S)
        assert perf.stderr is not None
        return perf.stderr.read()


def read_perf(report: str, workload: str, kernel: str) -> Profile:
    """What `perf stat -x,` writes: value, unit, event, … by line; a value that is no number was not counted."""
    counted = {}
    for row in csv.reader(report.splitlines()):
        if len(row) > 2 and (number := _number(row[0])) is not None:
            counted[row[2].removesuffix(":u")] = number
    counters = tuple(_perf_counters(counted))
    if not counters:
        return Profile(
            tool="none", workload=workload, note=f"not profiled: {report.strip()[:300] or 'perf said nothing'}"
        )
    note = "" if "cycles" in counted else "perf counts no hardware events on this machine"
    return Profile(
        tool="perf", workload=workload, kernels=(KernelCounters(kernel=kernel, counters=counters),), note=note
    )


def _perf_counters(counted: dict[str, float]) -> Iterator[Counter]:
    if "task-clock" in counted:
        yield Counter(name="cores busy", value=counted["task-clock"] / (_PERF_S * 1e3))
    if "context-switches" in counted:
        yield Counter(name="context switches", value=counted["context-switches"] / _PERF_S, unit="a second")
    instructions = counted.get("instructions", 0.0)
    if instructions and "cycles" in counted:
        yield Counter(name="instructions per cycle", value=instructions / max(counted["cycles"], 1.0))
    for event in ("cache-misses", "branch-misses"):
        if instructions and event in counted:
            name = event.replace("-", " ")
            yield Counter(name=name, value=counted[event] / instructions * 1e3, unit="per 1000 instructions")
