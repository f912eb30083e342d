"""Several attempts under way: nothing is lost, judged twice or paid for over budget, in whatever order they end."""

import contextlib
import os
import re
import signal
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from decimal import Decimal
from pathlib import Path
from typing import get_args

import pytest

from agent import graph, steps, tasks
from agent.config import Budget, RunConfig
from agent.engineer import memory
from agent.engineer.attempt import PLANNED
from agent.engineer.engineer import Desk, Engineer, Writer
from agent.engineer.records import Message, Operator
from agent.models.client import Client
from agent.models.endpoint import Endpoint, Failed, Model, Price, Reply, Usage
from agent.models.ledger import Ledger
from agent.models.recording import Recorded
from agent.session import SLOTS, slots
from agent.steps import Clients, Composition
from archive import Archive, Run
from archive.records import exact
from sandbox.contract import BuildFailed, Candidate
from sandbox.errors import ArchiveUnusable, WorkerLost
from tests.agent.engineer.test_engineer import kernel, plan
from tests.agent.models.openai_server import Turn, serving
from tests.agent.test_graph import CPU, ScriptedJudge

PATIENCE_S = 30.0
PRICE = Price(input=Decimal(10), cached=Decimal(1), output=Decimal(100))
CALL_USD = Decimal("0.02")


class Author:
    """Answers every plan with a new one and every request for code with the plan's kernel, in any thread.

    `before` is called in front of every answer, with the plan's number, or 0 where a plan is asked for.
    """

    name = "author"

    def __init__(self, first: int = 1) -> None:
        self.planned = first - 1
        self.asked = 0
        self.before: Callable[[int], None] = lambda number: None
        self.kernel: Callable[[int], str] = kernel
        self._lock = threading.Lock()

    def complete(self, messages: Sequence[Message]) -> Reply | Failed:
        found = re.search(r"Change: widen step (\d+)", messages[1].content)
        with self._lock:
            self.asked += 1
            wants_plan = "a plan, no code yet" in messages[1].content
            if wants_plan or not found:
                self.planned += 1
            number = self.planned if wants_plan or not found else int(found[1])
        self.before(0 if wants_plan else number)
        text = plan(f"widen step {number}") if wants_plan else self.kernel(number)
        return Reply(text=text, finish="stop", usage=Usage(usd=float(CALL_USD)), seconds=0.1, model="m")


class Workshop:
    """A run on the toy task with an engineer of several slots, wired as the program wires it."""

    def __init__(self, folder: Path, toy: Path, slots: int = 3, evals: int = 9, cap: str = "5") -> None:
        self.path, self.task, self.slots, self.cap = folder / "archive.db", tasks.load(str(toy), "cpu"), slots, cap
        self.budget = Budget(evals=evals, seconds=1e6, usd=float(cap))
        self.seeds = tasks.seeds(self.task)[:1]
        self.judge = ScriptedJudge(lambda candidate: (6.0, 6.0))
        self.author: Model = Author()
        made = Composition(root=folder, package="toy", ok=True, message="scripted")
        self.compose: Callable[[steps.Winners], Composition] = lambda winners: made
        self.events: list[steps.Event] = []
        self.archive = Archive.open(self.path)
        self.run_id = "r1"
        if not self.archive.runs():
            names = {"task": self.task.name, "task_version": self.task.version}
            self.archive.start_run(Run(id="r1", target="cpu", device=CPU.name, rng_seed=1, **names))

    def engineer(self) -> Engineer:
        self.ledger = Ledger(Decimal(self.cap), exact(self.archive.run(self.run_id).usd_spent))
        writer = Writer(Recorded(self.author, self.archive, self.run_id, PRICE), PRICE, 1000)
        return Engineer(
            Desk(
                task=self.task,
                seeds=self.seeds,
                device=CPU,
                rng_seed=1,
                archive=self.archive,
                run_id=self.run_id,
                writers=[writer],
                ledger=self.ledger,
                budget_evals=self.budget.evals,
                budget_seconds=self.budget.seconds,
                report=self.events.append,
                slots=self.slots,
            )
        )

    def run(self, on_drain: Callable[[], None] = lambda: None) -> str:
        with self.engineer() as engineer:
            clients = Clients(
                archive=self.archive,
                judge=self.judge,
                task=self.task,
                seeds=self.seeds,
                proposer=engineer,
                budget=self.budget,
                compose=self.compose,
                report=self.events.append,
            )
            return graph.run(clients, self.run_id, graph.checkpoint_path(str(self.path)), on_drain)

    def trajectory(self) -> list[Candidate]:
        return [candidate for candidate, _ in steps.trajectory(self.archive, self.run_id)]

    def waiting(self) -> list[str]:
        return memory.waiting(self.archive.exchanges(self.run_id), steps.trajectory(self.archive, self.run_id))

    def check_books(self) -> None:
        """Every request is on record, and the run, the ledger and the exchanges name the same sum."""
        exchanges = self.archive.exchanges(self.run_id)
        paid = sum((exact(exchange.usd or 0.0) for exchange in exchanges), Decimal(0))
        assert exact(self.archive.run(self.run_id).usd_spent) == self.ledger.spent == paid <= Decimal(self.cap)


@pytest.fixture
def open_workshop(tmp_path: Path, toy_folder: Path) -> Iterator[Callable[..., Workshop]]:
    opened: list[Workshop] = []

    def make(**given: object) -> Workshop:
        opened.append(Workshop(tmp_path, toy_folder, **given))
        return opened[-1]

    yield make
    for workshop in opened:
        workshop.archive.close()


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ({"models": [{"name": "far", "model": "m", "base_url": "https://far.example/v1"}]}, SLOTS),
        ({"models": [{"name": "near", "model": "m", "base_url": "http://localhost:8000/v1"}]}, 1),
        ({"command": "my-agent"}, 1),
        ({"command": "my-agent", "slots": 7}, 7),
    ],
)
def test_several_requests_are_open_where_a_model_is_elsewhere_unless_told_otherwise(
    given: dict[str, object], wanted: int
) -> None:
    assert slots(RunConfig.model_validate(given)) == wanted


def test_budget_of_evaluations_is_spent_and_not_exceeded(open_workshop: Callable[..., Workshop]) -> None:
    workshop = open_workshop(slots=4, evals=9)
    assert workshop.run() == "finished"
    assert len(workshop.judge.judged) == len(set(workshop.judge.judged)) == 9
    assert workshop.waiting() == []
    workshop.check_books()


def test_models_are_asked_while_a_candidate_is_judged(open_workshop: Callable[..., Workshop]) -> None:
    workshop = open_workshop(slots=2, evals=3)
    first, second, met = threading.Event(), threading.Event(), []

    def hold(number: int) -> None:
        """The code of the second plan is asked for and comes only once the first kernel is at the judge."""
        if number == 2:
            second.set()
            met.append(first.wait(PATIENCE_S))

    def judging(count: int) -> None:
        if count == 2:
            first.set()
            met.append(second.wait(PATIENCE_S))

    workshop.author.before, workshop.judge.before = hold, judging
    workshop.run()
    assert met == [True, True]
    assert [candidate.note for candidate in workshop.trajectory()[1:]] == ["widen step 1", "widen step 2"]


def test_candidates_are_judged_in_the_order_in_which_they_are_written(open_workshop: Callable[..., Workshop]) -> None:
    workshop = open_workshop(slots=2, evals=3)
    late = threading.Event()
    workshop.author.before = lambda number: late.wait(PATIENCE_S) and None if number == 1 else None
    workshop.judge.before = lambda count: late.set() if count == 2 else None
    workshop.run()
    assert [candidate.note for candidate in workshop.trajectory()[1:]] == ["widen step 2", "widen step 1"]
    pairs = {exchange.attempt: exchange.candidate for exchange in workshop.archive.exchanges("r1")}
    exchanges = workshop.archive.exchanges("r1")
    assert len(pairs) == 2
    assert all(exchange.candidate == pairs[exchange.attempt] for exchange in exchanges)


def test_interleaved_exchanges_are_told_apart(open_workshop: Callable[..., Workshop]) -> None:
    """Both plans come before either code: by adjacency alone the plans would belong to nothing."""
    workshop = open_workshop(slots=2, evals=3)
    both = threading.Barrier(2)
    workshop.author.before = lambda number: both.wait(PATIENCE_S) and None
    workshop.run()
    exchanges, judged = workshop.archive.exchanges("r1"), steps.trajectory(workshop.archive, "r1")
    observed = memory.observations(exchanges, judged)
    assert [entry.cost for entry in observed] == [pytest.approx(2 * float(CALL_USD))] * 2
    assert {idea.candidate for idea in memory.ideas(exchanges, judged)} == {c.id for c, _ in judged[1:]}


def test_translations_run_side_by_side_until_one_passes(open_workshop: Callable[..., Workshop]) -> None:
    workshop = open_workshop(slots=3, evals=4)
    workshop.seeds = []
    all_three = threading.Barrier(3)
    workshop.author.before = lambda number: all_three.wait(PATIENCE_S) and None if number in (1, 2, 3) else None
    workshop.run()
    operators = [candidate.operator for candidate in workshop.trajectory()]
    assert operators[0] == "translate"
    assert sorted(operators) == ["propose", "translate", "translate", "translate"]


def test_each_broken_kernel_is_repaired_once_at_a_time(open_workshop: Callable[..., Workshop]) -> None:
    workshop = open_workshop(slots=3, evals=9)
    broken = BuildFailed(log="error: no")
    workshop.judge.speed = lambda candidate: broken if candidate.operator == "propose" else (5.0, 5.0)
    workshop.run()
    repairs = [candidate for candidate in workshop.trajectory() if candidate.operator == "repair"]
    assert repairs
    assert len({candidate.parents for candidate in repairs}) == len(repairs)


def test_calls_that_do_not_fit_wait_for_those_under_way_and_never_go_over(
    open_workshop: Callable[..., Workshop],
) -> None:
    workshop = open_workshop(slots=4, evals=100, cap="0.35")
    assert workshop.run() == "finished"
    workshop.check_books()
    assert any(isinstance(event, steps.Ended) and "budget spent: a call" in event.reason for event in workshop.events)
    assert workshop.waiting() == []
    # More than one worst case fits at no time, so calls that did not wait for each other would have ended it at once.
    assert workshop.author.asked >= 3


def test_interrupt_lets_open_requests_finish_and_resume_judges_what_they_brought(
    open_workshop: Callable[..., Workshop],
) -> None:
    workshop, drained, open_ = open_workshop(slots=3, evals=6), threading.Event(), threading.Semaphore(0)

    def hold(number: int) -> None:
        if number in (2, 3):
            open_.release()
            drained.wait(PATIENCE_S)

    def interrupt(count: int) -> None:
        if count == 2:
            assert open_.acquire(timeout=PATIENCE_S)
            assert open_.acquire(timeout=PATIENCE_S)
            os.kill(os.getpid(), signal.SIGINT)

    workshop.author.before, workshop.judge.before = hold, interrupt
    assert workshop.run(drained.set) == "drained"
    workshop.check_books()
    left = workshop.waiting()
    assert len(left) == 2
    assert len(workshop.archive.exchanges("r1")) == workshop.author.asked
    assert workshop.run() == "finished"
    assert [candidate.id for candidate in workshop.trajectory()][2:4] == left
    assert len(workshop.judge.judged) == len(set(workshop.judge.judged)) == 6


def test_seconds_that_are_over_end_the_search_though_models_have_not_answered(
    open_workshop: Callable[..., Workshop],
) -> None:
    workshop, over = open_workshop(slots=2), threading.Event()
    workshop.budget = Budget(evals=9, seconds=0.2)
    workshop.author.before = lambda number: over.wait(PATIENCE_S) and None
    compose = workshop.compose
    workshop.compose = lambda winners: over.set() or compose(winners)
    workshop.archive.add(workshop.seeds[0])
    workshop.archive.record(workshop.judge.judge(workshop.task, workshop.seeds[0]), "r1")
    assert workshop.run() == "finished"
    workshop.check_books()
    (ended,) = [event.reason for event in workshop.events if isinstance(event, steps.Ended)]
    assert ended == "budget spent: 0 seconds, waiting for models"
    assert len(workshop.trajectory()) == 1
    assert workshop.archive.run("r1").seconds_spent >= 0.2


def test_second_interrupt_does_not_wait_for_models(open_workshop: Callable[..., Workshop]) -> None:
    workshop, never = open_workshop(slots=3, evals=6), threading.Event()
    workshop.author.before = lambda number: never.wait() and None if number > 1 else None

    def twice(count: int) -> None:
        if count == 2:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    workshop.judge.before = twice
    with pytest.raises(KeyboardInterrupt):
        workshop.run()
    never.set()


def test_lost_worker_leaves_what_was_written_for_the_next_time(open_workshop: Callable[..., Workshop]) -> None:
    workshop = open_workshop(slots=3, evals=6)

    def lose(count: int) -> None:
        if count == 3:
            raise WorkerLost("gone")

    workshop.judge.before = lose
    with pytest.raises(WorkerLost):
        workshop.run()
    workshop.check_books()
    left = workshop.waiting()
    assert left
    workshop.run()
    judged = [candidate.id for candidate in workshop.trajectory()]
    assert judged[2 : 2 + len(left)] == left
    assert len(judged) == len(set(judged)) == 6


def test_archive_that_fails_in_an_attempt_stops_the_run(open_workshop: Callable[..., Workshop]) -> None:
    workshop = open_workshop(slots=2)

    def fail(number: int) -> None:
        raise ArchiveUnusable("disk full")

    workshop.author.before = fail
    with pytest.raises(ArchiveUnusable, match="disk full"):
        workshop.run()
    assert workshop.archive.run("r1").status == "failed"


def test_every_operator_finds_its_way_into_the_archive(open_workshop: Callable[..., Workshop]) -> None:
    """Kernels of two kinds, so that two can be crossed, and every fifth is broken; the task has no parts to fuse."""
    workshop = open_workshop(slots=3, evals=16)
    workshop.seeds = []
    workshop.author.kernel = lambda n: kernel(n).replace("for (", "#pragma omp simd\n    for (") if n % 2 else kernel(n)
    broken = BuildFailed(log="error: no")
    workshop.judge.speed = lambda candidate: broken if _step(candidate) % 5 == 0 else later_is_faster(candidate)
    assert workshop.run() == "finished"
    exchanges = workshop.archive.exchanges("r1")
    used = {e.operator for e in exchanges if e.candidate} - {f"plan {operator}" for operator in PLANNED}
    assert used == set(get_args(Operator)) - {"fuse"}
    assert len(workshop.judge.judged) == len(set(workshop.judge.judged)) == 16
    workshop.check_books()


TURNS = [
    Turn(status=429, headers={"retry-after": "1"}),
    Turn(status=500),
    Turn(keep=0.5),
    Turn(wait_s=2.0),
    Turn(""),
    Turn("", refusal="I cannot help with that."),
    Turn(body=b"<html>"),
    Turn("x" * 1_000_000),
    Turn(kernel(1)[:-20], finish="length"),
    Turn(f"{kernel(1)}\n{kernel(2)}"),
    Turn(kernel(1).replace("void toy", "void toys")),
    Turn('{"kernel": '),
    Turn("I would use shared memory.", usage=None),
]


def test_all_that_endpoints_do_at_once_ends_in_one_line_each_and_whole_books(
    open_workshop: Callable[..., Workshop], tmp_path: Path
) -> None:
    workshop = open_workshop(slots=4, evals=6)
    workshop.seeds = []
    mixed = [turn for number, bad in enumerate(TURNS, 10) for turn in (bad, Turn(kernel(number), cost=0.0123))]
    with serving(*mixed, Turn("I would use shared memory.", usage=None)) as server:
        endpoint = Endpoint(name="author", model="m", base_url=server.url, key_env="", timeout_s=0.5)
        with contextlib.closing(Client(endpoint, sleep=lambda seconds: None)) as client:
            workshop.author = client
            assert workshop.run() == "finished"
    workshop.check_books()
    assert workshop.waiting() == []
    reasons = [event.reason for event in workshop.events if isinstance(event, steps.Unused)]
    assert reasons
    assert all(reason and "\n" not in reason for reason in reasons)
    exchanges = workshop.archive.exchanges("r1")
    # One line for each exchange that brought no kernel; a plan and a first reply in vain belong to what came of them.
    assert len(reasons) >= sum(exchange.candidate is None for exchange in exchanges)
    written = workshop.archive.export(tmp_path / "all.jsonl")
    with Archive.open(tmp_path / "again.db") as again:
        again.import_(tmp_path / "all.jsonl")
        assert again.export(tmp_path / "again.jsonl") == written


def later_is_faster(candidate: Candidate) -> tuple[float, ...]:
    """So that the search does not stand still."""
    return (6.0 * 0.98 ** _step(candidate),) * 2


def _step(candidate: Candidate) -> int:
    """The number of the plan or the request that a kernel is of."""
    found = re.search(r"0 \* (\d+)", candidate.source)
    return int(found[1]) if found else 0


KILLS = [(3, 99), (99, 2), (6, 99), (99, 1), (9, 3)]
"""After so many requests or judgements of one process, whichever comes first."""


def test_killed_at_any_request_or_judgement_nothing_is_lost_or_judged_twice(
    tmp_path: Path, toy_folder: Path, open_workshop: Callable[..., Workshop]
) -> None:
    """Each child is the program from its start to a SIGKILL; what it judged is counted in a file."""
    written = tmp_path / "judged"

    def child(requests: int, judgements: int, first: int) -> None:
        workshop = Workshop(tmp_path, toy_folder, slots=3, evals=24)
        workshop.author, workshop.judge.speed = Author(first), later_is_faster

        def ask(number: int) -> None:
            if workshop.author.asked >= requests:
                os.kill(os.getpid(), signal.SIGKILL)

        def judge(count: int) -> None:
            with written.open("a") as file:
                file.write(f"{workshop.judge.judged[-1]}\n")
            if count >= judgements:
                os.kill(os.getpid(), signal.SIGKILL)

        workshop.author.before, workshop.judge.before = ask, judge
        workshop.run()

    for at, (requests, judgements) in enumerate(KILLS):
        with warnings.catch_warnings():
            # Later Pythons warn of threads that earlier tests left; the child uses nothing of theirs.
            warnings.simplefilter("ignore", DeprecationWarning)
            pid = os.fork()
        if pid == 0:
            try:
                child(requests, judgements, 1 + 100 * at)
            finally:
                os._exit(1)
        assert os.waitpid(pid, 0)[1] == signal.SIGKILL
    workshop = open_workshop(slots=3, evals=24)
    left, killed = workshop.waiting(), len(workshop.trajectory())
    workshop.author, workshop.judge.speed = Author(501), later_is_faster
    assert workshop.run() == "finished"
    judged = [candidate.id for candidate in workshop.trajectory()]
    assert judged[killed : killed + len(left)] == left
    assert len(judged) == len(set(judged)) == 24
    workshop.check_books()
    # Only what a kill interrupted is judged again.
    again = [*written.read_text().split(), *workshop.judge.judged]
    assert len(again) - len(set(again)) <= len(KILLS)
    numbers = [exchange.attempt for exchange in workshop.archive.exchanges("r1")]
    assert None not in numbers
