// A few rows times a matrix of weights, bfloat16: every weight is read once for all rows, at the speed of the memory.

#include "arithmetic.h"

#include <cstdint>
#include <vector>

namespace {

constexpr int FAR = 4096, NEAR = 2048;  // weights ahead that are fetched

// Columns [first, first + E) of out [R, N].
template <int R>
void columns(const Chunk<BFloat16> *rows, const BFloat16 *weight, const BFloat16 *bias, int64_t first, int64_t N, int64_t K,
             BFloat16 *out) {
    constexpr int E = entries_at_once(R);
    const Floats sum = products<R>(rows, weight + first * K, N - first, K, FAR, NEAR);
    for (int e = 0; e < E && first + e < N; e++)
        for (int r = 0; r < R; r++) {
            const float y = sum[e * (LANES / E) + r];
            round_to(&out[r * N + first + e], bias ? y + number(bias[first + e]) : y);
        }
}

constexpr decltype(&columns<1>) COLUMNS[] = {columns<1>, columns<2>, columns<3>, columns<4>,
                                             columns<5>, columns<6>, columns<7>, columns<8>};

}  // namespace

// x [R, K] with R of 1 to 8 and K a multiple of 32, weight [N, K], bias [N] or null; out [R, N].
extern "C" void madakv_linear(const BFloat16 *x, const BFloat16 *weight, const BFloat16 *bias, int R, int64_t N,
                              int64_t K, int threads, BFloat16 *out) {
    std::vector<Chunk<BFloat16>> rows;
    for (int r = 0; r < R; r++) append_chunks(rows, x + r * K, K);
    const int E = entries_at_once(R);
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t first = 0; first < N; first += E) COLUMNS[R - 1](rows.data(), weight, bias, first, N, K, out);
}
