"""What sanitizers say of a candidate: out-of-bounds and misaligned accesses, shared-memory races, uninitialised reads.

On cuda NVIDIA's compute-sanitizer, on cpu the compiler's AddressSanitizer (which needs a build of its own: `address`
in the Toolchain). The worker holds every buffer in an allocation of its own, so that the tools know its real bounds.
Outputs and workspace are never filled there: initcheck takes a fill for an initialisation and would miss that a kernel
reads them before it wrote them. Reading a buffer back is exempt from the check, so an unwritten output is no alarm
here; the judge's poison finds those.
Not covered: races in global memory, which racecheck does not look at, and undefined behaviour other than addresses.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path

from sandbox.contract import Device, Fault, SanitizerReport, SanitizerTool
from sandbox.instruments import REPORT_PATH, Call, Outcome, find, run_under
from sandbox.launch import Launcher

PADDING_BYTES = 512
"""Put by memcheck behind each allocation: neighbours otherwise hide an access past the end."""
EXCERPT_LINES = 12
_CALL_TIMEOUT_S = {"memcheck": 60.0, "initcheck": 60.0, "racecheck": 180.0, "address": 60.0}
_ASAN_ADDRESS_SPACE = 1 << 46
"""AddressSanitizer reserves 16 TiB for its shadow; its own limit on resident memory takes the place of ours."""
_ASAN_RESIDENT_MB = 4096

# The tool's own API errors are left out: the worker reports those of its calls. So is its exit code.
_COMMON = ("--print-limit", "50", "--show-backtrace", "device", "--check-exit-code", "no")
_OPTIONS: dict[str, tuple[str, ...]] = {
    "memcheck": ("--padding", str(PADDING_BYTES), "--report-api-errors", "no"),
    "racecheck": ("--racecheck-report", "analysis"),
    # Copying a buffer out is not a use of it.
    "initcheck": ("--check-api-memory-access", "no"),
}


def sanitize(
    launcher: Launcher, device: Device, prepared: Sequence[Call], tools: Iterable[SanitizerTool]
) -> tuple[SanitizerReport, ...]:
    """One report for each tool: every call of `prepared` is made once in a fresh worker under it.

    A tool that is not installed, or that came to no result, is a report too, with `errors` None and the reason.
    """
    return tuple(_one(launcher, device, prepared, tool) for tool in tools)


def _one(launcher: Launcher, device: Device, calls: Sequence[Call], tool: SanitizerTool) -> SanitizerReport:
    if tool == "address":
        return _address(launcher, device, calls)
    program = find("compute-sanitizer", launcher)
    if program is None:
        return SanitizerReport(tool=tool, errors=None, excerpt="not run: compute-sanitizer not found")
    command = (program, "--tool", tool, "--log-file", REPORT_PATH, *_COMMON, *_OPTIONS[tool], "--")
    outcome = run_under(launcher, device, calls, command, _has_summary, _CALL_TIMEOUT_S[tool])
    return read_report(tool, outcome)


# ---------------------------------------------------------------- compute-sanitizer's reports

_PREFIX = re.compile(r"^=========\s?")
_FAULT = re.compile(
    r"^(?:(?P<severity>Error|Warning): )?"
    r"(?P<what>Race reported between \w+ access|(?:Potential )?[Ii]nvalid __\w+__ \w+ of size [\d,]+ bytes"
    r"|Uninitialized __\w+__ memory \w+ of size [\d,]+ bytes|Malloc/Free error encountered : .+"
    r"|Barrier error detected.*|Warpgroup MMA .*|Deadlock detected.*|Fatal UVM .*)"
    r"(?: at (?P<at>.+))?$"
)
_AT = re.compile(r"^\s*at (?:0x[0-9a-f]+ in )?(?P<name>[^\s(+:]+)")
_FRAME = re.compile(r"^\s*Device Frame:\s*(?:0x[0-9a-f]+ in )?(?P<name>[^\s(+:]+)")
_ADDRESS = re.compile(r"\s*\b(?:at )?0x[0-9a-f]+\b")
_SUMMARY = re.compile(r"(?:RACECHECK SUMMARY: .*\((\d+) errors?,|ERROR SUMMARY: (\d+) errors?$)", re.MULTILINE)


def _has_summary(report: str) -> bool:
    return _SUMMARY.search(report) is not None


def read_report(tool: SanitizerTool, outcome: Outcome) -> SanitizerReport:
    """A report of compute-sanitizer as a record. Without a summary the tool came to no result."""
    blocks = list(_blocks(outcome.report))
    faults = _counted(_fault(block) for block in blocks)
    summary = _SUMMARY.search(outcome.report)
    errors = int(summary[1] or summary[2]) if summary else len(blocks) or None
    if errors is None or (errors == 0 and outcome.trouble):
        said = _said(outcome.report)
        return SanitizerReport(tool=tool, errors=None, excerpt=_reason(outcome.trouble, said), seconds=outcome.seconds)
    excerpt = "\n".join(_ADDRESS.sub("", line) for line in blocks[0][:EXCERPT_LINES]) if blocks else ""
    return SanitizerReport(tool=tool, errors=errors, kernels=faults, excerpt=excerpt, seconds=outcome.seconds)


def _blocks(report: str) -> Iterator[list[str]]:
    """The lines of each error, without the prefix and without the host's frames."""
    block: list[str] = []
    for line in (_PREFIX.sub("", line) for line in report.splitlines() if line.startswith("=====")):
        if _FAULT.match(line):
            if block:
                yield block
            block = [line]
        elif not line.strip() or "SUMMARY:" in line or "Saved host backtrace" in line:
            if block:
                yield block
            block = []
        elif block:
            block.append(line)
    if block:
        yield block


def _fault(block: list[str]) -> Fault:
    found = _FAULT.match(block[0])
    assert found is not None
    severity = "warning: " if found["severity"] == "Warning" else ""
    if found["at"]:  # a race names both accesses, and the kernel with each
        partner = next((line.strip() for line in block[1:] if line.strip().startswith("and ")), "")
        return Fault(kernel=_name(found["at"]), what=severity + found["what"], where=_ADDRESS.sub("", partner))
    frames = [match["name"] for line in block if (match := _FRAME.match(line))]
    names = [match["name"] for line in block[1:] if (match := _AT.match(line))]
    where = " ".join(_ADDRESS.sub("", line).strip() for line in block[1:] if _tells_where(line))
    return Fault(kernel=(frames or names or ["?"])[-1 if frames else 0], what=severity + found["what"], where=where)


def _tells_where(line: str) -> bool:
    return bool(re.match(r"\s*(Address|Access|and is) ", line))


def _name(place: str) -> str:
    found = _AT.match(f"at {place}")
    return found["name"] if found else place


def _counted(faults: Iterable[Fault]) -> tuple[Fault, ...]:
    """One for each kernel and kind of error, with its number; the first tells where."""
    first: dict[tuple[str, str], Fault] = {}
    for fault in faults:
        seen = first.get((fault.kernel, fault.what))
        first[fault.kernel, fault.what] = seen.model_copy(update={"count": seen.count + 1}) if seen else fault
    return tuple(first.values())


def _said(report: str) -> str:
    """What the tool says where it failed itself."""
    lines = [_PREFIX.sub("", line).strip() for line in report.splitlines() if line.startswith("=====")]
    return "; ".join(line for line in lines if "rror" in line and "SUMMARY" not in line)[:500]


def _reason(trouble: str, said: str) -> str:
    return "no result: " + ("; ".join(part for part in (trouble, said) if part) or "the tool wrote no summary")


# ---------------------------------------------------------------- AddressSanitizer


@cache
def asan_runtime() -> str | None:
    """The name by which the loader finds g++'s AddressSanitizer; None where g++ has none."""
    compiler = shutil.which("g++")
    if compiler is None:
        return None
    asked = subprocess.run([compiler, "-print-file-name=libasan.so"], capture_output=True, text=True, check=False)
    library = Path(asked.stdout.strip()).resolve()
    return re.sub(r"(\.so\.\d+).*", r"\1", library.name) if library.is_file() else None


def _address(launcher: Launcher, device: Device, calls: Sequence[Call]) -> SanitizerReport:
    runtime = asan_runtime()
    if runtime is None:
        return SanitizerReport(tool="address", errors=None, excerpt="not run: g++ has no libasan.so")
    # Python leaks by design, and its symbols would say nothing of the candidate.
    options = f"detect_leaks=0:symbolize=0:log_path={REPORT_PATH}:hard_rss_limit_mb={_ASAN_RESIDENT_MB}"
    command = ("/usr/bin/env", f"LD_PRELOAD={runtime}", f"ASAN_OPTIONS={options}")
    # It writes on an error only, so there is nothing to wait for.
    timeout_s = _CALL_TIMEOUT_S["address"]
    outcome = run_under(launcher, device, calls, command, lambda _: True, timeout_s, _ASAN_ADDRESS_SPACE)
    return read_asan(outcome, str(calls[0].load["entry"]))


_ASAN_ERROR = re.compile(r"ERROR: AddressSanitizer: (?P<what>[\w-]+)")
_ASAN_ACCESS = re.compile(r"^(?P<access>(?:READ|WRITE) of size \d+)", re.MULTILINE)
_ASAN_PLACE = re.compile(r"is located (?P<where>.+?-byte region)")


def read_asan(outcome: Outcome, kernel: str) -> SanitizerReport:
    """A report of AddressSanitizer, which stops at the first error, as a record."""
    found = _ASAN_ERROR.search(outcome.report)
    if found is None:
        if outcome.trouble:
            return SanitizerReport(
                tool="address", errors=None, excerpt=_reason(outcome.trouble, ""), seconds=outcome.seconds
            )
        return SanitizerReport(tool="address", errors=0, seconds=outcome.seconds)
    access, place = _ASAN_ACCESS.search(outcome.report), _ASAN_PLACE.search(outcome.report)
    what = ": ".join([found["what"], *([access["access"]] if access else [])])
    where = place["where"] if place else ""
    return SanitizerReport(
        tool="address",
        errors=1,
        kernels=(Fault(kernel=kernel, what=what, where=where),),
        excerpt=f"AddressSanitizer: {what}{where and f', {where}'}",
        seconds=outcome.seconds,
    )
