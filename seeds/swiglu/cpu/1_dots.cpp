// 1: every output value two dot products, vectorised along the row; tokens in blocks of TOKENS share a weight row.
// Any shape. Reads each weight once for up to TOKENS tokens, so it is near the limit for one token and far from it for many.
// static: K N
#include <algorithm>
#include <cmath>

#ifndef TOKENS
#define TOKENS 8   // tune: 1 4 8 16
#endif

namespace {

constexpr int64_t K_ = STATIC_K, N_ = STATIC_N;

float dot(const float* a, const float* b) {
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < K_; ++i) sum += a[i] * b[i];
    return sum;
}

}  // namespace

extern "C" void swiglu(float* out, const float* x, const float* gate, const float* up, int64_t M, int64_t K, int64_t N,
                       void* workspace) {
#pragma omp parallel
    for (int64_t m0 = 0; m0 < M; m0 += TOKENS) {
        const int64_t end = std::min<int64_t>(m0 + TOKENS, M);
#pragma omp for schedule(static)
        for (int64_t n = 0; n < N_; ++n)
            for (int64_t m = m0; m < end; ++m) {
                const float g = dot(x + m * K_, gate + n * K_);
                out[m * N_ + n] = g / (1.0f + std::exp(-g)) * dot(x + m * K_, up + n * K_);
            }
    }
}
