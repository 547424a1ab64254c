// Attention of a few query rows per head over kept entries of uneven heads and a tail, bfloat16, in one pass.
//
// Heads are cut into parts, which threads take one by one, so that neither long heads nor few heads leave a thread
// idle. Each part is a softmax of its own; parts are merged per head at the end. Kept data is fetched into the second
// cache long before it is needed, and into the first one shortly before.

#include "arithmetic.h"

#include <cmath>
#include <memory>
#include <vector>

namespace {

constexpr int MOST_DIM = 512;
constexpr int LEAST_CHUNK = 128, CHUNK = 1024;  // entries of a part, at most; its logits lie in the first caches
constexpr int PARTS_PER_THREAD = 8;
constexpr int FAR = 32, NEAR = 12;  // entries ahead that are fetched

struct Part {
    int owner, entries;
    const uint16_t *keys, *values;
};

// e^x of x at most 0, to about 1e-6 relative; NaN stays NaN. Never less than e^-80, 2e-35: shares of that are normal
// numbers, which some processors multiply a hundred times faster than smaller ones.
inline Floats exponential(Floats x) {
    x = x < -80.0f ? (Floats){} - 80.0f : x;
    Floats y = x * 1.44269504f;
    Ints whole = __builtin_convertvector(y - 0.5f, Ints);
    Floats f = (y - __builtin_convertvector(whole, Floats)) * 0.69314718f;
    Floats p = 1.0f / 120 + f * (1.0f / 720);
    p = 1.0f + f * (1.0f + f * (1.0f / 2 + f * (1.0f / 6 + f * (1.0f / 24 + f * p))));
    return p * (Floats)((whole + 127) << 23);
}

// One part for R query rows [R, D]: out [R, D], which must be zero, as `place` has it, and lse [R].
// DIM is the head dim where that is known, which saves a twentieth of the time, else 0.
template <int R, int DIM>
void attend(const Chunk *query, const Part &part, int dim, float scaling, float *out, float *lse) {
    const int D = DIM ? DIM : dim;
    constexpr int E = entries_at_once(R), ROWS = LANES / E;
    constexpr int TOGETHER = Weights<R>::ENTRIES;
    // Entries whose values are read for all of D: fewer lie more in order, more save moving the sums of many rows.
    constexpr int BLOCK = R > 4 ? 16 : 4;
    const int n = part.entries, vectors = (n + E - 1) / E;
    Floats logits[CHUNK / E];
    for (int i = 0; i < vectors; i++) {
        const int64_t t = int64_t(i) * E;
        logits[i] = scaling * products<R>(query, part.keys + t * D, n - t, D, FAR * D, NEAR * D);
    }
    for (int i = n % E * ROWS; i % LANES; i++) logits[vectors - 1][i] = -INFINITY;
    for (int64_t i = 0; i < int64_t(std::min(n, FAR)) * D; i += 32) __builtin_prefetch(part.values + i, 0, 2);
    Floats top = logits[0], all = {}, used = {};
    for (int i = 1; i < vectors; i++) top = larger(top, logits[i]);
    top = across<ROWS>(top, larger);
    for (int i = 0; i < vectors; i++) all += logits[i] = exponential(logits[i] - top);
    all = across<ROWS>(all, sum);
    const Weights<R> weights{logits};
    // Weights of a part sum to 1, so that no sum of finite values overflows, and what rounding adds is taken out again.
    const Floats share = 1 / all;
    for (int i = 0; i < vectors; i++) used += weights.put(i, share * logits[i]);
    used = across<ROWS>(used, sum);
    for (int begin = 0; begin < n; begin += BLOCK) {
        const int end = std::min(n, begin + BLOCK);
        for (int d = 0; d < D; d += STEP) {
            Floats s[R][2];
#pragma GCC unroll 8
            for (int r = 0; r < R; r++) std::memcpy(s[r], out + r * D + d, sizeof s[r]);
            for (int t = begin; t < end; t += TOGETHER) {
                const uint16_t *at = part.values + int64_t(t) * D + d;
                // Beside an odd last entry stands itself, with a weight of next to nothing.
                const auto x = weights.values(at, t + 1 < n ? at + D : at);
                if (STEP == LINE || d % LINE == 0)
#pragma GCC unroll 2
                    for (int i = 0; i < TOGETHER; i++) {
                        __builtin_prefetch(at + (FAR + i) * D, 0, 2);
                        __builtin_prefetch(at + (NEAR + i) * D, 0, 3);
                    }
#pragma GCC unroll 8
                for (int r = 0; r < R; r++) {
                    const auto w = weights.weight(t, r);
                    s[r][0] = weights.plus(s[r][0], w, x.halves[0]);
                    s[r][1] = weights.plus(s[r][1], w, x.halves[1]);
                }
            }
#pragma GCC unroll 8
            for (int r = 0; r < R; r++) std::memcpy(out + r * D + d, s[r], sizeof s[r]);
        }
    }
    for (int r = 0; r < R; r++) {
        lse[r] = top[r] + std::log(all[r]);
        for (int d = 0; d < D; d++) out[r * D + d] *= 1 / used[r];
    }
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
    for (int64_t i = 0; i < int64_t(owners) * R * D; i += STEP) rows.push_back(chunk(query + i));

#pragma omp parallel num_threads(threads)
    {
#pragma omp for schedule(dynamic)
        for (size_t p = 0; p < parts.size(); p++) {
            std::memset(&means[p * R * D], 0, sizeof(float) * R * D);
            for (int r = 0; r < R; r += MOST_ROWS) {
                const Chunk *q = &rows[(int64_t(parts[p].owner) * R + r) * D / (STEP)];
                float *mean = &means[(p * R + r) * D];
                attend_rows[std::min(MOST_ROWS, R - r) - 1](q, parts[p], D, scaling, mean, &sizes[p * R + r]);
            }
        }
#pragma omp for
        for (int i = 0; i < owners * R; i++) {
            const int o = i / R, r = i % R;
            float top = -INFINITY, den = 0;
            for (int p = first[o]; p < first[o + 1]; p++) top = std::max(top, sizes[p * R + r]);
            for (int p = first[o]; p < first[o + 1]; p++) den += std::exp(sizes[p * R + r] - top);
            float mean[MOST_DIM] = {};
            for (int p = first[o]; p < first[o + 1]; p++) {
                const float share = std::exp(sizes[p * R + r] - top) / den;
                const float *own = &means[(int64_t(p) * R + r) * D];
                for (int d = 0; d < D; d++) mean[d] += share * own[d];
            }
            for (int d = 0; d < D; d++) out[int64_t(i) * D + d] = mean[place(d)];
            lse[i] = top + std::log(den);
        }
    }
}
