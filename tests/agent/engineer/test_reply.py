"""Replies as models give them: what is taken, what is refused, and that nothing raises."""

import json
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent import tasks
from agent.engineer.records import Plan
from agent.engineer.reply import MOST_BYTES, Unusable, read_plan, read_source, source_fault
from sandbox.contract import Target, Task, TensorSpec, Workload

TOY = {
    target: Task(
        name="toy",
        version="1",
        summary="a + b",
        target=target,
        axes=("N",),
        outputs=(TensorSpec(name="out", shape=("N",)),),
        inputs=(TensorSpec(name="a", shape=("N",)), TensorSpec(name="b", shape=("N",))),
        workloads=(Workload(axes={"N": 1000}),),
        bytes_moved="3*N*itemsize",
        flops="N",
        folder=Path("nowhere"),
    )
    for target in ("cpu", "cuda")
}
CPU = """\
// 1: one loop.
#ifndef BLOCK
#define BLOCK 8  // tune: 8 16
#endif
extern "C" void toy(float* out, const float* __restrict__ a, const float* b, int64_t N, void* workspace) {
    for (int64_t i = 0; i < N; ++i)
        out[i] = a[i] + b[i];
}
"""
CUDA = """\
// 1: a thread per element.
// launch add: grid(cdiv(N, 256)) block(256)
extern "C" __global__ void __launch_bounds__(256) add(scalar_t* out, const scalar_t* a, const scalar_t* b, int64_t N,
                                                      void* workspace) {
    const int64_t i = int64_t(blockIdx.x) * 256 + threadIdx.x;
    if (i < N) out[i] = a[i] + b[i];
}
"""
PLAN = {
    "bottleneck": "latency of loads",
    "change": "unroll by four",
    "why": "four loads in flight",
    "expected_speedup": 1.5,
    "memory": "direct",
    "tensor_cores": False,
}


def fenced(source: str, language: str = "cpp") -> str:
    return f"```{language}\n{source}```\n"


def source(text: str, target: Target = "cpu", parent: str | None = None, finish: str = "stop") -> str | Unusable:
    return read_source(text, TOY[target], parent, finish)


def reason(found: object) -> str:
    assert isinstance(found, Unusable)
    assert "\n" not in found.reason
    return found.reason


# ---------------------------------------------------------------- plans


@pytest.mark.parametrize(
    "text",
    [
        json.dumps(PLAN),
        f"Here it is:\n```json\n{json.dumps(PLAN, indent=2)}\n```\nGood luck.",
        f"I think {{that}} this is right: {json.dumps(PLAN)} and nothing else.",
        f"```\n{json.dumps(PLAN)}",
        json.dumps(PLAN | {"confidence": 0.9}),
        json.dumps({"why": "an example"}) + json.dumps(PLAN),
        json.dumps(PLAN | {"change": "another"}) + json.dumps(PLAN),
    ],
)
def test_plan_is_found(text: str) -> None:
    assert read_plan(text) == Plan.model_validate(PLAN)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "the reply is empty"),
        (" \n", "the reply is empty"),
        ("Unroll the loop.", "no JSON object in the reply"),
        ("{'bottleneck': 'x'}", "no JSON object in the reply"),
        (json.dumps(PLAN)[:-1], "no JSON object in the reply"),
        ("[1, 2]", "no JSON object in the reply"),
        ("{}", 'plan: bottleneck: Field required, got "nothing"'),
        (json.dumps(PLAN | {"memory": "l2"}), "plan: memory: Input should be 'direct', 'shared', .*got \"l2\""),
        (json.dumps(PLAN | {"expected_speedup": 300}), "plan: expected_speedup: .*less than or equal to 100, got 300"),
        (json.dumps(PLAN | {"expected_speedup": float("nan")}), "plan: expected_speedup: .*finite.*, got NaN"),
        (json.dumps(PLAN | {"bottleneck": "x" * 201}), 'plan: bottleneck: .*at most 200 characters, got "xx'),
        (json.dumps(PLAN | {"why": "\ud800"}), "plan: why: .*"),
        ("{" * 100_001, "the reply has 100001 characters, wanted a plan"),
    ],
)
def test_reply_without_a_plan_says_why_in_one_line(text: str, why: str) -> None:
    assert re.match(why, reason(read_plan(text)))


# ---------------------------------------------------------------- whole sources


@pytest.mark.parametrize("target", ["cpu", "cuda"])
def test_source_in_a_fence_is_taken(target: Target) -> None:
    wanted = CPU if target == "cpu" else CUDA
    assert source(f"Sure:\n\n{fenced(wanted)}\nThis is fast.", target) == wanted
    assert source(fenced(wanted, "").replace("```", "~~~~"), target) == wanted
    assert source(fenced(wanted).replace("\n", "\r\n"), target) == wanted
    assert source(wanted, target) == wanted


def test_of_several_blocks_the_kernel_counts() -> None:
    sketch = "for (;;) out[i] = a[i];\n" * 50
    assert source(fenced(sketch) + fenced(CPU) + fenced("make\n", "sh")) == CPU
    assert source(fenced(CPU) + fenced(CPU)) == CPU
    longer = CPU.replace("one loop", "one loop, better")
    assert source(fenced(CPU) + fenced(longer)) == longer


def test_two_kernels_of_one_length_are_ambiguous() -> None:
    assert reason(source(fenced(CPU) + fenced(CPU.replace("one", "two")))) == (
        "2 code blocks could each be the kernel; wanted one"
    )


@pytest.mark.parametrize("target", ["cpu", "cuda"])
@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "the reply is empty"),
        ("I cannot do that.\n# Sorry\n", "no fenced code block in the reply"),
        ("```cpp\n```", "the source is empty"),
        (fenced(CPU)[:-4], "the last code block is not closed: the reply looks cut off"),
        (fenced("// \ud800\n"), "the source holds a character that is none (a lone surrogate)"),
        (fenced("// \0\n"), "the source holds a NUL character"),
        (fenced("/" * MOST_BYTES + "\n"), f"the source has {MOST_BYTES + 1} bytes, at most {MOST_BYTES} are taken"),
    ],
)
def test_reply_without_a_source_says_why(target: Target, text: str, why: str) -> None:
    assert reason(source(text, target)) == why


def test_reply_cut_off_at_the_limit_is_refused_whole_as_it_looks() -> None:
    assert reason(source(fenced(CPU), finish="length")) == "the reply was cut off at the token limit"


@pytest.mark.parametrize(
    ("target", "old", "new", "why"),
    [
        (
            "cuda",
            "// launch add",
            "// lunch add",
            "launch plan: no '// launch NAME: grid(…) block(…)' line in the source",
        ),
        ("cuda", "cdiv(N, 256)", "N / 256", "launch plan: line 2: ' / 256"[:20]),
        ("cuda", "launch add", "launch sum", "launch plan: line 2: launch sum: the source has no kernel of that name"),
        ("cuda", "b, int64_t N", "b, int N, int M", "add has other parameters than the contract's; got (scalar_t* out"),
        ("cuda", 'extern "C" ', "", 'the source defines nothing as extern "C"; wanted extern "C" __global__ void add('),
        ("cpu", "void toy(", "void toys(", "launch plan: the source has no function toy; wanted"),
        ("cpu", "const float* b, ", "", "toy has other parameters than the contract's"),
        ("cpu", "const float* b", "float b", "toy has other parameters than the contract's"),
        ("cpu", ") {", ");", "no definition of toy; wanted extern"),
        ("cpu", "8 16", "4 16", "launch plan: line 3: tunable BLOCK: its value 8 is none of its choices 4 16"),
        ("cpu", "8 16", "8 ²", "launch plan: line 3: tunable BLOCK: got value '8', choices '8 ²'; wanted integers"),
        ("cpu", "// 1:", f"// tune-if: {'9' * 5000}\n// 1:", "launch plan: line 1: got '9999"),
    ],
)
def test_source_that_breaks_the_contract_says_where(target: Target, old: str, new: str, why: str) -> None:
    text = (CPU if target == "cpu" else CUDA).replace(old, new)
    assert reason(source(fenced(text), target)).startswith(why)


def test_kernels_made_by_macros_and_names_of_ones_own_are_let_through() -> None:
    parameters = "(float* out, const float* __restrict__ a, const float* b, int64_t N, void* workspace)"
    assert parameters in CPU
    assert source_fault(CPU.replace(parameters, "(PARAMETERS)"), TOY["cpu"]) == ""
    assert (
        source_fault(CPU.replace(parameters, "(float *o, float const a[], const float* b, long n, void*)"), TOY["cpu"])
        == ""
    )


def test_every_seed_kernel_would_be_taken() -> None:
    for name in tasks.available():
        for target in ("cpu", "cuda"):
            task = tasks.load(name, target)
            for seed in tasks.seeds(task):
                assert read_source(fenced(seed.source), task, None, "stop") == seed.source.strip("\n") + "\n"


# ---------------------------------------------------------------- parents


def test_source_of_its_parent_is_refused() -> None:
    same = CPU.replace("one loop", "another name").replace("    ", "\t")
    assert reason(source(fenced(same), parent=CPU)) == "the source is that of its parent, comments and blanks aside"
    assert source(fenced(CPU.replace("8  //", "16 //")), parent=CPU) != CPU
    assert source(fenced(CPU), parent="// tune-if: /\nbroken") == CPU


def edit(old: str, new: str) -> str:
    return f"<<<<<<< SEARCH\n{old}\n=======\n{new}\n>>>>>>> REPLACE\n"


def edited(*edits: str, parent: str | None = CPU) -> str | Unusable:
    return source("So:\n\n" + "\n".join(edits), parent=parent)


def test_edits_are_made_in_their_order() -> None:
    first = edit("        out[i] = a[i] + b[i];", "        out[i] = b[i] + a[i];")
    second = edit("        out[i] = b[i] + a[i];", "        out[i] = 1 * b[i] + a[i];\n    // done")
    assert edited(first, second) == CPU.replace("a[i] + b[i];", "1 * b[i] + a[i];\n    // done")
    assert edited(f"```\n{first}```", "```cpp\nunused\n```") == CPU.replace("a[i] + b[i]", "b[i] + a[i]")


def test_edit_may_have_other_blanks_than_the_parent() -> None:
    wanted = edit("\nfor (int64_t i = 0;i<N;++i)\n  out[i]=a[i]+b[i];\n", "    for (;;) break;")
    assert "    for (;;) break;\n}\n" in str(edited(wanted))


def test_edit_may_remove_lines() -> None:
    gone = "<<<<<<< SEARCH\n        out[i] = a[i] + b[i];\n=======\n>>>>>>> REPLACE\n"
    assert edited(gone) == CPU.replace("        out[i] = a[i] + b[i];\n", "")


@pytest.mark.parametrize(
    ("edits", "why"),
    [
        ([edit("    return;", "x")], "edit 1: its SEARCH lines, from 'return;' on, do not stand in the parent"),
        (
            [edit("// 1: one loop.", "// 2"), edit("#if", "")],
            "edit 2: its SEARCH lines, from '#if' on, do not stand in",
        ),
        ([edit("", "x")], "edit 1: its SEARCH part is empty; wanted lines of the parent"),
        (["<<<<<<< SEARCH\n#endif\n>>>>>>> REPLACE"], "edit 1 has no ======= line"),
        (["<<<<<<< SEARCH\n#endif\n=======\n"], "edit 1 has no >>>>>>> REPLACE line"),
        (["<<<<<<< SEARCH\n#endif\n=======\n", edit("a", "b")], "edit 1 has no >>>>>>> REPLACE line"),
        ([edit("#endif", "#endif")], "the source is that of its parent, comments and blanks aside"),
        ([edit("extern", "x")], "edit 1: its SEARCH lines, from 'extern' on, do not stand in the parent"),
    ],
)
def test_edit_that_cannot_be_made_is_named(edits: list[str], why: str) -> None:
    assert reason(edited(*edits)).startswith(why)


def test_ambiguous_edit_is_named() -> None:
    twice = CPU + "// a line\n//  a line\n// a line\n"
    why = "edit 1: its SEARCH lines, from '// a line' on, stand 2 times in the parent"
    assert reason(edited(edit("// a line", "// b"), parent=twice)) == why
    assert edited(edit("//  a line", "int unused;"), parent=twice) == twice.replace("//  a line", "int unused;")
    assert "stand 3 times" in reason(edited(edit("//   a line", "// b"), parent=twice))


def test_edits_without_a_parent_are_refused() -> None:
    assert reason(edited(edit("a", "b"), parent=None)).startswith("the reply has SEARCH/REPLACE edits, but there is no")


# ---------------------------------------------------------------- anything at all

PIECES = st.sampled_from(
    [
        *(
            "```",
            "```cpp\n",
            "\n```\n",
            "~~~",
            "\n",
            "{",
            "}",
            '"',
            ":",
            "(",
            ")",
            ",",
            "\\",
            "\r\n",
            "\ud800",
            "²",
            "٣",
        ),
        *(
            "<<<<<<< SEARCH\n",
            "\n=======\n",
            "\n>>>>>>> REPLACE\n",
            "/*",
            "*/",
            "//",
            "\n// launch ",
            " grid(",
            " block(",
        ),
        *(
            "\n// tune-if: ",
            "\n// workspace: ",
            "\n// static: N",
            "\n// tensormap m: a box(",
            "\n#define T ",
            " // tune: ",
        ),
        *(
            "toy(",
            "add",
            "{\n",
            'extern "C" ',
            "9" * 5000,
            "null",
            '{"bottleneck": ',
            "1e999",
            "NaN",
            "\0",
            "\x0c",
            "\u2028",
        ),
        *(CPU, CUDA, json.dumps(PLAN), "(" * 2000, "[" * 2000, '{"a":' * 2000),
    ]
)
TEXTS = st.one_of(st.text(), st.lists(PIECES | st.text(max_size=5), max_size=12).map("".join))


@settings(deadline=None)
@given(TEXTS)
def test_no_text_makes_read_plan_raise(text: str) -> None:
    found = read_plan(text)
    assert isinstance(found, Plan) or reason(found)


@settings(deadline=None)
@given(TEXTS, st.sampled_from(["cpu", "cuda"]), st.none() | st.sampled_from([CPU, CUDA]) | TEXTS, st.text(max_size=6))
def test_no_text_makes_read_source_raise(text: str, target: Target, parent: str | None, finish: str) -> None:
    found = source(text, target, parent, finish)
    assert (isinstance(found, str) and source_fault(found, TOY[target]) == "") or reason(found)


@pytest.mark.parametrize(
    "tail",
    ["/*" * 90_000, "toy(" * 45_000, '"' * 180_000, "(" * 180_000, "`" * 180_000, "```\n" * 45_000, "\n" * 190_000],
)
def test_reply_that_repeats_itself_is_read_in_no_time(tail: str) -> None:
    source(fenced(CPU + tail + "\n"), parent=CPU.replace("+", "-"))
    source(edit("#endif", tail), parent=CPU)
    read_plan(tail[:100_000])
