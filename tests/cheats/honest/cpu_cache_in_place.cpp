// honest: writes the in-out in place and reads it back at once, one sequence a thread
// task: kv_append   target: cpu
// accepted: yes
#include <string.h>
extern "C" void kv_append(float* scores, float* cache, const float* q, const float* k_new, const int32_t* position,
                          int64_t B, int64_t L, int64_t D, void*) {
#pragma omp parallel for
    for (int64_t b = 0; b < B; ++b) {
        float* keys = cache + b * L * D;
        memcpy(keys + position[b] * D, k_new + b * D, D * sizeof(float));
        for (int64_t l = 0; l < L; ++l) {
            float dot = 0;
            for (int64_t d = 0; d < D; ++d) dot += keys[l * D + d] * q[b * D + d];
            scores[b * L + l] = dot;
        }
    }
}
