// A vector of numbers at a time, bfloat16, fp16 or fp32, in fp32: the arithmetic that all kernels are made of.

#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>
#include <vector>

#ifdef __AVX2__
#include <immintrin.h>
#endif

namespace {

#ifdef __AVX512F__
constexpr int LANES = 16;
#else
constexpr int LANES = 8;
#endif
constexpr int STEP = 2 * LANES;  // numbers that are read at a time
constexpr int MOST_ROWS = 8;     // query rows that share one reading: their sums fill 32 registers

typedef float Floats __attribute__((vector_size(4 * LANES), may_alias));
typedef uint32_t Words __attribute__((vector_size(4 * LANES)));
typedef int32_t Ints __attribute__((vector_size(4 * LANES)));

// What keys, values and weights can be made of.
struct BFloat16 {
    uint16_t bits;
};
struct Float16 {
    uint16_t bits;
};
template <class T>
constexpr int LINE = 64 / sizeof(T);  // numbers that are fetched at a time

inline Words words(const void *at) {
    Words found;
    std::memcpy(&found, at, sizeof found);
    return found;
}

// The first `n` words, and zeros; what lies behind them is not touched.
inline Words words(const void *at, int n) {
#if defined(__AVX512F__)
    return (Words)_mm512_maskz_loadu_epi32(__mmask16((1u << n) - 1), at);
#elif defined(__AVX2__)
    const Ints lane = {0, 1, 2, 3, 4, 5, 6, 7};
    return (Words)_mm256_maskload_epi32((const int *)at, (__m256i)(lane < n));
#else
    Words found = {};
    std::memcpy(&found, at, 4 * n);
    return found;
#endif
}

// `STEP` numbers in fp32, in two halves.
struct Widened {
    Floats halves[2];
};

// Those of even index, then those of odd index.
inline Widened widened(Words pairs, BFloat16) { return {(Floats)(pairs << 16), (Floats)(pairs & 0xffff0000u)}; }

// The first half, then the second.
inline Widened widened(Words pairs, Float16) {
    Widened wide;
#if defined(__AVX512F__)
    const __m512i x = (__m512i)pairs;
    wide.halves[0] = (Floats)_mm512_cvtph_ps(_mm512_castsi512_si256(x));
    wide.halves[1] = (Floats)_mm512_cvtph_ps(_mm512_extracti64x4_epi64(x, 1));
#elif defined(__AVX2__) && defined(__F16C__)
    const __m256i x = (__m256i)pairs;
    wide.halves[0] = (Floats)_mm256_cvtph_ps(_mm256_castsi256_si128(x));
    wide.halves[1] = (Floats)_mm256_cvtph_ps(_mm256_extracti128_si256(x, 1));
#else
    _Float16 x[STEP];
    std::memcpy(x, &pairs, sizeof x);
    for (int i = 0; i < STEP; i++) wide.halves[i / LANES][i % LANES] = float(x[i]);
#endif
    return wide;
}

template <class T>
inline Widened widened(const T *at) {
    if constexpr (sizeof(T) == 4)
        return {{(Floats)words(at), (Floats)words(at + LANES)}};
    else
        return widened(words(at), T{});
}

// The first n numbers, an even number of them, and zeros.
template <class T>
inline Widened widened(const T *at, int n) {
    if constexpr (sizeof(T) == 4)
        return {{(Floats)words(at, std::min(n, LANES)), (Floats)words(at + LANES, std::max(n - LANES, 0))}};
    else
        return widened(words(at, n / 2), T{});
}

// Where number d of a row stands once it is widened.
template <class T>
inline int place(int d) {
    return std::is_same_v<T, BFloat16> ? d / STEP * STEP + d % 2 * LANES + d % STEP / 2 : d;
}

inline float number(BFloat16 x) {
    const uint32_t bits = uint32_t(x.bits) << 16;
    float y;
    std::memcpy(&y, &bits, sizeof y);
    return y;
}

inline float number(Float16 x) {
    _Float16 y;
    std::memcpy(&y, &x, sizeof y);
    return float(y);
}

inline float number(float x) { return x; }

// To the nearest, of two the even one; NaN stays NaN.
inline void round_to(BFloat16 *out, float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    out->bits = x == x ? (bits + 0x7fff + (bits >> 16 & 1)) >> 16 : 0x7fc0;
}

inline void round_to(Float16 *out, float x) {
    const _Float16 y = _Float16(x);
    std::memcpy(out, &y, sizeof y);
}

inline void round_to(float *out, float x) { *out = x; }

inline Floats sum(Floats a, Floats b) { return a + b; }
inline Floats larger(Floats a, Floats b) { return b > a ? b : a; }

// e^x of x at most 0, to about 1e-7 relative; NaN stays NaN. Never less than e^-80, 2e-35: shares of that are normal
// numbers, which some processors multiply a hundred times faster than smaller ones.
inline Floats exponential(Floats x) {
    x = x < -80.0f ? (Floats){} - 80.0f : x;
    const Ints whole = __builtin_convertvector(x * 1.44269504f - 0.5f, Ints);
    const Floats n = __builtin_convertvector(whole, Floats);
    // ln 2 in two pieces, of which the first times n is exact.
    const Floats f = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    Floats p = 1.0f / 120 + f * (1.0f / 720);
    p = 1.0f + f * (1.0f + f * (1.0f / 2 + f * (1.0f / 6 + f * (1.0f / 24 + f * p))));
    return p * (Floats)((whole + 127) << 23);
}

// Lane i of what lane i + BY was, all round.
template <int BY, int... LANE>
inline Floats turned(Floats x, std::integer_sequence<int, LANE...>) {
    return __builtin_shufflevector(x, x, (LANE + BY) % LANES...);
}

// Every lane becomes `of` all lanes that are multiples of BY away.
template <int BY, typename Of>
inline Floats across(Floats x, Of of) {
    if constexpr (BY < LANES)
        return across<2 * BY>(of(x, turned<BY>(x, std::make_integer_sequence<int, LANES>())), of);
    else
        return x;
}

// `STEP` numbers of a row or an entry. Products of bfloat16 are exact in fp32, and summed up in it; dot instructions
// take numbers below 1e-38 for 0. Without them there is a second sum, so that one addition need not wait for the other.
template <class T>
struct Chunk {
    Widened x;

    static Chunk of(const T *at) { return {widened(at)}; }
    static Chunk of(const T *at, int n) { return {widened(at, n)}; }
};

template <class T>
inline void add_product(Floats &sum, Floats &second, const Chunk<T> &query, const Chunk<T> &key) {
    sum += query.x.halves[0] * key.x.halves[0];
    second += query.x.halves[1] * key.x.halves[1];
}

#ifdef __AVX512BF16__
template <>
struct Chunk<BFloat16> {
    __m512bh x;

    static Chunk of(const BFloat16 *at) { return {(__m512bh)words(at)}; }
    static Chunk of(const BFloat16 *at, int n) { return {(__m512bh)words(at, n / 2)}; }
};

inline void add_product(Floats &sum, Floats &, const Chunk<BFloat16> &query, const Chunk<BFloat16> &key) {
    sum = (Floats)_mm512_dpbf16_ps((__m512)sum, query.x, key.x);
}
#endif

inline int64_t chunks_of(int64_t numbers) { return (numbers + STEP - 1) / STEP; }

// A row of D numbers as chunks, behind those that are there.
template <class T>
inline void append_chunks(std::vector<Chunk<T>> &rows, const T *row, int64_t D) {
    for (int64_t d = 0; d < D; d += STEP)
        rows.push_back(d + STEP <= D ? Chunk<T>::of(row + d) : Chunk<T>::of(row + d, int(D - d)));
}

// Sums over the lanes of as many vectors as one has lanes, as one vector: each fold halves the vectors and adds their
// halves.
#ifdef __AVX512F__
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
#else
inline Floats sums(const Floats *s) {
    const auto fold = [](Floats a, Floats b) {
        return __builtin_shufflevector(a, b, 0, 2, 8, 10, 4, 6, 12, 14) +
               __builtin_shufflevector(a, b, 1, 3, 9, 11, 5, 7, 13, 15);
    };
    const Floats a = fold(fold(s[0], s[1]), fold(s[2], s[3])), b = fold(fold(s[4], s[5]), fold(s[6], s[7]));
    return __builtin_shufflevector(a, b, 0, 1, 2, 3, 8, 9, 10, 11) +
           __builtin_shufflevector(a, b, 4, 5, 6, 7, 12, 13, 14, 15);
}
#endif

// In how many lanes R rows lie beside each other, and how many entries fill one vector with their products with them.
constexpr int lanes_of(int rows) { return rows > 4 ? 8 : rows > 2 ? 4 : rows; }
constexpr int entries_at_once(int rows) { return LANES / lanes_of(rows); }

// Products of R rows [R, D] with the next E of `left` entries [left, D]: entry e and row r in lane e * (LANES / E) + r.
// What is `far` and `near` numbers ahead is fetched into the second and into the first cache.
template <int R, class T>
inline Floats products(const Chunk<T> *rows, const T *first, int64_t left, int64_t D, int64_t far, int64_t near) {
    constexpr int E = entries_at_once(R), ROWS = LANES / E;
    // Entries that share a reading of the rows; memory prefers one.
    constexpr int ABREAST = R > 2 && E > 1 ? 2 : 1;
    constexpr bool APART = R <= 2;  // registers are left for second sums
    const int64_t chunks = chunks_of(D);
    Floats s[LANES] = {};
#pragma GCC unroll 16
    for (int e = 0; e < E; e += ABREAST) {
        Floats second[ROWS] = {};
        const T *at[ABREAST];
        for (int i = 0; i < ABREAST; i++) at[i] = first + std::min<int64_t>(e + i, left - 1) * D;
        for (int64_t c = 0; c < chunks; c++) {
            const int64_t d = c * STEP;
            Chunk<T> x[ABREAST];
            // What comes behind the end of an entry is already being read, if there is one beside it.
            const int64_t f = far + (d + far < D ? 0 : (ABREAST - 1) * D);
            const int64_t n = near + (d + near < D ? 0 : (ABREAST - 1) * D);
#pragma GCC unroll 2
            for (int i = 0; i < ABREAST; i++) {
                x[i] = d + STEP <= D ? Chunk<T>::of(at[i] + d) : Chunk<T>::of(at[i] + d, int(D - d));
#pragma GCC unroll 2
                for (int64_t line = d; line < d + STEP; line += LINE<T>)
                    if (line % LINE<T> == 0) {
                        __builtin_prefetch(at[i] + line + f, 0, 2);
                        __builtin_prefetch(at[i] + line + n, 0, 3);
                    }
            }
#pragma GCC unroll 8
            for (int r = 0; r < R; r++)
#pragma GCC unroll 2
                for (int i = 0; i < ABREAST; i++) {
                    Floats &sum = s[(e + i) * ROWS + r];
                    add_product(sum, APART ? second[r] : sum, rows[r * chunks + c], x[i]);
                }
        }
        if (APART)
            for (int r = 0; r < R; r++) s[e * ROWS + r] += second[r];
    }
    return sums(s);
}

// Weights of entries, ROWS to an entry as `products` has them, and how values are multiplied with them: in fp32, entry
// by entry.
template <class T, int ROWS>
struct Singly {
    static constexpr int ENTRIES = 1;
    Floats *at;

    // Replaces vector i; returns the weights as they are multiplied.
    Floats put(int i, Floats weights) const { return at[i] = weights; }

    float weight(int t, int r) const { return ((const float *)at)[t * ROWS + r]; }

    static Widened values(const T *first, const T *) { return widened(first); }
    static Widened values(const T *first, const T *, int n) { return widened(first, n); }

    static Floats plus(Floats sum, float weight, Floats values) { return sum + weight * values; }
};

// The same rounded to bfloat16, two entries at a time; products below 1e-38 are lost.
#ifdef __AVX512BF16__
template <int ROWS>
struct InPairs {
    static constexpr int ENTRIES = 2;
    Floats *at;

    typedef uint16_t Halves __attribute__((vector_size(2 * LANES)));

    struct Values {
        __m512bh halves[2];
    };

    // Weights of two entries for the same row, one behind the other.
    template <int... I>
    static Halves side_by_side(Halves x, std::integer_sequence<int, I...>) {
        return __builtin_shufflevector(x, x, (I / (2 * ROWS) * 2 * ROWS + I % 2 * ROWS + I % (2 * ROWS) / 2)...);
    }

    Floats put(int i, Floats weights) const {
        const Halves x = (Halves)_mm512_cvtneps_pbh((__m512)weights);
        const Halves pairs = side_by_side(x, std::make_integer_sequence<int, LANES>());
        std::memcpy((char *)at + i * sizeof pairs, &pairs, sizeof pairs);
        return (Floats)((Words)_mm512_cvtepu16_epi32((__m256i)x) << 16);
    }

    __m512bh weight(int t, int r) const {
        uint32_t pair;
        std::memcpy(&pair, (const char *)at + (t / 2 * ROWS + r) * sizeof pair, sizeof pair);
        return (__m512bh)((Words){} + pair);
    }

    static Values values(const BFloat16 *first, const BFloat16 *second) {
        return paired(words(first), words(second));
    }
    static Values values(const BFloat16 *first, const BFloat16 *second, int n) {
        return paired(words(first, n / 2), words(second, n / 2));
    }
    static Values paired(Words a, Words b) {
        return {{(__m512bh)((a & 0xffffu) | (b << 16)), (__m512bh)((a >> 16) | (b & 0xffff0000u))}};
    }

    static Floats plus(Floats sum, __m512bh weights, __m512bh values) {
        return (Floats)_mm512_dpbf16_ps((__m512)sum, weights, values);
    }
};

// Few rows are multiplied faster than memory is read.
template <class T, int R>
using Weights = std::conditional_t<std::is_same_v<T, BFloat16> && (R > 2), InPairs<lanes_of(R)>, Singly<T, lanes_of(R)>>;
#else
template <class T, int R>
using Weights = Singly<T, lanes_of(R)>;
#endif

}  // namespace
