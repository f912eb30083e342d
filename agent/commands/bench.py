"""bench judge: how fast this machine judges, and what it spends the time on."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from agent import render
from agent.commands.options import Json, out, print_json


def judge(
    task: Annotated[str, typer.Option("--task", "-t", help="Name of a task, or path of its folder.")] = "attention",
    target: Annotated[Literal["auto", "cuda", "cpu"], typer.Option()] = "auto",
    sandbox: Annotated[Literal["auto", "docker", "local"], typer.Option()] = "auto",
    repeats: Annotated[int, typer.Option(min=1, help="How often each seed kernel is judged.")] = 2,
    as_json: Json = False,
) -> None:
    """Judge a task's seed kernels one after another, and show where every millisecond goes."""
    from agent import session, stopwatch, tasks
    from sandbox import devices, launch

    device = devices.detect(target)
    found = tasks.load(task, device.target)
    seeds, _ = session.suitable(found, device)
    launcher, why = launch.choose(sandbox, device)
    try:
        times = stopwatch.watch(found, seeds, device, launcher, repeats)
    finally:
        launcher.close()
    if as_json:
        print_json(times.model_dump(mode="json"))
    else:
        out.print(render.times(times, why), soft_wrap=True)
