// honest: alloca for the scores, online softmax, keys in blocks
// task: attention   target: cpu
// accepted: yes
#include <alloca.h>
#include <math.h>
extern "C" void attention(float* out, const float* q, const float* k, const float* v, int64_t H, int64_t S, int64_t D,
                          float scale, void*) {
#pragma omp parallel for
    for (int64_t i = 0; i < H * S; ++i) {
        const float *keys = k + i / S * S * D, *values = v + i / S * S * D;
        float *acc = (float*)alloca(D * sizeof(float)), *p = (float*)alloca(32 * sizeof(float));
        float most = -INFINITY, sum = 0;
        for (int64_t d = 0; d < D; ++d) acc[d] = 0;
        for (int64_t from = 0; from < S; from += 32) {
            int64_t count = S - from < 32 ? S - from : 32;
            float next = most;
            for (int64_t j = 0; j < count; ++j) {
                float dot = 0;
                for (int64_t d = 0; d < D; ++d) dot += q[i * D + d] * keys[(from + j) * D + d];
                p[j] = dot * scale;
                next = fmaxf(next, p[j]);
            }
            float keep = expf(most - next);
            most = next, sum *= keep;
            for (int64_t d = 0; d < D; ++d) acc[d] *= keep;
            for (int64_t j = 0; j < count; ++j) {
                float weight = expf(p[j] - most);
                sum += weight;
                for (int64_t d = 0; d < D; ++d) acc[d] += weight * values[(from + j) * D + d];
            }
        }
        for (int64_t d = 0; d < D; ++d) out[i * D + d] = acc[d] / sum;
    }
}
