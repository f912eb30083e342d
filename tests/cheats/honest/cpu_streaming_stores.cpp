// honest: stores that bypass the cache, prefetches of what comes next
// task: vector_add   target: cpu
// accepted: yes
#include <immintrin.h>
extern "C" void vector_add(float* out, const float* a, const float* b, int64_t N, void*) {
    int64_t i = 0;
    for (; i < N && (uintptr_t)(out + i) % 32; ++i) out[i] = a[i] + b[i];
    for (; i + 8 <= N; i += 8) {
        _mm_prefetch((const char*)(a + i) + 512, _MM_HINT_T0);
        _mm256_stream_ps(out + i, _mm256_add_ps(_mm256_loadu_ps(a + i), _mm256_loadu_ps(b + i)));
    }
    for (; i < N; ++i) out[i] = a[i] + b[i];
    _mm_sfence();
}
