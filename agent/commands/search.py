"""run and resume."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NoReturn

import typer

from agent import config as configuration
from agent import render
from agent.commands.options import (
    ArchivePath,
    Json,
    TaskName,
    Toml,
    err,
    location,
    open_archive,
    out,
    print_json,
)
from sandbox.errors import Infrastructure

if TYPE_CHECKING:
    from agent.session import Outcome

DRAINING = "interrupted: the running evaluation and open requests are finished first; Ctrl-C again stops at once"


def run(
    task: TaskName = None,
    target: Annotated[
        Literal["auto", "cuda", "cpu"] | None, typer.Option(help="auto takes a GPU where one answers, else the CPU.")
    ] = None,
    sandbox: Annotated[
        Literal["auto", "docker", "local"] | None, typer.Option(help="Where candidates run: auto prefers Docker.")
    ] = None,
    proposer: Annotated[str | None, typer.Option(help="auto, engineer or tuner.")] = None,
    model: Annotated[
        list[str] | None, typer.Option(help="A language model that writes kernels; may be given several times.")
    ] = None,
    base_url: Annotated[
        str | None, typer.Option(help="OpenAI-compatible address of --model, such as http://localhost:8000/v1.")
    ] = None,
    command: Annotated[
        str | None, typer.Option(help="A program that writes kernels: prompt on stdin, reply on stdout.")
    ] = None,
    slots: Annotated[
        int | None, typer.Option(help="Requests to models that are open while another candidate is judged.")
    ] = None,
    prompts: Annotated[Path | None, typer.Option(help="Folder of your own prompt templates.")] = None,
    archive: ArchivePath = None,
    out_dir: Annotated[Path | None, typer.Option("--out", help="Where the composed extension goes.")] = None,
    budget_evals: Annotated[int | None, typer.Option(help="Most candidates to judge.")] = None,
    budget_seconds: Annotated[float | None, typer.Option(help="Most seconds to search.")] = None,
    budget_usd: Annotated[float | None, typer.Option(help="Most dollars to pay to model endpoints.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of the proposer's random choices.")] = None,
    seed_kernel: Annotated[
        list[Path] | None, typer.Option(help="A kernel of your own to start from; may be given several times.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the first prompts and what a run may cost; ask and judge nothing.")
    ] = False,
    config: Toml = None,
    as_json: Json = False,
) -> None:
    """Search for fast kernels of a task, and compose the winners into a PyTorch extension."""
    from agent import session
    from agent.progress import display

    flags = {
        "task": task,
        "target": target,
        "sandbox": sandbox,
        "proposer": proposer,
        "models": [{"name": name, "model": name, "base_url": base_url} for name in model or ()] or None,
        "command": command,
        "slots": slots,
        "prompts": prompts,
        "archive": archive,
        "out": out_dir,
        "budget_evals": budget_evals,
        "budget_seconds": budget_seconds,
        "budget_usd": budget_usd,
        "seed": seed,
        "seed_kernels": seed_kernel or None,
    }
    wanted = configuration.load(flags, config)
    if dry_run:
        _preview(wanted, as_json)
        return
    with display(err) as shown:
        try:
            outcome = session.start(wanted, shown.announce, shown.report, lambda: shown.say(DRAINING))
        except KeyboardInterrupt:
            _interrupted(shown.run, wanted.archive)
        except Infrastructure:
            if shown.run:
                shown.say(_how_to_resume(shown.run, wanted.archive))
            raise
    _finish(outcome, wanted.archive, as_json)


def resume(
    run_id: Annotated[str, typer.Argument(metavar="RUN", help="Id of a run, or the beginning of one.")],
    archive: ArchivePath = None,
    as_json: Json = False,
) -> None:
    """Continue a run that was interrupted or killed. Nothing that was judged is judged again."""
    from agent import proposers, session
    from agent.progress import display

    where = location(archive)
    with open_archive(where) as opened, display(err) as shown:
        found = opened.run(run_id)
        if found.status == "finished":
            shown.say(f"run {found.id} is finished: there is nothing to resume")
            asked = configuration.RunConfig.model_validate(found.config)
            proposer, _ = proposers.choose(asked.proposer, session.writers(asked))
            outcome = session.outcome(opened, found.id, "finished", proposer, [])
        else:
            try:
                outcome = session.resume(opened, found, shown.announce, shown.report, lambda: shown.say(DRAINING))
            except KeyboardInterrupt:
                _interrupted(found.id, where)
            except Infrastructure:
                shown.say(_how_to_resume(found.id, where))
                raise
    _finish(outcome, where, as_json)


def _preview(wanted: configuration.RunConfig, as_json: bool) -> None:
    from agent import session

    found = session.preview(wanted)
    if as_json:
        print_json(found.model_dump(mode="json"))
    else:
        out.print(render.preview(found), soft_wrap=True)


def _finish(outcome: Outcome, archive: str, as_json: bool) -> None:
    if as_json:
        print_json(outcome.model_dump(mode="json"))
    else:
        out.print(render.outcome(outcome, out.width))
        if outcome.ok:
            out.print(_how_to_export(outcome, archive), soft_wrap=True)
    if outcome.status == "drained":
        _interrupted(outcome.run, archive)
    if not outcome.leaderboard or outcome.ok is False:
        raise typer.Exit(1)


def _interrupted(run_id: str | None, archive: str) -> NoReturn:
    err.print(_how_to_resume(run_id, archive) if run_id else "interrupted before a run began", soft_wrap=True)
    raise typer.Exit(130)


def _how_to_resume(run_id: str, archive: str) -> str:
    return f"nothing judged is lost; resume with: warpsmith resume {run_id} --archive {shlex.quote(archive)}"


def _how_to_export(outcome: Outcome, archive: str) -> str:
    task = f"--task {shlex.quote(outcome.task)} --target {outcome.target}"
    return f"for a wheel of the winners: warpsmith export {task} --archive {shlex.quote(archive)}"
