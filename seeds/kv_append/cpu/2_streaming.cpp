// 2: streaming stores, which do not read what they overwrite, where there are LEAST rows or more; what is small is copied
// by one thread.
// Any shape; x86 with AVX only (elsewhere ordinary copies). Meant for long prompts on many cores: on two shared ones it was
// no faster than 1. Where whoever attends next would find the rows in cache, it takes that away.
#include <algorithm>
#include <cstring>
#if defined(__AVX__)
#include <immintrin.h>
#endif

#ifndef ROWS
#define ROWS 64      // tune: 16 64 256
#endif
#ifndef LEAST
#define LEAST 64     // tune: 8 64 512
#endif
#ifndef ALONE
#define ALONE 16384  // tune: 0 16384 65536
#endif

namespace {

#if defined(__AVX__)
constexpr int LANES = 8;

// A cache row starts anywhere, so the floats before the first aligned one go by themselves.
void stream(float* to, const float* from, int64_t count) {
    const int64_t ahead = std::min<int64_t>(count, (32 - reinterpret_cast<uintptr_t>(to) % 32) % 32 / sizeof(float));
    std::memcpy(to, from, ahead * sizeof(float));
    int64_t i = ahead;
    for (; i + LANES <= count; i += LANES) _mm256_stream_ps(to + i, _mm256_loadu_ps(from + i));
    std::memcpy(to + i, from + i, (count - i) * sizeof(float));
}

void fence() { _mm_sfence(); }
#else
void stream(float* to, const float* from, int64_t count) { std::memcpy(to, from, count * sizeof(float)); }

void fence() {}
#endif

}  // namespace

extern "C" void kv_append(float* k_cache, float* v_cache, const float* k_new, const float* v_new,
                          const int32_t* input_pos, int64_t B, int64_t Hkv, int64_t S, int64_t L, int64_t D,
                          void* workspace) {
    const int64_t pieces = (S + ROWS - 1) / ROWS;
    const bool streams = S >= LEAST;
#pragma omp parallel if (B * Hkv * S * D > ALONE)
    {
#pragma omp for schedule(static) nowait
        for (int64_t t = 0; t < B * Hkv * pieces; ++t) {
            const int64_t head = t / pieces, first = t % pieces * ROWS;
            const int64_t from = (head * S + first) * D, to = (head * L + input_pos[head / Hkv] + first) * D;
            const int64_t count = std::min<int64_t>(ROWS, S - first) * D;
            if (streams) {
                stream(k_cache + to, k_new + from, count);
                stream(v_cache + to, v_new + from, count);
            } else {
                std::memcpy(k_cache + to, k_new + from, count * sizeof(float));
                std::memcpy(v_cache + to, v_new + from, count * sizeof(float));
            }
        }
        if (streams) fence();
    }
}
