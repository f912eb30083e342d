"""`warpsmith ask` and `tell`, as engineers use them: processes of their own, with nothing but archives between them."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from agent import tasks
from archive import Archive
from sandbox.contract import BuildFailed, Judgement

H100 = "NVIDIA H100 80GB HBM3"
HEAD = 'extern "C" void toy(float* out, const float* a, const float* b, int64_t N, void* workspace)'
RIGHT = f"// simd\n{HEAD} {{\n#pragma omp simd\n    for (int64_t i = 0; i < N; ++i) out[i] = b[i] + a[i];\n}}\n"
WRONG = RIGHT.replace("i < N", "i < N - 1")
OTHER = RIGHT.replace("#pragma omp simd\n", "")


def warpsmith(*arguments: object, code: int, given: str = "") -> subprocess.CompletedProcess[str]:
    variables = {**os.environ, "PYTHONPATH": str(tasks.bundled().parent), "XDG_DATA_HOME": str(Path.cwd())}
    variables["CUDA_VISIBLE_DEVICES"] = ""
    done = subprocess.run(
        [sys.executable, "-m", "agent", *map(str, arguments)],
        input=given,
        capture_output=True,
        text=True,
        env=variables,
        timeout=300,
        check=False,
    )
    assert done.returncode == code, done.stderr + done.stdout
    return done


def asked(task: object, *arguments: object) -> list[dict[str, Any]]:
    done = warpsmith("ask", "--task", task, "--archive", "a.db", "--json", *arguments, code=0)
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


def reply(ask: str, kernel: str) -> str:
    return f"warpsmith-ask: {ask[:12]}\n\nAnother loop.\n\n```cpp\n{kernel}```\n"


def test_ask_has_all_that_a_model_gets_and_what_answers_it(toy_folder: Path) -> None:
    first, second = asked(toy_folder, "--target", "cpu", "-n", "2")
    assert first["prototype"].startswith('extern "C" void toy(')
    assert [message["role"] for message in first["messages"]] == ["system", "user"]
    assert (first["task"], first["target"], second["operator"]) == ("toy", "cpu", "edit")
    assert first["ask"] != second["ask"]
    assert "N77" not in json.dumps(first)
    with Archive.open("a.db") as archive:
        assert [ask.id for ask in archive.asks(first["run"])] == [first["ask"], second["ask"]]
        assert archive.candidate(first["parents"][0]).task == "toy"


def test_document_goes_to_stdout_or_a_file(toy_folder: Path) -> None:
    common = ["ask", "--task", toy_folder, "--target", "cpu", "--archive", "a.db"]
    printed = warpsmith(*common, "--markdown", code=0)
    assert "# The contract" in printed.stdout
    assert "asked for toy · cpu" in printed.stderr
    assert warpsmith(*common, "--out", "ask.md", code=0).stdout == "1 ask in ask.md\n"
    assert "warpsmith-ask: " in Path("ask.md").read_text()
    assert "    warpsmith tell FILE --as NAME --archive a.db\n" in Path("ask.md").read_text()
    written = warpsmith(*common, "--out", "ask.json", "--json", code=0)
    (found,) = json.loads(Path("ask.json").read_text())
    assert json.loads(written.stdout) == {"file": "ask.json", "asks": [found["ask"]]}


def test_ask_that_cannot_be_made_says_why_in_one_line() -> None:
    done = warpsmith("ask", "--task", "layernorm", "--target", "cuda", "--archive", "a.db", code=2)
    assert done.stderr.startswith(
        "error: this machine has no GPU, and the archive has no judgement of layernorm on one"
    )
    assert len(done.stderr.splitlines()) == 1
    assert warpsmith("ask", "--archive", "a.db", code=2).stderr.startswith("error: no task: give --task NAME")


def test_without_a_gpu_the_ask_is_for_the_one_that_judged_the_task_last() -> None:
    task = tasks.load("vector_add", "cuda")
    seed = tasks.seeds(task)[0]
    verdict = BuildFailed(log="error: no")
    given = {"task": task.name, "task_version": task.version, "target": "cuda", "device": "NVIDIA A10", "seconds": 1.0}
    with Archive.open("a.db") as archive:
        archive.add(seed)
        judged = {"candidate": seed.id, "verdict": verdict, "judged_at": "2026-01-01T00:00:00+00:00"}
        archive.record(Judgement.model_validate(given | judged))
    (ask,) = asked("vector_add", "--target", "cuda")
    assert (ask["device"], ask["operator"]) == ("NVIDIA A10", "rewrite")


def test_ask_for_a_gpu_elsewhere_is_answered_without_one_and_waits_for_it() -> None:
    (ask,) = asked("vector_add", "--target", "cuda", "--device", H100)
    assert ask["device"] == H100
    assert "132 SMs" in ask["messages"][0]["content"]
    kernel = (
        Path(tasks.bundled() / "vector_add" / "cuda" / "1_scalar.cu").read_text() + "// mine\n__device__ int unused;\n"
    )
    Path("kernel.cu").write_text(kernel)
    common = ["tell", "kernel.cu", "--ask", ask["ask"][:8], "--archive", "a.db"]
    refused = warpsmith(*common, code=2)
    assert f"the ask is for {H100}, and this machine has no GPU: with --no-judge" in refused.stderr
    (told,) = json.loads(warpsmith(*common, "--no-judge", "--as", "ann", "--json", code=0).stdout)
    assert (told["status"], told["words"]) == ("Waiting", f"On record, not judged yet: it is for {H100}.")
    pending = warpsmith("tell", "--pending", "--archive", "a.db", code=0)
    assert pending.stderr == f"{told['candidate'][:10]} waits for {H100}\n"


def test_every_bad_answer_of_a_batch_says_why_and_the_others_are_recorded(toy_folder: Path) -> None:
    ids = [ask["ask"] for ask in asked(toy_folder, "--target", "cpu", "-n", "4")]
    fewer = RIGHT.replace("const float* b, ", "")
    two_blocks = reply(ids[1], RIGHT) + f"```cpp\n{RIGHT.replace('simd', 'SIMD')}```\n"
    lines = [
        json.dumps({"ask": ids[0], "reply": reply(ids[0], fewer)}),
        json.dumps({"ask": ids[1], "reply": two_blocks}),
        '{"ask": ',
        json.dumps({"ask": ids[2], "source": RIGHT, "proposer": "ann", "note": "all at once"}),
        json.dumps({"ask": ids[3], "source": f"{RIGHT}// the same again\n"}),
        json.dumps({"ask": ids[3], "source": OTHER}),
    ]
    done = warpsmith(
        "tell", "-", "--no-judge", "--as", "bob", "--archive", "a.db", "--json", given="\n".join(lines), code=2
    )
    found = json.loads(done.stdout)
    assert [told["status"] for told in found] == [*["Refused"] * 3, "Waiting", "Refused", "Waiting"]
    assert [told["place"] for told in found] == [f"standard input line {number}" for number in range(1, 7)]
    assert "toy has other parameters than the contract's" in found[0]["words"]
    assert "2 code blocks could each be the kernel" in found[1]["words"]
    assert "not JSON" in found[2]["words"]
    assert f"as {found[3]['candidate'][:10]} by ann (all at once), which waits to be judged" in found[4]["words"]
    with Archive.open("a.db") as archive:
        assert archive.candidate(found[3]["candidate"]).proposer == "ann"
        assert archive.candidate(found[5]["candidate"]).proposer == "bob"


@pytest.mark.slow
def test_kernels_told_elsewhere_are_judged_where_the_ask_came_from(toy_folder: Path) -> None:
    """Ask here, answer in another archive, bring that back, judge: the whole way of an engineer without the device."""
    ids = [ask["ask"] for ask in asked(toy_folder, "--target", "cpu", "-n", "2")]
    warpsmith("archive", "export", "asks.jsonl.gz", "--archive", "a.db", code=0)
    warpsmith("archive", "import", "asks.jsonl.gz", "--archive", "b.db", code=0)
    Path("replies.md").write_text(reply(ids[0], RIGHT) + "\n" + reply(ids[1], WRONG))
    told = warpsmith("tell", "replies.md", "--no-judge", "--as", "ann", "--archive", "b.db", code=0)
    assert told.stdout.count("Waiting  replies.md line") == 2
    warpsmith("archive", "export", "answers.jsonl", "--archive", "b.db", code=0)
    warpsmith("archive", "import", "answers.jsonl", "--archive", "a.db", code=0)

    judged = warpsmith("tell", "--pending", "--sandbox", "local", "--archive", "a.db", "--json", code=1)
    right, wrong = sorted(json.loads(judged.stdout), key=lambda said: said["status"] != "Passed")
    assert (right["status"], right["rank"]) == ("Passed", 1)
    assert "| N4096 float32 |" in right["words"]
    assert wrong["status"] == "Incorrect"
    assert f"--operator repair --parent {wrong['candidate'][:10]}" in wrong["next"]
    assert "nothing waits" in warpsmith("tell", "--pending", "--archive", "a.db", code=0).stdout

    (row,) = json.loads(warpsmith("leaderboard", "--archive", "a.db", "--json", code=0).stdout)
    assert (row["candidate"], row["proposer"], row["note"]) == (right["candidate"], "ann", "Another loop.")
    twin = warpsmith("tell", "replies.md", "--archive", "a.db", code=2)
    assert "which was judged: it is Passed" in twin.stderr
    assert "which was judged: it is Incorrect" in twin.stderr
    (repair,) = asked(toy_folder, "--target", "cpu")
    assert (repair["operator"], repair["parents"]) == ("repair", [wrong["candidate"]])
    resumed = warpsmith("resume", repair["run"], "--archive", "a.db", code=2)
    assert "give them with `warpsmith tell`" in resumed.stderr
    source = warpsmith("show", right["candidate"][:10], "--source", "--archive", "a.db", code=0).stdout
    assert source == RIGHT
