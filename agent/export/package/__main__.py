"""The package's own commands: verify, bench and provenance."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

DESCRIPTION = "What this package holds, whether it is right on this machine, and how fast it is here."


def main(arguments: Sequence[str] | None = None) -> int:
    parser = _parser()
    given = parser.parse_args(arguments)
    if given.command is None:
        parser.print_help()
        return 0
    if given.command == "provenance":
        return _print(_provenance(), given.json, provenance_lines)
    # Imported here: they load the library, and --help must not.
    from . import benching, verifying

    try:
        if given.command == "verify":
            checked = verifying.verify(given.task, given.seed)
            return _print(checked.plain(), given.json, verify_lines, checked.ok)
        measured = benching.bench(given.task, given.rounds, not given.no_compile)
        return _print(measured.plain(), given.json, bench_lines, measured.ok)
    except ValueError as exc:
        parser.error(str(exc))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=f"python -m {__package__}", description=DESCRIPTION)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    verify = commands.add_parser(
        "verify", help="compare every operator with PyTorch, in float64; exit 0 if all is right"
    )
    verify.add_argument("--seed", type=int, help="of the random data; a fresh one by default")
    bench = commands.add_parser("bench", help="time every operator beside eager PyTorch, torch.compile and libraries")
    bench.add_argument("--rounds", type=_positive, default=20, help="more rounds, narrower intervals (default 20)")
    bench.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    for command in (verify, bench):
        command.add_argument("--task", action="append", default=[], help="this one only; may be given several times")
    provenance = commands.add_parser("provenance", help="where each kernel comes from, and what was measured of it")
    for command in (verify, bench, provenance):
        command.add_argument("--json", action="store_true", help="print one JSON value")
    return parser


def _positive(text: str) -> int:
    if (value := int(text)) < 2:
        raise argparse.ArgumentTypeError(f"got {value}, wanted at least 2")
    return value


def _print(found: dict[str, Any], as_json: bool, lines: Any, ok: bool = True) -> int:
    print(json.dumps(_finite(found), indent=2) if as_json else "\n".join(lines(found)))
    return 0 if ok else 1


def _finite(value: Any) -> Any:
    """JSON has no infinity."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return str(value) if value in (float("inf"), float("-inf")) else value


def _provenance() -> dict[str, Any]:
    known: dict[str, Any] = json.loads(Path(__file__).with_name("provenance.json").read_text())
    return known


# ---------------------------------------------------------------- words


def verify_lines(found: dict[str, Any]) -> Iterator[str]:
    rows = [
        (
            row["task"],
            row["workload"],
            row["kind"],
            row["by"] or "–",
            _share(row["error"]),
            _share(row["limit"]),
            ("ok" if row["by"] else "–") if row["ok"] else "WRONG",
            row["note"],
        )
        for row in found["rows"]
    ]
    yield f"{__package__} on {found['device']}, PyTorch {found['torch']}, seed {found['seed']}\n"
    yield from table(("task", "workload", "kind", "by", "error", "allowed", "", ""), rows)
    made = [row for row in found["rows"] if row["by"]]
    wrong = [row for row in found["rows"] if not row["ok"]]
    proven = [row for row in made if row["kind"] in ("search", "held-out", "shape")]
    by_kernel = sum(row["by"] == "kernel" for row in proven)
    yield f"\n{len(made) - sum(row['by'] != '' for row in wrong)} of {len(found['rows'])} calls agree with float64"
    yield f"{by_kernel} of {len(proven)} proven calls were answered by a kernel, the others by PyTorch"
    if not made:
        yield "nothing was compared"


def bench_lines(found: dict[str, Any]) -> Iterator[str]:
    rows = [
        (
            row["task"],
            row["workload"],
            timing["subject"],
            f"{timing['median_ms']:.4g}",
            "{:.4g}–{:.4g}".format(*timing["interval_ms"]),
            *(("–", "") if timing["subject"] == "kernel" else _speedup(timing)),
        )
        for row in found["rows"]
        for timing in row["timings"]
    ]
    yield f"{__package__} on {found['device']}, PyTorch {found['torch']}, {found['rounds']} rounds\n"
    yield from table(("task", "workload", "subject", "ms", "95 %", "kernel is × faster", "95 %"), rows)
    for row in found["rows"]:
        for subject, why in row["missing"].items():
            yield f"not timed: {row['task']}, {row['workload']}, {subject}: {why}"


def _speedup(timing: dict[str, Any]) -> tuple[str, str]:
    return f"{timing['speedup']:.2f}", "{:.2f}–{:.2f}".format(*timing["speedup_interval"])


def provenance_lines(found: dict[str, Any]) -> Iterator[str]:
    tasks = found["tasks"]
    measured = [_measured(name, each) for name, task in tasks.items() for each in task["workloads"]]
    yield f"{found['package']}, torch.ops.{found['namespace']}: what the judge measured, for {found['target']}\n"
    yield from table(("task", "workload", "kernel", "ms", "95 %", "× eager", "× compile", "judge", "on"), measured)
    yield ""
    kernels = [(i[:12], name, each) for name, task in tasks.items() for i, each in task["candidates"].items()]
    yield from table(
        ("kernel", "task", "by", "of", "source", ""),
        [(i, task, each["proposer"], _parents(each), each["source"], each["title"]) for i, task, each in kernels],
    )
    yield "\n--json prints everything: compiled files with their hashes, macros, regions, versions of what measured"


def _measured(task: str, each: dict[str, Any]) -> tuple[str, ...]:
    """One workload's winner, and its numbers where it was judged."""
    if "latency_ms" not in each:
        return (task, each["workload"], each["candidate"][:12], "–", "", "–", "–", "", each.get("device", ""))
    low, high = each["latency_interval_ms"]
    against = (f"{each['speedup'][name]:.2f}" if name in each["speedup"] else "–" for name in ("eager", "compile"))
    judge = f"version {each['judge_version']}"
    kernel, latency = each["candidate"][:12], f"{each['latency_ms']:.4g}"
    return (task, each["workload"], kernel, latency, f"{low:.4g}–{high:.4g}", *against, judge, each["device"])


def _parents(each: dict[str, Any]) -> str:
    return ", ".join(parent[:12] for parent in each["parents"]) or "–"


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Columns as wide as their widest cell."""
    lines = [heads, *rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(heads))]
    for line in lines:
        yield "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.2g}"


if __name__ == "__main__":
    # A pipe that is closed early, as `head` does, is no error.
    try:
        sys.exit(main())
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
