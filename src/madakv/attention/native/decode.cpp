// Attention of a few query rows per head over kept entries of uneven heads and a tail, bfloat16, in one pass.
//
// Heads are cut into parts, which threads take one by one, so that neither long heads nor few heads leave a thread
// idle. Each part is a softmax of its own; parts are merged per head at the end. Kept data is fetched into the second
// cache long before it is needed, and into the first one shortly before.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <vector>

#ifdef __AVX512BF16__
#include <immintrin.h>
#endif

namespace {

constexpr int LANES = 16;
constexpr int MOST_ROWS = 8;                     // query rows that share one reading: their sums fill the registers
constexpr int MOST_DIM = 512;
constexpr int LEAST_CHUNK = 128, CHUNK = 1024;  // entries of a part, at most; its logits lie in the first cache
constexpr int PARTS_PER_THREAD = 8;
constexpr int BLOCK = 16;                        // entries whose values are read in one go for all of D
constexpr int FAR = 32, NEAR = 6;                // entries ahead that are fetched

typedef float Floats __attribute__((vector_size(4 * LANES), may_alias));
typedef uint32_t Words __attribute__((vector_size(4 * LANES)));
typedef int32_t Ints __attribute__((vector_size(4 * LANES)));

struct Part {
    int owner, entries;
    const uint16_t *keys, *values;
};

// 32 bfloat16, widened: those of even index, then those of odd index.
struct Widened {
    Floats halves[2];
};

inline Widened widened(const uint16_t *at) {
    Words pairs;
    std::memcpy(&pairs, at, sizeof pairs);
    return {(Floats)(pairs << 16), (Floats)(pairs & 0xffff0000u)};
}

inline int place(int d) { return d / 32 * 32 + d % 2 * LANES + d % 32 / 2; }

// 32 numbers of a query or a key. Products of bfloat16 are exact in fp32, and summed up in it.
#ifdef __AVX512BF16__
struct Chunk {
    __m512bh x;
};

inline Chunk chunk(const uint16_t *at) {
    Chunk c;
    std::memcpy(&c, at, sizeof c);
    return c;
}

inline Floats plus_product(Floats sum, const Chunk &query, const Chunk &key) {
    return (Floats)_mm512_dpbf16_ps((__m512)sum, query.x, key.x);
}
#else
typedef Widened Chunk;

inline Chunk chunk(const uint16_t *at) { return widened(at); }

inline Floats plus_product(Floats sum, const Chunk &query, const Chunk &key) {
    sum += query.halves[0] * key.halves[0];
    sum += query.halves[1] * key.halves[1];
    return sum;
}
#endif

// e^x of x at most 0, to about 1e-7 relative; NaN stays NaN.
inline Floats exponential(Floats x) {
    x = x < -87.0f ? (Floats){} - 87.0f : x;
    Floats y = x * 1.44269504f;
    Ints whole = __builtin_convertvector(y - 0.5f, Ints);
    Floats f = (y - __builtin_convertvector(whole, Floats)) * 0.69314718f;
    Floats p = 1.0f / 120 + f * (1.0f / 720);
    p = 1.0f + f * (1.0f + f * (1.0f / 2 + f * (1.0f / 6 + f * (1.0f / 24 + f * p))));
    return p * (Floats)((whole + 127) << 23);
}

// Sums over the lanes of 16 vectors, as one vector: each fold halves the vectors and adds their halves.
inline Floats sums(const Floats *s) {
    Floats t[8];
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++) {
        Floats a = s[2 * i], b = s[2 * i + 1];
        t[i] = __builtin_shufflevector(a, b, 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23) +
               __builtin_shufflevector(a, b, 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        Floats a = t[2 * i], b = t[2 * i + 1];
        t[i] = __builtin_shufflevector(a, b, 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27) +
               __builtin_shufflevector(a, b, 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31);
    }
#pragma GCC unroll 2
    for (int i = 0; i < 2; i++) {
        Floats a = t[2 * i], b = t[2 * i + 1];
        t[i] = __builtin_shufflevector(a, b, 0, 1, 4, 5, 8, 9, 12, 13, 16, 17, 20, 21, 24, 25, 28, 29) +
               __builtin_shufflevector(a, b, 2, 3, 6, 7, 10, 11, 14, 15, 18, 19, 22, 23, 26, 27, 30, 31);
    }
    return __builtin_shufflevector(t[0], t[1], 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30) +
           __builtin_shufflevector(t[0], t[1], 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
}

// One part for R query rows [R, D]: out [R, D], which must be zero, as `place` has it, and lse [R].
// DIM is the head dim where that is known, which saves a twentieth of the time, else 0.
template <int R, int DIM>
void attend(const Chunk *query, const Part &part, int dim, float scaling, float *out, float *lse) {
    const int D = DIM ? DIM : dim;
    constexpr int E = R > 4 ? 2 : R > 2 ? 4 : R > 1 ? 8 : 16, ROWS = LANES / E;  // E entries fill one `sums`
    const int n = part.entries;
    alignas(64) float logits[R][CHUNK + LANES];  // more than CHUNK: rows a power of two apart would share cache sets
    for (int t = 0; t < n; t += E) {
        Floats s[LANES] = {};
#pragma GCC unroll 8
        for (int e = 0; e < E; e += 2) {
            const uint16_t *a = part.keys + int64_t(std::min(t + e, n - 1)) * D;
            const uint16_t *b = part.keys + int64_t(std::min(t + e + 1, n - 1)) * D;
            for (int d = 0; d < D; d += 2 * LANES) {
                const Chunk x = chunk(a + d), y = chunk(b + d);
                for (const uint16_t *at : {a + d, b + d}) {
                    __builtin_prefetch(at + FAR * D, 0, 2);
                    __builtin_prefetch(at + NEAR * D, 0, 3);
                }
#pragma GCC unroll 8
                for (int r = 0; r < R; r++) {
                    const Chunk &q = query[(r * D + d) / (2 * LANES)];
                    s[e * ROWS + r] = plus_product(s[e * ROWS + r], q, x);
                    s[(e + 1) * ROWS + r] = plus_product(s[(e + 1) * ROWS + r], q, y);
                }
            }
        }
        const Floats logit = sums(s) * scaling;
#pragma GCC unroll 16
        for (int e = 0; e < E; e++)
#pragma GCC unroll 8
            for (int r = 0; r < R; r++) logits[r][t + e] = logit[e * ROWS + r];
    }
    for (int64_t i = 0; i < int64_t(std::min(n, FAR)) * D; i += 32) __builtin_prefetch(part.values + i, 0, 2);
    float share[R];
    for (int r = 0; r < R; r++) {
        for (int i = n; i % LANES; i++) logits[r][i] = -INFINITY;
        Floats *row = (Floats *)logits[r];
        Floats most = row[0], all = {};
        for (int i = 1; i * LANES < n; i++) most = row[i] > most ? row[i] : most;
        float top = most[0], den = 0;
        for (int i = 1; i < LANES; i++) top = std::max(top, most[i]);
        for (int i = 0; i * LANES < n; i++) all += row[i] = exponential(row[i] - top);
        for (int i = 0; i < LANES; i++) den += all[i];
        lse[r] = top + std::log(den);
        share[r] = 1 / den;
    }
    for (int begin = 0; begin < n; begin += BLOCK) {
        const int end = std::min(n, begin + BLOCK);
        for (int d = 0; d < D; d += 2 * LANES) {
            Floats s[R][2];
#pragma GCC unroll 8
            for (int r = 0; r < R; r++) std::memcpy(s[r], out + r * D + d, sizeof s[r]);
            for (int t = begin; t < end; t++) {
                const uint16_t *at = part.values + int64_t(t) * D + d;
                const Widened x = widened(at);
                __builtin_prefetch(at + FAR * D, 0, 2);
                __builtin_prefetch(at + NEAR * D, 0, 3);
#pragma GCC unroll 8
                for (int r = 0; r < R; r++) {
                    s[r][0] += logits[r][t] * x.halves[0];
                    s[r][1] += logits[r][t] * x.halves[1];
                }
            }
#pragma GCC unroll 8
            for (int r = 0; r < R; r++) std::memcpy(out + r * D + d, s[r], sizeof s[r]);
        }
    }
    for (int r = 0; r < R; r++)
        for (int d = 0; d < D; d++) out[r * D + d] *= share[r];
}

template <int DIM>
constexpr void (*ATTEND[])(const Chunk *, const Part &, int, float, float *, float *) = {
    attend<1, DIM>, attend<2, DIM>, attend<3, DIM>, attend<4, DIM>,
    attend<5, DIM>, attend<6, DIM>, attend<7, DIM>, attend<8, DIM>};

void cut(std::vector<Part> &parts, int64_t most, int owner, int64_t entries, const uint16_t *keys,
         const uint16_t *values, int D) {
    const int64_t pieces = (entries + most - 1) / most;
    for (int64_t i = 0; i < pieces; i++) {
        const int64_t begin = entries * i / pieces, end = entries * (i + 1) / pieces;
        parts.push_back({owner, int(end - begin), keys + begin * D, values + begin * D});
    }
}

}  // namespace

// query [owners, R, D], keys and values [sum of counts, D], counts [owners]; tails [owners, capacity, D] with
// `tail` entries in use, which may be 0; out [owners, R, D] and lse [owners, R] fp32, 0 and -inf where nothing is seen.
// D is a multiple of 32 up to 512.
extern "C" void madakv_decode(const uint16_t *query, const uint16_t *keys, const uint16_t *values,
                              const int64_t *counts, int owners, const uint16_t *tail_keys,
                              const uint16_t *tail_values, int64_t capacity, int64_t tail, int R, int D, float scaling,
                              int threads, float *out, float *lse) {
    int64_t all = owners * tail;
    for (int o = 0; o < owners; o++) all += counts[o];
    const int64_t most = std::clamp<int64_t>(all / (PARTS_PER_THREAD * threads), LEAST_CHUNK, CHUNK);
    std::vector<Part> parts;
    std::vector<int> first;
    for (int o = 0; o < owners; o++) {
        first.push_back(int(parts.size()));
        cut(parts, most, o, counts[o], keys, values, D);
        if (tail) cut(parts, most, o, tail, tail_keys + o * capacity * D, tail_values + o * capacity * D, D);
        keys += counts[o] * D;
        values += counts[o] * D;
    }
    first.push_back(int(parts.size()));
    const auto attend_rows = D == 128 ? ATTEND<128> : ATTEND<0>;
    const std::unique_ptr<float[]> means(new float[parts.size() * R * D]), sizes(new float[parts.size() * R]);
    std::vector<Chunk> rows;
    for (int64_t i = 0; i < int64_t(owners) * R * D; i += 2 * LANES) rows.push_back(chunk(query + i));

#pragma omp parallel num_threads(threads)
    {
#pragma omp for schedule(dynamic)
        for (size_t p = 0; p < parts.size(); p++) {
            std::memset(&means[p * R * D], 0, sizeof(float) * R * D);
            for (int r = 0; r < R; r += MOST_ROWS) {
                const Chunk *q = &rows[(int64_t(parts[p].owner) * R + r) * D / (2 * LANES)];
                float *mean = &means[(p * R + r) * D];
                attend_rows[std::min(MOST_ROWS, R - r) - 1](q, parts[p], D, scaling, mean, &sizes[p * R + r]);
            }
        }
#pragma omp for
        for (int i = 0; i < owners * R; i++) {
            const int o = i / R, r = i % R;
            float top = -INFINITY, den = 0;
            for (int p = first[o]; p < first[o + 1]; p++) top = std::max(top, sizes[p * R + r]);
            float mean[MOST_DIM] = {};
            for (int p = first[o]; p < first[o + 1]; p++) {
                const float share = std::exp(sizes[p * R + r] - top);
                const float *own = &means[(int64_t(p) * R + r) * D];
                den += share;
                for (int d = 0; d < D; d++) mean[d] += share * own[d];
            }
            for (int d = 0; d < D; d++) out[int64_t(i) * D + d] = den == 0 ? 0 : mean[place(d)] / den;
            lse[i] = top + std::log(den);
        }
    }
}
