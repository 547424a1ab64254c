// The most that any of several queries pays to each key: a softmax per query, then the largest weight per key. What
// their attention gives comes of the same weights, where it is asked for.
//
// Queries are taken some rows at a time. Their logits over all keys lie in the second cache while they become weights
// and the largest is kept per key: only those, and sums of values, leave it.

#include "arithmetic.h"

#include <algorithm>
#include <cmath>
#include <vector>

namespace {

constexpr int TILE = 6;                // rows whose products with one panel of keys fill the registers
constexpr int PANEL = 2 * LANES;       // keys, or numbers of a value, beside each other
constexpr int64_t CACHED = 1 << 16;    // logits that are held at a time
constexpr int MOST_QUERIES = 8 * TILE; // rows that are taken at a time, at most
constexpr int64_t BLOCK = 256;         // values that are added up at a time, from the second cache

// Of one batch row.
struct Asked {
    int kind;            // 0: bfloat16, 1: fp16, 2: fp32
    int Hq, H, D;
    int64_t E, N;        // queries, keys
    const void *query;   // [Hq, E, D], contiguous
    const void *key;     // [H, N, D]; head_stride and key_stride in elements, D contiguous
    int64_t head_stride, key_stride;
    const int64_t *places;        // [E], ascending: where each query stands, and the last key that it sees
    const unsigned char *hidden;  // [N], true: no query sees the key; or null
    // [1 or Hq, N, N], what every query sees in place of all before it: bool, or fp32 to be added; or null. Strides in
    // elements.
    const void *mask;
    int64_t mask_head, mask_query;
    int additive;
    const float *sinks;           // [Hq], or null
    float scaling, softcap;       // no softcap: 0
    const void *value;            // [H, N, Dv], strides in elements, Dv contiguous; or null
    int64_t value_head_stride, value_stride, Dv;
    float *attended;              // [Hq, E, Dv], contiguous: what the queries' attention gives; or null
};

inline Floats load(const float *at) {
    Floats x;
    std::memcpy(&x, at, sizeof x);
    return x;
}

inline void store(float *at, Floats x) { std::memcpy(at, &x, sizeof x); }

// Products of R rows [R, n] with PANEL columns of [n, ...], added to what is in `out` if `more`; strides are of rows.
template <int R>
inline void products(const float *rows, int64_t stride, const float *columns, int64_t width, int64_t n, bool more,
                     float *out, int64_t out_stride) {
    Floats s[R][2] = {};
    if (more)
        for (int r = 0; r < R; r++)
            for (int half = 0; half < 2; half++) s[r][half] = load(out + r * out_stride + half * LANES);
    for (int64_t i = 0; i < n; i++) {
        const Floats a = load(columns + i * width), b = load(columns + i * width + LANES);
#pragma GCC unroll 6
        for (int r = 0; r < R; r++) {
            s[r][0] += rows[r * stride + i] * a;
            s[r][1] += rows[r * stride + i] * b;
        }
    }
    for (int r = 0; r < R; r++)
        for (int half = 0; half < 2; half++) store(out + r * out_stride + half * LANES, s[r][half]);
}

constexpr decltype(&products<1>) PRODUCTS[] = {products<1>, products<2>, products<3>,
                                               products<4>, products<5>, products<6>};

// cap * tanh(x / cap), from e^-2|x / cap|.
inline Floats capped(Floats x, float cap) {
    const Floats size = x < 0.0f ? -x : x;
    const Floats e = exponential(size * (-2.0f / cap));
    const Floats y = cap * (1.0f - e) / (1.0f + e);
    return x < 0.0f ? -y : y;
}

// Keys of one head, PANEL of them beside each other, in fp32: [panels, D, PANEL]; zeros behind the last.
template <class T>
void pack(const T *key, int64_t N, int64_t stride, int D, std::vector<float> &panels) {
    const int64_t count = (N + PANEL - 1) / PANEL;
    panels.assign(count * D * PANEL, 0.0f);
    for (int64_t n = 0; n < N; n++) {
        float *at = &panels[n / PANEL * D * PANEL + n % PANEL];
        for (int d = 0; d < D; d++) at[d * PANEL] = number(key[n * stride + d]);
    }
}

// Values of one head in fp32, [width, columns]; zeros behind the last, and behind their Dv numbers.
template <class T>
void unfold(const T *value, int64_t N, int64_t stride, int64_t Dv, int64_t columns, std::vector<float> &values) {
    for (int64_t n = 0; n < N; n++)
        for (int64_t d = 0; d < Dv; d++) values[n * columns + d] = number(value[n * stride + d]);
}

// One row of logits becomes e^(logit - the largest), `width` of them, a multiple of LANES; returns what they are to be
// multiplied by so that they are weights: 0 where nothing is seen.
inline float soften(float *logits, int64_t width, float sink) {
    Floats tops = load(logits);
    for (int64_t i = LANES; i < width; i += LANES) tops = larger(tops, load(logits + i));
    const float found = across<1>(tops, larger)[0], top = sink > found ? sink : found;
    if (top == -INFINITY) {
        // A comparison passes over what is not a number.
        if (!std::all_of(logits, logits + width, [](float x) { return x == -INFINITY; })) return NAN;
        std::fill(logits, logits + width, 0.0f);
        return 0.0f;
    }
    Floats all = {};
    for (int64_t i = 0; i < width; i += LANES) {
        const Floats x = load(logits + i);
        // Far below the top is nothing, as is what is hidden.
        const Floats e = x == -INFINITY ? (Floats){} : exponential(x - top);
        all += e;
        store(logits + i, e);
    }
    return 1.0f / (across<1>(all, sum)[0] + std::exp(sink - top));
}

// Hides from the query of `head` at `place` what it does not see of `seen` keys, and what stands behind them.
void hide(const Asked &asked, int64_t head, int64_t place, int64_t seen, int64_t width, float *row) {
    const int64_t from = head * asked.mask_head + place * asked.mask_query;
    if (asked.mask && asked.additive)
        for (int64_t i = 0; i < seen; i++) {
            const float more = ((const float *)asked.mask)[from + i];
            // What is hidden is hidden, also where its logit is not a number.
            row[i] = more == -INFINITY ? more : row[i] + more;
        }
    else if (asked.mask)
        for (int64_t i = 0; i < seen; i++)
            row[i] = ((const unsigned char *)asked.mask)[from + i] ? row[i] : -INFINITY;
    if (asked.hidden)
        for (int64_t i = 0; i < seen; i++) row[i] = asked.hidden[i] ? -INFINITY : row[i];
    std::fill(row + (asked.mask ? seen : std::min(place + 1, seen)), row + width, -INFINITY);
}

// What a thread works with: one head's keys and values, some rows of queries, and what becomes of them.
struct Desk {
    int64_t width, columns;  // keys and numbers of a value, rounded up
    std::vector<float> panels, values, rows, weights, sums, best;

    Desk(const Asked &asked, int64_t R)
        : width((asked.N + PANEL - 1) / PANEL * PANEL),
          columns(asked.attended ? (asked.Dv + PANEL - 1) / PANEL * PANEL : 0), values(width * columns),
          rows(R * asked.D), weights(R * width), sums(R * columns), best(width) {}
};

// Some rows of one query head: `best` becomes the most that these or earlier ones pay; `attended` [R, Dv], if there is
// such, what they are given.
void listen(const Asked &asked, int64_t head, int R, const int64_t *places, Desk &desk, float *attended) {
    const int64_t seen = asked.mask ? asked.N : places[R - 1] + 1, width = (seen + PANEL - 1) / PANEL * PANEL;
    const float sink = asked.sinks ? asked.sinks[head] : -INFINITY;
    float *weights = desk.weights.data(), *best = desk.best.data(), factors[MOST_QUERIES];
    for (int64_t first = 0; first < width; first += PANEL)
        for (int r = 0; r < R; r += TILE)
            PRODUCTS[std::min(TILE, R - r) - 1](&desk.rows[r * asked.D], asked.D, &desk.panels[first * asked.D], PANEL,
                                                asked.D, false, weights + r * width + first, width);
    for (int r = 0; r < R; r++) {
        float *row = weights + r * width;
        if (asked.softcap != 0.0f)
            for (int64_t i = 0; i < width; i += LANES) store(row + i, capped(load(row + i), asked.softcap));
        hide(asked, head, places[r], seen, width, row);
        const float factor = factors[r] = soften(row, width, sink);
        for (int64_t i = 0; i < width; i += LANES) store(best + i, larger(load(best + i), load(row + i) * factor));
        // What is not a number is told, and not passed over.
        if (factor != factor) best[0] = factor;
    }
    if (!attended) return;
    for (int64_t from = 0; from < width; from += BLOCK)
        for (int64_t column = 0; column < desk.columns; column += PANEL)
            for (int r = 0; r < R; r += TILE)
                PRODUCTS[std::min(TILE, R - r) - 1](weights + r * width + from, width,
                                                    &desk.values[from * desk.columns + column], desk.columns,
                                                    std::min(BLOCK, width - from), from > 0,
                                                    &desk.sums[r * desk.columns + column], desk.columns);
    for (int r = 0; r < R; r++)
        for (int64_t d = 0; d < asked.Dv; d++) attended[r * asked.Dv + d] = desk.sums[r * desk.columns + d] * factors[r];
}

template <class T>
void most_of(const Asked &asked, int threads, float *out) {
    const int64_t G = asked.Hq / asked.H, width = (asked.N + PANEL - 1) / PANEL * PANEL;
    const int64_t R = std::clamp<int64_t>(CACHED / width / TILE * TILE, 2 * TILE, MOST_QUERIES);
#pragma omp parallel num_threads(threads)
    {
        Desk desk(asked, R);
        int64_t packed = -1;
#pragma omp for schedule(dynamic)
        for (int64_t head = 0; head < asked.Hq; head++) {
            if (head / G != packed) {
                packed = head / G;
                pack((const T *)asked.key + packed * asked.head_stride, asked.N, asked.key_stride, asked.D, desk.panels);
                if (asked.attended)
                    unfold((const T *)asked.value + packed * asked.value_head_stride, asked.N, asked.value_stride,
                           asked.Dv, desk.columns, desk.values);
            }
            std::fill(desk.best.begin(), desk.best.end(), 0.0f);
            const T *query = (const T *)asked.query + head * asked.E * asked.D;
            for (int64_t first = 0; first < asked.E; first += R) {
                const int count = int(std::min(R, asked.E - first));
                for (int64_t i = 0; i < count * asked.D; i++)
                    desk.rows[i] = number(query[first * asked.D + i]) * asked.scaling;
                listen(asked, head, count, asked.places + first, desk,
                       asked.attended ? asked.attended + (head * asked.E + first) * asked.Dv : nullptr);
            }
            std::copy(desk.best.begin(), desk.best.begin() + asked.N, out + head * asked.N);
        }
    }
}

}  // namespace

// out [Hq, N] fp32.
extern "C" void madakv_most(const Asked *asked, int threads, float *out) {
    if (asked->kind == 0) most_of<BFloat16>(*asked, threads, out);
    if (asked->kind == 1) most_of<Float16>(*asked, threads, out);
    if (asked->kind == 2) most_of<float>(*asked, threads, out);
}
