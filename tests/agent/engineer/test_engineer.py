"""The engineer with a scripted model and a scripted judge, and the archive as it is."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from decimal import Decimal
from pathlib import Path

import pytest

from agent import steps, tasks
from agent.engineer.attempt import UNREACHED
from agent.engineer.engineer import ATTEMPTS, GIVE_UP, SETTLED, SWEEP, Desk, Engineer, Writer
from agent.engineer.records import Message
from agent.engineer.reply import read_source
from agent.engineer.retrieval import Related
from agent.models.client import Client
from agent.models.endpoint import Endpoint, Failed, Model, Price, Reply, Usage
from agent.models.ledger import Ledger
from agent.models.recording import Recorded, Replay
from agent.proposers import NothingLeft
from archive import Archive, Run
from sandbox.contract import BuildFailed, Candidate, Incorrect, Task, Verdict
from tests.agent.models.openai_server import Turn, serving
from tests.agent.test_graph import CPU, ScriptedJudge

PLAN = """```json
{{"bottleneck": "memory", "change": "{change}", "why": "fewer bytes", "expected_speedup": 1.2,
 "memory": "direct", "tensor_cores": false}}
```"""
KERNEL = """Here it is:
```cpp
// {name}
extern "C" void toy(float* out, const float* a, const float* b, int64_t N, void* workspace) {{
    for (int64_t i = 0; i < N; ++i) out[i] = a[i] + b[i] + 0 * {name};
}}
```"""
TUNABLE = """```cpp
#ifndef WIDE
#define WIDE 1  // tune: 1 2 4 8 16 32 64
#endif
extern "C" void toy(float* out, const float* a, const float* b, int64_t N, void* workspace) {
    for (int64_t i = 0; i < N; i += WIDE) out[i] = a[i] + b[i];
}
```"""
Answer = str | Failed


def plan(change: str) -> str:
    return PLAN.format(change=change)


def kernel(name: int) -> str:
    return KERNEL.format(name=name)


class ScriptedModel:
    name = "scripted"

    def __init__(self, answers: Sequence[Answer]) -> None:
        self.answers = list(answers)
        self.asked: list[Sequence[Message]] = []

    def complete(self, messages: Sequence[Message]) -> Reply | Failed:
        self.asked.append(messages)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Failed):
            return answer
        usage = Usage(input_tokens=1000, cached_tokens=0, output_tokens=100)
        return Reply(text=answer, finish="stop", usage=usage, seconds=0.1, model="m")


class TirelessModel(ScriptedModel):
    """After its answers one kernel after the other, planned first where a plan is asked for."""

    def __init__(self, answers: Sequence[Answer]) -> None:
        super().__init__(answers)
        self.scripted = len(answers)

    def complete(self, messages: Sequence[Message]) -> Reply | Failed:
        number = len(self.asked)
        if number >= self.scripted:
            planned = "expected_speedup" in messages[1].content
            self.answers = [plan(f"number {number}") if planned else kernel(number)]
        return super().complete(messages)


class Shop:
    """A run on the toy task, with one seed, and an engineer who is asked for one candidate after another."""

    def __init__(self, folder: Path, task: Task, where: str = "archive.db", cap: str = "5") -> None:
        self.archive = Archive.open(folder / where)
        self.task = task
        self.run = self.archive.start_run(
            Run(id="r1", task=task.name, task_version=task.version, target="cpu", device=CPU.name, rng_seed=1)
        )
        self.seeds = tasks.seeds(task)[:1]
        self.judge = ScriptedJudge(lambda candidate: (6.0, 6.0))
        self.events: list[steps.Event] = []
        self.cap = Decimal(cap)
        self.related: list[Related] = []

    def engineer(self, model: Model) -> Engineer:
        price = Price(input=Decimal(10), cached=Decimal(1), output=Decimal(100))
        writer = Writer(Recorded(model, self.archive, self.run, price), price, 1000)
        desk = Desk(
            task=self.task,
            seeds=self.seeds,
            device=CPU,
            rng_seed=1,
            archive=self.archive,
            run_id=self.run,
            writers=[writer],
            ledger=Ledger(self.cap),
            budget_evals=100,
            report=self.events.append,
            related=self.related,
        )
        return Engineer(desk)

    def next(self, engineer: Engineer) -> Candidate:
        """Proposed, judged and on record."""
        history = [(c, j.verdict) for c, j in steps.trajectory(self.archive, self.run)]
        (candidate,) = engineer.propose(history, 1)
        self.archive.add(candidate)
        self.archive.record(self.judge.judge(self.task, candidate), self.run)
        return candidate

    def reasons(self) -> list[str]:
        return [event.reason for event in self.events if isinstance(event, steps.Unused)]


@pytest.fixture
def open_shop(tmp_path: Path, toy_folder: Path) -> Iterator[Callable[..., Shop]]:
    shops: list[Shop] = []

    def made(**given: str) -> Shop:
        shops.append(Shop(tmp_path, tasks.load(str(toy_folder), "cpu"), **given))
        return shops[-1]

    yield made
    for shop in shops:
        shop.archive.close()


def test_seeds_come_first_then_a_kernel_with_its_plan_and_its_parent(
    open_shop: Callable[..., Shop],
) -> None:
    shop = open_shop()
    engineer = shop.engineer(ScriptedModel([plan("load four at once"), kernel(1)]))
    seed, child = shop.next(engineer), shop.next(engineer)
    assert seed.id == shop.seeds[0].id
    assert (child.parents, child.operator, child.proposer) == ((seed.id,), "propose", "scripted")
    assert child.note == "load four at once"
    exchanges = shop.archive.exchanges(shop.run)
    assert [(e.operator, e.candidate) for e in exchanges] == [("plan rewrite", child.id), ("rewrite", child.id)]
    assert shop.archive.run(shop.run).usd_spent == pytest.approx(2 * (1000 * 10 + 100 * 100) / 1e6)


def test_what_came_of_a_plan_stands_in_the_next_prompt(open_shop: Callable[..., Shop]) -> None:
    shop = open_shop()
    shop.judge.speed = lambda candidate: (6.0, 6.0) if candidate.operator == "seed" else (7.0, 7.0)
    model = ScriptedModel([plan("load four at once"), kernel(1), plan("unroll by eight"), kernel(2)])
    engineer = shop.engineer(model)
    for _ in range(3):
        shop.next(engineer)
    assert "load four at once" in model.asked[2][1].content
    assert "load four at once" not in model.asked[0][1].content
    assert model.asked[0][0] == model.asked[2][0]  # the prefix that providers cache


def test_plan_that_failed_on_the_lineage_is_not_tried_again(open_shop: Callable[..., Shop]) -> None:
    shop = open_shop()
    shop.judge.speed = lambda candidate: (6.0, 6.0) if candidate.operator == "seed" else (7.0, 7.0)
    model = ScriptedModel([plan("load four at once"), kernel(1), plan("load four at once"), kernel(2)])
    engineer = shop.engineer(model)
    for _ in range(3):
        shop.next(engineer)
    assert shop.reasons() == ["repeats an idea that failed on this lineage (slower: 0.86x)"]


@pytest.mark.parametrize(
    "verdict",
    [
        BuildFailed(log="kernel.cpp:2: error: expected ';'"),
        Incorrect(workload="N1000 float32", distribution="normal", rule="error", evidence="worst row 0.5"),
    ],
)
def test_broken_kernel_is_repaired_with_what_was_said_of_it(open_shop: Callable[..., Shop], verdict: Verdict) -> None:
    shop = open_shop()
    shop.judge.speed = lambda candidate: verdict if "* 1;" in candidate.source else (5.0, 5.0)
    model = ScriptedModel([plan("load four at once"), kernel(1), kernel(2)])
    engineer = shop.engineer(model)
    _, broken, repaired = (shop.next(engineer) for _ in range(3))
    assert (repaired.operator, repaired.parents) == ("repair", (broken.id,))
    said = verdict.log if isinstance(verdict, BuildFailed) else "worst row"
    assert said in model.asked[2][1].content


def test_repairs_end(open_shop: Callable[..., Shop]) -> None:
    shop = open_shop()
    shop.judge.speed = lambda candidate: (6.0, 6.0) if candidate.operator == "seed" else BuildFailed(log="no")
    model = ScriptedModel([plan("one"), kernel(1), kernel(2), kernel(3), plan("unroll by eight"), kernel(4)])
    engineer = shop.engineer(model)
    made = [shop.next(engineer) for _ in range(5)]
    assert [candidate.operator for candidate in made] == ["seed", "propose", "repair", "repair", "propose"]


def test_reply_without_a_kernel_is_asked_for_again_with_the_reason(open_shop: Callable[..., Shop]) -> None:
    shop = open_shop()
    model = ScriptedModel([plan("load four at once"), "I would rather not.", kernel(1)])
    engineer = shop.engineer(model)
    shop.next(engineer)
    child = shop.next(engineer)
    assert "no fenced code block" in model.asked[2][1].content
    assert shop.reasons() == ["no fenced code block in the reply"]
    assert {e.candidate for e in shop.archive.exchanges(shop.run)} == {child.id}


def faster_by_width(candidate: Candidate) -> tuple[float, float]:
    return (5.0, 5.0) if "WIDE" in candidate.source else (6.0, 6.0)


def test_structure_that_has_led_for_a_while_gets_a_short_sweep(open_shop: Callable[..., Shop]) -> None:
    shop = open_shop()
    shop.judge.speed = faster_by_width
    engineer = shop.engineer(TirelessModel([plan("widen"), TUNABLE]))
    made = [shop.next(engineer) for _ in range(2 + SETTLED + SWEEP + 1)]
    tuned = [candidate.operator == "tune" for candidate in made]
    assert tuned == [*[False] * (2 + SETTLED), *[True] * SWEEP, False]


def test_structure_that_does_not_lead_is_not_swept(open_shop: Callable[..., Shop]) -> None:
    shop = open_shop()
    shop.judge.speed = lambda candidate: (7.0, 7.0) if "WIDE" in candidate.source else (6.0, 6.0)
    engineer = shop.engineer(ScriptedModel([plan("widen"), TUNABLE, plan("unroll by eight"), kernel(1)]))
    made = [shop.next(engineer) for _ in range(3)]
    assert [candidate.operator for candidate in made] == ["seed", "propose", "propose"]


@pytest.mark.parametrize(("written", "wanted"), [(1, 8), (4, 4)])
def test_child_keeps_tuned_values_except_those_that_the_model_changed(
    open_shop: Callable[..., Shop], written: int, wanted: int
) -> None:
    """The parent was tuned to 8 and says 1 in its text."""
    shop = open_shop()
    shop.judge.speed = faster_by_width
    child = TUNABLE.replace("WIDE 1 ", f"WIDE {written} ").replace("a[i] + b[i]", "b[i] + a[i]")
    tuned = read_source(TUNABLE, shop.task, None, "stop")
    assert isinstance(tuned, str)
    shop.seeds = [shop.seeds[0].model_copy(update={"source": tuned, "tunables": {"WIDE": 8}})]
    engineer = shop.engineer(ScriptedModel([plan("swap the operands"), child]))
    shop.next(engineer)
    assert shop.next(engineer).tunables == {"WIDE": wanted}


def test_search_goes_on_where_the_tuner_has_nothing_left(open_shop: Callable[..., Shop]) -> None:
    shop = open_shop()
    prose = ["Let me think."] * 2 * ATTEMPTS
    engineer = shop.engineer(ScriptedModel([*prose, plan("one"), kernel(1)]))
    shop.next(engineer)
    assert shop.next(engineer).proposer == "scripted"


def test_model_whose_context_is_too_small_is_asked_once(open_shop: Callable[..., Shop]) -> None:
    shop = open_shop()
    engineer = shop.engineer(ScriptedModel([Failed(kind="too long", reason="no room", seconds=0.1, attempts=1)]))
    shop.next(engineer)
    with pytest.raises(NothingLeft, match="scripted: too long: no room"):
        shop.next(engineer)
    assert shop.reasons() == ["too long: no room; scripted is not asked again"]


def test_prompt_that_is_too_long_costs_one_attempt_where_others_were_not(open_shop: Callable[..., Shop]) -> None:
    shop = open_shop()
    refusal = Failed(kind="too long", reason="no room", seconds=0.1, attempts=1)
    engineer = shop.engineer(ScriptedModel([plan("one"), refusal, plan("two"), kernel(2)]))
    shop.next(engineer)
    assert shop.next(engineer).proposer == "scripted"
    assert shop.reasons() == ["too long: no room"]


def test_search_ends_when_an_answer_would_come_too_late(open_shop: Callable[..., Shop]) -> None:
    shop = open_shop()
    engineer = shop.engineer(ScriptedModel([Failed(kind="out of time", reason="late", seconds=0.1, attempts=1)]))
    shop.next(engineer)
    with pytest.raises(NothingLeft, match="budget spent: late"):
        shop.next(engineer)
    assert len(shop.archive.exchanges(shop.run)) == 1


def test_twin_of_a_judged_kernel_costs_no_evaluation(open_shop: Callable[..., Shop]) -> None:
    shop = open_shop()
    model = ScriptedModel(
        [plan("one"), kernel(1), plan("two other"), kernel(1).replace("// 1", "// again"), plan("three"), kernel(3)]
    )
    engineer = shop.engineer(model)
    for _ in range(3):
        shop.next(engineer)
    assert any("judged before" in reason or "its parent" in reason for reason in shop.reasons())


def test_model_that_never_answers_with_a_kernel_is_given_up(open_shop: Callable[..., Shop]) -> None:
    shop = open_shop()
    engineer = shop.engineer(ScriptedModel(["Once upon a time"]))
    shop.next(engineer)
    with pytest.raises(
        NothingLeft, match=rf"the last {GIVE_UP} replies came to no new kernel, and the tuner has nothing left"
    ):
        shop.next(engineer)
    for _ in range(GIVE_UP // ATTEMPTS):
        with pytest.raises(NothingLeft, match=r"4 attempts|the last \d+ replies came to no new kernel"):
            shop.next(engineer)
    asked = len(shop.archive.exchanges(shop.run))
    with pytest.raises(NothingLeft, match=f"the last {asked} replies came to no new kernel"):
        shop.next(engineer)
    assert len(shop.archive.exchanges(shop.run)) == asked
    assert len(shop.reasons()) == asked


def test_endpoint_that_refuses_the_key_is_asked_once(open_shop: Callable[..., Shop]) -> None:
    shop = open_shop()
    refusal = Failed(kind="unauthorised", reason="401: no such key", seconds=0.1, attempts=1)
    engineer = shop.engineer(ScriptedModel([refusal]))
    shop.next(engineer)
    with pytest.raises(NothingLeft, match="scripted: unauthorised: 401: no such key"):
        shop.next(engineer)
    assert len(shop.archive.exchanges(shop.run)) == 1


def test_endpoint_that_never_answered_is_not_asked_for_long(open_shop: Callable[..., Shop]) -> None:
    shop = open_shop()
    nobody = Failed(kind="connection", reason="connection refused", seconds=0.1, attempts=4)
    engineer = shop.engineer(ScriptedModel([nobody]))
    shop.next(engineer)
    with pytest.raises(NothingLeft, match="scripted: connection: connection refused"):
        shop.next(engineer)
    assert len(shop.archive.exchanges(shop.run)) == UNREACHED
    assert shop.reasons()[-1] == "connection: connection refused; scripted is not asked again"


def test_endpoint_that_has_answered_may_be_away_for_a_while(open_shop: Callable[..., Shop]) -> None:
    shop = open_shop()
    nobody = Failed(kind="connection", reason="connection refused", seconds=0.1, attempts=4)
    answers = [plan("one"), kernel(1), nobody, nobody, nobody, plan("unroll by eight"), kernel(2)]
    engineer = shop.engineer(ScriptedModel(answers))
    made = [shop.next(engineer) for _ in range(3)]
    assert [candidate.proposer for candidate in made] == ["seed", "scripted", "scripted"]


def test_call_that_could_go_over_the_budget_is_not_made(open_shop: Callable[..., Shop]) -> None:
    shop = open_shop(cap="0.05")
    model = ScriptedModel([plan("one"), kernel(1)])
    engineer = shop.engineer(model)
    shop.next(engineer)
    with pytest.raises(NothingLeft, match="budget spent: a call that may cost"):
        shop.next(engineer)
    assert model.asked == []


def test_task_without_seeds_is_translated(open_shop: Callable[..., Shop]) -> None:
    shop = open_shop()
    shop.seeds = []
    model = ScriptedModel([kernel(1)])
    first = shop.next(shop.engineer(model))
    assert (first.operator, first.parents) == ("translate", ())
    assert "def reference(a, b)" in " ".join(message.content for message in model.asked[0])


def test_kernels_of_other_tasks_are_shown_where_a_structure_is_invented(open_shop: Callable[..., Shop]) -> None:
    shop = open_shop()
    task = shop.task.model_copy(update={"name": "other", "summary": "something alike"})
    taught = shop.seeds[0].model_copy(update={"task": "other", "source": f"{shop.seeds[0].source}// a technique\n"})
    shop.related = [Related(task, taught, shop.judge.judge(task, taught), 0.5)]
    model = ScriptedModel([plan("one"), kernel(1), plan("unroll by eight"), kernel(2)])
    engineer = shop.engineer(model)
    for _ in range(3):
        shop.next(engineer)
    rewritten, edited = model.asked[1][1].content, model.asked[3][1].content
    assert "of the task other (something alike), 1.33× eager there:" in rewritten
    assert "// a technique" in rewritten
    assert "// a technique" not in edited


def test_kernel_of_a_task_much_like_this_one_is_crossed_with_and_on_the_lineage(
    open_shop: Callable[..., Shop],
) -> None:
    answers = [plan("one"), kernel(1), plan("unroll by eight"), kernel(2), plan("both"), kernel(3)]
    runs = [open_shop(where=name) for name in ("a.db", "b.db")]
    prompts = []
    for shop in runs:
        taught = add_related(shop)
        with serving(*map(Turn, answers)) as server:
            endpoint = Endpoint(name="scripted", model="m", base_url=server.url, key_env="")
            with contextlib.closing(Client(endpoint)) as client:
                engineer = shop.engineer(client)
                seed, first, _, crossed = (shop.next(engineer) for _ in range(4))
        assert (crossed.operator, crossed.parents[1]) == ("crossover", taught.id)
        assert crossed.parents[0] in (seed.id, first.id)
        assert shop.archive.candidate(crossed.id).parents == crossed.parents
        prompts.append([request["messages"][1]["content"] for request in server.requests[4:]])
    assert prompts[0] == prompts[1]
    for prompt in prompts[0]:
        assert "the second is one for another task, other, and is fast there" in prompt
        assert "only there: `const scalar_t* weight`, `int64_t D`" in prompt
        assert "only here: `const scalar_t* b`" in prompt
        assert "// a technique" in prompt


def add_related(shop: Shop) -> Candidate:
    """A kernel on record, of a task with other parameters."""
    inputs = (shop.task.inputs[0], shop.task.inputs[1].model_copy(update={"name": "weight", "shape": ("D",)}))
    given = {"name": "other", "version": "other's", "summary": "something alike", "inputs": inputs, "axes": ("N", "D")}
    task = shop.task.model_copy(update=given)
    source = f"{shop.seeds[0].source}// a technique\n"
    taught = shop.seeds[0].model_copy(update={"task": "other", "source": source})
    shop.archive.add(taught)
    shop.related = [Related(task, taught, shop.judge.judge(task, taught), 0.5)]
    return taught


def test_recorded_run_is_replayed_without_the_model(open_shop: Callable[..., Shop]) -> None:
    answers = [plan("load four at once"), "no kernel", kernel(1), plan("unroll by eight"), kernel(2)]
    shop, again = open_shop(), open_shop(where="again.db")
    first = shop.engineer(ScriptedModel(answers))
    made = [shop.next(first).id for _ in range(3)]
    second = again.engineer(Replay(shop.archive, shop.run, "scripted"))
    assert [again.next(second).id for _ in range(3)] == made


@pytest.mark.parametrize(
    ("turn", "reason"),
    [
        (Turn(status=401), "unauthorised: "),
        (Turn(status=400), "bad request: "),
        (Turn(status=429, headers={"retry-after": "1"}), "rate limited: "),
        (Turn(status=500), "server error: "),
        (Turn(keep=0.5), "connection: "),
        (Turn(wait_s=2.0), "timed out: "),
        (Turn(""), "empty: "),
        (Turn("", refusal="I cannot help with that."), "refused: "),
        (Turn(body=b"<html>"), "garbled: "),
        (Turn("x" * 1_000_000), "no fenced code block"),
        (Turn(kernel(1)[:-20], finish="length"), "cut off at the token limit"),
        (Turn(f"{kernel(1)}\n{kernel(2)}"), "2 code blocks could each be the kernel"),
        (Turn(kernel(1).replace("void toy", "void toys")), "has no function toy"),
        (Turn(kernel(1).replace("const float* b, ", "")), "toy"),
        (Turn('{"kernel": '), "no fenced code block"),
        (Turn("I would use shared memory.", usage=None), "no fenced code block"),
    ],
)
def test_whatever_an_endpoint_does_ends_in_one_line_and_on_record(
    open_shop: Callable[..., Shop], turn: Turn, reason: str
) -> None:
    shop = open_shop()
    shop.seeds = []
    with serving(turn) as server:
        patience = 0.5 if turn.wait_s else 20.0
        endpoint = Endpoint(name="scripted", model="m", base_url=server.url, key_env="", timeout_s=patience)
        client = Client(endpoint, sleep=lambda seconds: None)
        with contextlib.closing(client), pytest.raises(NothingLeft):
            shop.next(shop.engineer(client))
    assert all(reason in found and "\n" not in found for found in shop.reasons())
    exchanges = shop.archive.exchanges(shop.run)
    assert len(exchanges) == len(shop.reasons()) > 0
    charged = sum(exchange.usd or 0 for exchange in exchanges)
    assert shop.archive.run(shop.run).usd_spent == pytest.approx(charged)
