// Stands for libcuda.so.1 and libtorch_cuda.so: every call succeeds; launches, clears and maps are written down.

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>
struct Config { unsigned grid[3], block[3], smem; void* stream; char* attributes; unsigned count; };
struct Kernel { std::string name; const void* code; };
static int figure(const char* name, int otherwise = 0) { return std::getenv(name) ? std::atoi(std::getenv(name)) : otherwise; }
extern "C" {
int cuInit(unsigned) { return figure("NO_INIT"); }
int cuDriverGetVersion(int* version) { return *version = figure("DRIVER", 13000), 0; }
int cuGetErrorString(int, const char** text) { return *text = "scripted failure", 0; }
int cuDeviceGet(int* device, int ordinal) { return *device = ordinal, 0; }
int cuDeviceGetAttribute(int* value, int attribute, int) {
  *value = attribute == 16 ? figure("SMS") : attribute == 97 ? figure("SMEM") : attribute == 75 ? figure("CAPABILITY") / 10 : figure("CAPABILITY") % 10;
  return 0;
}
int cuDevicePrimaryCtxRetain(void** context, int) { return *context = (void*)16, 0; }
int cuCtxGetCurrent(void** context) { return *context = nullptr, 0; }
int cuCtxPushCurrent_v2(void*) { return 0; }
int cuCtxPopCurrent_v2(void**) { return 0; }
int cuLibraryLoadData(void** library, const void* code, void*, void*, unsigned, void*, void*, unsigned) {
  std::printf("load %.4s %d\n", std::memcmp(code, "\x7f" "ELF", 4) ? "ptx" : "ELF", 0);
  return *library = const_cast<void*>(code), std::memcmp(code, "\x7f" "ELF", 4) ? figure("NO_PTX") : figure("NO_ELF");
}
int cuLibraryGetKernel(void** kernel, void* library, const char* name) { return *kernel = new Kernel{name, library}, 0; }
int cuKernelGetFunction(void** function, void* kernel) { return *function = kernel, 0; }
int cuFuncSetAttribute(void* function, int attribute, int value) {
  return std::printf("attribute %s %d %d\n", ((Kernel*)function)->name.c_str(), attribute, value), 0;
}
int cuLaunchKernelEx(const Config* c, void* function, void** parameters, void**) {
  std::printf("launch %s %u %u %u %u %u %u %u stream=%p", ((Kernel*)function)->name.c_str(), c->grid[0], c->grid[1],
              c->grid[2], c->block[0], c->block[1], c->block[2], c->smem, c->stream);
  for (unsigned i = 0; i < c->count; ++i) {
    int words[5];
    std::memcpy(words, c->attributes + 72 * i, sizeof words);
    std::printf(" attribute=%d:%d,%d,%d", words[0], words[2], words[3], words[4]);
  }
  std::printf(" out=%p x=%p N=%ld D=%ld scale=%g workspace=%p\n", *(void**)parameters[0], *(void**)parameters[1],
              *(long*)parameters[2], *(long*)parameters[3], *(float*)parameters[4], *(void**)parameters[5]);
  return figure("FAIL");
}
int cuMemsetD8Async(uint64_t to, unsigned char byte, size_t bytes, void*) {
  return std::printf("clear %lx %d %zu\n", to, byte, bytes), 0;
}
int cuTensorMapEncodeTiled(void*, int type, uint32_t rank, void* at, const uint64_t* sizes, const uint64_t* strides,
                           const uint32_t* box, const uint32_t* steps, int, int swizzle, int promotion, int) {
  std::printf("map %d %p", type, at);
  for (uint32_t i = 0; i < rank; ++i) std::printf(" %lu/%lu/%u/%u", sizes[i], i + 1 < rank ? strides[i] : 0, box[i], steps[i]);
  return std::printf(" %d %d\n", swizzle, promotion), 0;
}
int aoti_torch_get_current_cuda_stream(int device, void** stream) { return *stream = (void*)(0x700L + device), 0; }
}
