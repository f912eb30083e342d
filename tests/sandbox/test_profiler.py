"""Counters as records. The tables have the form of Nsight Compute 2025's --csv and of perf's -x,."""

import pytest

from sandbox.devices import cross
from sandbox.profiler import complete, read_ncu, read_perf, wanted

HEADER = (
    '"ID","Process ID","Process Name","Host Name","Kernel Name","Context","Stream","Block Size","Grid Size","Device",'
    '"CC","Section Name","Metric Name","Metric Unit","Metric Value"'
)
SECTION = "Command line profiler metrics"


def row(launch: int, kernel: str, metric: str, unit: str, value: str) -> str:
    where = f'"{launch}","4711","python3.12","127.0.0.1","{kernel}","1","13","(128, 1, 1)","(64, 1, 1)","0","9.0"'
    return f'{where},"{SECTION}","{metric}","{unit}","{value}"'


STALL = "smsp__average_warps_issue_stalled_{}_per_issue_active.ratio"
TABLE = "\n".join(
    [
        "==PROF== Connected to process 4711 (/usr/bin/python3.12)",
        '==PROF== Profiling "split_kv": 0%....50%....100% - 9 passes',
        "==PROF== Disconnected from process 4711",
        HEADER,
        row(0, "split_kv", "dram__bytes_read.sum", "byte", "16,797,696"),
        row(0, "split_kv", "dram__throughput.avg.pct_of_peak_sustained_elapsed", "%", "61.30"),
        row(0, "split_kv", "gpu__time_duration.sum", "ns", "9,024"),
        row(0, "split_kv", "launch__registers_per_thread", "register/thread", "96"),
        row(0, "split_kv", "l1tex__data_bank_conflicts_pipe_lsu_mem_shared_op_ld.sum", "", "n/a"),
        row(0, "split_kv", STALL.format("long_scoreboard"), "inst", "5.12"),
        row(0, "split_kv", STALL.format("wait"), "inst", "1.9"),
        row(0, "split_kv", STALL.format("barrier"), "inst", "0.4"),
        row(0, "split_kv", STALL.format("drain"), "inst", "0.1"),
        row(1, "void combine<4>(float *, int)", "gpu__time_duration.sum", "ns", "2,016"),
        "",
    ]
)
DENIED = (
    "==PROF== Connected to process 9\n==ERROR== ERR_NVGPUCTRPERM - The user does not have permission to access NVIDIA "
    "GPU Performance Counters on the target device 0.\n==PROF== Disconnected from process 9\n"
)
PERF = """\
512.04,msec,task-clock,512040000,100.00,1.024,CPUs utilized
12,,context-switches,512040000,100.00,23.435,/sec
1500000000,,cycles,512040000,100.00,2.9,GHz
3000000000,,instructions,512040000,100.00,2.00,insn per cycle
6000000,,cache-misses,512040000,100.00,11.7,M/sec
<not supported>,,branch-misses,0,100.00,,
"""


def test_counters_stand_by_launch_in_plain_units() -> None:
    found = read_ncu(TABLE, "B1 S512 float16")
    assert (found.tool, found.workload) == ("ncu", "B1 S512 float16")
    assert [kernel.kernel for kernel in found.kernels] == ["split_kv", "combine"]
    counters = {counter.name: counter for counter in found.kernels[0].counters}
    assert counters["duration"].value == pytest.approx(9.024)
    assert counters["duration"].unit == "µs"
    assert counters["DRAM read"].value == 16.797696
    assert counters["registers"].value == 96


def test_a_counter_the_device_lacks_is_left_out() -> None:
    names = [counter.name for counter in read_ncu(TABLE, "w").kernels[0].counters]
    assert "bank conflicts, loads" not in names


def test_only_the_greatest_stalls_are_kept() -> None:
    names = [counter.name for counter in read_ncu(TABLE, "w").kernels[0].counters if counter.name.startswith("stall")]
    assert names == ["stall long scoreboard", "stall wait", "stall barrier"]


def test_a_driver_that_keeps_its_counters_is_a_note() -> None:
    found = read_ncu(DENIED, "w")
    assert (found.tool, found.kernels) == ("none", ())
    assert "administrators" in found.note


def test_an_empty_report_says_why_the_worker_was_of_no_use() -> None:
    assert read_ncu("", "w", "the worker did not start").note == "not profiled: the worker did not start"
    assert read_ncu("", "w").note == "not profiled: ncu wrote no counters"


def test_a_report_is_complete_when_the_process_is_gone_and_the_table_ends() -> None:
    assert complete(TABLE)
    assert complete(DENIED)
    assert not complete(TABLE[:90])
    assert not complete(TABLE.rstrip("\n"))


def test_only_hopper_is_asked_for_its_own_stall() -> None:
    assert STALL.format("gmma") in wanted(cross("sm_90a"))
    assert STALL.format("gmma") not in wanted(cross("sm_86"))


def test_perf_becomes_rates() -> None:
    found = read_perf(PERF, "N1024", "layernorm")
    counters = {counter.name: counter.value for counter in found.kernels[0].counters}
    assert list(counters) == ["cores busy", "context switches", "instructions per cycle", "cache misses"]
    assert list(counters.values()) == pytest.approx([1.02408, 24.0, 2.0, 2.0])
    assert found.note == ""


def test_a_machine_without_hardware_events_says_so() -> None:
    software = "\n".join(PERF.splitlines()[:2]) + "\n<not supported>,,cycles,0,100.00,,\n"
    found = read_perf(software, "N1024", "layernorm")
    assert found.tool == "perf"
    assert found.note == "perf counts no hardware events on this machine"


def test_perf_that_may_not_look_is_a_note() -> None:
    found = read_perf("Error:\nNo permission to enable task-clock event.\n", "N1024", "layernorm")
    assert found.tool == "none"
    assert "No permission" in found.note
