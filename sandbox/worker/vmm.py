"""GPU memory that two processes share: created in one, passed as a file descriptor, mapped in the other.

The calls of CUDA's virtual memory management; both sides need a current context on device 0.
"""

from __future__ import annotations

import os
from typing import Any

from cuda.bindings import driver


class CudaFailure(Exception):
    """A driver call failed; names the call and the error."""


def check(result: tuple[Any, ...], what: str) -> Any:
    """The value of a driver call, or CudaFailure."""
    error, *values = result
    if error != driver.CUresult.CUDA_SUCCESS:
        raise CudaFailure(f"{what}: {error.name}")
    return values[0] if len(values) == 1 else values


def create(size: int) -> tuple[int, int, int]:
    """Memory of at least `size` bytes: its address here, its bytes, and a descriptor to pass on."""
    properties = _properties()
    granularity = int(
        check(
            driver.cuMemGetAllocationGranularity(
                properties, driver.CUmemAllocationGranularity_flags.CU_MEM_ALLOC_GRANULARITY_RECOMMENDED
            ),
            "cuMemGetAllocationGranularity",
        )
    )
    total = -(-size // granularity) * granularity
    handle = check(driver.cuMemCreate(total, properties, 0), f"cuMemCreate({total})")
    descriptor = int(check(driver.cuMemExportToShareableHandle(handle, _KIND, 0), "cuMemExportToShareableHandle"))
    return _map(handle, total), total, descriptor


def attach(descriptor: int, size: int) -> int:
    """The address here of memory that `create` made elsewhere; `size` as it said."""
    handle = check(driver.cuMemImportFromShareableHandle(descriptor, _KIND), "cuMemImportFromShareableHandle")
    return _map(handle, size)


def release(address: int, size: int, descriptor: int) -> None:
    """Unmap what `create` made; the memory is freed once the other side has let go, too."""
    check(driver.cuMemUnmap(address, size), "cuMemUnmap")
    check(driver.cuMemAddressFree(address, size), "cuMemAddressFree")
    os.close(descriptor)


_KIND = driver.CUmemAllocationHandleType.CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR


def _properties() -> Any:
    properties = driver.CUmemAllocationProp()
    properties.type = driver.CUmemAllocationType.CU_MEM_ALLOCATION_TYPE_PINNED
    properties.location.type = driver.CUmemLocationType.CU_MEM_LOCATION_TYPE_DEVICE
    properties.location.id = 0
    properties.requestedHandleTypes = _KIND
    return properties


def _map(handle: Any, size: int) -> int:
    """Map all of an allocation, read and write; the mapping alone keeps it alive."""
    address = int(check(driver.cuMemAddressReserve(size, 0, 0, 0), f"cuMemAddressReserve({size})"))
    check(driver.cuMemMap(address, size, 0, handle, 0), "cuMemMap")
    access = driver.CUmemAccessDesc()
    access.location = _properties().location
    access.flags = driver.CUmemAccess_flags.CU_MEM_ACCESS_FLAGS_PROT_READWRITE
    check(driver.cuMemSetAccess(address, size, [access], 1), "cuMemSetAccess")
    check(driver.cuMemRelease(handle), "cuMemRelease")
    return address
