// 1: a tiled matrix product in shared memory with fp32 multiply-adds.
// Right for any M, K and N. No tensor cores, so a small part of the GPU's peak; and for few tokens most of each tile
// is empty.
//
// launch linear: grid(cdiv(N, TILE), cdiv(M, TILE)) block(256)
#if DTYPE_BFLOAT16
#include <cuda_bf16.h>
#else
#include <cuda_fp16.h>
#endif

#ifndef TILE
#define TILE 64   // tune: 32 64
#endif
#ifndef DEPTH
#define DEPTH 16  // tune: 8 16 32
#endif

static constexpr int OWN = TILE / 16;   // rows and columns of a thread's outputs: a 16 x 16 grid of threads

struct Tile {
    float value[DEPTH][TILE + 1];   // +1: threads that load along the depth fall into different banks

    // Rows first .. first + TILE - 1 of a [rows, depth] matrix, columns from k on; zeros outside.
    __device__ __forceinline__ void load(const scalar_t* matrix, int64_t rows, int64_t depth, int64_t first,
                                         int64_t k) {
#pragma unroll 2
        for (int i = threadIdx.x; i < TILE * DEPTH; i += 256) {
            const int row = i / DEPTH, column = i % DEPTH;
            const bool inside = first + row < rows && k + column < depth;
            value[column][row] = inside ? float(matrix[(first + row) * depth + k + column]) : 0.0f;
        }
    }
};

// sum[i][j] of token ty + 16 i and output column tx + 16 j.
static __device__ __forceinline__ void multiply(float (&sum)[OWN][OWN], const scalar_t* x, const scalar_t* weight,
                                                int64_t tokens, int64_t columns, int64_t depth) {
    __shared__ Tile left, right;
    const int tx = threadIdx.x % 16, ty = threadIdx.x / 16;
    for (int64_t k = 0; k < depth; k += DEPTH) {
        left.load(x, tokens, depth, int64_t(blockIdx.y) * TILE, k);
        right.load(weight, columns, depth, int64_t(blockIdx.x) * TILE, k);
        __syncthreads();
#pragma unroll 2
        for (int d = 0; d < DEPTH; ++d)
#pragma unroll
            for (int i = 0; i < OWN; ++i)
#pragma unroll
                for (int j = 0; j < OWN; ++j) sum[i][j] += left.value[d][ty + 16 * i] * right.value[d][tx + 16 * j];
        __syncthreads();
    }
}

extern "C" __global__ void __launch_bounds__(256)
linear(scalar_t* out, const scalar_t* x, const scalar_t* weight, int64_t M, int64_t K, int64_t N, void* workspace) {
    float sum[OWN][OWN] = {};
    multiply(sum, x, weight, M, N, K);
#pragma unroll
    for (int i = 0; i < OWN; ++i)
#pragma unroll
        for (int j = 0; j < OWN; ++j) {
            const int64_t token = int64_t(blockIdx.y) * TILE + threadIdx.x / 16 + 16 * i;
            const int64_t column = int64_t(blockIdx.x) * TILE + threadIdx.x % 16 + 16 * j;
            if (token < M && column < N) out[token * N + column] = scalar_t(sum[i][j]);
        }
}
