// Attention of new tokens over kept entries of uneven heads and a tail, in one pass: bfloat16, fp16 or fp32.
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
constexpr int FAR = 32, NEAR = 12;          // entries ahead that are fetched
constexpr int64_t GRAIN = 1 << 16;          // products that are worth another thread
constexpr float LEAST = -3.402823466e+38f;  // the least finite number

// Of one layer, what stays the same from step to step.
struct Layer {
    int kind;              // 0: bfloat16, 1: fp16, 2: fp32
    int B, H, Dk, Dv;      // dims are multiples of 8 up to 512
    const int64_t *counts; // [B, H]
};

// What new tokens see of the tail, [B or 1, Hq or 1, Q, tail]: bool, or fp32 to be added; strides in elements.
struct Mask {
    const void *at;
    int64_t row, head, query;
    int additive;
};

// The rows of a mask for some query rows, from the first entry of a part on.
struct Seen {
    const void *rows[MOST_ROWS];
    bool additive;
};

template <class T>
struct Part {
    int owner, entries;
    int64_t begin;  // of its entries in the tail; -1: they are kept ones
    const T *keys, *values;
};

// Adds a mask to the logits of n entries, `rows` of them beside each other for each.
inline void add_mask(const Seen &seen, float *logits, int n, int rows, int R) {
    for (int r = 0; r < R; r++)
        for (int i = 0; i < n; i++) {
            float &x = logits[i * rows + r];
            const float more = seen.additive                             ? ((const float *)seen.rows[r])[i]
                               : ((const unsigned char *)seen.rows[r])[i] ? 0
                                                                          : -INFINITY;
            // What is hidden is hidden, also where its logit is not a number.
            x = more == -INFINITY ? more : x + more;
        }
}

// One part for R query rows: out [R, chunks of Dv], which must be zero, as `place` has it, and lse [R].
// DIM is the dim of keys and values where that is known, which saves a twentieth of the time, else 0.
template <class T, int R, int DIM>
void attend(const Chunk<T> *query, const Part<T> &part, const Seen *seen, int key_dim, int value_dim, float scaling,
            float *out, float *lse) {
    const int Dk = DIM ? DIM : key_dim, Dv = DIM ? DIM : value_dim, width = int(chunks_of(Dv)) * STEP;
    constexpr int E = entries_at_once(R), ROWS = LANES / E;
    constexpr int TOGETHER = Weights<T, R>::ENTRIES;
    // Entries whose values are read for all of Dv: fewer lie more in order, more save moving the sums of many rows.
    constexpr int BLOCK = R > 4 ? 16 : 4;
    const int n = part.entries, vectors = (n + E - 1) / E;
    Floats logits[CHUNK / E];
    for (int i = 0; i < vectors; i++) {
        const int64_t t = int64_t(i) * E;
        logits[i] = scaling * products<R>(query, part.keys + t * Dk, n - t, Dk, FAR * Dk, NEAR * Dk);
    }
    if (seen) add_mask(*seen, (float *)logits, n, ROWS, R);
    for (int i = n % E * ROWS; i % LANES; i++) logits[vectors - 1][i] = -INFINITY;
    for (int64_t i = 0; i < int64_t(std::min(n, FAR)) * Dv; i += LINE<T>) __builtin_prefetch(part.values + i, 0, 2);
    Floats top = logits[0], all = {}, used = {};
    for (int i = 1; i < vectors; i++) top = larger(top, logits[i]);
    top = across<ROWS>(top, larger);
    top = top < LEAST ? (Floats){} + LEAST : top;  // where nothing is seen
    for (int i = 0; i < vectors; i++) {
        const Floats weight = exponential(logits[i] - top);
        all += logits[i] = logits[i] == -INFINITY ? (Floats){} : weight;
    }
    all = across<ROWS>(all, sum);
    const Weights<T, R> weights{logits};
    // Weights of a part sum to 1, so that no sum of finite values overflows, and what rounding adds is taken out again.
    const Floats share = all == 0.0f ? (Floats){} : 1 / all;
    for (int i = 0; i < vectors; i++) used += weights.put(i, share * logits[i]);
    used = across<ROWS>(used, sum);
    for (int begin = 0; begin < n; begin += BLOCK) {
        const int end = std::min(n, begin + BLOCK);
        for (int d = 0; d < Dv; d += STEP) {
            Floats s[R][2];
#pragma GCC unroll 8
            for (int r = 0; r < R; r++) std::memcpy(s[r], out + r * width + d, sizeof s[r]);
            for (int t = begin; t < end; t += TOGETHER) {
                const T *at = part.values + int64_t(t) * Dv + d;
                // Beside an odd last entry stands itself, with a weight of nothing.
                const T *next = t + 1 < n ? at + Dv : at;
                const auto x = d + STEP <= Dv ? weights.values(at, next) : weights.values(at, next, Dv - d);
#pragma GCC unroll 2
                for (int line = 0; line < STEP; line += LINE<T>)
                    if ((d + line) % LINE<T> == 0)
#pragma GCC unroll 2
                        for (int i = 0; i < TOGETHER; i++) {
                            __builtin_prefetch(at + line + (FAR + i) * Dv, 0, 2);
                            __builtin_prefetch(at + line + (NEAR + i) * Dv, 0, 3);
                        }
#pragma GCC unroll 8
                for (int r = 0; r < R; r++) {
                    const auto w = weights.weight(t, r);
                    s[r][0] = weights.plus(s[r][0], w, x.halves[0]);
                    s[r][1] = weights.plus(s[r][1], w, x.halves[1]);
                }
            }
#pragma GCC unroll 8
            for (int r = 0; r < R; r++) std::memcpy(out + r * width + d, s[r], sizeof s[r]);
        }
    }
    for (int r = 0; r < R; r++) {
        lse[r] = all[r] == 0 ? -INFINITY : top[r] + std::log(all[r]);
        const float whole = used[r] == 0 ? 0 : 1 / used[r];
        for (int d = 0; d < width; d++) out[r * width + d] *= whole;
    }
}

template <class T, int DIM>
constexpr decltype(&attend<T, 1, DIM>) ATTEND[] = {
    attend<T, 1, DIM>, attend<T, 2, DIM>, attend<T, 3, DIM>, attend<T, 4, DIM>,
    attend<T, 5, DIM>, attend<T, 6, DIM>, attend<T, 7, DIM>, attend<T, 8, DIM>};

template <class T>
void cut(std::vector<Part<T>> &parts, int64_t most, int owner, int64_t entries, bool kept, const T *keys,
         const T *values, const Layer &layer) {
    const int64_t pieces = (entries + most - 1) / most;
    for (int64_t i = 0; i < pieces; i++) {
        const int64_t begin = entries * i / pieces, end = entries * (i + 1) / pieces;
        parts.push_back({owner, int(end - begin), kept ? -1 : begin, keys + begin * layer.Dk, values + begin * layer.Dv});
    }
}

Seen seen_by(const Mask &mask, const Layer &layer, int Hq, int Q, int owner, int first, int rows, int64_t begin) {
    Seen seen{{}, mask.additive != 0};
    for (int r = 0; r < rows; r++) {
        const int head = owner % layer.H * (Hq / layer.H) + (first + r) / Q;
        const int64_t at = owner / layer.H * mask.row + head * mask.head + (first + r) % Q * mask.query + begin;
        seen.rows[r] = (const char *)mask.at + at * (mask.additive ? sizeof(float) : 1);
    }
    return seen;
}

template <class T>
void attend_layer(const Layer &layer, const T *keys, const T *values, const T *query, int Hq, int Q,
                  const T *tail_keys, const T *tail_values, int64_t capacity, int64_t tail, const Mask *mask,
                  float scaling, int threads, T *out, float *partial, float *lse) {
    const int owners = layer.B * layer.H, G = Hq / layer.H, R = G * Q, Dk = layer.Dk, Dv = layer.Dv;
    const int64_t query_width = chunks_of(Dk), width = chunks_of(Dv) * STEP;
    int64_t all = owners * tail;
    for (int o = 0; o < owners; o++) all += layer.counts[o];
    threads = int(std::min<int64_t>(threads, 1 + all * R * (Dk + Dv) / GRAIN));
    const int64_t most = std::clamp<int64_t>(all / (PARTS_PER_THREAD * threads), LEAST_CHUNK, CHUNK);
    std::vector<Part<T>> parts;
    std::vector<int> first;
    for (int o = 0; o < owners; o++) {
        const int64_t count = layer.counts[o];
        first.push_back(int(parts.size()));
        cut(parts, most, o, count, true, keys, values, layer);
        cut(parts, most, o, tail, false, tail_keys + o * capacity * Dk, tail_values + o * capacity * Dv, layer);
        keys += count * Dk;
        values += count * Dv;
    }
    first.push_back(int(parts.size()));
    const auto attend_rows = sizeof(T) == 2 && Dk == 128 && Dv == 128 ? ATTEND<T, 128 * (sizeof(T) == 2)> : ATTEND<T, 0>;
    const std::unique_ptr<float[]> means(new float[parts.size() * R * width]), sizes(new float[parts.size() * R]);
    std::vector<Chunk<T>> rows;
    rows.reserve(owners * R * query_width);
    for (int i = 0; i < owners * R; i++) append_chunks(rows, query + int64_t(i) * Dk, Dk);

#pragma omp parallel num_threads(threads) if (threads > 1)
    {
#pragma omp for schedule(dynamic)
        for (size_t p = 0; p < parts.size(); p++) {
            const Part<T> &part = parts[p];
            std::memset(&means[p * R * width], 0, sizeof(float) * R * width);
            for (int r = 0; r < R; r += MOST_ROWS) {
                const int together = std::min(MOST_ROWS, R - r);
                Seen seen;
                const bool masked = mask && part.begin >= 0;
                if (masked) seen = seen_by(*mask, layer, Hq, Q, part.owner, r, together, part.begin);
                attend_rows[together - 1](&rows[(int64_t(part.owner) * R + r) * query_width], part,
                                          masked ? &seen : nullptr, Dk, Dv, scaling, &means[(p * R + r) * width],
                                          &sizes[p * R + r]);
            }
        }
#pragma omp for
        for (int i = 0; i < owners * R; i++) {
            const int o = i / R, r = i % R;
            float top = -INFINITY, den = 0;
            for (int p = first[o]; p < first[o + 1]; p++) top = std::max(top, sizes[p * R + r]);
            // Where nothing is seen, -inf minus -inf must not be taken.
            const float finite = top == -INFINITY ? 0 : top;
            for (int p = first[o]; p < first[o + 1]; p++) den += std::exp(sizes[p * R + r] - finite);
            float mean[MOST_DIM] = {};
            for (int p = first[o]; p < first[o + 1]; p++) {
                const float share = den == 0 ? 0 : std::exp(sizes[p * R + r] - finite) / den;
                const float *own = &means[(int64_t(p) * R + r) * width];
                for (int d = 0; d < width; d++) mean[d] += share * own[d];
            }
            if (partial) {
                for (int d = 0; d < Dv; d++) partial[int64_t(i) * Dv + d] = mean[place<T>(d)];
                lse[i] = top + std::log(den);
            } else {
                const int b = o / layer.H, head = o % layer.H * G + r / Q;
                T *own = out + ((int64_t(b) * Q + r % Q) * Hq + head) * Dv;
                for (int d = 0; d < Dv; d++) round_to(&own[d], mean[place<T>(d)]);
            }
        }
    }
}

}  // namespace

// keys [sum of counts, Dk] and values [.., Dv], heads one after another; query [B, Hq, Q, Dk]; tails [B, H, capacity, D]
// with `tail` entries in use, which may be 0; mask: null if all of the tail is seen. Either out [B, Q, Hq, Dv] in the
// numbers of the query, or partial [B, H, Hq / H * Q, Dv] and lse [B, H, Hq / H * Q] in fp32; 0 and -inf where nothing
// is seen.
extern "C" void madakv_attend(const Layer *layer, const void *keys, const void *values, const void *query, int Hq,
                              int Q, const void *tail_keys, const void *tail_values, int64_t capacity, int64_t tail,
                              const Mask *mask, float scaling, int threads, void *out, float *partial, float *lse) {
    const auto run = [&](auto number) {
        using T = decltype(number);
        attend_layer(*layer, (const T *)keys, (const T *)values, (const T *)query, Hq, Q, (const T *)tail_keys,
                     (const T *)tail_values, capacity, tail, mask, scaling, threads, (T *)out, partial, lse);
    };
    if (layer->kind == 0)
        run(BFloat16{});
    else if (layer->kind == 1)
        run(Float16{});
    else
        run(float{});
}
