"""Prompts, word for word and by what must never be in them.

The files in golden/ are compared as they are. After a change of templates that is meant, write them anew with
`UPDATE_GOLDEN=1 pytest tests/prompts` and read the difference.
"""

import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import pytest

from agent import tasks
from prompts.records import Context, Exhibit, Message, Operator, Plan
from prompts.render import TEMPLATES, drawn, render_ask, render_code, render_plan
from sandbox.contract import (
    BuildFailed,
    Cheated,
    Device,
    Incorrect,
    LaunchFailed,
    ModuleForm,
    Target,
    TimedOut,
    Verdict,
)
from sandbox.errors import BadInput

GOLDEN = Path(__file__).parent / "golden"
OPERATORS: tuple[Operator, ...] = get_args(Operator)
ARCH: dict[Target, str] = {"cuda": "sm_90a", "cpu": "cpu"}
PLAN = Plan(
    bottleneck="two passes over x",
    change="keep the row in registers",
    why="halves the reads",
    expected_speedup=1.6,
    memory="registers",
    tensor_cores=False,
)

Contexts = Callable[..., Context]
Judged = Callable[[Target, Verdict], Exhibit]


def compare(name: str, text: str) -> None:
    path = GOLDEN / name
    if os.environ.get("UPDATE_GOLDEN"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8")


def whole(messages: list[Message]) -> str:
    return "\n".join(message.content for message in messages)


def both(context: Context) -> str:
    rng = random.Random(3)
    return whole([*render_plan(context, rng), *render_code(context), *render_ask(context, rng)])


@pytest.mark.parametrize("arch", ["sm_90a", "sm_86", "sm_120", "cpu"])
def test_system_message_is_the_golden_one(contexts: Contexts, arch: str) -> None:
    system, _ = render_code(contexts("rewrite", arch))
    assert system.role == "system"
    compare(f"system_{arch}.md", system.content)


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("target", ["cuda", "cpu"])
def test_plan_prompt_is_the_golden_one(contexts: Contexts, operator: Operator, target: Target) -> None:
    _, user = render_plan(contexts(operator, ARCH[target]), random.Random(7))
    assert user.role == "user"
    compare(f"{operator}_{target}_plan.md", user.content)


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("target", ["cuda", "cpu"])
def test_code_prompt_is_the_golden_one(contexts: Contexts, operator: Operator, target: Target) -> None:
    _, user = render_code(contexts(operator, ARCH[target], PLAN))
    compare(f"{operator}_{target}_code.md", user.content)


@pytest.mark.parametrize(("operator", "arch"), [("rewrite", "sm_90a"), ("edit", "cpu"), ("translate", "cpu")])
def test_ask_is_the_golden_one(contexts: Contexts, operator: Operator, arch: str) -> None:
    lessons = ("rows in registers → 1.30x over its parent", "blocks of 1024 → BuildFailed")
    context = contexts(operator, arch).model_copy(update={"lessons": lessons})
    _, user = render_ask(context, random.Random(7))
    compare(f"{operator}_{arch}_ask.md", user.content)


def test_system_message_is_the_same_for_every_prompt_of_a_run(contexts: Contexts) -> None:
    systems = {render_code(contexts(operator, "sm_90a", PLAN))[0] for operator in OPERATORS}
    systems |= {render_plan(contexts(operator, "sm_90a"), random.Random(operator))[0] for operator in OPERATORS}
    assert len(systems) == 1


def test_system_message_has_the_prototype_and_what_only_its_device_has(contexts: Contexts) -> None:
    hopper, ampere, cpu = (render_code(contexts("edit", arch))[0].content for arch in ("sm_90a", "sm_86", "cpu"))
    parameters = "(scalar_t* out, const scalar_t* x, const scalar_t* weight, int64_t N, int64_t D, int flip, float eps"
    assert f'extern "C" __global__ void rownorm{parameters}, void* workspace)' in hopper
    assert f'extern "C" void rownorm{parameters}, void* workspace)' in cpu
    assert "wgmma" in hopper
    assert "wgmma" not in ampere
    assert "101376 B of dynamic shared memory" in ampere
    assert "__global__" not in cpu


# ---------------------------------------------------------------- held-out workloads


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("arch", ["sm_90a", "cpu"])
def test_held_out_workloads_are_in_no_prompt(contexts: Contexts, operator: Operator, arch: str) -> None:
    context = contexts(operator, arch, PLAN)
    text = both(context)
    assert all(workload.name in text for workload in context.task.workloads)
    assert not any(workload.name in text for workload in context.task.held_out)
    assert "1237" not in text
    assert "4099" not in text


@pytest.mark.parametrize("operator", ["rewrite", "repair"])
def test_no_verdict_gives_a_held_out_workload_away(contexts: Contexts, judged: Judged, operator: Operator) -> None:
    context = contexts(operator, "sm_90a")
    name = context.task.held_out[0].name
    verdicts: list[Verdict] = [
        BuildFailed(log=f"kernel.cu(4): error: 4099 in {name}\nkernel.cu(1237): error: STATIC_D is 4099u"),
        LaunchFailed(workload=name, reason="line 2: grid.x = N = 1237, wanted 1 to 7 with {'N': 1237, 'D': 4099}"),
        Incorrect(workload=name, distribution="normal", rule="error", evidence="row 1236 of 1237"),
        TimedOut(stage=f"call on {name}", seconds=3),
        Cheated(rule="wrong when timed", evidence=f"{name}: 4099 of 1237"),
    ]
    for verdict in verdicts:
        parent = judged("cuda", verdict)
        text = both(context.model_copy(update={"parents": (parent,), "inspirations": (parent,)}))
        assert name not in text
        assert "4099" not in text
        assert "1236" not in text
        assert "1237" not in text.replace("kernel.cu(1237)", "")


@pytest.mark.parametrize("arch", ["sm_90a", "cpu"])
def test_what_is_held_out_here_is_hidden_where_another_task_is_timed_on_it(contexts: Contexts, arch: str) -> None:
    context = contexts("crossover", arch)
    own, (first, second) = context.task, context.parents
    other = own.model_copy(update={"name": "other", "workloads": own.held_out, "held_out": (), "axes": ("N", "D", "K")})
    mate = second.model_copy(update={"elsewhere": other})
    text = both(context.model_copy(update={"parents": (first, mate)}))
    assert "is one for another task, other" in text
    assert "- only there: `int64_t K`" in text
    assert own.held_out[0].name not in text
    assert "1237" not in text
    assert "4099" not in text


def test_no_bundled_task_shows_its_held_out_workloads() -> None:
    for name in tasks.available():
        for target, arch in (("cuda", "sm_90a"), ("cpu", "x86_64")):
            task = tasks.load(name, target)  # type: ignore[arg-type]
            device = Device(name="a device", target=task.target, arch=arch)
            text = both(Context(task=task, device=device, operator="translate", parents=()))
            assert not [workload.name for workload in task.held_out if workload.name in text]


def test_template_of_a_user_cannot_show_them_either(contexts: Contexts, tmp_path: Path) -> None:
    (tmp_path / "device.md.j2").write_text("held out: {{ task.held_out }}")
    assert "held out: ()" in render_code(contexts("edit", "cpu"), tmp_path)[0].content


# ---------------------------------------------------------------- a folder of the user's


def test_template_of_a_user_stands_in_for_ours_of_that_name(contexts: Contexts, tmp_path: Path) -> None:
    (tmp_path / "answer_source.md.j2").write_text('{% include "_mine.md.j2" %}')
    (tmp_path / "_mine.md.j2").write_text("Only code, for {{ task.name }}.\n")
    ours, theirs = (render_code(contexts("rewrite", "cpu"), folder) for folder in (None, tmp_path))
    assert theirs[1].content.endswith("Only code, for rownorm.\n")
    assert theirs[0] == ours[0]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("edit.md.j2", "one\n\n{{ parent.source }}\n", r"edit\.md\.j2: line 3: 'parent' is undefined"),
        ("edit.md.j2", "one\n{% if operator %}\n", r"edit\.md\.j2: line 2: Unexpected end of template"),
        ("device.md.j2", "one\n{{ 1 / 0 }}", r"device\.md\.j2: line 2: division by zero"),
        ("device.md.j2", "{% include 'gone.md.j2' %}", r"device\.md\.j2: line 1: .*gone\.md\.j2"),
        ("edits.md.j2", "hello", r"edits\.md\.j2 stands in for no template; wanted .*edit\.md\.j2.* or a name"),
        ("strategies.md.j2", "none", r"strategies\.md\.j2: got no line that starts with '- '"),
    ],
)
def test_fault_in_a_template_is_named_with_its_file_and_line(
    contexts: Contexts, tmp_path: Path, name: str, text: str, message: str
) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(BadInput, match=message):
        render_plan(contexts("edit", "cpu"), random.Random(1), tmp_path)


def test_template_that_is_no_text_and_folder_that_is_not_there(contexts: Contexts, tmp_path: Path) -> None:
    (tmp_path / "edit.md.j2").write_bytes(b"\xff\xfe")
    with pytest.raises(BadInput, match=r"template code\.md\.j2, or one that it includes, is not UTF-8"):
        render_code(contexts("edit", "cpu"), tmp_path)
    with pytest.raises(BadInput, match="gone does not exist"):
        render_code(contexts("edit", "cpu"), tmp_path / "gone")


# ---------------------------------------------------------------- what differs


def test_prompts_differ_by_the_strategies_they_show(contexts: Contexts) -> None:
    prompts = {render_plan(contexts("edit", "sm_90a"), random.Random(seed))[1].content for seed in range(20)}
    assert len(prompts) > 15
    again = {render_plan(contexts("edit", "sm_90a"), random.Random(seed))[1].content for seed in range(20)}
    assert prompts == again


def test_a_quarter_to_a_half_of_the_menu_is_shown_and_never_nothing() -> None:
    menu = [str(number) for number in range(24)]
    shares = [len(drawn(menu, random.Random(seed))) / 24 for seed in range(500)]
    assert 0.3 < sum(shares) / 500 < 0.45
    assert min(shares) > 0
    assert drawn(["only"], random.Random(1)) == ["only"]


def test_menu_is_that_of_the_architecture(contexts: Contexts) -> None:
    def shown(arch: str) -> str:
        context = contexts("rewrite", arch)
        return "".join(render_plan(context, random.Random(seed))[1].content for seed in range(40))

    assert "Use wgmma" in shown("sm_90a")
    assert "Use wgmma" not in shown("sm_86")
    assert "ldmatrix" in shown("sm_86")
    assert "streaming stores" in shown("cpu")


def test_operator_without_its_parents_is_a_mistake_of_the_caller(contexts: Contexts) -> None:
    context = contexts("edit", "cpu").model_copy(update={"operator": "crossover"})
    with pytest.raises(ValueError, match="'crossover' got 1 parents, wanted 2"):
        render_code(context)


def test_reference_that_cannot_be_read_is_named(contexts: Contexts, tmp_path: Path) -> None:
    context = contexts("translate", "cpu")
    with pytest.raises(BadInput, match=r"reference of task 'rownorm': .*reference\.py"):
        render_code(context.model_copy(update={"task": context.task.model_copy(update={"folder": tmp_path})}))


def test_reference_of_a_pytorch_file_is_the_file_and_not_its_wrapper(contexts: Contexts, tmp_path: Path) -> None:
    (tmp_path / "reference.py").write_text("wrapper = 1\n")
    (tmp_path / "source.py").write_text("class Model: ...\n")
    context = contexts("translate", "cpu")
    task = context.task.model_copy(update={"folder": tmp_path, "module": ModuleForm(arguments=())})
    system, _ = render_code(context.model_copy(update={"task": task}))
    assert (
        "`Model(…)(…)`. Its parameters and buffers are the last of the inputs above.\n\n```python\nclass"
        in system.content
    )
    assert "wrapper" not in system.content


def test_fence_is_longer_than_any_in_the_source(contexts: Contexts) -> None:
    context = contexts("edit", "cpu")
    parent = context.parents[0]
    fenced = parent.candidate.model_copy(update={"source": parent.candidate.source + "// ````\n"})
    changed = context.model_copy(update={"parents": (parent.model_copy(update={"candidate": fenced}),)})
    assert "\n`````cpp\n" in render_code(changed)[1].content


def test_every_template_is_used() -> None:
    texts = "".join(path.read_text() for path in TEMPLATES.glob("*.md.j2"))
    by_name = {"system.md.j2", "plan.md.j2", "code.md.j2", "ask.md.j2", "strategies.md.j2"}
    by_name |= {f"{operator}.md.j2" for operator in OPERATORS} | {"contract_cuda.md.j2", "contract_cpu.md.j2"}
    unused = [p.name for p in TEMPLATES.glob("*") if p.name not in by_name and f'"{p.name}"' not in texts]
    assert unused == []
