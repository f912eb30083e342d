// honest: a table of constants, worked out in the first call and kept: it depends on no input
// task: softmax   target: cpu
// accepted: yes
#include <math.h>
static double powers[2048];
extern "C" void softmax(float* out, const float* x, int64_t N, int64_t D, void*) {
    if (powers[1024] == 0)
        for (int i = 0; i < 2048; ++i) powers[i] = exp((i - 2047) / 32.0);
    for (int64_t n = 0; n < N; ++n) {
        const float* row = x + n * D;
        float most = row[0], sum = 0;
        for (int64_t d = 1; d < D; ++d) most = fmaxf(most, row[d]);
        for (int64_t d = 0; d < D; ++d) {
            double power = row[d] - most;
            int step = int(power * 32) > -2047 ? int(power * 32) : -2047;
            double rest = power - step / 32.0;
            double series = 1 + rest * (1 + rest * (0.5 + rest * (1 / 6.0 + rest * (1 / 24.0 + rest / 120))));
            sum += out[n * D + d] = power < -63 ? expf(power) : float(powers[2047 + step] * series);
        }
        for (int64_t d = 0; d < D; ++d) out[n * D + d] /= sum;
    }
}
