"""What is asked for: parents, operator and prompt, by what the archive says."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from agent import tasks
from agent.asking import asking, telling
from agent.asking.asking import make
from agent.asking.document import markdown
from agent.asking.replies import Answer
from agent.asking.setting import Setting, asking_runs, run_of
from sandbox.contract import Candidate
from sandbox.errors import BadInput
from tests.agent.asking.conftest import judgement

Judged = Callable[..., Candidate]
SIMD = "#pragma omp simd\nfor (int64_t i = 0; i < N; ++i) out[i] = a[i] + b[i];"


def told(setting: Setting, ask: str, source: str, judged: bool = False) -> Candidate:
    waiting = telling.accept(setting.archive, Answer(ask=ask, source=source))
    if judged:
        setting.archive.record(judgement(setting, waiting.candidate, 0), waiting.run.id)
    return waiting.candidate


def test_without_any_judgement_one_starts_from_a_seed_that_is_recorded(setting: Setting) -> None:
    (prompt,) = make(setting, 1)
    (parent,) = prompt.parents
    assert setting.archive.candidate(parent).operator == "seed"
    assert prompt.operator == "rewrite"
    assert "Not judged yet." in prompt.messages[1].content


def test_asks_are_kept_and_share_one_run_that_cannot_be_mistaken_for_a_search(setting: Setting) -> None:
    first, second = make(setting, 1)[0], make(setting, 1)[0]
    assert [ask.id for ask in setting.archive.asks(first.run)] == [first.ask, second.ask]
    (run,) = setting.archive.runs()
    assert asking_runs(setting.archive) == [run] == [run_of(setting)]
    assert (run.task, run.device, run.status) == ("toy", setting.device.name, "running")


def test_several_asks_differ_in_operator_and_parent(setting: Setting, judged: Judged) -> None:
    judged("int plain;", 1.0)
    judged(SIMD, 1.0)
    prompts = make(setting, 8)
    assert [prompt.operator for prompt in prompts[:4]] == ["rewrite", "edit", "crossover", "simplify"]
    assert len({prompt.parents[0] for prompt in prompts}) == 2
    assert len(set(prompts[2].parents)) == 2


def test_kernel_that_was_told_and_failed_is_repaired_first_and_once(setting: Setting, judged: Judged) -> None:
    parent = judged("int plain;", 1.0)
    (prompt,) = make(setting, 1)
    broken = told(setting, prompt.ask, parent.source.replace("plain", "other"), judged=True)
    repair, next_one = make(setting, 2)
    assert (repair.operator, repair.parents) == ("repair", (broken.id,))
    assert "Incorrect (error)" in repair.messages[1].content
    assert next_one.operator != "repair"
    with pytest.raises(BadInput, match="nothing to repair"):
        make(setting, 1, "repair")


def test_held_out_workloads_are_in_no_ask(setting: Setting, judged: Judged) -> None:
    parent = judged("int plain;", 1.0)
    broken = judged("int wrong;", 0, [parent.id], hidden=True, note=f"wrong on {setting.task.held_out[0].name}")
    for prompt in (*make(setting, 1, "repair", [broken]), *make(setting, 1, "rewrite", [parent])):
        assert "N77" not in prompt.messages[0].content + prompt.messages[1].content


def test_lessons_of_the_lineage_are_shown(setting: Setting, judged: Judged) -> None:
    parent = judged("int plain;", 1.0)
    judged("int fast;", 2.0, [parent.id], note="twice as much at once")
    judged("int wrong;", 0, [parent.id], note="no tail")
    (prompt,) = make(setting, 1, "rewrite", [parent])
    assert "- twice as much at once → 2.00x over its parent" in prompt.messages[1].content
    assert "- no tail → Incorrect: error" in prompt.messages[1].content


@pytest.mark.parametrize(("count", "operator"), [(1, "rewrite"), (2, "crossover")])
def test_named_parents_are_kept_to(setting: Setting, judged: Judged, count: int, operator: str) -> None:
    kernels = [judged("int one;", 1.0), judged("int two;", 0.1)][:count]
    (prompt,) = make(setting, 1, None, kernels)
    assert (prompt.operator, prompt.parents) == (operator, tuple(kernel.id for kernel in kernels))


def test_kernel_of_a_task_much_like_this_one_may_be_crossed_with(setting: Setting, judged: Judged) -> None:
    parent = judged("int one;", 1.0)
    alike = tasks.load("vector_add", "cpu")
    similar = setting.task.model_copy(update={"summary": alike.summary, "axes": alike.axes})
    made = tasks.seeds(alike)[0]
    setting.archive.add(made)
    found = judgement(setting, made, 1.0).model_copy(update={"task": alike.name, "task_version": alike.version})
    setting.archive.record(found)
    (prompt,) = make(replace(setting, task=similar), 1, "crossover")
    assert prompt.parents == (parent.id, made.id)
    assert "for another task, vector_add, and is fast there" in prompt.messages[1].content
    (record,) = [ask for ask in setting.archive.asks(prompt.run) if ask.id == prompt.ask]
    assert record.parents == prompt.parents


def test_what_cannot_be_asked_is_said(setting: Setting, judged: Judged) -> None:
    kernel = judged("int one;", 1.0)
    with pytest.raises(BadInput, match=r"nothing to cross: all kernels that passed are of one kind"):
        make(setting, 1, "crossover")
    with pytest.raises(BadInput, match="an ask fuses nothing: got 'fuse', wanted translate"):
        make(setting, 1, "fuse")
    with pytest.raises(BadInput, match=r"operator 'crossover' got 1 parents, wanted 2"):
        make(setting, 1, "crossover", [kernel])
    stranger = kernel.model_copy(update={"task": "mlp"})
    with pytest.raises(BadInput, match=r"is a kernel of mlp · cpu, wanted toy · cpu"):
        make(setting, 1, None, [stranger])


def test_translation_starts_from_the_reference(setting: Setting) -> None:
    (prompt,) = make(setting, 1, "translate")
    assert prompt.parents == ()
    assert "Translate the reference" in prompt.messages[1].content


def test_document_gives_the_rules_once_and_each_ask_with_its_line(setting: Setting) -> None:
    prompts = make(setting, 3)
    text = markdown(prompts)
    assert text.count("# The contract") == 1
    assert [text.count(f"    warpsmith-ask: {prompt.ask[:12]}\n") for prompt in prompts] == [1, 1, 1]
    assert "# The contract" not in markdown(prompts, by_tool=True, rules=False)


def test_prototype_is_that_of_the_task(setting: Setting) -> None:
    assert asking.declaration(setting).startswith('extern "C" void toy(scalar_t* out, const scalar_t* a')
