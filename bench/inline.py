"""A candidate as a user of torch.utils.cpp_extension.load_inline would write it: the kernel, and host code around it.

The host side launches what the plan says for one workload. Not covered: tensor maps, clusters and cooperative launches,
which <<<>>> cannot express.
"""

from __future__ import annotations

from sandbox import plan
from sandbox.contract import Candidate, Device, Task, Workload
from sandbox.plan import ResolvedLaunch, ResolvedPlan
from sandbox.signature import C_TYPES, SCALAR_T_IN_C

DECLARATION = "void run(std::vector<torch::Tensor>, std::vector<int64_t>, std::vector<double>, torch::Tensor);"
# load_inline switches these off, as PyTorch's own kernels want it; hand-written kernels switch them on again.
HALF_OPERATORS = [f"-U__CUDA_NO_{what}__" for what in ("HALF_OPERATORS", "HALF_CONVERSIONS", "BFLOAT16_CONVERSIONS")]
CUDA_FLAGS = ["-std=c++20", "-O3", *HALF_OPERATORS]
CPU_FLAGS = ["-O3", "-march=native", "-fopenmp"]
_CUDA_HEAD = """#include <cuda_runtime.h>
static void check(cudaError_t error) { TORCH_CHECK(error == cudaSuccess, cudaGetErrorString(error)); }
"""


def inline_source(task: Task, candidate: Candidate, workload: Workload, device: Device) -> str:
    """The text for `cuda_sources`, or for `cpp_sources` on cpu; `run` takes tensors in parameter order and a workspace.

    Macros stand in the text: on the command line, `scalar_t` would break PyTorch's own headers.
    """
    parsed, tunables = plan.plan_of(candidate, task)
    defined = plan.macros(task, parsed, workload, tunables)
    macros = "".join(f"#define {name} {value}\n" for name, value in defined.items())
    resolved = plan.resolve(parsed, task, workload, tunables, device)
    arguments = ", ".join([*_arguments(task, workload), "scratch"])
    head = _CUDA_HEAD if task.target == "cuda" else "#include <torch/extension.h>\n"
    body = "\n".join(_launches(resolved, arguments) if task.target == "cuda" else _call(task, resolved, arguments))
    return f"""{head}{macros}{candidate.source}
void run(std::vector<torch::Tensor> tensors, std::vector<int64_t> axes, std::vector<double> scalars,
         torch::Tensor workspace) {{
    void* scratch = workspace.numel() ? workspace.data_ptr() : nullptr;
{body}
}}
"""


def workspace_bytes(task: Task, candidate: Candidate, workload: Workload, device: Device) -> int:
    parsed, tunables = plan.plan_of(candidate, task)
    return plan.resolve(parsed, task, workload, tunables, device).workspace_bytes


def _arguments(task: Task, workload: Workload) -> list[str]:
    pointer = {"scalar_t": SCALAR_T_IN_C[workload.dtype], **C_TYPES}
    tensors = [f"({pointer[t.dtype]}*)tensors[{i}].data_ptr()" for i, t in enumerate(task.tensors)]
    axes = [f"axes[{i}]" for i in range(len(task.axes))]
    return tensors + axes + [f"({scalar.type})scalars[{i}]" for i, scalar in enumerate(task.scalars)]


def _launches(resolved: ResolvedPlan, arguments: str) -> list[str]:
    """On the default stream, which is PyTorch's current one where nobody changed it."""
    cleared = f"    check(cudaMemsetAsync(scratch, 0, {resolved.workspace_bytes}));"
    launches = [line for launch in resolved.launches for line in _launch(launch, arguments)]
    return [*([cleared] if resolved.zero_workspace else []), *launches]


def _launch(launch: ResolvedLaunch, arguments: str) -> list[str]:
    grid, block = (", ".join(map(str, size)) for size in (launch.grid, launch.block))
    attribute = f"cudaFuncAttributeMaxDynamicSharedMemorySize, {launch.smem_bytes}"
    opt_in = f"    check(cudaFuncSetAttribute({launch.kernel}, {attribute}));"
    return [
        *([opt_in] if launch.smem_bytes > 48 << 10 else []),
        f"    {launch.kernel}<<<dim3({grid}), dim3({block}), {launch.smem_bytes}>>>({arguments});",
        "    check(cudaGetLastError());",
    ]


def _call(task: Task, resolved: ResolvedPlan, arguments: str) -> list[str]:
    cleared = f"    std::memset(scratch, 0, {resolved.workspace_bytes});"
    return [*([cleared] if resolved.zero_workspace else []), f"    {task.name}({arguments});"]
