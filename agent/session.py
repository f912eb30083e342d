"""Opens everything a run needs, for a new run and for one that is resumed, and closes it again.

Not covered: what happens within a run (graph, steps) and how it is shown (progress).
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from platformdirs import user_cache_path

from agent import compose, fitness, proposers, published, steps, tasks
from agent import replay as replays
from agent.config import NO_TASK, RunConfig
from agent.models.command import Command
from agent.proposers import Proposer
from agent.replay import Compared, Read, Replayed
from agent.steps import Clients, Composed, Composition, Ended, Event, Judged, Winners
from archive import Archive, Row, Run, rows
from archive.records import exact
from sandbox import devices, launch
from sandbox.contract import Candidate, Device, Record, Task
from sandbox.errors import BadInput
from sandbox.judge import Judge
from sandbox.launch import Launcher
from sandbox.toolchain import Toolchain

if TYPE_CHECKING:
    from agent.preview import Preview

SLOTS = 4
"""Requests that are open at a time where a model is elsewhere, unless told otherwise."""


class Outcome(Record):
    """How a run ended, for the last lines on screen and for `--json`."""

    run: str
    status: Literal["finished", "drained"]
    task: str
    target: str
    device: str
    proposer: str
    reason: str = ""
    """Why the search ended."""
    evals: int
    seconds: float
    verdicts: dict[str, int]
    """How many candidates of the run got which verdict."""
    winners: dict[str, str]
    """Candidate by workload."""
    composed: str | None = None
    """Folder of the final extension."""
    package: str | None = None
    ok: bool | None = None
    """Whether the extension could be built and agreed with eager."""
    message: str = ""
    """What building and checking it said."""
    leaderboard: tuple[Row, ...]
    """The run's candidates only, best first."""


class Announcement(Record):
    """What a run is about to do, and why so."""

    run: str
    task: str
    summary: str
    target: str
    device: str
    sandbox: str
    why_sandbox: str
    proposer: str
    why: str
    archive: str
    seeds: int
    passed_over: dict[str, str]
    """Seed kernels that do not suit the device, and why."""
    config: RunConfig


Announce = Callable[[Announcement], None]
Report = Callable[[Event], None]


def toolchain(launcher: Launcher | None = None) -> Toolchain:
    """The toolchain with the user's build cache; its compilers run where `launcher` says, else on this machine."""
    return Toolchain(user_cache_path("warpsmith", appauthor=False) / "builds", launcher=launcher)


def start(config: RunConfig, announce: Announce, report: Report, on_drain: Callable[[], None]) -> Outcome:
    """Search with a new run. BadInput before anything is recorded, where the configuration cannot be used."""
    if not config.task:
        raise BadInput(NO_TASK)
    _chosen(config)
    device = devices.detect(config.target)
    config = priced(_absolute(config))
    task = tasks.load(config.task, device.target)
    suitable(task, device, config.seed_kernels, required=_chosen(config)[0] != "engineer")
    _require_writable(config.out)
    if _chosen(config)[0] == "engineer":
        _require_askable(config)
    with _sandbox(config, device) as sandbox, published.open_archive(config.archive) as archive:
        run = Run(
            task=task.name,
            task_version=task.version,
            target=task.target,
            device=device.name,
            config=config.model_dump(mode="json"),
            rng_seed=config.seed,
        )
        archive.start_run(run)
        return _search(archive, run, config, task, sandbox, announce, report, on_drain)


def preview(config: RunConfig) -> Preview:
    """What a new run would ask first and might cost; nothing is asked, judged or recorded."""
    from agent import preview as previews
    from agent.engineer import retrieval

    if not config.task:
        raise BadInput(NO_TASK)
    if _chosen(config)[0] != "engineer":
        raise BadInput("a dry run shows what a model would read: give --model NAME or --command PROGRAM")
    _refuse_doubled(writers(config))
    device = devices.detect(config.target)
    config = priced(_absolute(config))
    task = tasks.load(config.task, device.target)
    seeds, _ = suitable(task, device, config.seed_kernels, required=False)
    judged: list[Judged] = []
    related: list[retrieval.Related] = []
    if "://" in config.archive or Path(config.archive).exists():
        with published.open_archive(config.archive) as archive:
            known = [(s, archive.judged(s.id, task.version, task.target, device.name)) for s in seeds]
            judged = [(seed, judgement) for seed, judgement in known if judgement]
            related = retrieval.on_record(task, archive, device)
    rates = [previews.Rate(model=end.name, price=end.price, max_tokens=end.max_tokens) for end in config.models]
    rates += [previews.Rate(model=name, price=None, max_tokens=0) for name in writers(config)[len(rates) :]]
    return previews.preview(config, task, device, seeds, judged, related, rates)


def resume(archive: Archive, run: Run, announce: Announce, report: Report, on_drain: Callable[[], None]) -> Outcome:
    """Continue a run from the archive's record of it. BadInput where the machine or the task is another than before."""
    if run.note.startswith(replays.NOTE):
        raise BadInput(f"run {run.id} is a {run.note}: nothing is left to search; replay that run again")
    config = RunConfig.model_validate(run.config)
    task = _same_task(run, config.task, "start a new run")
    device = devices.detect(run.target)
    if device.name != run.device:
        raise BadInput(f"run {run.id} was on {run.device!r}, this machine has {device.name!r}: resume it there")
    _require_writable(config.out)
    with _sandbox(config, device) as sandbox:
        return _search(archive, run, config, task, sandbox, announce, report, on_drain)


def replay(archive: Archive, run: Run, task: str | None, judging: bool, report: Report) -> Replayed:
    """A recorded run again: its replies read anew and, where `judging`, its candidates judged anew into a new run.

    `task` names the task where it lies elsewhere than for the run. BadInput where it is another than that of the run.
    """
    config = RunConfig.model_validate(run.config)
    found = _same_task(run, task or config.task, "give the task of that time with --task PATH")
    read = tuple(replays.read_again(archive, run.id, found))
    if not judging:
        return _replayed(run, None, run.device, read, [])
    device = devices.detect(run.target)
    own = Run(
        **run.model_dump(include={"task", "task_version", "target", "config", "rng_seed"}),
        device=device.name,
        note=f"{replays.NOTE}{run.id}",
    )
    archive.start_run(own)
    try:
        with (
            _sandbox(config, device) as (launcher, _),
            toolchain(launcher) as tools,
            Judge(device, tools, launcher) as judge,
        ):
            compared = replays.judge_again(archive, run, own.id, found, judge, report)
    except BaseException:
        archive.update_run(own.id, status="failed")
        raise
    archive.update_run(own.id, status="finished")
    return _replayed(run, own.id, device.name, read, compared)


def _replayed(run: Run, again: str | None, device: str, read: Sequence[Read], compared: Sequence[Compared]) -> Replayed:
    return Replayed(
        run=run.id,
        again=again,
        task=run.task,
        device_then=run.device,
        device_now=device,
        read=tuple(read),
        compared=tuple(compared),
    )


def _same_task(run: Run, place: str, otherwise: str) -> Task:
    """The task of a run; BadInput where it has changed since."""
    task = tasks.load(place, run.target)
    if task.version != run.task_version:
        raise BadInput(f"run {run.id} judged {run.task} {run.task_version}, which is now {task.version}: {otherwise}")
    return task


@contextlib.contextmanager
def _sandbox(config: RunConfig, device: Device) -> Iterator[tuple[Launcher, str]]:
    """Where candidates run, and why there; nothing of it is left afterwards."""
    launcher, why = launch.choose(config.sandbox, device)
    with contextlib.closing(launcher):
        yield launcher, why


def _search(
    archive: Archive,
    run: Run,
    config: RunConfig,
    task: Task,
    sandbox: tuple[Launcher, str],
    announce: Announce,
    report: Report,
    on_drain: Callable[[], None],
) -> Outcome:
    # Imported here: whoever only judges needs no graph.
    from agent import graph

    launcher, why_sandbox = sandbox
    proposer, why = _chosen(config)
    device = devices.detect(task.target)
    seeds, unsuitable = suitable(task, device, config.seed_kernels, required=proposer != "engineer")
    announce(
        Announcement(
            run=run.id,
            summary=task.summary,
            archive=archive.location,
            seeds=len(seeds),
            passed_over=unsuitable,
            config=config,
            sandbox=launcher.name,
            why_sandbox=why_sandbox,
            why=why,
            proposer=proposer,
            **run.model_dump(include={"task", "target", "device"}),
        )
    )
    seen: list[Event] = []
    one_at_a_time = threading.Lock()

    def keep(event: Event) -> None:
        with one_at_a_time:
            seen.append(event)
            report(event)

    with contextlib.ExitStack() as stack:
        tools = stack.enter_context(toolchain(launcher))
        if proposer == "engineer":
            thinker = stack.enter_context(_engineer(archive, run, config, task, seeds, device, keep))
        else:
            thinker = proposers.PROPOSERS[proposer](task, seeds, device, config.seed)
        judge = stack.enter_context(Judge(device, tools, launcher, reuse=True))
        clients = Clients(
            archive=archive,
            judge=judge,
            task=task,
            seeds=seeds,
            proposer=thinker,
            budget=config.budget,
            compose=lambda winners: _compose(archive, task, winners, tools, judge, config.out),
            report=keep,
        )
        status = graph.run(clients, run.id, graph.checkpoint_path(archive.location), on_drain)
    return outcome(archive, run.id, status, proposer, seen)


def _chosen(config: RunConfig) -> tuple[str, str]:
    return proposers.choose(config.proposer, writers(config))


def writers(config: RunConfig) -> list[str]:
    """Names of the models that a run asks."""
    own = [Command(config.command).name] if config.command else []
    return [*(endpoint.name for endpoint in config.models), *own]


def _require_askable(config: RunConfig) -> None:
    """BadInput where a model cannot be asked: two of one name, no key, no such program, no usable templates."""
    from agent.models.client import Client
    from prompts.render import check

    _refuse_doubled(writers(config))
    for endpoint in config.models:
        Client(endpoint).close()
    if config.command:
        Command(config.command).require()
    if config.prompts:
        check(config.prompts)


def _refuse_doubled(names: Sequence[str]) -> None:
    if doubled := next((name for name in names if names.count(name) > 1), None):
        raise BadInput(f"two models are called {doubled!r}: give each a name of its own")


@contextlib.contextmanager
def _engineer(
    archive: Archive,
    run: Run,
    config: RunConfig,
    task: Task,
    seeds: Sequence[Candidate],
    device: Device,
    report: Report,
) -> Iterator[Proposer]:
    """With clients for the run's models. BadInput where a key is missing, or two models have one name."""
    # Imported here: the tuner's runs need no client.
    from agent.engineer import retrieval
    from agent.engineer.engineer import Desk, Engineer, Writer
    from agent.engineer.reply import plan_schema
    from agent.models import prices
    from agent.models.client import Client, Shape, Shaped
    from agent.models.ledger import Ledger
    from agent.models.recording import Recorded

    _refuse_doubled(writers(config))
    deadline = time.monotonic() + config.budget.seconds - archive.run(run.id).seconds_spent
    plan = Shape(name="plan", schema_=plan_schema())
    with contextlib.ExitStack() as stack:
        asked = []
        for endpoint in config.models:
            client = stack.enter_context(contextlib.closing(Client(endpoint, deadline=deadline)))
            model = Recorded(client, archive, run.id, endpoint.price)
            planner = Recorded(Shaped(client, plan), archive, run.id, endpoint.price)
            asked.append(Writer(model, endpoint.price, endpoint.max_tokens, planner))
        if config.command:
            command = stack.enter_context(contextlib.closing(Command(config.command, deadline=deadline)))
            asked.append(Writer(Recorded(command, archive, run.id, prices.FREE), prices.FREE, 0))
        desk = Desk(
            task=task,
            seeds=seeds,
            device=device,
            rng_seed=config.seed,
            archive=archive,
            run_id=run.id,
            writers=asked,
            ledger=Ledger(exact(config.budget.usd), exact(archive.run(run.id).usd_spent)),
            budget_evals=config.budget.evals,
            budget_seconds=config.budget.seconds,
            report=report,
            templates=config.prompts,
            related=retrieval.on_record(task, archive, device),
            slots=slots(config),
        )
        yield stack.enter_context(Engineer(desk))


def priced(config: RunConfig) -> RunConfig:
    """The same with the prices of today, which the run keeps."""
    from agent.models import prices

    known = prices.load() if config.models else {}
    models = tuple(end.model_copy(update={"price": prices.price_of(end, known)}) for end in config.models)
    return config.model_copy(update={"models": models})


def slots(config: RunConfig) -> int:
    """How many requests to models are open at a time; one where models run on the machine that measures."""
    if config.slots is not None:
        return config.slots
    return SLOTS if any(not endpoint.local for endpoint in config.models) else 1


def suitable(
    task: Task, device: Device, own: Sequence[Path] = (), required: bool = True
) -> tuple[list[Candidate], dict[str, str]]:
    """The seeds to start from, the user's `own` first, and why the others do not suit the device.

    BadInput where none is left, though one is `required`.
    """
    seeds = tasks.seeds(task, own, required)
    unsuitable = fitness.passed_over(task, seeds, device)
    if required and len(unsuitable) == len(seeds):
        reasons = "; ".join(f"{note}: {why}" for note, why in unsuitable.items())
        raise BadInput(f"no seed kernel of task {task.name!r} suits {device.name}: {reasons}")
    return [seed for seed in seeds if seed.note not in unsuitable], unsuitable


def _compose(archive: Archive, task: Task, winners: Winners, tools: Toolchain, judge: Judge, out: Path) -> Composition:
    chosen = {
        name: compose.Winner(candidate=c, judgement=j, lineage=tuple(archive.lineage(c.id)[:-1]))
        for name, (c, j) in winners.items()
    }
    composed = compose.compose([compose.Part(task=task, device=judge.device, winners=chosen)], tools, out)
    report = compose.verify(composed.root, task)
    return Composition(root=composed.root, package=composed.package, ok=report.ok, message=report.message)


def outcome(
    archive: Archive, run_id: str, status: Literal["finished", "drained"], proposer: str, events: list[Event]
) -> Outcome:
    """What a run came to, as the archive and its own events tell it."""
    run, judged = archive.run(run_id), steps.latest(archive, run_id)
    ids = {candidate.id for candidate, _ in judged}
    verdicts: dict[str, int] = {}
    for _, judgement in judged:
        verdicts[judgement.verdict.status] = verdicts.get(judgement.verdict.status, 0) + 1
    board = rows(archive, run.task, run.target, run.device, versions=[run.task_version])
    composition = next((event.composition for event in events if isinstance(event, Composed)), None)
    return Outcome(
        run=run.id,
        status=status,
        proposer=proposer,
        reason=next((event.reason for event in events if isinstance(event, Ended)), ""),
        evals=len(judged),
        seconds=run.seconds_spent,
        verdicts=verdicts,
        winners=run.winners,
        composed=str(composition.root) if composition else None,
        package=composition.package if composition else None,
        ok=composition.ok if composition else None,
        message=composition.message if composition else "",
        leaderboard=tuple(row for row in board if row.candidate in ids),
        **run.model_dump(include={"task", "target", "device"}),
    )


def _absolute(config: RunConfig) -> RunConfig:
    """The same with paths that mean the same from any working directory, for a later resume."""
    changes: dict[str, object] = {"out": config.out.absolute()}
    if "://" not in config.archive:
        changes["archive"] = str(Path(config.archive).expanduser().absolute())
    if Path(config.task).exists() and config.task not in tasks.available():
        changes["task"] = str(Path(config.task).resolve())
    if config.prompts is not None:
        changes["prompts"] = config.prompts.absolute()
    changes["seed_kernels"] = tuple(path.absolute() for path in config.seed_kernels)
    return config.model_copy(update=changes)


def _require_writable(out: Path) -> None:
    """Fail now rather than after the search."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise BadInput(f"output folder {out} cannot be made: {exc.strerror}") from exc
    if not os.access(out, os.W_OK):
        raise BadInput(f"output folder {out} is not writable")
