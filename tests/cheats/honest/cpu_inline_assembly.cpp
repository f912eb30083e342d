// honest: the inner loop in inline assembly
// task: vector_add   target: cpu
// accepted: yes
extern "C" void vector_add(float* out, const float* a, const float* b, int64_t N, void*) {
    int64_t i = 0;
    for (; i + 4 <= N; i += 4)
        asm volatile("movups (%1), %%xmm0\n\tmovups (%2), %%xmm1\n\taddps %%xmm1, %%xmm0\n\tmovups %%xmm0, (%0)"
                     :
                     : "r"(out + i), "r"(a + i), "r"(b + i)
                     : "xmm0", "xmm1", "memory");
    for (; i < N; ++i) out[i] = a[i] + b[i];
}
