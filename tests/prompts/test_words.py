"""Verdicts in words, and what is blanked in them."""

from collections.abc import Callable

import pytest

from prompts.hidden import concealed, hidden_sizes
from prompts.records import Context, Exhibit
from prompts.words import LOG_LINES, excerpt, size, verdict_words, workload_words
from sandbox.contract import BuildFailed, Cheated, LaunchFailed, Target, Verdict

Contexts = Callable[..., Context]
Judged = Callable[[Target, Verdict], Exhibit]


def test_passed_kernel_says_where_it_is_weak(contexts: Contexts) -> None:
    context = contexts("rewrite", "sm_90a")
    words = verdict_words(context.parents[0], context.task)
    assert "2.51× eager (2.40–2.60), 1.01× library (0.90–∞)" in words
    assert "| N512 D1024 flip=0 float16 | 0.0200 | 4.00 | 2.00 | 10 % |" in words
    assert "Furthest from the roofline: `N512 D1024 flip=0 float16`, at 10 % of it." in words
    assert "Weakest against the best baseline: `N8192 D4096 flip=1 float32`, 0.40× of it." in words
    assert "rownorm: 255 registers, 64 B of spills, 128 B of static shared memory" in words
    assert "40 registers" not in words
    assert "DRAM throughput 81.2 %; hits 3." in words
    assert len(words.split("| N")) == 3


def test_kernel_that_differs_from_itself_is_told_so(contexts: Contexts) -> None:
    context = contexts("rewrite", "cpu")
    assert "different bits" in verdict_words(context.parents[0], context.task)
    unjudged = Exhibit(candidate=context.parents[0].candidate, judgement=None)
    assert verdict_words(unjudged, context.task) == "Not judged yet."


def test_failure_on_a_known_workload_names_it(contexts: Contexts, judged: Judged) -> None:
    task = contexts("rewrite", "sm_90a").task
    known = task.workloads[0].name
    words = verdict_words(judged("cuda", LaunchFailed(workload=known, reason="illegal address")), task)
    assert words == f"LaunchFailed on `{known}`.\n\n```text\nillegal address\n```"
    words = verdict_words(judged("cuda", Cheated(rule="protocol", evidence=f"{known}: 3 events")), task)
    assert words.startswith("Cheated: the judge refused it. Rule: protocol.\n")


def test_failure_elsewhere_says_what_to_look_at(contexts: Contexts, judged: Judged) -> None:
    task = contexts("rewrite", "sm_90a").task
    verdict = LaunchFailed(
        workload=task.held_out[1].name, reason="kernel.cu(3): 542 of 2e-05 in N8192 D271 flip=0 float32"
    )
    words = verdict_words(judged("cuda", verdict), task)
    assert words.startswith("LaunchFailed on a workload that is not shown. Besides the workloads above")
    assert words.endswith("\nkernel.cu(3): … of 2e-05 in a workload that is not shown\n```")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("kernel.cu(1237): error: widest(4099)", "kernel.cu(1237): error: widest(…)"),
        ("kernel.cpp:4099:271: note: 4099 % 8", "kernel.cpp:4099:271: note: … % 8"),
        ("  271 | int a[271];", "  271 | int a[…];"),
        ("  271 |     out[1237] = 0;", "  271 |     out[1237] = 0;"),
        ("line 271: D is 271u, 2710, x271, 271.5 and 1.271", "line 271: D is …u, 2710, x271, 271.5 and 1.271"),
        ("N8192 and 512 are known; ends with 271.", "N8192 and 512 are known; ends with …."),
        ("an error of 2e-271", "an error of 2e-271"),
        ("9" * 5000, "9" * 5000),
    ],
)
def test_sizes_that_only_held_out_workloads_have_are_blanked(contexts: Contexts, text: str, shown: str) -> None:
    task = contexts("edit", "cpu").task
    assert hidden_sizes(task) == {1237, 4099, 271}
    assert concealed(text, task, source="{\n    out[1237] = 0;\n}") == shown


def test_single_digits_stay_except_where_a_held_out_workload_is_named(contexts: Contexts) -> None:
    task = contexts("edit", "cpu").task
    tiny = task.held_out[0].model_copy(update={"axes": {"N": 3, "D": 5}})
    with_tiny = task.model_copy(update={"held_out": (tiny,)})
    assert concealed("3 errors, 5 arguments", with_tiny) == "3 errors, 5 arguments"
    assert concealed("3 errors, 5 arguments", with_tiny, thorough=True) == "… errors, … arguments"


def test_log_is_shown_from_its_first_error_on(contexts: Contexts, judged: Judged) -> None:
    log = "\n".join(["chatter"] * 500 + ["note: before", "a.cpp:3: error: no"] + ["more"] * 500)
    kept = excerpt(log).splitlines()
    assert kept[:3] == ["chatter", "note: before", "a.cpp:3: error: no"]
    assert len(kept) == LOG_LINES + 1
    assert kept[-1] == "(shortened)"
    words = verdict_words(judged("cpu", BuildFailed(log="error: ``` here")), contexts("edit", "cpu").task)
    assert "\n````text\nerror: ``` here\n````" in words


def test_workload_is_given_with_its_floor(contexts: Contexts) -> None:
    context = contexts("edit", "sm_90a")
    words = workload_words(context.task, context.task.workloads[0], context.device)
    assert words == (
        "N512 D1024 flip=0 float16, eps = 1e-05: moves at least 2.1 MB, 2.1 MFLOP, 1 FLOP/B, 0.00063 ms at peak rates"
    )
    assert [size(0), size(999), size(5e12)] == ["0 ", "999 ", "5 T"]
