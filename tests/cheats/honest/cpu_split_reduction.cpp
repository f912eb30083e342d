// honest: partial sums by chunk in the workspace, then their sum
// task: row_sum   target: cpu
// accepted: yes
// workspace: N*cdiv(D, 256)*8
extern "C" void row_sum(float* out, const float* x, int64_t N, int64_t D, void* workspace) {
    double* parts = (double*)workspace;
    int64_t chunks = (D + 255) / 256;
#pragma omp parallel for collapse(2)
    for (int64_t n = 0; n < N; ++n)
        for (int64_t c = 0; c < chunks; ++c) {
            double sum = 0;
            for (int64_t d = c * 256; d < (c + 1) * 256 && d < D; ++d) sum += x[n * D + d];
            parts[n * chunks + c] = sum;
        }
    for (int64_t n = 0; n < N; ++n) {
        double sum = 0;
        for (int64_t c = 0; c < chunks; ++c) sum += parts[n * chunks + c];
        out[n] = float(sum);
    }
}
