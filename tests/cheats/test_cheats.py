"""Every exploit is rejected for the stated reason, and every honest kernel is accepted, however unusual.

Files for cuda are judged where there is a GPU, and compiled everywhere. The first lines of a file say what it is:

    // exploit: what it does to deceive, in a sentence that may go on over lines        (or `honest:`)
    // task: vector_add   target: cpu
    // rejected: Cheated|Incorrect   rule: wrong when timed|error
    // defence: what makes it fail

In place of `rejected`: `accepted: yes`; `gains: nothing` for what may pass as long as it is no faster than it deserves;
`labelled: library` for what may pass under its right name. Optional: `form: extension`, `after: FILE` (judged right
before), `judged: twice` (confirmed as well), `says: WORD|WORD` (in the evidence), `needs: wall` (fails only behind
one), `slow: why`, `open: why` (no defence yet).
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

from agent import tasks
from sandbox import plan
from sandbox.contract import Candidate, Form, Incorrect, Passed, Target, Task, Verdict
from sandbox.judge import Judge
from sandbox.launch import Launcher
from sandbox.toolchain import CompileFailed, Toolchain

HERE = Path(__file__).parent
TASKS = HERE / "tasks"
KEYS = ("exploit", "honest", "task", "target", "rejected", "rule", "gains", "labelled", "accepted", "says", "defence")
KEYS += ("form", "after", "judged", "needs", "slow", "open")
_FIELD = re.compile(rf"(?:^|   )({'|'.join(KEYS)}): (.*?)(?=   (?:{'|'.join(KEYS)}): |$)")

_PLAN = re.compile(r"(launch \w+|workspace|zero|static|tensormap \w+|tune-if): ")


@dataclass(frozen=True)
class Subject:
    """A file of this folder and its header."""

    path: Path
    fields: dict[str, str]

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def task(self) -> str:
        return self.fields["task"]

    @property
    def target(self) -> Target:
        return "cuda" if self.fields["target"] == "cuda" else "cpu"

    @property
    def form(self) -> Form:
        if self.path.suffix == ".py":
            return "module"
        return "extension" if self.fields.get("form") == "extension" else "kernel"

    def choices(self, key: Literal["rejected", "rule", "says"]) -> list[str]:
        """The alternatives of a field; none where it is missing."""
        return self.fields[key].split("|") if key in self.fields else []

    def candidate(self) -> Candidate:
        """The file as the judge gets it."""
        text = self.path.read_text(encoding="utf-8")
        return Candidate(
            task=self.task, target=self.target, source=text, operator="import", proposer="cheats", form=self.form
        )


def read(path: Path) -> Subject:
    """The header of a file; ValueError where it is none."""
    fields: dict[str, str] = {}
    last = ""
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith(("// ", "# ")):
            break
        text = line.removeprefix("//").removeprefix("#").strip()
        found = _FIELD.findall(text)
        if not found and (not last or _PLAN.match(text)):
            break
        if not found:
            fields[last] += f" {text}"
        for key, value in found:
            fields[key], last = value.strip(), key
    outcomes = [key for key in ("rejected", "gains", "labelled", "accepted") if key in fields]
    if not ({"exploit", "honest"} & fields.keys() and {"task", "target"} <= fields.keys() and outcomes):
        raise ValueError(
            f"{path}: header has {', '.join(fields)}; wanted exploit or honest, task, target and an outcome"
        )
    return Subject(path, fields)


def task_of(name: str, target: Target) -> Task:
    """A task of this folder."""
    return tasks.load(str(TASKS / name), target)


SUBJECTS = [read(path) for folder in ("exploits", "honest") for path in sorted((HERE / folder).glob("*.*"))]
DOCS = HERE.parent.parent / "docs" / "cheats.md"
WALLS = ("docker", "bubblewrap", "namespaces")
NEEDS_GPU = pytest.mark.skipif(not Path("/dev/nvidiactl").exists(), reason="no NVIDIA GPU")
FAIR_SHARE = 0.4
"""Of the plain kernel's latency: timings on a busy machine are that unsteady, and the exploits claim far more."""
PATIENCE = 5


def _marks(subject: Subject) -> list[pytest.MarkDecorator]:
    marks = [pytest.mark.gpu, NEEDS_GPU] if subject.target == "cuda" else []
    marks += [pytest.mark.slow] if "slow" in subject.fields else []
    marks += [pytest.mark.xfail(reason=subject.fields["open"])] if "open" in subject.fields else []
    return marks


@pytest.mark.parametrize("subject", [pytest.param(s, marks=_marks(s), id=s.name) for s in SUBJECTS])
def test_verdict(subject: Subject, judge_for: Callable[[Target], Judge], launcher: Launcher) -> None:
    if subject.fields.get("needs") == "wall" and launcher.name not in WALLS:
        pytest.skip(f"the sandbox {launcher.name!r} has no wall")
    judge = judge_for(subject.target)
    if "after" in subject.fields:
        _judged(judge, read(subject.path.parent / subject.fields["after"]))
    verdict = _judged(judge, subject)
    if "rejected" in subject.fields:
        _assert_rejected(subject, verdict)
    elif "gains" in subject.fields and isinstance(verdict, Passed):
        _assert_no_faster(judge, subject, verdict)
    elif "accepted" in subject.fields or "labelled" in subject.fields:
        assert isinstance(verdict, Passed), verdict
        assert verdict.label == subject.fields.get("labelled", verdict.label)


def _judged(judge: Judge, subject: Subject) -> Verdict:
    task, candidate = task_of(subject.task, subject.target), subject.candidate()
    verdict = judge.judge(task, candidate).verdict
    # Sanitizers take their time, so they look at winners only.
    again = "judged" in subject.fields and isinstance(verdict, Passed)
    return judge.confirm(task, candidate).verdict if again else verdict


def _assert_rejected(subject: Subject, verdict: Verdict) -> None:
    assert verdict.status in subject.choices("rejected"), verdict
    said = {
        "BuildFailed": lambda v: v.log,
        "LaunchFailed": lambda v: v.reason,
        "TimedOut": lambda v: v.stage,
        "Incorrect": lambda v: v.evidence,
        "Cheated": lambda v: v.evidence,
    }[verdict.status](verdict)
    # Something that can be looked up: a buffer, a number, a line, a quotation.
    tensors = "|".join(tensor.name for tensor in task_of(subject.task, subject.target).tensors)
    assert re.search(rf'\d|"|worker|Tensor|CUDA_ERROR_|\b({tensors})\b', said), said
    if rule := getattr(verdict, "rule", None):
        assert rule in subject.choices("rule"), verdict
    if isinstance(verdict, Incorrect):
        assert verdict.workload
    if words := subject.choices("says"):
        assert any(word in said for word in words), said


def _assert_no_faster(judge: Judge, subject: Subject, verdict: Passed) -> None:
    """By the speedup over eager, which ran side by side; the plain kernel is measured anew while others disturb it."""
    task, own = task_of(subject.task, subject.target), verdict.speedup["eager"].ratio
    plain = 0.0
    for _ in range(PATIENCE):
        found = judge.judge(task, tasks.seeds(task)[0]).verdict
        plain = max(plain, found.speedup["eager"].ratio if isinstance(found, Passed) else 0.0)
        if own < plain / FAIR_SHARE:
            return
    raise AssertionError(f"{own}x eager, where a plain kernel has {plain}x")


@pytest.mark.parametrize("subject", [pytest.param(s, id=s.name) for s in SUBJECTS if s.path.suffix == ".cu"])
def test_device_code_is_valid(subject: Subject, toolchain: Toolchain) -> None:
    task, source = task_of(subject.task, "cuda"), subject.candidate().source
    try:
        found = plan.parse(source, task)
        for macros in plan.specialisations(task, found, plan.settle(found, {})).values():
            toolchain.build(source, "cuda", macros, "sm_90a")
    except CompileFailed:
        assert "BuildFailed" in subject.choices("rejected")


def test_there_are_many() -> None:
    exploits = [subject for subject in SUBJECTS if "exploit" in subject.fields]
    assert len(exploits) >= 45
    assert len(SUBJECTS) - len(exploits) >= 14


def test_every_exploit_stands_in_the_documentation_beside_its_defence() -> None:
    rows = [line for line in DOCS.read_text().splitlines() if line.startswith("| ")]
    for subject in SUBJECTS:
        if "exploit" in subject.fields:
            wanted = f"| {subject.fields['defence']} |"
            assert any(row.startswith(wanted) and f"`{subject.name}`" in row for row in rows), (wanted, subject.name)
