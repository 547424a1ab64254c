// The most that any of several queries pays to each key: a softmax per query, then the largest weight per key.
//
// Queries are taken some rows at a time. Their logits over all keys lie in the second cache while the softmax'
// denominators are summed up and the largest of logit - log denominator is kept per key: only those leave it.

#include "arithmetic.h"

#include <cmath>
#include <vector>

namespace {

constexpr int TILE = 6;             // rows whose products with one panel of keys fill the registers
constexpr int PANEL = 2 * LANES;    // keys beside each other
constexpr int64_t CACHED = 1 << 16; // logits that are held at a time

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
};

inline Floats load(const float *at) {
    Floats x;
    std::memcpy(&x, at, sizeof x);
    return x;
}

inline void store(float *at, Floats x) { std::memcpy(at, &x, sizeof x); }

// Products of R rows [R, D] with a panel [D, PANEL] of keys.
template <int R>
inline void products_with_panel(const float *rows, const float *panel, int D, float *out, int64_t stride) {
    Floats s[R][2] = {};
    for (int d = 0; d < D; d++) {
        const Floats a = load(panel + d * PANEL), b = load(panel + d * PANEL + LANES);
#pragma GCC unroll 6
        for (int r = 0; r < R; r++) {
            s[r][0] += rows[r * D + d] * a;
            s[r][1] += rows[r * D + d] * b;
        }
    }
    for (int r = 0; r < R; r++) {
        store(out + r * stride, s[r][0]);
        store(out + r * stride + LANES, s[r][1]);
    }
}

constexpr decltype(&products_with_panel<1>) PRODUCTS[] = {products_with_panel<1>, products_with_panel<2>,
                                                          products_with_panel<3>, products_with_panel<4>,
                                                          products_with_panel<5>, products_with_panel<6>};

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

// The log of the softmax' denominator of one row of logits; n is a multiple of LANES.
inline float log_sum(const float *logits, int64_t n, float sink) {
    Floats top = load(logits);
    for (int64_t i = LANES; i < n; i += LANES) top = larger(top, load(logits + i));
    float most = across<1>(top, larger)[0];
    most = sink > most ? sink : most;
    if (most == -INFINITY) return -INFINITY;
    Floats all = {};
    for (int64_t i = 0; i < n; i += LANES) {
        const Floats x = load(logits + i);
        // Far below the top is nothing, as is what is hidden.
        all += x == -INFINITY ? (Floats){} : exponential(x - most);
    }
    return most + std::log(across<1>(all, sum)[0] + std::exp(sink - most));
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

// Some rows of one query head: `best` [width] becomes the most that these or earlier ones pay, as logarithms.
void listen(const Asked &asked, int64_t head, const float *rows, int R, const int64_t *places,
            const std::vector<float> &panels, float *logits, float *best) {
    const int64_t seen = asked.mask ? asked.N : places[R - 1] + 1, width = (seen + PANEL - 1) / PANEL * PANEL;
    const float sink = asked.sinks ? asked.sinks[head] : -INFINITY;
    for (int64_t first = 0; first < width; first += PANEL) {
        const float *panel = &panels[first * asked.D];
        for (int r = 0; r < R; r += TILE)
            PRODUCTS[std::min(TILE, R - r) - 1](rows + r * asked.D, panel, asked.D, logits + r * width + first, width);
    }
    for (int r = 0; r < R; r++) {
        float *row = logits + r * width;
        if (asked.softcap != 0.0f)
            for (int64_t i = 0; i < width; i += LANES) store(row + i, capped(load(row + i), asked.softcap));
        hide(asked, head, places[r], seen, width, row);
        const float lse = log_sum(row, width, sink);
        if (lse == -INFINITY) continue;
        for (int64_t i = 0; i < width; i += LANES) store(best + i, larger(load(best + i), load(row + i) - lse));
        // What is not a number is told, and not passed over.
        if (lse != lse) best[0] = lse;
    }
}

template <class T>
void most_of(const Asked &asked, int threads, float *out) {
    const int64_t G = asked.Hq / asked.H, width = (asked.N + PANEL - 1) / PANEL * PANEL;
    const int64_t R = std::clamp<int64_t>(CACHED / width / TILE * TILE, 2 * TILE, 8 * TILE);
#pragma omp parallel num_threads(threads)
    {
        std::vector<float> panels, rows(R * asked.D), logits(R * width), best(width);
        int64_t packed = -1;
#pragma omp for schedule(dynamic)
        for (int64_t head = 0; head < asked.Hq; head++) {
            if (head / G != packed) {
                packed = head / G;
                pack((const T *)asked.key + packed * asked.head_stride, asked.N, asked.key_stride, asked.D, panels);
            }
            std::fill(best.begin(), best.end(), -INFINITY);
            const T *query = (const T *)asked.query + head * asked.E * asked.D;
            for (int64_t first = 0; first < asked.E; first += R) {
                const int count = int(std::min(R, asked.E - first));
                for (int64_t i = 0; i < count * asked.D; i++)
                    rows[i] = number(query[first * asked.D + i]) * asked.scaling;
                listen(asked, head, rows.data(), count, asked.places + first, panels, logits.data(), best.data());
            }
            for (int64_t i = 0; i < width; i += LANES) {
                const Floats x = load(&best[i]);
                store(&best[i], x == -INFINITY ? (Floats){} : exponential(x));
            }
            std::copy(best.begin(), best.begin() + asked.N, out + head * asked.N);
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
