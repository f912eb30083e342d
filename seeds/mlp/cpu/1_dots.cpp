// 1: every hidden and every output value a dot product, vectorised along the row; tokens in blocks of TOKENS share a weight row.
// Any shape. Reads each weight once for up to TOKENS tokens, so it is near the limit for one token and far from it for many.
// workspace: M*N*4
// static: K N
#include <algorithm>
#include <cmath>

#ifndef TOKENS
#define TOKENS 8   // tune: 1 4 8 16
#endif

namespace {

constexpr int64_t K_ = STATIC_K, N_ = STATIC_N;

template <int64_t LENGTH>
float dot(const float* a, const float* b) {
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < LENGTH; ++i) sum += a[i] * b[i];
    return sum;
}

}  // namespace

extern "C" void mlp(float* out, const float* x, const float* gate, const float* up, const float* down, int64_t M,
                    int64_t K, int64_t N, void* workspace) {
    float* hidden = static_cast<float*>(workspace);  // [M][N]
#pragma omp parallel
    for (int64_t m0 = 0; m0 < M; m0 += TOKENS) {
        const int64_t end = std::min<int64_t>(m0 + TOKENS, M);
#pragma omp for schedule(static)
        for (int64_t n = 0; n < N_; ++n)
            for (int64_t m = m0; m < end; ++m) {
                const float g = dot<K_>(x + m * K_, gate + n * K_);
                hidden[m * N_ + n] = g / (1.0f + std::exp(-g)) * dot<K_>(x + m * K_, up + n * K_);
            }
#pragma omp for schedule(static)
        for (int64_t k = 0; k < K_; ++k)
            for (int64_t m = m0; m < end; ++m) out[m * K_ + k] = dot<N_>(hidden + m * N_, down + k * N_);
    }
}
