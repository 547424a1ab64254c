// Attention of new tokens over kept entries of uneven heads and a tail, in one pass: bfloat16, fp16 or fp32. Entries lie
// one behind another, or in pages.
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

// Where S sequences' entries lie among rows of D numbers. A page is so many keys, and their values behind them.
struct Pages {
    int kind;              // as of a layer
    int S, H, D;
    int size, tail_size;   // entries of a page
    const int64_t *pages;  // first rows of all heads' pages
    const int64_t *first;  // [S, H], where in `pages` a head's begin
    const int64_t *counts; // [S, H]
    // What came since: pages that all heads have, `head_rows` apart, from row `tail_row` on.
    const int64_t *tail_pages;  // [S, capacity], first rows of the first head's
    const int64_t *tail_begin;  // [S], entries of the first page that are not the tail's
    const int64_t *tail_counts; // [S]
    int64_t capacity, head_rows, tail_row;
};

// How all rows attend.
struct How {
    float scaling, softcap;  // softcap: 0 if there is none
    const float *sinks;      // [Hq], or null
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

// How many numbers ahead is what will be needed.
struct Ahead {
    int64_t keys, values;
};

// Entries that lie one behind another.
template <class T>
struct Run {
    const T *keys, *values;
    int entries;
    Ahead far, near;
};

struct Part {
    int owner;
    int64_t begin;      // of its entries in the tail; -1: no mask hides any
    size_t first, end;  // its runs; of entries that a mask may hide there is one
};

// All that is attended to, owner by owner.
template <class T>
struct Parts {
    std::vector<Run<T>> runs;
    std::vector<Part> parts;
    std::vector<size_t> first;  // of each owner, and the end
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

// Leads n vectors of logits smoothly into (-softcap, softcap). Seldom wanted, so not a part of what calls it.
__attribute__((noinline)) void cap(Floats *logits, int n, float softcap) {
    for (int i = 0; i < n; i++) {
        const Floats x = logits[i], y = exponential((x < 0.0f ? x : -x) * (2 / softcap));
        const Floats size = softcap * (1 - y) / (1 + y);
        logits[i] = x < 0.0f ? -size : size;
    }
}

// One part for R query rows: out [R, chunks of Dv], which must be zero, as `place` has it, and lse [R].
// DIM is the dim of keys and values where that is known, which saves a twentieth of the time, else 0.
template <class T, int R, int DIM>
void attend(const Chunk<T> *query, const Run<T> *runs, const Run<T> *last, const Seen *seen, int key_dim,
            int value_dim, const How &how, float *out, float *lse) {
    const int Dk = DIM ? DIM : key_dim, Dv = DIM ? DIM : value_dim, width = int(chunks_of(Dv)) * STEP;
    constexpr int E = entries_at_once(R), ROWS = LANES / E;
    constexpr int TOGETHER = Weights<T, R>::ENTRIES;
    // Entries whose values are read for all of Dv: fewer lie more in order, more save moving the sums of many rows.
    constexpr int BLOCK = R > 4 ? 16 : 4;
    Floats logits[CHUNK / E];
    int vectors = 0;
    for (const Run<T> *run = runs; run != last; run++) {
        const int n = run->entries;
        const int first = vectors;
        for (int64_t t = 0; t < n; t += E)
            logits[vectors++] = how.scaling * products<R>(query, run->keys + t * Dk, n - t, Dk, run->far.keys,
                                                          run->near.keys);
        if (how.softcap) cap(logits + first, vectors - first, how.softcap);
        if (seen) add_mask(*seen, (float *)logits, n, ROWS, R);
        for (int i = n % E * ROWS; i % LANES; i++) logits[vectors - 1][i] = -INFINITY;
    }
    for (int64_t i = 0; i < int64_t(std::min(runs->entries, FAR)) * Dv; i += LINE<T>)
        __builtin_prefetch(runs->values + i, 0, 2);
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
    int before = 0;  // of the weights, those of earlier runs
    for (const Run<T> *run = runs; run != last; run++) {
        const int n = run->entries;
        for (int begin = 0; begin < n; begin += BLOCK) {
            const int end = std::min(n, begin + BLOCK);
            for (int d = 0; d < Dv; d += STEP) {
                Floats s[R][2];
#pragma GCC unroll 8
                for (int r = 0; r < R; r++) std::memcpy(s[r], out + r * width + d, sizeof s[r]);
                for (int t = begin; t < end; t += TOGETHER) {
                    const T *at = run->values + int64_t(t) * Dv + d;
                    // Beside an odd last entry stands itself, with a weight of nothing.
                    const T *next = t + 1 < n ? at + Dv : at;
                    const auto x = d + STEP <= Dv ? weights.values(at, next) : weights.values(at, next, Dv - d);
#pragma GCC unroll 2
                    for (int line = 0; line < STEP; line += LINE<T>)
                        if ((d + line) % LINE<T> == 0)
#pragma GCC unroll 2
                            for (int i = 0; i < TOGETHER; i++) {
                                __builtin_prefetch(at + line + run->far.values + i * Dv, 0, 2);
                                __builtin_prefetch(at + line + run->near.values + i * Dv, 0, 3);
                            }
#pragma GCC unroll 8
                    for (int r = 0; r < R; r++) {
                        const auto w = weights.weight(before + t, r);
                        s[r][0] = weights.plus(s[r][0], w, x.halves[0]);
                        s[r][1] = weights.plus(s[r][1], w, x.halves[1]);
                    }
                }
#pragma GCC unroll 8
                for (int r = 0; r < R; r++) std::memcpy(out + r * width + d, s[r], sizeof s[r]);
            }
        }
        before += (n + E - 1) / E * E;
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
void cut(Parts<T> &into, int64_t most, int owner, int64_t entries, bool kept, const T *keys, const T *values,
         const Layer &layer) {
    const int64_t pieces = (entries + most - 1) / most;
    for (int64_t i = 0; i < pieces; i++) {
        const int64_t begin = entries * i / pieces, end = entries * (i + 1) / pieces;
        into.parts.push_back({owner, kept ? -1 : begin, into.runs.size(), into.runs.size() + 1});
        into.runs.push_back({keys + begin * layer.Dk, values + begin * layer.Dv, int(end - begin),
                             {int64_t(FAR) * layer.Dk, int64_t(FAR) * layer.Dv},
                             {int64_t(NEAR) * layer.Dk, int64_t(NEAR) * layer.Dv}});
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

// What is worth being attended to by so many threads, and how many entries a part then has at most.
struct Split {
    int threads;
    int64_t most;

    Split(int64_t entries, int64_t products, int limit)
        : threads(int(std::min<int64_t>(limit, 1 + entries * products / GRAIN))),
          most(std::clamp<int64_t>(entries / (PARTS_PER_THREAD * threads), LEAST_CHUNK, CHUNK)) {}
};

// Hq / H * Q rows of each owner; `layer`'s counts are not looked at.
template <class T>
void attend_parts(const Layer &layer, const Parts<T> &all, const T *query, int Hq, int Q, const Mask *mask,
                  const How &how, int threads, T *out, float *partial, float *lse) {
    const int owners = layer.B * layer.H, G = Hq / layer.H, R = G * Q, Dk = layer.Dk, Dv = layer.Dv;
    const int64_t query_width = chunks_of(Dk), width = chunks_of(Dv) * STEP;
    const auto &parts = all.parts;
    const auto &first = all.first;
    const auto attend_rows = sizeof(T) == 2 && Dk == 128 && Dv == 128 ? ATTEND<T, 128 * (sizeof(T) == 2)> : ATTEND<T, 0>;
    const std::unique_ptr<float[]> means(new float[parts.size() * R * width]), sizes(new float[parts.size() * R]);
    std::vector<Chunk<T>> rows;
    rows.reserve(owners * R * query_width);
    for (int i = 0; i < owners * R; i++) append_chunks(rows, query + int64_t(i) * Dk, Dk);

#pragma omp parallel num_threads(threads) if (threads > 1)
    {
#pragma omp for schedule(dynamic)
        for (size_t p = 0; p < parts.size(); p++) {
            const Part &part = parts[p];
            std::memset(&means[p * R * width], 0, sizeof(float) * R * width);
            for (int r = 0; r < R; r += MOST_ROWS) {
                const int together = std::min(MOST_ROWS, R - r);
                Seen seen;
                const bool masked = mask && part.begin >= 0;
                if (masked) seen = seen_by(*mask, layer, Hq, Q, part.owner, r, together, part.begin);
                attend_rows[together - 1](&rows[(int64_t(part.owner) * R + r) * query_width],
                                          all.runs.data() + part.first, all.runs.data() + part.end,
                                          masked ? &seen : nullptr, Dk, Dv, how, &means[(p * R + r) * width],
                                          &sizes[p * R + r]);
            }
        }
#pragma omp for
        for (int i = 0; i < owners * R; i++) {
            const int o = i / R, r = i % R, query_head = o % layer.H * G + r / Q;
            const float sink = how.sinks ? how.sinks[query_head] : -INFINITY;
            float top = sink;
            for (size_t p = first[o]; p < first[o + 1]; p++) top = std::max(top, sizes[p * R + r]);
            // Where nothing is seen, -inf minus -inf must not be taken.
            const float finite = top == -INFINITY ? 0 : top;
            float den = std::exp(sink - finite);
            for (size_t p = first[o]; p < first[o + 1]; p++) den += std::exp(sizes[p * R + r] - finite);
            float mean[MOST_DIM] = {};
            for (size_t p = first[o]; p < first[o + 1]; p++) {
                const float share = den == 0 ? 0 : std::exp(sizes[p * R + r] - finite) / den;
                const float *own = &means[(int64_t(p) * R + r) * width];
                for (int d = 0; d < width; d++) mean[d] += share * own[d];
            }
            if (partial) {
                for (int d = 0; d < Dv; d++) partial[int64_t(i) * Dv + d] = mean[place<T>(d)];
                lse[i] = top + std::log(den);
            } else {
                T *own = out + ((int64_t(o / layer.H) * Q + r % Q) * Hq + query_head) * Dv;
                for (int d = 0; d < Dv; d++) round_to(&own[d], mean[place<T>(d)]);
            }
        }
    }
}

template <class T>
void attend_layer(const Layer &layer, const T *keys, const T *values, const T *query, int Hq, int Q,
                  const T *tail_keys, const T *tail_values, int64_t capacity, int64_t tail, const Mask *mask,
                  const How &how, int threads, T *out, float *partial, float *lse) {
    const int owners = layer.B * layer.H, Dk = layer.Dk, Dv = layer.Dv;
    int64_t entries = owners * tail;
    for (int o = 0; o < owners; o++) entries += layer.counts[o];
    const Split split(entries, int64_t(Hq) / layer.H * Q * (Dk + Dv), threads);
    Parts<T> all;
    for (int o = 0; o < owners; o++) {
        const int64_t count = layer.counts[o];
        all.first.push_back(all.parts.size());
        cut(all, split.most, o, count, true, keys, values, layer);
        cut(all, split.most, o, tail, false, tail_keys + o * capacity * Dk, tail_values + o * capacity * Dv, layer);
        keys += count * Dk;
        values += count * Dv;
    }
    all.first.push_back(all.parts.size());
    attend_parts(layer, all, query, Hq, Q, mask, how, split.threads, out, partial, lse);
}

// Entries of one owner, of which the first stands at `begin` in the first page.
template <class T>
void cut_pages(Parts<T> &into, int64_t most, int owner, int64_t begin, int64_t entries, const int64_t *pages,
               const T *rows, int size, int D) {
    // A run takes as much of the logits as whole vectors do.
    const auto taken = [](int64_t n) { return (n + LANES - 1) / LANES * LANES; };
    int64_t left = 0;
    while (entries > 0) {
        const int64_t at = begin % size, n = std::min({entries, size - at, most});
        if (left < taken(n) || into.parts.back().owner != owner) {
            into.parts.push_back({owner, -1, into.runs.size(), 0});
            left = most;
        }
        const T *keys = rows + (pages[begin / size] + at) * D;
        // Pages lie anywhere: while one is read, those behind it are fetched.
        const auto ahead = [&](size_t pages, Ahead Run<T>::*which) {
            if (into.runs.size() < pages) return;
            Run<T> &earlier = into.runs[into.runs.size() - pages];
            earlier.*which = {keys - earlier.keys, keys - earlier.keys};
        };
        ahead(std::max(1, FAR / size), &Run<T>::far);
        if (size <= NEAR) ahead(1, &Run<T>::near);
        const Ahead near = {int64_t(NEAR) * D, int64_t(NEAR) * D};
        into.runs.push_back({keys, keys + int64_t(size) * D, int(n), near, near});
        into.parts.back().end = into.runs.size();
        left -= taken(n);
        begin += n;
        entries -= n;
    }
}

template <class T>
void attend_pages(const Pages &at, const T *rows, const T *query, int Hq, const How &how, int threads, T *out) {
    int64_t entries = 0;
    for (int o = 0; o < at.S * at.H; o++) entries += at.counts[o] + at.tail_counts[o / at.H];
    const Split split(entries, int64_t(Hq) / at.H * 2 * at.D, threads);
    Parts<T> all;
    for (int o = 0; o < at.S * at.H; o++) {
        const int s = o / at.H;
        all.first.push_back(all.parts.size());
        cut_pages(all, split.most, o, 0, at.counts[o], at.pages + at.first[o], rows, at.size, at.D);
        cut_pages(all, split.most, o, at.tail_begin[s], at.tail_counts[s], at.tail_pages + s * at.capacity,
                  rows + (at.tail_row + o % at.H * at.head_rows) * at.D, at.tail_size, at.D);
    }
    all.first.push_back(all.parts.size());
    attend_parts({at.kind, at.S, at.H, at.D, at.D, nullptr}, all, query, Hq, 1, nullptr, how, split.threads, out,
                 nullptr, nullptr);
}

// Calls with a number of the kind.
template <class Run>
void of_kind(int kind, const Run &run) {
    if (kind == 0)
        run(BFloat16{});
    else if (kind == 1)
        run(Float16{});
    else
        run(float{});
}

}  // namespace

// keys [sum of counts, Dk] and values [.., Dv], heads one after another; query [B, Hq, Q, Dk]; tails [B, H, capacity, D]
// with `tail` entries in use, which may be 0; mask: null if all of the tail is seen. Either out [B, Q, Hq, Dv] in the
// numbers of the query, or partial [B, H, Hq / H * Q, Dv] and lse [B, H, Hq / H * Q] in fp32; 0 and -inf where nothing
// is seen.
extern "C" void madakv_attend(const Layer *layer, const void *keys, const void *values, const void *query, int Hq,
                              int Q, const void *tail_keys, const void *tail_values, int64_t capacity, int64_t tail,
                              const Mask *mask, float scaling, int threads, void *out, float *partial, float *lse) {
    of_kind(layer->kind, [&](auto number) {
        using T = decltype(number);
        attend_layer(*layer, (const T *)keys, (const T *)values, (const T *)query, Hq, Q, (const T *)tail_keys,
                     (const T *)tail_values, capacity, tail, mask, {scaling, 0, nullptr}, threads, (T *)out, partial,
                     lse);
    });
}

// One query of each sequence: rows [R, D], query and out [S, Hq, D]; out is 0 where nothing is seen.
extern "C" void madakv_attend_pages(const Pages *pages, const void *rows, const void *query, int Hq, float scaling,
                                    float softcap, const float *sinks, int threads, void *out) {
    of_kind(pages->kind, [&](auto number) {
        using T = decltype(number);
        attend_pages(*pages, (const T *)rows, (const T *)query, Hq, {scaling, softcap, sinks}, threads, (T *)out);
    });
}
