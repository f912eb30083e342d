"""Who searches: ours, two simple policies, and OpenEvolve and ShinkaEvolve in processes of their own.

Each gets a session, a seed and a folder, and searches until the session's budget is spent or it ends by itself. The
other programs run with their own defaults except for SETTINGS. Not covered: what is counted and compared (the bench).
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

from agent import graph
from agent.config import Budget
from agent.engineer.engineer import Desk, Engineer, Writer
from agent.engineer.records import Message
from agent.models.client import Client
from agent.models.endpoint import Endpoint, Reply
from agent.models.ledger import Ledger
from agent.models.prices import FREE
from agent.models.recording import Recorded
from agent.steps import Clients, Composition, JudgeLike
from archive import Archive, Run
from bench.peers.family import Family
from bench.peers.session import Evaluate, Kernel, Session, serving
from sandbox import plan
from sandbox.contract import Candidate, Task

REMOTE = Path(__file__).parent / "remote"
ENDLESS = 10**6
"""A budget of evaluations by which the rule against standing still never holds."""
SPARE = 4
"""Iterations that the others are given for each evaluation: some of theirs come to none. The budget ends them."""
LIMIT_S = 1200.0
"""Most seconds of one search."""

REWRITE = "Rewrite the program to make it faster.\n\n# Current program\n\n```cpp\n{source}\n```\n"

SETTINGS = {
    "OpenEvolve": {
        "language": "cpp",
        "file_suffix": ".cpp",
        "log_level": "ERROR",
        "evaluator": {"cascade_evaluation": False},
    },
    "ShinkaEvolve": {
        "evolution": {"language": "cpp", "embedding_model": None},
        "runner": {"max_evaluation_jobs": 1, "max_proposal_jobs": 1, "verbose": False, "banner_style": "minimal"},
        "database": {},
    },
}
"""All that differs from their defaults, addresses, seeds and lengths aside."""


@dataclass(frozen=True)
class Arena:
    """What is searched, the same for every contender."""

    task: Task
    evaluate: Evaluate
    judge: Callable[[Session], JudgeLike]
    """The session's evaluations as a judge for our own search."""
    faster_by: Callable[[Kernel, Kernel], float] | None = None
    """The second kernel's time over the first one's, side by side; where times are not known without noise."""


Search = Callable[[Session, Arena, int, Path], None]


# ---------------------------------------------------------------- ours


def ours(session: Session, arena: Arena, seed: int, folder: Path, patience: int | None = None) -> None:
    """The engineer as `run --model` has it, from one seed kernel; `patience` is what it takes for its budget."""
    task, judge = arena.task, arena.judge(session)
    source = session.family.text(session.family.start)
    first = Candidate(
        task=task.name,
        target=task.target,
        source=source,
        tunables=plan.settle(plan.parse(source, task), {}),
        operator="seed",
        proposer="bench",
        note="seed",
    )
    with serving(session) as address, Archive.open(folder / "archive.db") as archive:
        run = archive.start_run(
            Run(task=task.name, task_version=task.version, target=task.target, device=judge.device.name, rng_seed=seed)
        )
        client = Client(_endpoint(address))
        writer = Writer(Recorded(client, archive, run, FREE), FREE, 4096)
        desk = Desk(
            task=task,
            seeds=[first],
            device=judge.device,
            rng_seed=seed,
            archive=archive,
            run_id=run,
            writers=[writer],
            ledger=Ledger(Decimal(5)),
            budget_evals=patience or session.budget,
            report=lambda event: None,
        )
        clients = Clients(
            archive=archive,
            judge=judge,
            task=task,
            seeds=[first],
            proposer=Engineer(desk),
            budget=Budget(evals=session.budget, seconds=LIMIT_S),
            compose=lambda winners: Composition(root=folder, package="none", ok=True, message="not composed"),
            report=lambda event: None,
        )
        graph.run(clients, run, graph.checkpoint_path(archive.location), lambda: None)
        client.close()


def ours_to_the_end(session: Session, arena: Arena, seed: int, folder: Path) -> None:
    """The same, though it stands still."""
    ours(session, arena, seed, folder, patience=ENDLESS)


def _endpoint(address: str) -> Endpoint:
    return Endpoint(name="scripted", model="scripted", base_url=f"{address}/v1", key_env="")


# ---------------------------------------------------------------- simple policies


def best_of_n(session: Session, arena: Arena, seed: int, folder: Path) -> None:
    """Children of the first kernel alone."""
    _rewriting(session, lambda best: session.family.text(session.family.start))


def always_the_best(session: Session, arena: Arena, seed: int, folder: Path) -> None:
    """Children of the fastest kernel so far: a climb."""
    _rewriting(session, lambda best: best)


def _rewriting(session: Session, parent: Callable[[str], str]) -> None:
    best, speedup = session.family.text(session.family.start), 0.0
    with serving(session) as address:
        client = Client(_endpoint(address))
        source: str | None = best
        while not session.spent.is_set():
            outcome = session.judge(source) if source else None
            if source and outcome and outcome.speedup is not None and outcome.speedup > speedup:
                best, speedup = source, outcome.speedup
            source = _rewritten(client, parent(best))
        client.close()


def _rewritten(client: Client, source: str) -> str | None:
    reply = client.complete([Message(role="user", content=REWRITE.format(source=source.strip()))])
    return reply.text.removeprefix("```cpp\n").removesuffix("\n```") + "\n" if isinstance(reply, Reply) else None


# ---------------------------------------------------------------- other programs


def openevolve(python: Path) -> Search:
    def search(session: Session, arena: Arena, seed: int, folder: Path) -> None:
        program, settings = _program(session.family, folder), folder / "settings.yaml"
        with serving(session) as address:
            model = {"name": "scripted", "weight": 1.0}
            given = {
                **SETTINGS["OpenEvolve"],
                "max_iterations": SPARE * session.budget,
                "random_seed": seed,
                "llm": {"api_base": f"{address}/v1", "api_key": "no-key", "models": [model]},
                "database": {"random_seed": seed},
            }
            settings.write_text(json.dumps(given))
            command = [python, "-m", "openevolve.cli", program, REMOTE / "evaluate.py", "--config", settings]
            _until_spent(session, [*command, "--output", folder / "out"], folder, address)

    return search


def shinka(python: Path) -> Search:
    def search(session: Session, arena: Arena, seed: int, folder: Path) -> None:
        program, settings, own = _program(session.family, folder), folder / "settings.json", SETTINGS["ShinkaEvolve"]
        with serving(session) as address:
            evolution = {
                **own["evolution"],
                "num_generations": SPARE * session.budget,
                "llm_models": [f"local/scripted@{address}/v1"],
                "init_program_path": str(program),
                "results_dir": str(folder / "out"),
            }
            job = {"eval_program_path": str(REMOTE / "evaluate.py"), "python_executable": str(python)}
            given = {**own, "seed": seed, "evolution": evolution, "job": job}
            settings.write_text(json.dumps(given))
            _until_spent(session, [python, REMOTE / "run_shinka.py", settings], folder, address)

    return search


def _program(family: Family, folder: Path) -> Path:
    path = folder / "program.cpp"
    path.write_text(family.text(family.start))
    return path


def _until_spent(session: Session, command: list[str | Path], folder: Path, address: str) -> None:
    """Run the program until the budget is spent, then end it and all it started."""
    env = os.environ | {"SEARCH_PEERS_EVALUATE": f"{address}/evaluate"}
    with (folder / "said.txt").open("w") as said:
        process = subprocess.Popen(
            command, stdout=said, stderr=said, stdin=subprocess.DEVNULL, cwd=folder, env=env, start_new_session=True
        )
        late = time.monotonic() + LIMIT_S
        try:
            while process.poll() is None and time.monotonic() < late and not session.spent.wait(0.05):
                pass
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
