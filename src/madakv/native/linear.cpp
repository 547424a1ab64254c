// A few rows times a matrix of weights, bfloat16: every weight is read once for all rows, at the speed of the memory.

#include "arithmetic.h"

#include <cstdint>
#include <cstring>
#include <vector>

namespace {

constexpr int FAR = 4096, NEAR = 2048;  // weights ahead that are fetched

// To the nearest, of two the even one; NaN stays NaN.
inline uint16_t rounded(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    return x == x ? (bits + 0x7fff + (bits >> 16 & 1)) >> 16 : 0x7fc0;
}

inline float number(uint16_t x) {
    const uint32_t bits = uint32_t(x) << 16;
    float y;
    std::memcpy(&y, &bits, sizeof y);
    return y;
}

// Columns [first, first + E) of out [R, N].
template <int R>
void columns(const Chunk *rows, const uint16_t *weight, const uint16_t *bias, int64_t first, int64_t N, int64_t K,
             uint16_t *out) {
    constexpr int E = entries_at_once(R);
    const Floats sum = products<R>(rows, weight + first * K, N - first, K, FAR, NEAR);
    for (int e = 0; e < E && first + e < N; e++)
        for (int r = 0; r < R; r++) {
            const float y = sum[e * (LANES / E) + r];
            out[r * N + first + e] = rounded(bias ? y + number(bias[first + e]) : y);
        }
}

constexpr decltype(&columns<1>) COLUMNS[] = {columns<1>, columns<2>, columns<3>, columns<4>,
                                             columns<5>, columns<6>, columns<7>, columns<8>};

}  // namespace

// x [R, K] with R of 1 to 8 and K a multiple of 32, weight [N, K], bias [N] or null; out [R, N].
extern "C" void madakv_linear(const uint16_t *x, const uint16_t *weight, const uint16_t *bias, int R, int64_t N,
                              int64_t K, int threads, uint16_t *out) {
    std::vector<Chunk> rows;
    for (int64_t i = 0; i < R * K; i += STEP) rows.push_back(chunk(x + i));
    const int E = entries_at_once(R);
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t first = 0; first < N; first += E) COLUMNS[R - 1](rows.data(), weight, bias, first, N, K, out);
}
