// honest: a static const table of masks for tails, AVX2 intrinsics
// task: row_sum   target: cpu
// accepted: yes
#include <immintrin.h>
alignas(32) static const int32_t MASKS[16] = {-1, -1, -1, -1, -1, -1, -1, -1};
extern "C" void row_sum(float* out, const float* x, int64_t N, int64_t D, void*) {
    for (int64_t n = 0; n < N; ++n) {
        __m256d low = _mm256_setzero_pd(), high = low;
        for (int64_t d = 0; d < D; d += 8) {
            __m256i mask = _mm256_loadu_si256((const __m256i*)(MASKS + (d + 8 <= D ? 0 : 8 - D % 8)));
            __m256 v = _mm256_maskload_ps(x + n * D + d, mask);
            low = _mm256_add_pd(low, _mm256_cvtps_pd(_mm256_castps256_ps128(v)));
            high = _mm256_add_pd(high, _mm256_cvtps_pd(_mm256_extractf128_ps(v, 1)));
        }
        alignas(32) double parts[4];
        _mm256_store_pd(parts, _mm256_add_pd(low, high));
        out[n] = float(parts[0] + parts[1] + (parts[2] + parts[3]));
    }
}
