"""judge: one file of anybody's before the judge, and what came of it with the evidence."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Group, RenderableType
from rich.text import Text

from agent import render, words
from agent.commands.options import Json, TaskName, err, location, open_archive, out, print_json
from sandbox.contract import Candidate, Cheated, Device, Form, Incorrect, Judgement, Passed, Task
from sandbox.errors import BadInput

if TYPE_CHECKING:
    from sandbox.launch import Sandbox

_TORCH_SOURCE = re.compile(r"#\s*include\s*<torch/|\b(?:torch|at)::Tensor\b|\bPYBIND11_MODULE\b")
_KERNEL_TARGETS = {".cu": "cuda", ".cpp": "cpu"}
_LABELS = {
    "custom": "its own kernels",
    "library": "a library's kernels (cuBLAS, cuDNN, ATen and the like) do the work",
}


def judge(
    file: Annotated[Path, typer.Argument(help="A .cu or .cpp kernel, a torch extension, or a .py with ModelNew.")],
    task: TaskName = None,
    reference: Annotated[
        Path | None, typer.Option(help="PyTorch file with Model, get_inputs and get_init_inputs, in place of a task.")
    ] = None,
    target: Annotated[Literal["auto", "cuda", "cpu"], typer.Option()] = "auto",
    tunable: Annotated[list[str] | None, typer.Option(help="NAME=VALUE, for a kernel of our own contract.")] = None,
    sandbox: Annotated[Literal["auto", "docker", "local"], typer.Option(help="Where the candidate runs.")] = "auto",
    archive: Annotated[
        str | None,
        typer.Option(help="Record kernel and verdict in this archive, by path or URL; without it nothing is recorded."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Judge one file, of your own or of anybody's. Exit code 0 only where it passed."""
    from agent.importing import read_text
    from sandbox import devices

    source = read_text(file)
    form = form_of(file, source)
    if (task is None) == (reference is None):
        raise BadInput("give either --task NAME or --reference PYTORCH_FILE, and not both")
    if archive is not None and form != "kernel":
        raise BadInput(f"--archive: got a torch {form}; only kernels of our own contract are archived")
    device = devices.detect(_target(file, form, target))
    found = _task(task, reference, device)
    candidate = _candidate(file, source, form, found, _tunables(tunable or [], form))
    judgement, why = _judged(found, candidate, device, sandbox)
    if archive is not None:
        with open_archive(location(archive)) as opened:
            opened.add(candidate)
            opened.record(judgement)
    if as_json:
        print_json({"file": str(file), "form": form, "sandbox": why, **summary(judgement)})
    else:
        out.print(page(file, candidate, judgement), soft_wrap=True)
    if not isinstance(judgement.verdict, Passed):
        raise typer.Exit(1)


# ---------------------------------------------------------------- what is judged, and against what


def form_of(file: Path, source: str) -> Form:
    """What a file is, by its name and its text. BadInput where it is nothing that can be judged."""
    if file.suffix == ".py":
        return "module"
    if file.suffix not in (".cu", ".cpp", ".cc", ".cxx"):
        raise BadInput(f"{file}: got a file {file.suffix or 'without a suffix'}, wanted .cu, .cpp or .py")
    if _TORCH_SOURCE.search(source):
        return "extension"
    if file.suffix not in _KERNEL_TARGETS:
        raise BadInput(f"{file}: a kernel of our own contract is a .cu or .cpp file (docs/kernel-contract.md)")
    return "kernel"


def _target(file: Path, form: Form, asked: Literal["auto", "cuda", "cpu"]) -> Literal["auto", "cuda", "cpu"]:
    """A kernel's suffix says its target; a torch source runs where it is asked to."""
    if form != "kernel":
        return asked
    own: Literal["cuda", "cpu"] = "cuda" if _KERNEL_TARGETS[file.suffix] == "cuda" else "cpu"
    if asked not in ("auto", own):
        raise BadInput(f"{file} is a kernel for target {own!r}, got --target {asked}")
    return own


def _task(name: str | None, reference: Path | None, device: Device) -> Task:
    from agent import importing, tasks

    if reference is not None:
        return importing.load_reference(reference, device.target)
    return tasks.load(str(name), device.target)


def _tunables(given: Sequence[str], form: Form) -> dict[str, int]:
    if given and form != "kernel":
        raise BadInput(f"--tunable is for kernels of our own contract, and this is a torch {form}")
    found = {}
    for text in given:
        match = re.fullmatch(r"(\w+)=(\d+)", text)
        if match is None:
            raise BadInput(f"--tunable {text}: wanted NAME=VALUE with an integer >= 0")
        found[match[1]] = int(match[2])
    return found


def _candidate(file: Path, source: str, form: Form, task: Task, tunables: dict[str, int]) -> Candidate:
    """The file as a candidate; tunables that its header does not name are BadInput, a wrong header is the judge's."""
    from sandbox import plan
    from sandbox.errors import PlanError

    if form == "kernel":
        with contextlib.suppress(PlanError):
            parsed = plan.parse(source, task)
            defaults = {known.name: known.default for known in parsed.tunables}
            if unknown := sorted(set(tunables) - set(defaults)):
                raise BadInput(f"{file} has no tunable {unknown[0]}; it has {', '.join(defaults) or 'none'}")
            tunables = defaults | tunables
    return Candidate(
        task=task.name,
        target=task.target,
        source=source,
        tunables=tunables,
        operator="import",
        proposer="file",
        note=file.name,
        form=form,
    )


def _judged(task: Task, candidate: Candidate, device: Device, sandbox: Sandbox) -> tuple[Judgement, str]:
    """The judgement, and in a sentence where the candidate ran."""
    from agent import session
    from sandbox.judge import Judge
    from sandbox.launch import choose

    launcher, why = choose(sandbox, device)
    err.print(f"judging {candidate.note} as {task.name} on {device.name} · sandbox: {why}", style="dim", soft_wrap=True)
    with contextlib.closing(launcher), session.toolchain(launcher) as tools, Judge(device, tools, launcher) as bench:
        return bench.judge(task, candidate), why


# ---------------------------------------------------------------- what came of it


def summary(judgement: Judgement) -> dict[str, Any]:
    """A judgement as `--json` prints it: the same keys whatever the verdict."""
    verdict = judgement.verdict
    passed = verdict if isinstance(verdict, Passed) else None
    record = judgement.model_dump(mode="json")
    return {
        "status": verdict.status,
        "rule": getattr(verdict, "rule", None),
        "evidence": evidence(judgement),
        "label": passed.label if passed else None,
        "latency_ms": passed.latency_ms if passed else None,
        "speedup": record["verdict"]["speedup"] if passed else {},
        "timings": record["verdict"]["timings"] if passed else [],
        **{key: value for key, value in record.items() if key != "verdict"},
    }


def evidence(judgement: Judgement) -> str:
    """What the verdict rests on, in full."""
    verdict = judgement.verdict
    if isinstance(verdict, Incorrect):
        return f"{verdict.workload}, {verdict.distribution}: {verdict.evidence}"
    if isinstance(verdict, Cheated):
        return verdict.evidence
    if not isinstance(verdict, Passed):
        return words.reason(judgement)
    workloads = len({check.workload for check in verdict.checks})
    distributions = ", ".join(dict.fromkeys(check.distribution for check in verdict.checks))
    worst = max(verdict.checks, key=lambda check: check.error, default=None)
    error = f"; largest error {worst.error:.2g}, PyTorch's own {worst.yardstick:.2g}" if worst else ""
    return f"{len(verdict.checks)} checks on {_count(workloads, 'workload')} ({distributions}){error}"


def page(file: Path, candidate: Candidate, judgement: Judgement) -> RenderableType:
    """A verdict for a person: the word first, then why, then the numbers."""
    return Group(*_parts(file, candidate, judgement))


def _parts(file: Path, candidate: Candidate, judgement: Judgement) -> Iterator[RenderableType]:
    verdict = judgement.verdict
    passed = isinstance(verdict, Passed)
    yield Text.assemble((verdict.status, "bold green" if passed else "bold red"), f"  {file}")
    yield Text(f"{judgement.task} · {judgement.target} · {judgement.device} · {candidate.form}", style="dim")
    if isinstance(verdict, Passed):
        yield Text(f"\n{words.milliseconds(verdict.latency_ms)} ms · {_against(verdict)}")
        yield Text(f"label     {verdict.label}: {_LABELS[verdict.label]}")
        yield Text(f"evidence  {evidence(judgement)}\n")
        yield render.timings(verdict.timings)
        yield from render.circumstances(verdict)
    else:
        rule = getattr(verdict, "rule", None)
        yield Text(f"\nrule      {rule}" if rule else "")
        yield Text(f"evidence  {evidence(judgement)}")
    yield Text(f"\njudged in {judgement.seconds:.1f} s, judge version {judgement.judge_version}", style="dim")


def _against(verdict: Passed) -> str:
    ordered = [name for name in words.NAMED if name in verdict.speedup]
    return ", ".join(f"{words.times(verdict.speedup[name])}× {name}" for name in ordered)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
