// 1: one parallel loop. Any N. Every store first reads the line it overwrites, a quarter of the traffic for nothing.
#ifndef CHUNK
#define CHUNK 4096   // tune: 1024 4096 16384 65536
#endif

extern "C" void vector_add(float* out, const float* a, const float* b, int64_t N, void* workspace) {
#pragma omp parallel for schedule(static)
    for (int64_t start = 0; start < N; start += CHUNK) {
        const int64_t end = start + CHUNK < N ? start + CHUNK : N;
#pragma omp simd
        for (int64_t i = start; i < end; ++i) out[i] = a[i] + b[i];
    }
}
