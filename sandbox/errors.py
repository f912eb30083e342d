"""Every error Warpsmith raises on purpose.

WarpsmithError
├── BadInput              what the user gave cannot be used; says what, got, wanted
│   ├── TaskError         a task folder or a workload in it
│   └── PlanError         a launch plan, tunable or expression; knows its line
└── Infrastructure        ours to fix, never the candidate's fault; a run stops resumably
    ├── ToolchainMissing  no compiler for the target
    ├── WorkerLost        the trusted reference process or the worker host went away
    ├── EngineUnreachable no Docker engine answers, or it refused what was asked
    └── ArchiveUnusable   the archive cannot be opened, read or written

A fault of a candidate is not an error but a verdict (see contract.Verdict).
"""


class WarpsmithError(Exception):
    """Base of every deliberate error; its text is fit to be shown to a user."""


class BadInput(WarpsmithError):
    """What the user gave cannot be used."""


class TaskError(BadInput):
    """A task folder, its task.toml, its reference.py or one of its workloads is wrong."""


class PlanError(BadInput):
    """A line of a kernel source's header is wrong.

    `line` is the 1-based line of the source, or 0 where the whole source is at fault.
    """

    def __init__(self, message: str, line: int = 0) -> None:
        super().__init__(f"line {line}: {message}" if line else message)
        self.line = line


class Infrastructure(WarpsmithError):
    """Something of ours failed: the run stops and can be resumed."""


class ToolchainMissing(Infrastructure):
    """No compiler for the target is installed."""


class WorkerLost(Infrastructure):
    """A trusted helper process died or stopped answering."""


class EngineUnreachable(Infrastructure):
    """No Docker engine answers, or it refused what was asked."""


class ArchiveUnusable(Infrastructure):
    """The archive cannot be opened, read or written."""
