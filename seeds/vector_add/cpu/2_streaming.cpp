// 2: streaming stores, which do not read what they overwrite: 12 bytes move per element instead of 16.
// Any N; x86 only (elsewhere ordinary stores). Loses where the consumer finds the output still in cache, so below a few MB.
#include <algorithm>
#if defined(__AVX__)
#include <immintrin.h>
#endif

#ifndef CHUNK
#define CHUNK 16384   // tune: 4096 16384 65536
#endif
#ifndef AHEAD
#define AHEAD 512     // tune: 0 256 512 1024
#endif

namespace {

#if defined(__AVX512F__)
constexpr int LANES = 16;
inline void stream(float* p, const float* a, const float* b) {
    _mm512_stream_ps(p, _mm512_add_ps(_mm512_loadu_ps(a), _mm512_loadu_ps(b)));
}
inline void fence() { _mm_sfence(); }
#elif defined(__AVX__)
constexpr int LANES = 8;
inline void stream(float* p, const float* a, const float* b) {
    _mm256_stream_ps(p, _mm256_add_ps(_mm256_loadu_ps(a), _mm256_loadu_ps(b)));
}
inline void fence() { _mm_sfence(); }
#else
constexpr int LANES = 4;
inline void stream(float* p, const float* a, const float* b) {
    for (int i = 0; i < LANES; ++i) p[i] = a[i] + b[i];
}
inline void fence() {}
#endif

}  // namespace

// `out` is 64-byte aligned and CHUNK a multiple of 16, so every streamed vector is aligned.
extern "C" void vector_add(float* out, const float* a, const float* b, int64_t N, void* workspace) {
#pragma omp parallel
    {
#pragma omp for schedule(static) nowait
        for (int64_t start = 0; start < N; start += CHUNK) {
            const int64_t end = std::min<int64_t>(start + CHUNK, N);
            int64_t i = start;
            for (; i + LANES <= end; i += LANES) {
                if (AHEAD > 0) __builtin_prefetch(a + std::min(i + AHEAD, N - 1)), __builtin_prefetch(b + std::min(i + AHEAD, N - 1));
                stream(out + i, a + i, b + i);
            }
            for (; i < end; ++i) out[i] = a[i] + b[i];
        }
        fence();
    }
}
