// honest: loads, stores and the addition in inline PTX
// task: vector_add   target: cuda
// accepted: yes
// launch add: grid(cdiv(N, 256)) block(256)
#include <cuda_fp16.h>
extern "C" __global__ void add(scalar_t* out, const scalar_t* a, const scalar_t* b, int64_t N, void*) {
    int64_t i = blockIdx.x * 256ll + threadIdx.x;
    if (i >= N) return;
    float x = float(a[i]), y = float(b[i]), sum;
    asm("add.rn.f32 %0, %1, %2;" : "=f"(sum) : "f"(x), "f"(y));
    scalar_t rounded = scalar_t(sum);
    if (sizeof(scalar_t) == 2)
        asm volatile("st.global.cs.u16 [%0], %1;" ::"l"(out + i), "h"(*(uint16_t*)&rounded) : "memory");
    else
        asm volatile("st.global.cs.f32 [%0], %1;" ::"l"(out + i), "f"(sum) : "memory");
}
