"""tasks, build and doctor: what there is to search for, and what to search with."""

from __future__ import annotations

from typing import Annotated

import typer

from agent import render
from agent.commands.options import NO_TASK, ArchivePath, Json, TaskName, err, location, out, print_json
from sandbox.contract import Target
from sandbox.errors import BadInput, Infrastructure


def list_tasks(context: typer.Context, as_json: Json = False) -> None:
    """List the built-in tasks."""
    if context.invoked_subcommand is not None:
        return
    from agent import tasks

    found = tasks.overview()
    if as_json:
        print_json([task.model_dump(mode="json") for task in found])
    else:
        out.print(render.task_table(found))


def show_task(
    task: Annotated[str, typer.Argument(help="Name of a task, or path of its folder or file.")],
    target: Annotated[Target, typer.Option()] = "cuda",
    as_json: Json = False,
) -> None:
    """A task's signature, kernel prototype and search workloads."""
    from agent import tasks
    from sandbox.signature import prototype

    found = tasks.load(task, target)
    declaration = prototype(found, found.name)
    if as_json:
        # Held-out workloads are for the judge alone.
        print_json({**found.model_dump(mode="json", exclude={"held_out"}), "prototype": declaration})
    else:
        out.print(render.task_page(found, declaration), soft_wrap=True)


def build(
    task: TaskName = None,
    target: Annotated[Target, typer.Option()] = "cuda",
    arch: Annotated[str | None, typer.Option(help="Such as sm_86; by default the GPU at hand.")] = None,
    as_json: Json = False,
) -> None:
    """Compile a task's seed kernels, with or without a GPU: registers, spills, shared memory, occupancy."""
    from agent import building, session, tasks
    from sandbox import devices

    if not task:
        raise BadInput(NO_TASK)
    if arch and target != "cuda":
        raise BadInput(f"--arch {arch} is for target 'cuda'; target {target!r} builds for this machine")
    found = tasks.load(task, target)
    device = devices.cross(arch) if arch else devices.detect(target)
    with session.toolchain() as toolchain:
        reports = list(building.build_all(found, tasks.seeds(found), device, toolchain))
    if as_json:
        print_json([report.model_dump(mode="json") for report in reports])
    else:
        out.print(render.builds(f"{found.name} · {target} · {device.name} · {device.arch}", reports))
        for report in reports:
            if report.log:
                err.print(f"{report.seed}, {report.workloads[0]}:\n{report.log.rstrip()}", soft_wrap=True)
    if not all(report.ok for report in reports):
        raise typer.Exit(1)


def doctor(archive: ArchivePath = None, as_json: Json = False) -> None:
    """What this machine can do, and what stands in for the parts it lacks."""
    from agent import session
    from agent.doctor import able, examine

    with session.toolchain() as toolchain:
        found = examine(toolchain, location(archive))
    if as_json:
        print_json([finding.model_dump(mode="json") for finding in found])
    else:
        out.print(render.findings(found))
    if not able(found):
        raise Infrastructure("no run is possible on this machine as it is")
    if not as_json:
        there = {finding.part: finding.there for finding in found}
        device = "the GPU" if there["gpu"] else "the CPU"
        out.print(f"\na run is possible: `warpsmith run --task attention` searches on {device}", soft_wrap=True)
