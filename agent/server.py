"""The MCP server: Warpsmith's tools for coding agents, over standard input and output.

The only file that knows mcp. Tools that judge take as long as the judge does and report progress meanwhile; everything
else goes on. What is wrong with a call is a tool error in one line. Not covered: what a tool does (service).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Future
from typing import Annotated, Any, TypeVar

from mcp.server.mcpserver import Context, MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from pydantic import Field

from agent.asking.lessons import Lesson
from agent.asking.service import AGENT, CandidatePage, Place, Service, TaskLine, TaskPage
from agent.asking.telling import Told
from agent.engineer.records import Operator
from sandbox.errors import WarpsmithError

HEARTBEAT_S = 5.0
"""Between two reports of progress; clients give up on a silent tool after a minute or so."""
INSTRUCTIONS = """\
Warpsmith searches for fast GPU and CPU kernels and judges every one: it compiles it, checks it against a float64 oracle
on inputs nobody could foresee, and times it beside PyTorch. You are an engineer. Work like this: list_tasks, show_task
(the rules: read them whole), ask (a kernel to improve, with its verdict and what was tried before), write a kernel,
judge it as often as you like, tell the one you hand in, read the verdict, ask again. Right everywhere comes before
fast. Attempts to deceive the judge are found, recorded as Cheated, and end the kernel's line."""

Answer = TypeVar("Answer")
Task = Annotated[str, Field(description="Name of a task, or path of its folder or file.")]
Candidate = Annotated[str, Field(description="Id of a candidate, or the beginning of one.")]


def serve(service: Service) -> None:
    """Answer until standard input is closed."""
    make(service).run("stdio")


def make(service: Service) -> MCPServer[Any]:
    """The server with its tools."""
    server: MCPServer[Any] = MCPServer("warpsmith", instructions=INSTRUCTIONS, log_level="WARNING")

    @server.tool()
    def list_tasks() -> list[TaskLine]:
        """The tasks there are kernels for."""
        return _answered(service.list_tasks)

    @server.tool()
    def show_task(task: Task) -> TaskPage:
        """What a kernel of a task must be: prototype, contract, rules of the judge, workloads, device, reference."""
        return _answered(lambda: service.show_task(task))

    @server.tool(structured_output=False)
    def ask(
        task: Task,
        operator: Annotated[Operator | None, Field(description="By default the search policy says.")] = None,
        parents: Annotated[list[str] | None, Field(description="Candidates to start from; two to cross.")] = None,
        count: Annotated[int, Field(ge=1, le=20, description="How many asks.")] = 1,
        rules: Annotated[bool, Field(description="Whether to give the rules of show_task, too.")] = False,
    ) -> str:
        """What to work on next: a kernel with its verdict, what was tried on its lineage, and the id of the ask."""
        return _answered(lambda: service.ask(task, operator, parents or [], count, rules))

    @server.tool()
    async def judge(
        task: Task,
        source: Annotated[str, Field(description="The whole kernel.")],
        ctx: Context[Any, Any],
        tunables: Annotated[dict[str, int] | None, Field(description="Values other than the defaults.")] = None,
    ) -> Told:
        """Try a kernel: the verdict in words and figures, not recorded. Takes seconds, the first time a minute."""
        return await _judged(lambda: service.judge(task, source, tunables or {}), ctx)

    @server.tool()
    async def tell(
        ask: Annotated[str, Field(description="Id of the ask that is answered.")],
        ctx: Context[Any, Any],
        source: Annotated[str, Field(description="The whole kernel.")] = "",
        reply: Annotated[
            str, Field(description="In its place: SEARCH/REPLACE edits, or Markdown with the kernel.")
        ] = "",
        note: Annotated[str, Field(description="What was changed, in a sentence.")] = "",
        proposer: Annotated[str, Field(description="Who wrote it.")] = AGENT,
        tunables: Annotated[dict[str, int] | None, Field(description="Values other than the defaults.")] = None,
    ) -> Told:
        """Hand in a kernel: it goes on record with its parents, is judged, and takes its place on the leaderboard."""
        given = {"ask": ask, "source": source, "reply": reply, "note": note, "proposer": proposer}
        return await _judged(lambda: service.tell(given | {"tunables": tunables or {}}), ctx)

    @server.tool()
    def leaderboard(task: Task, limit: Annotated[int, Field(ge=1, le=100)] = 10) -> list[Place]:
        """The fastest correct kernels of a task on the device; confirmed ones, measured twice, stand first."""
        return _answered(lambda: service.leaderboard(task, limit))

    @server.tool()
    def lessons(
        task: Task, candidate: Annotated[str | None, Field(description="Only of this one's lineage.")] = None
    ) -> list[Lesson]:
        """What was changed and what came of it: gains, losses, and failures with their rule."""
        return _answered(lambda: service.lessons(task, candidate))

    @server.tool()
    def show_candidate(task: Task, candidate: Candidate) -> CandidatePage:
        """A kernel's source and its verdict."""
        return _answered(lambda: service.show_candidate(task, candidate))

    return server


def _answered(tool: Callable[[], Answer]) -> Answer:
    """What a tool says; deliberate errors in the protocol's form."""
    try:
        return tool()
    except WarpsmithError as exc:
        raise ToolError(str(exc)) from exc


async def _judged(begin: Callable[[], Future[Told]], ctx: Context[Any, Any]) -> Told:
    """The verdict that was begun. A call that is cancelled leaves the judge at work, and the verdict on record."""
    future = asyncio.wrap_future(await asyncio.to_thread(_answered, begin))
    beats = 0
    while not (await asyncio.wait({future}, timeout=HEARTBEAT_S))[0]:
        beats += 1
        await ctx.report_progress(beats * HEARTBEAT_S, message="the judge is at work")
    return _answered(future.result)
