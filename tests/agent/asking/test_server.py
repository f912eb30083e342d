"""The MCP server with a client of the protocol's own package: a process, standard input and output, real judging."""

import asyncio
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from mcp import Client, StdioServerParameters, stdio_client

from agent import tasks

HEAD = 'extern "C" void toy(float* out, const float* a, const float* b, int64_t N, void* workspace)'
KERNEL = f"""\
// simd in every thread
{HEAD} {{
#pragma omp parallel for simd
    for (int64_t i = 0; i < N; ++i) out[i] = b[i] + a[i];
}}
"""
TOOLS = {"list_tasks", "show_task", "ask", "judge", "tell", "leaderboard", "lessons", "show_candidate"}


def connected(*arguments: str) -> Client:
    return Client(
        stdio_client(
            StdioServerParameters(
                command=sys.executable,
                args=["-m", "agent", "mcp", "--archive", "agents.db", "--sandbox", "local", *arguments],
                env={
                    "PYTHONPATH": str(tasks.bundled().parent),
                    "XDG_DATA_HOME": str(Path.cwd()),
                    "CUDA_VISIBLE_DEVICES": "",
                },
                cwd=Path.cwd(),
            )
        )
    )


async def said(client: Client, tool: str, **arguments: Any) -> str:
    """The text of a tool that works."""
    result = await client.call_tool(tool, arguments)
    assert not result.is_error, result.content
    return str(getattr(result.content[0], "text", ""))


async def data(client: Client, tool: str, **arguments: Any) -> Any:
    """The structured content of a tool that works; a list is under `result`."""
    result = await client.call_tool(tool, arguments)
    assert not result.is_error, result.content
    assert result.structured_content is not None
    return result.structured_content.get("result", result.structured_content)


async def fault(client: Client, tool: str, **arguments: Any) -> str:
    """The message of a tool that does not."""
    result = await client.call_tool(tool, arguments)
    assert result.is_error
    return str(getattr(result.content[0], "text", ""))


@pytest.mark.slow
def test_agent_asks_writes_and_finds_its_kernel_on_the_leaderboard(toy_folder: Path) -> None:
    task = str(toy_folder)

    async def work() -> None:
        async with connected("--target", "cpu") as client:
            assert {tool.name for tool in (await client.list_tools()).tools} == TOOLS
            prompt = await said(client, "ask", task=task)
            found = re.search(r"^Ask (\w+): rewrite, for toy", prompt, re.MULTILINE)
            assert found, prompt
            telling = asyncio.create_task(
                data(client, "tell", ask=found[1], source=KERNEL, note="simd", proposer="ann")
            )
            # Answered while the judge is at work.
            assert "vector_add" in [line["name"] for line in await data(client, "list_tasks")]
            assert not telling.done()
            told = await telling
            assert (told["status"], told["rank"]) == ("Passed", 1), told
            assert told["speedup"]["eager"] > 0
            (place,) = await data(client, "leaderboard", task=task)
            assert (place["candidate"], place["proposer"], place["change"]) == (told["candidate"], "ann", "simd")
            wrong = await data(client, "judge", task=task, source=KERNEL.replace("i < N", "i < N / 2"))
            assert wrong["status"] in ("Incorrect", "Cheated")
            assert "N77" not in str(wrong)
            assert len(await data(client, "leaderboard", task=task)) == 1
            (lesson,) = await data(client, "lessons", task=task, candidate=told["candidate"][:10])
            assert lesson["outcome"].startswith("passed")
            page = await data(client, "show_candidate", task=task, candidate=told["candidate"])
            assert page["source"] == KERNEL
            assert "which was judged: it is Passed" in await fault(client, "tell", ask=found[1], source=KERNEL)

    asyncio.run(work())


def test_faults_are_tool_errors_in_one_line_and_the_server_goes_on(toy_folder: Path) -> None:
    async def work() -> None:
        async with connected("--target", "cpu") as client:
            assert "unknown task 'atention': did you mean 'attention'?" in await fault(
                client, "show_task", task="atention"
            )
            assert "no ask 'feed'; it has no ask yet" in await fault(client, "tell", ask="feed", source=KERNEL)
            assert "wanted either a reply or a source" in await fault(client, "tell", ask="feed")
            fewer = KERNEL.replace("const float* b, ", "")
            assert "toy has other parameters" in await fault(client, "judge", task=str(toy_folder), source=fewer)
            page = await data(client, "show_task", task=str(toy_folder))
            assert page["workloads"] == ["N1000 float32", "N4096 float32"]
            assert "# The contract" in page["rules"]
            assert "N77" not in str(page)

    asyncio.run(work())


def test_kernel_for_a_gpu_elsewhere_is_recorded_and_waits() -> None:
    async def work() -> None:
        async with connected("--target", "cuda", "--device", "NVIDIA A10") as client:
            prompt = await said(client, "ask", task="vector_add", rules=True)
            assert "NVIDIA A10, sm_86" in prompt
            ask = re.search(r"^Ask (\w+):", prompt, re.MULTILINE)
            assert ask
            kernel = (tasks.bundled() / "vector_add" / "cuda" / "1_scalar.cu").read_text()
            reply = f"```cuda\n{kernel}\n__device__ int unused;\n```"
            assert (await data(client, "tell", ask=ask[1], reply=reply))["status"] == "Waiting"
            assert "this machine is not NVIDIA A10" in await fault(
                client, "judge", task="vector_add", source=f"{kernel}\n"
            )

    asyncio.run(work())
