// Both projections and the gate into the workspace, then the third projection out of it.
// workspace: B*256*4
#include <cmath>

namespace {

constexpr int64_t K = 96, H = 256;

float dot(const float* a, const float* b, int64_t n) {
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < n; ++i) sum += a[i] * b[i];
    return sum;
}

}  // namespace

extern "C" void gated_mlp(float* out, const float* x, const float* gate_weight, const float* up_weight,
                          const float* down_weight, int64_t B, void* workspace) {
    float* hidden = static_cast<float*>(workspace);
#pragma omp parallel for collapse(2)
    for (int64_t b = 0; b < B; ++b)
        for (int64_t h = 0; h < H; ++h) {
            const float gate = dot(x + b * K, gate_weight + h * K, K);
            hidden[b * H + h] = gate / (1.0f + std::exp(-gate)) * dot(x + b * K, up_weight + h * K, K);
        }
#pragma omp parallel for collapse(2)
    for (int64_t b = 0; b < B; ++b)
        for (int64_t k = 0; k < K; ++k) out[b * K + k] = dot(hidden + b * H, down_weight + k * H, H);
}
