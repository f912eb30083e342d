"""leaderboard, show and diff; archive export, import and verify."""

from __future__ import annotations

import contextlib
import difflib
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from agent import boards, render, words
from agent.commands.options import ArchivePath, Json, TaskName, err, location, open_archive, out, print_json
from sandbox.contract import Target
from sandbox.errors import BadInput


def leaderboard(
    task: TaskName = None,
    target: Annotated[Target | None, typer.Option()] = None,
    device: Annotated[str | None, typer.Option(help="Name of a GPU or CPU.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="Most rows of a table; --json prints all.")] = 20,
    archive: ArchivePath = None,
    as_json: Json = False,
) -> None:
    """The fastest correct kernels by task, target and device."""
    from archive import rows

    with open_archive(location(archive)) as opened:
        found, held_in = rows(opened, task, target, device), opened.location
    if as_json:
        print_json([row.model_dump(mode="json") for row in found])
    elif found:
        out.print(boards.leaderboard(found, out.width, limit))
    else:
        asked = " · ".join(part for part in (task, target, device) if part)
        out.print(f"nothing has passed yet{asked and f' for {asked}'} in {held_in}", soft_wrap=True)


def show(
    candidate: Annotated[str, typer.Argument(help="Id of a candidate, or the beginning of one.")],
    source: Annotated[bool, typer.Option("--source", help="Print the source and nothing else.")] = False,
    archive: ArchivePath = None,
    as_json: Json = False,
) -> None:
    """A candidate's source, verdicts, timings by workload, and lineage."""
    if source and as_json:
        raise BadInput("got --source and --json, wanted one of them")
    with open_archive(location(archive)) as opened:
        found = opened.candidate(candidate)
        judgements = [judgement for _, judgement in opened.judgements() if judgement.candidate == found.id]
        lineage = opened.lineage(found.id)
    if source:
        sys.stdout.write(found.source)
    elif as_json:
        print_json(
            {
                "candidate": {"id": found.id, **found.model_dump(mode="json")},
                "judgements": [judgement.model_dump(mode="json") for judgement in judgements],
                "lineage": [ancestor.id for ancestor in lineage],
            }
        )
    else:
        out.print(render.candidate_page(found, judgements, lineage))


def diff(
    old: Annotated[str, typer.Argument(help="Id of a candidate.")],
    new: Annotated[str, typer.Argument(help="Id of another.")],
    archive: ArchivePath = None,
    as_json: Json = False,
) -> None:
    """What changed between two candidates: tunables and source."""
    with open_archive(location(archive)) as opened:
        before, after = opened.candidate(old), opened.candidate(new)
    names = sorted(before.tunables.keys() | after.tunables.keys())
    changed = {n: [before.tunables.get(n), after.tunables.get(n)] for n in names}
    changed = {name: pair for name, pair in changed.items() if pair[0] != pair[1]}
    lines = difflib.unified_diff(
        before.source.splitlines(), after.source.splitlines(), words.label(before), words.label(after), lineterm=""
    )
    if as_json:
        print_json({"old": before.id, "new": after.id, "tunables": changed, "diff": "\n".join(lines)})
    else:
        out.print(render.difference(changed, list(lines)))


def export_archive(file: Path, archive: ArchivePath = None, as_json: Json = False) -> None:
    """Write everything an archive holds to a JSONL file, gzipped where the name ends in .gz."""
    with open_archive(location(archive)) as opened:
        count = opened.export(file)
    if as_json:
        print_json({"file": str(file), "records": count})
    else:
        out.print(f"{count} records in {file}")


def import_archive(file: Path, archive: ArchivePath = None, as_json: Json = False) -> None:
    """Merge an exported file into an archive. What is there already stays as it is."""
    with open_archive(location(archive)) as opened:
        report = opened.import_(file)
    if as_json:
        print_json(report.model_dump(mode="json"))
    else:
        out.print(render.tallies(report))


def verify_archive(
    task: Annotated[
        list[str] | None, typer.Option("--task", "-t", help="Name or path of a task; all by default.")
    ] = None,
    target: Annotated[Literal["auto", "cuda", "cpu"], typer.Option()] = "auto",
    device: Annotated[
        list[str] | None, typer.Option(help="Only what won on this GPU or CPU, by its name or the beginning of it.")
    ] = None,
    sandbox: Annotated[Literal["auto", "docker", "local"], typer.Option(help="Where candidates run.")] = "auto",
    archive: ArchivePath = None,
    as_json: Json = False,
) -> None:
    """Judge an archive's winners again, on this machine. Exit code 1 where one fails or none passes."""
    from agent import exporting, session, verifying
    from sandbox import devices, launch
    from sandbox.judge import Judge

    findings = []
    with contextlib.ExitStack() as stack:
        opened = stack.enter_context(open_archive(location(archive)))
        chosen = exporting.choose(opened, target, task or (), device or ())
        here = devices.detect(chosen.parts[0].task.target)
        launcher, why = launch.choose(sandbox, here)
        stack.callback(launcher.close)
        err.print(f"judging on {here.name} · sandbox: {why}", style="dim", soft_wrap=True)
        judge = stack.enter_context(Judge(here, stack.enter_context(session.toolchain(launcher)), launcher))
        for finding in verifying.verify(opened, chosen, judge):
            err.print(f"{finding.task} {words.short(finding.candidate)} {finding.status}", style="dim")
            findings.append(finding)
    if as_json:
        print_json([finding.model_dump(mode="json") for finding in findings])
    else:
        out.print(render.verified(findings))
    if not verifying.holds(findings):
        raise typer.Exit(1)
