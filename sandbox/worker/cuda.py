"""Device layer of the cuda target: a candidate's cubins, launched from the plan through the driver API.

No candidate host code exists here, so the events of this file can be believed.
"""

from __future__ import annotations

import ctypes
import os
from typing import Any

from cuda.bindings import driver

from sandbox.worker import vmm
from sandbox.worker.vmm import CudaFailure, check

_FLUSH_BYTES = 512 << 20
"""Written before each timed call: several times any L2, and long enough that every launch is queued behind it."""
_LAUNCHES_PER_FLUSH = 8
"""A flush takes about 150 µs on the fastest GPUs, a launch from here about 8 µs."""
_DTYPES = {
    "float16": "FLOAT16",
    "bfloat16": "BFLOAT16",
    "float32": "FLOAT32",
    "int32": "INT32",
    "int64": "INT64",
    "uint8": "UINT8",
}
_ITEMSIZE = {"float16": 2, "bfloat16": 2, "float32": 4, "int32": 4, "int64": 8, "uint8": 1}
_SCALARS: dict[str, Any] = {"float": ctypes.c_float, "int": ctypes.c_int, "axis": ctypes.c_int64}


class Cuda:
    """Loads, launches and times on device 0; addresses are plain integers."""

    failures: tuple[type[Exception], ...] = (CudaFailure,)

    def __init__(self) -> None:
        check(driver.cuInit(0), "cuInit")
        self.device = check(driver.cuDeviceGet(0), "cuDeviceGet")
        self.context = check(driver.cuDevicePrimaryCtxRetain(self.device), "cuDevicePrimaryCtxRetain")
        check(driver.cuCtxSetCurrent(self.context), "cuCtxSetCurrent")
        # No share of the L2 may be set aside: what a kernel keeps there would survive the flush.
        driver.cuCtxSetLimit(driver.CUlimit.CU_LIMIT_PERSISTING_L2_CACHE_SIZE, 0)
        self.stream = check(driver.cuStreamCreate(int(driver.CUstream_flags.CU_STREAM_NON_BLOCKING)), "cuStreamCreate")
        self.modules: dict[str, Any] = {}
        self.functions: dict[tuple[str, str], Any] = {}
        self.scratch: int | None = None

    def attach(self, descriptor: int, size: int) -> int:
        """Map the arena; its address."""
        return vmm.attach(descriptor, size)

    def load(self, request: dict[str, Any], descriptor: int) -> None:
        """Load a cubin, anew where it was loaded before; CudaFailure where the driver refuses it."""
        key = request["key"]
        with os.fdopen(descriptor, "rb") as file:
            file.seek(0)
            image = file.read()
        if key in self.modules:
            self.synchronise()
            check(driver.cuModuleUnload(self.modules.pop(key)), "cuModuleUnload")
            self.functions = {name: found for name, found in self.functions.items() if name[0] != key}
        self.modules[key] = check(driver.cuModuleLoadData(image), "cuModuleLoadData")

    def function(self, key: str, kernel: str, smem_bytes: int, cluster: bool) -> Any:
        found = self.functions.get((key, kernel))
        if found is None:
            found = check(driver.cuModuleGetFunction(self.modules[key], kernel.encode()), f"kernel {kernel}")
            self.functions[key, kernel] = found
        attribute = driver.CUfunction_attribute
        if smem_bytes > 48 << 10:
            limit = attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
            check(driver.cuFuncSetAttribute(found, limit, smem_bytes), f"smem({smem_bytes}) of {kernel}")
        if cluster:
            wide = attribute.CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED
            check(driver.cuFuncSetAttribute(found, wide, 1), f"cluster of {kernel}")
        return found

    def allocate(self, size: int) -> int:
        """A buffer of its own, whose bounds a sanitizer knows."""
        return int(check(driver.cuMemAlloc(max(1, size)), f"cuMemAlloc({size})"))

    def free(self, address: int) -> None:
        check(driver.cuMemFree(address), "cuMemFree")

    def copy(self, target: int, source: int, size: int) -> None:
        """Within the GPU's memory."""
        if size:
            check(driver.cuMemcpyDtoDAsync(target, source, size, self.stream), "cuMemcpyDtoDAsync")

    def fill(self, address: int, byte: int, size: int) -> None:
        check(driver.cuMemsetD8Async(address, byte, size, self.stream), "cuMemsetD8Async")

    def prepare(self, request: dict[str, Any], pointers: list[int], workspace: int) -> Any:
        """The launches of one call, ready to be repeated."""
        plan, scalars = request["plan"], request["scalars"]
        values: list[Any] = [*pointers, *(value for _, value in scalars), workspace]
        types: list[Any] = (
            [ctypes.c_void_p] * len(pointers) + [_SCALARS[kind] for kind, _ in scalars] + [ctypes.c_void_p]
        )
        for entry in plan["tensormaps"]:
            values.append(self._tensormap(entry, pointers[entry["index"]]))
            types.append(None)
        clear = plan["workspace_bytes"] if plan["zero_workspace"] else 0
        launches = [
            (self._config(request["key"], launch), (tuple(values), tuple(types))) for launch in plan["launches"]
        ]
        return launches, workspace, clear

    def _config(self, key: str, launch: dict[str, Any]) -> tuple[Any, Any]:
        config = driver.CUlaunchConfig()
        config.gridDimX, config.gridDimY, config.gridDimZ = launch["grid"]
        config.blockDimX, config.blockDimY, config.blockDimZ = launch["block"]
        config.sharedMemBytes = launch["smem_bytes"]
        config.hStream = self.stream
        config.attrs = list(_attributes(launch))
        config.numAttrs = len(config.attrs)
        return config, self.function(key, launch["kernel"], launch["smem_bytes"], launch["cluster"] is not None)

    def _tensormap(self, entry: dict[str, Any], pointer: int) -> Any:
        shape = list(reversed(entry["shape"]))
        strides, step = [], _ITEMSIZE[entry["dtype"]]
        for size in shape[:-1]:
            step *= size
            strides.append(step)
        return check(
            driver.cuTensorMapEncodeTiled(
                getattr(driver.CUtensorMapDataType, f"CU_TENSOR_MAP_DATA_TYPE_{_DTYPES[entry['dtype']]}"),
                len(shape),
                pointer,
                [driver.cuuint64_t(size) for size in shape],
                [driver.cuuint64_t(stride) for stride in strides],
                [driver.cuuint32_t(size) for size in reversed(entry["box"])],
                [driver.cuuint32_t(1)] * len(shape),
                driver.CUtensorMapInterleave.CU_TENSOR_MAP_INTERLEAVE_NONE,
                _swizzle(entry["swizzle"]),
                driver.CUtensorMapL2promotion.CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                driver.CUtensorMapFloatOOBfill.CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
            ),
            f"tensor map of shape {entry['shape']}, box {entry['box']}",
        )

    def run(self, calls: list[Any]) -> None:
        """Queue the calls one after another."""
        for launches, workspace, clear in calls:
            if clear:
                check(driver.cuMemsetD8Async(workspace, 0, clear, self.stream), "cuMemsetD8Async")
            for (config, function), arguments in launches:
                check(driver.cuLaunchKernelEx(config, function, arguments, 0), "cuLaunchKernelEx")

    def time(self, calls: list[Any], flush: bool) -> list[float]:
        """Device milliseconds: of each call from a cold L2 with `flush`, else of all of them back to back."""
        driver.cuCtxResetPersistingL2Cache()
        groups = [[call] for call in calls] if flush else [calls]
        events = [(self._event(), self._event()) for _ in groups]
        for group, (start, stop) in zip(groups, events, strict=True):
            for _ in range(_leads(group) if flush else 0):
                self._flush()
            check(driver.cuEventRecord(start, self.stream), "cuEventRecord")
            self.run(group)
            check(driver.cuEventRecord(stop, self.stream), "cuEventRecord")
        self.synchronise()
        return [self._elapsed(*pair) for pair in events]

    def _elapsed(self, start: Any, stop: Any) -> float:
        elapsed = float(check(driver.cuEventElapsedTime(start, stop), "cuEventElapsedTime"))
        for event in (start, stop):
            check(driver.cuEventDestroy(event), "cuEventDestroy")
        return elapsed

    def _event(self) -> Any:
        return check(driver.cuEventCreate(int(driver.CUevent_flags.CU_EVENT_DEFAULT)), "cuEventCreate")

    def _flush(self) -> None:
        if self.scratch is None:
            self.scratch = int(check(driver.cuMemAlloc(_FLUSH_BYTES), "cuMemAlloc"))
        check(driver.cuMemsetD8Async(self.scratch, 0, _FLUSH_BYTES, self.stream), "cuMemsetD8Async")

    def synchronise(self) -> None:
        check(driver.cuStreamSynchronize(self.stream), "cuStreamSynchronize")


def _leads(group: list[Any]) -> int:
    """Flushes before a call, so that all of its launches are queued before the first of them may start."""
    return 1 + max(len(launches) for launches, _workspace, _clear in group) // _LAUNCHES_PER_FLUSH


def _attributes(launch: dict[str, Any]) -> Any:
    if launch["cluster"] is not None:
        cluster = driver.CUlaunchAttribute()
        cluster.id = driver.CUlaunchAttributeID.CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION
        cluster.value.clusterDim.x, cluster.value.clusterDim.y, cluster.value.clusterDim.z = launch["cluster"]
        yield cluster
    if launch["cooperative"]:
        cooperative = driver.CUlaunchAttribute()
        cooperative.id = driver.CUlaunchAttributeID.CU_LAUNCH_ATTRIBUTE_COOPERATIVE
        cooperative.value.cooperative = 1
        yield cooperative


def _swizzle(bytes_: int) -> Any:
    kinds = driver.CUtensorMapSwizzle
    return getattr(kinds, f"CU_TENSOR_MAP_SWIZZLE_{bytes_}B" if bytes_ else "CU_TENSOR_MAP_SWIZZLE_NONE")
