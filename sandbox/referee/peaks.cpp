// Peak arithmetic of this CPU: independent fused multiply-adds in registers, on every OpenMP thread.
// Libraries are no measure of it: some leave vector units idle on CPUs they were not tuned for.
#include <cstdint>
#if defined(__AVX512F__)
constexpr int LANES = 16;
#elif defined(__AVX__)
constexpr int LANES = 8;
#else
constexpr int LANES = 4;
#endif
typedef float Vector __attribute__((vector_size(LANES * sizeof(float))));
constexpr int CHAINS = 12;  // latency 4 on 2 pipes wants 8; the registers of AVX2 hold no more than 14

// Runs `iterations` on each thread; returns the operations done.
extern "C" int64_t peaks(float* sink, int64_t iterations) {
    int64_t operations = 0;
#pragma omp parallel reduction(+ : operations)
    {
        Vector sum[CHAINS];
        const Vector factor = Vector{} + 0.999f, term = Vector{} + 0.001f;
        for (int c = 0; c < CHAINS; ++c) sum[c] = Vector{} + float(c);
        for (int64_t i = 0; i < iterations; ++i) {
#pragma GCC unroll 12
            for (int c = 0; c < CHAINS; ++c) sum[c] = sum[c] * factor + term;
        }
        Vector total = sum[0];
        for (int c = 1; c < CHAINS; ++c) total += sum[c];
        for (int lane = 0; lane < LANES; ++lane)
            if (total[lane] == 12345.678f) sink[lane] = total[lane];  // never: keeps the loop from being dropped
        operations += 2 * LANES * CHAINS * iterations;
    }
    return operations;
}
