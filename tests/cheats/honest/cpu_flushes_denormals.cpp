// honest: flushes denormals to zero within the call and puts the mode back
// task: softmax   target: cpu
// accepted: yes
#include <immintrin.h>
#include <math.h>
extern "C" void softmax(float* out, const float* x, int64_t N, int64_t D, void*) {
    unsigned mode = _mm_getcsr();
    _mm_setcsr(mode | 0x8040);
    for (int64_t n = 0; n < N; ++n) {
        const float* row = x + n * D;
        float most = row[0], sum = 0;
        for (int64_t d = 1; d < D; ++d) most = fmaxf(most, row[d]);
        for (int64_t d = 0; d < D; ++d) sum += out[n * D + d] = expf(row[d] - most);
        for (int64_t d = 0; d < D; ++d) out[n * D + d] /= sum;
    }
    _mm_setcsr(mode);
}
