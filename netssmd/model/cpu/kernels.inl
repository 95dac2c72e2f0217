// The arithmetic of one step, written once over sixteen lanes and compiled per instruction set. See kernels.hpp for layouts and order.
#include <math.h>
#include <string.h>
#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif
#include "kernels.hpp"

namespace netssmd {
namespace {

#include "simd.inl"

// ---- norms and rows ------------------------------------------------------------------------------------------------------------------

INLINE float sum_of_squares(const float* x, int padded) {
    F16 s[2] = {zero(), zero()};
    for (int i = 0, j = 0; i < padded; i += kLanes, j ^= 1) {
        F16 a = load(x + i);
        s[j] = fma(a, a, s[j]);
    }
    return sum(s[0] + s[1]);
}

float rms_norm(const float* x, const float* weight, float* out, int width, int padded, float eps) {
    float squares = sum_of_squares(x, padded);
    F16 factor = set1(1.0f / sqrtf(squares / float(width) + eps));
    for (int i = 0; i < padded; i += kLanes) store(out + i, load(x + i) * factor * load(weight + i));
    return squares;
}

INLINE float from_bf16(uint16_t bits) {
    uint32_t wide = uint32_t(bits) << 16;
    float f;
    memcpy(&f, &wide, 4);
    return f;
}

INLINE uint16_t to_bf16(float f) {  // round to nearest even; f is finite
    uint32_t bits;
    memcpy(&bits, &f, 4);
    return uint16_t((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16);
}

void add_row(float* sum_row, const void* row, Dtype dtype, int padded) {
    if (dtype == Dtype::fp32) {
        auto from = static_cast<const float*>(row);
        for (int i = 0; i < padded; i += kLanes) store(sum_row + i, load(sum_row + i) + load(from + i));
    } else {
        auto from = static_cast<const uint16_t*>(row);
        for (int i = 0; i < padded; ++i) sum_row[i] += from_bf16(from[i]);
    }
}

void softmax(const float* logits, float* p, int n, float max, float inverse_temperature) {
    for (int i = 0; i < n; i += kLanes) {
        F16 x = (load(logits + i) - set1(max)) * set1(inverse_temperature);
        store(p + i, select_greater(x, -87.0f, exp16(x), zero()));  // what is out of exp16's reach has no weight at all
    }
}

// ---- matrices ------------------------------------------------------------------------------------------------------------------------

#if defined(NETSSMD_AMX)
// Eight rows are one tile row block: rows 0-7 the high parts, 8-15 the low parts of the same rows; a tile holds 64 bytes of k.
constexpr int kTileRows = 8;
INLINE char* tile_row(const Activations& to, int row, bool low, int bytes_of_k) {
    int blocks = to.k * bytes_of_k / 64;
    return static_cast<char*>(to.data) + size_t(row / kTileRows) * blocks * 1024 + size_t(row % kTileRows + (low ? kTileRows : 0)) * 64;
}
#endif

// bf16 with AMX: x = high + low, two bf16 numbers, 16 bits of mantissa together.
#if defined(NETSSMD_AMX)
void pack_split(const float* x, int used, const Activations& to, int row) {
    char* high = tile_row(to, row, false, 2);
    char* low = tile_row(to, row, true, 2);
    for (int k = 0; k < to.k; k += 32) {
        __m512 a = k < used ? _mm512_loadu_ps(x + k) : _mm512_setzero_ps();
        __m512 b = k + 16 < used ? _mm512_loadu_ps(x + k + 16) : _mm512_setzero_ps();
        __m512bh h = _mm512_cvtne2ps_pbh(b, a);
        __m512i bits = (__m512i)h;
        __m512 ah = _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm512_castsi512_si256(bits)), 16));
        __m512 bh = _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm512_extracti64x4_epi64(bits, 1)), 16));
        __m512bh l = _mm512_cvtne2ps_pbh(_mm512_sub_ps(b, bh), _mm512_sub_ps(a, ah));
        _mm512_storeu_si512(high + size_t(k / 32) * 1024, bits);
        _mm512_storeu_si512(low + size_t(k / 32) * 1024, (__m512i)l);
    }
}
#endif

// int8: q = round(8191 x / max|x|) + 8192 as two digits of 7 bits. 127 * 127 * 2 fits 16 bits, so AVX2's multiply-add does not saturate
// and all instruction sets get the same integers.
void pack_digits(const float* x, int used, const Activations& to, int row) {
    float largest = 0;
    bool finite = true;
    for (int k = 0; k < used; ++k) {
        float a = fabsf(x[k]);
        finite &= a <= 3.0e38f;
        largest = a > largest ? a : largest;
    }
    float inverse = finite && largest > 0 ? 8191.0f / largest : 0.0f;
    to.scale[row] = finite ? largest / 8191.0f : NAN;
    if (!finite) used = 0;
#if defined(NETSSMD_AMX)
    uint8_t* high = reinterpret_cast<uint8_t*>(tile_row(to, row, false, 1));
    uint8_t* low = reinterpret_cast<uint8_t*>(tile_row(to, row, true, 1));
    constexpr size_t block = 1024;
#else
    uint8_t* high = static_cast<uint8_t*>(to.data) + size_t(row) * to.k * 2;
    uint8_t* low = high + to.k;
    constexpr size_t block = 64;
#endif
    for (int k0 = 0; k0 < to.k; k0 += 64) {
        int32_t q[64];
        for (int j = 0; j < 64; ++j) q[j] = 8192;
        int m = used - k0 < 64 ? used - k0 : 64;
        for (int j = 0; j < m; ++j) {
            float scaled = x[k0 + j] * inverse + 12582912.0f;  // round to nearest even in the low bits
            int32_t bits;
            memcpy(&bits, &scaled, 4);
            q[j] = bits - 0x4B400000 + 8192;
        }
        uint8_t* h = high + size_t(k0 / 64) * block;
        uint8_t* l = low + size_t(k0 / 64) * block;
        for (int j = 0; j < 64; ++j) {
            h[j] = uint8_t(q[j] >> 7);
            l[j] = uint8_t(q[j] & 127);
        }
    }
}

void pack(Dtype dtype, const float* x, int used, const Activations& to, int row) {
    if (dtype == Dtype::int8) return pack_digits(x, used, to, row);
#if defined(NETSSMD_AMX)
    if (dtype == Dtype::bf16) return pack_split(x, used, to, row);
#endif
    float* out = static_cast<float*>(to.data) + size_t(row) * to.k;
    memcpy(out, x, sizeof(float) * size_t(used));
    memset(out + used, 0, sizeof(float) * size_t(to.k - used));
}

// Two columns of sixteen weights, widened to fp32.
struct PairFp32 {
    static constexpr size_t kBytes = 4;
    static INLINE void load2(const char* p, F16& a, F16& b) {
        a = load(reinterpret_cast<const float*>(p));
        b = load(reinterpret_cast<const float*>(p) + kLanes);
    }
};
struct PairBf16 {
    static constexpr size_t kBytes = 2;
    static INLINE void load2(const char* p, F16& a, F16& b) {
        EACH {
            I pair = *reinterpret_cast<const IU*>(p + i_ * kVectorBytes);
            I even = pair << 16, odd = pair & int32_t(0xFFFF0000);
            a.v[i_] = as_float(even);
            b.v[i_] = as_float(odd);
        }
    }
};

// Accumulators R panels x S rows stay in registers while k runs.
#if defined(__AVX512F__)
constexpr int kMaxRows = 8;
constexpr int max_panels(int rows) { return rows == 1 ? 10 : rows == 2 ? 8 : rows == 4 ? 5 : 3; }
#elif defined(__AVX2__)
constexpr int kMaxRows = 4;
constexpr int max_panels(int rows) { return rows == 1 ? 5 : rows == 2 ? 2 : 1; }
#elif defined(__aarch64__)
constexpr int kMaxRows = 4;
constexpr int max_panels(int rows) { return rows == 1 ? 5 : rows == 2 ? 2 : 1; }
#else
constexpr int kMaxRows = 2;
constexpr int max_panels(int rows) { return rows == 1 ? 3 : 1; }
#endif

template <class Pair, int R, int S>
void block(const Matrix& w, const float* x, int panel, float* out, size_t stride, bool add) {
    const size_t panel_bytes = w.panel_bytes();
    const char* p = static_cast<const char*>(w.data) + panel * panel_bytes;
    F16 acc[R][S];
    for (int r = 0; r < R; ++r)
        for (int s = 0; s < S; ++s) acc[r][s] = zero();
    for (int k = 0; k < w.k; k += 2, p += 2 * kLanes * Pair::kBytes) {
        F16 a[R], b[R];
        for (int r = 0; r < R; ++r) Pair::load2(p + r * panel_bytes, a[r], b[r]);
        for (int s = 0; s < S; ++s) {
            F16 x0 = set1(x[size_t(s) * w.k + k]);
            for (int r = 0; r < R; ++r) acc[r][s] = fma(a[r], x0, acc[r][s]);
        }
        for (int s = 0; s < S; ++s) {
            F16 x1 = set1(x[size_t(s) * w.k + k + 1]);
            for (int r = 0; r < R; ++r) acc[r][s] = fma(b[r], x1, acc[r][s]);
        }
    }
    for (int s = 0; s < S; ++s)
        for (int r = 0; r < R; ++r) {
            float* o = out + s * stride + r * kLanes;
            store(o, add ? load(o) + acc[r][s] : acc[r][s]);
        }
}

template <class Pair, int S, int R>
INLINE void pick(int panels, const Matrix& w, const float* x, int panel, float* out, size_t stride, bool add) {
    if (panels == R) return block<Pair, R, S>(w, x, panel, out, stride, add);
    if constexpr (R > 1) pick<Pair, S, R - 1>(panels, w, x, panel, out, stride, add);
}

template <class Pair, int S>
INLINE void rows_block(int panels, const Matrix& w, const float* x, int panel, float* out, size_t stride, bool add) {
    constexpr int most = max_panels(S);
    for (; panels > most; panels -= most, panel += most, out += most * kLanes)
        block<Pair, most, S>(w, x, panel, out, stride, add);
    pick<Pair, S, most>(panels, w, x, panel, out, stride, add);
}

// Panels outside, rows inside: the weights come from memory once, whatever n is.
template <class Pair>
void gemm_float(const Matrix& w, const Activations& x, int n, int first, int last, float* out, size_t stride, bool add) {
    int rows = n >= kMaxRows ? kMaxRows : n >= 4 ? 4 : n >= 2 ? 2 : 1;
    int pieces = (last - first + max_panels(rows) - 1) / max_panels(rows);
    auto xs = static_cast<const float*>(x.data);
    for (int i = 0, panel = first; i < pieces; ++i) {
        int panels = (last - panel + pieces - i - 1) / (pieces - i);
        for (int s = 0; s < n;) {
            const float* xr = xs + size_t(s) * w.k;
            float* o = out + s * stride + size_t(panel - first) * kLanes;
            int left = n - s;
            if constexpr (kMaxRows >= 8)
                if (left >= 8) { rows_block<Pair, 8>(panels, w, xr, panel, o, stride, add); s += 8; continue; }
            if constexpr (kMaxRows >= 4)
                if (left >= 4) { rows_block<Pair, 4>(panels, w, xr, panel, o, stride, add); s += 4; continue; }
            if (left >= 2) { rows_block<Pair, 2>(panels, w, xr, panel, o, stride, add); s += 2; continue; }
            rows_block<Pair, 1>(panels, w, xr, panel, o, stride, add);
            s += 1;
        }
        panel += panels;
    }
}

// int8 results: out = w.scale * x.scale * (128 * (high - 64 * row_sum) + low)
INLINE void finish_int8(const Matrix& w, int panel, float x_scale, const int32_t* high, const int32_t* low, float* out, bool add) {
    const float* scale = w.scale + size_t(panel) * kLanes;
    const int32_t* row_sum = w.row_sum + size_t(panel) * kLanes;
    for (int j = 0; j < kLanes; ++j) {
        float value = (float(high[j] - 64 * row_sum[j]) * 128.0f + float(low[j])) * (scale[j] * x_scale);
        out[j] = add ? out[j] + value : value;
    }
}

#if !defined(NETSSMD_AMX)
// acc += sum over 4 columns of w (signed) * x (7 bits unsigned)
struct Dot {
#if defined(__AVX512VNNI__)
    __m512i acc = _mm512_setzero_si512();
    INLINE void add(const int8_t* w, int32_t x) { acc = _mm512_dpbusd_epi32(acc, _mm512_set1_epi32(x), _mm512_loadu_si512(w)); }
    INLINE void to(int32_t* out) const { _mm512_storeu_si512(out, acc); }
#elif defined(__AVX2__)
    __m256i acc[2] = {_mm256_setzero_si256(), _mm256_setzero_si256()};
    INLINE void add(const int8_t* w, int32_t x) {
        for (int i = 0; i < 2; ++i) {
            __m256i pairs = _mm256_maddubs_epi16(_mm256_set1_epi32(x), _mm256_loadu_si256(reinterpret_cast<const __m256i*>(w) + i));
            acc[i] = _mm256_add_epi32(acc[i], _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
        }
    }
    INLINE void to(int32_t* out) const {
        for (int i = 0; i < 2; ++i) _mm256_storeu_si256(reinterpret_cast<__m256i*>(out) + i, acc[i]);
    }
#else
    int32_t acc[kLanes] = {};
    INLINE void add(const int8_t* w, int32_t x) {
        int32_t d[4] = {x & 255, (x >> 8) & 255, (x >> 16) & 255, (x >> 24) & 255};
        for (int j = 0; j < kLanes; ++j) acc[j] += w[4 * j] * d[0] + w[4 * j + 1] * d[1] + w[4 * j + 2] * d[2] + w[4 * j + 3] * d[3];
    }
    INLINE void to(int32_t* out) const { memcpy(out, acc, sizeof acc); }
#endif
};

template <int R, int S>
INLINE void block_int8(const Matrix& w, const Activations& x, int row, int panel, float* out, size_t stride, bool add) {
    const size_t panel_bytes = w.panel_bytes();
    const int8_t* p = static_cast<const int8_t*>(w.data) + panel * panel_bytes;
    const char* xs = static_cast<const char*>(x.data) + size_t(row) * w.k * 2;
    Dot high[R][S], low[R][S];
    for (int k = 0; k < w.k; k += 4, p += 4 * kLanes)
        for (int s = 0; s < S; ++s) {
            int32_t h, l;
            memcpy(&h, xs + size_t(s) * w.k * 2 + k, 4);
            memcpy(&l, xs + size_t(s) * w.k * 2 + w.k + k, 4);
            for (int r = 0; r < R; ++r) {
                high[r][s].add(p + r * panel_bytes, h);
                low[r][s].add(p + r * panel_bytes, l);
            }
        }
    for (int s = 0; s < S; ++s)
        for (int r = 0; r < R; ++r) {
            int32_t h[kLanes], l[kLanes];
            high[r][s].to(h);
            low[r][s].to(l);
            finish_int8(w, panel + r, x.scale[row + s], h, l, out + s * stride + r * kLanes, add);
        }
}

#if defined(__AVX512VNNI__)
constexpr int kInt8Panels = 4;
#else
constexpr int kInt8Panels = 1;
#endif

void gemm_int8(const Matrix& w, const Activations& x, int n, int first, int last, float* out, size_t stride, bool add) {
    for (int panel = first; panel < last;) {
        int r = last - panel >= kInt8Panels ? kInt8Panels : 1;
        float* o = out + size_t(panel - first) * kLanes;
        for (int s = 0; s < n;) {
            float* os = o + s * stride;
            if (r == 1) {
                block_int8<1, 1>(w, x, s, panel, os, stride, add);
                s += 1;
            } else if (n - s >= 2) {
                block_int8<kInt8Panels, 2>(w, x, s, panel, os, stride, add);
                s += 2;
            } else {
                block_int8<kInt8Panels, 1>(w, x, s, panel, os, stride, add);
                s += 1;
            }
        }
        panel += r;
    }
}
#endif

#if defined(__AVX512VNNI__)
// One row, as a session alone has it. Every weight is read once and used once, so what counts is how many lines of them are under way: R panels
// side by side, each line asked for kAsk bytes before it is used, CHAINS sums a panel (the integers are exact in any order). With tiles a
// row would wait for fourteen that are not there.
constexpr int kAsk = 1024;

template <int R, int CHAINS>
INLINE void row_block_int8(const Matrix& w, const char* high, const char* low, size_t block, float x_scale, int panel, float* out, bool add) {
    const size_t panel_bytes = w.panel_bytes();
    const char* p = static_cast<const char*>(w.data) + panel * panel_bytes;
    __m512i h[R][CHAINS] = {}, l[R][CHAINS] = {};
    for (int k = 0; k < w.k; k += 64, high += block, low += block)
        for (int j = 0; j < 16; ++j, p += 64) {
            int32_t x_high, x_low;
            memcpy(&x_high, high + 4 * j, 4);
            memcpy(&x_low, low + 4 * j, 4);
            for (int r = 0; r < R; ++r) {
                const char* at = p + r * panel_bytes;
                _mm_prefetch(at + kAsk, _MM_HINT_T0);
                __m512i weights = _mm512_loadu_si512(at);
                h[r][j % CHAINS] = _mm512_dpbusd_epi32(h[r][j % CHAINS], _mm512_set1_epi32(x_high), weights);
                l[r][j % CHAINS] = _mm512_dpbusd_epi32(l[r][j % CHAINS], _mm512_set1_epi32(x_low), weights);
            }
        }
    for (int r = 0; r < R; ++r) {
        alignas(64) int32_t sums[2][kLanes];
        for (int c = 1; c < CHAINS; ++c) {
            h[r][0] = _mm512_add_epi32(h[r][0], h[r][c]);
            l[r][0] = _mm512_add_epi32(l[r][0], l[r][c]);
        }
        _mm512_store_si512(sums[0], h[r][0]);
        _mm512_store_si512(sums[1], l[r][0]);
        finish_int8(w, panel + r, x_scale, sums[0], sums[1], out + r * kLanes, add);
    }
}

void row_int8(const Matrix& w, const Activations& x, int first, int last, float* out, bool add) {
    auto high = static_cast<const char*>(x.data);  // as pack_digits put them
#if defined(NETSSMD_AMX)
    const char* low = high + kTileRows * 64;
    constexpr size_t block = 1024;
#else
    const char* low = high + x.k;
    constexpr size_t block = 64;
#endif
    int panel = first;
    for (; panel + 4 <= last; panel += 4, out += 4 * kLanes) row_block_int8<4, 1>(w, high, low, block, x.scale[0], panel, out, add);
    for (; panel < last; ++panel, out += kLanes) row_block_int8<1, 4>(w, high, low, block, x.scale[0], panel, out, add);
}
#endif

#if defined(NETSSMD_AMX)
// Tiles: 0-3 sums, 4-5 activations (16 rows of 64 bytes), 6-7 weights (one panel, 64 bytes of k per output: exactly the matrix layout).
struct TileConfig {
    uint8_t palette, start_row, reserved[14];
    uint16_t bytes_per_row[16];
    uint8_t rows[16];
};

// A constant, because the compiler's ldtilecfg does not say that it reads all 64 bytes and stores before it may be dropped.
alignas(64) constexpr TileConfig kTiles = {1, 0, {}, {64, 64, 64, 64, 64, 64, 64, 64}, {16, 16, 16, 16, 16, 16, 16, 16}};

void begin() { _tile_loadconfig(&kTiles); }
void end() { _tile_release(); }

template <Dtype D>
INLINE void finish_tile(const Matrix& w, const Activations& x, const char* tile, int panel, int row, int n, float* out, size_t stride, bool add) {
    for (int s = 0; s < n && s < kTileRows; ++s) {
        float* o = out + s * stride;
        if constexpr (D == Dtype::bf16) {
            auto t = reinterpret_cast<const float*>(tile);
            F16 value = load(t + s * kLanes) + load(t + (s + kTileRows) * kLanes);
            store(o, add ? load(o) + value : value);
        } else {
            auto t = reinterpret_cast<const int32_t*>(tile);
            finish_int8(w, panel, x.scale[row + s], t + s * kLanes, t + (s + kTileRows) * kLanes, o, add);
        }
    }
}

#define TILE_DOT(sum, a, b)                                     \
    do {                                                        \
        if constexpr (D == Dtype::bf16) _tile_dpbf16ps(sum, a, b); \
        else _tile_dpbusd(sum, a, b);                           \
    } while (0)

template <Dtype D>
void gemm_tiles(const Matrix& w, const Activations& x, int n, int first, int last, float* out, size_t stride, bool add) {
    const size_t panel_bytes = w.panel_bytes();
    const int steps = int(panel_bytes / 1024);
    const char* weights = static_cast<const char*>(w.data);
    const char* xs = static_cast<const char*>(x.data);
    alignas(64) char tile[4][1024];
    asm volatile("" ::: "memory");  // the tile loads read memory, which their builtins do not say
    for (int panel = first; panel < last;) {
        const char* p = weights + panel * panel_bytes;
        const char* p1 = p + panel_bytes;
        float* o = out + size_t(panel - first) * kLanes;
        if (n <= kTileRows && last - panel >= 4) {
            const char* p2 = p1 + panel_bytes;
            const char* p3 = p2 + panel_bytes;
            _tile_zero(0); _tile_zero(1); _tile_zero(2); _tile_zero(3);
            for (int k = 0; k < steps; ++k) {
                _tile_loadd(4, xs + k * 1024, 64);
                _tile_loadd(6, p + k * 1024, 64); TILE_DOT(0, 4, 6);
                _tile_loadd(7, p1 + k * 1024, 64); TILE_DOT(1, 4, 7);
                _tile_loadd(6, p2 + k * 1024, 64); TILE_DOT(2, 4, 6);
                _tile_loadd(7, p3 + k * 1024, 64); TILE_DOT(3, 4, 7);
            }
            _tile_stored(0, tile[0], 64); _tile_stored(1, tile[1], 64); _tile_stored(2, tile[2], 64); _tile_stored(3, tile[3], 64);
            for (int r = 0; r < 4; ++r) finish_tile<D>(w, x, tile[r], panel + r, 0, n, o + r * kLanes, stride, add);
            panel += 4;
        } else if (last - panel >= 2) {
            int s = 0;
            for (; n - s > kTileRows; s += 2 * kTileRows) {
                const char* x0 = xs + size_t(s / kTileRows) * steps * 1024;
                const char* x1 = x0 + size_t(steps) * 1024;
                _tile_zero(0); _tile_zero(1); _tile_zero(2); _tile_zero(3);
                for (int k = 0; k < steps; ++k) {
                    _tile_loadd(4, x0 + k * 1024, 64);
                    _tile_loadd(6, p + k * 1024, 64); TILE_DOT(0, 4, 6);
                    _tile_loadd(7, p1 + k * 1024, 64); TILE_DOT(1, 4, 7);
                    _tile_loadd(5, x1 + k * 1024, 64);
                    TILE_DOT(2, 5, 6); TILE_DOT(3, 5, 7);
                }
                _tile_stored(0, tile[0], 64); _tile_stored(1, tile[1], 64); _tile_stored(2, tile[2], 64); _tile_stored(3, tile[3], 64);
                for (int r = 0; r < 4; ++r) {
                    int from = s + (r / 2) * kTileRows;
                    finish_tile<D>(w, x, tile[r], panel + r % 2, from, n - from, o + from * stride + (r % 2) * kLanes, stride, add);
                }
            }
            if (s < n) {
                const char* x0 = xs + size_t(s / kTileRows) * steps * 1024;
                _tile_zero(0); _tile_zero(1);
                for (int k = 0; k < steps; ++k) {
                    _tile_loadd(4, x0 + k * 1024, 64);
                    _tile_loadd(6, p + k * 1024, 64); TILE_DOT(0, 4, 6);
                    _tile_loadd(7, p1 + k * 1024, 64); TILE_DOT(1, 4, 7);
                }
                _tile_stored(0, tile[0], 64); _tile_stored(1, tile[1], 64);
                for (int r = 0; r < 2; ++r) finish_tile<D>(w, x, tile[r], panel + r, s, n - s, o + s * stride + r * kLanes, stride, add);
            }
            panel += 2;
        } else {
            for (int s = 0; s < n; s += kTileRows) {
                const char* x0 = xs + size_t(s / kTileRows) * steps * 1024;
                _tile_zero(0);
                for (int k = 0; k < steps; ++k) {
                    _tile_loadd(4, x0 + k * 1024, 64);
                    _tile_loadd(6, p + k * 1024, 64); TILE_DOT(0, 4, 6);
                }
                _tile_stored(0, tile[0], 64);
                finish_tile<D>(w, x, tile[0], panel, s, n - s, o + s * stride, stride, add);
            }
            panel += 1;
        }
    }
}
#else
void begin() {}
void end() {}
#endif

void gemm(const Matrix& w, const Activations& x, int n, int first, int last, float* out, size_t stride, bool add) {
    if (w.dtype == Dtype::fp32) return gemm_float<PairFp32>(w, x, n, first, last, out, stride, add);
#if defined(__AVX512VNNI__)
    if (w.dtype == Dtype::int8 && n == 1) return row_int8(w, x, first, last, out, add);
#endif
#if defined(NETSSMD_AMX)
    if (w.dtype == Dtype::bf16) return gemm_tiles<Dtype::bf16>(w, x, n, first, last, out, stride, add);
    return gemm_tiles<Dtype::int8>(w, x, n, first, last, out, stride, add);
#else
    if (w.dtype == Dtype::bf16) return gemm_float<PairBf16>(w, x, n, first, last, out, stride, add);
    return gemm_int8(w, x, n, first, last, out, stride, add);
#endif
}

// ---- the recurrent part of a layer -----------------------------------------------------------------------------------------------------

// silu(bias + sum over taps), the window moved on by one per token. TAPS = 0: any number, up to 16. kept: see Ahead.
template <int TAPS>
INLINE void convolve_taps(const Mixer& m, float* conv, float* x, size_t stride, int tokens, float* kept) {
    const int taps = TAPS ? TAPS : m.taps, channels = m.channels();
    for (int c = 0; c < channels; c += kLanes) {
        F16 window[TAPS ? TAPS : 16], weight[TAPS ? TAPS : 16];
        for (int j = 0; j < taps; ++j) weight[j] = load(m.conv_weight + size_t(j) * channels + c);
        for (int j = 0; j + 1 < taps; ++j) window[j] = load(conv + size_t(j) * channels + c);
        F16 bias = load(m.conv_bias + c);
        for (int t = 0; t < tokens; ++t) {
            float* here = x + t * stride + c;
            window[taps - 1] = load(here);
            if (kept && t) store(kept + size_t(t - 1) * m.kept() + c, window[taps - 1]);
            F16 s = bias;
            for (int j = 0; j < taps; ++j) s = fma(window[j], weight[j], s);
            store(here, silu16(s));
            for (int j = 0; j + 1 < taps; ++j) window[j] = window[j + 1];
            if (t == (kept ? 0 : tokens - 1))
                for (int j = 0; j + 1 < taps; ++j) store(conv + size_t(j) * channels + c, window[j]);
        }
    }
}

// state = decay * state + (dt x) B^T; y = state C + D x, over x in place, for one head's group of GROUP * 16 lanes. Two sums (even and odd n).
template <int GROUP>
INLINE void update(float* state, const float* B, const float* C, float* x, int n, float dt, float decay, float D) {
    F16 xdt[GROUP], y[GROUP], odd[GROUP], keep = set1(decay);
    for (int g = 0; g < GROUP; ++g) {
        xdt[g] = load(x + g * kLanes) * set1(dt);
        y[g] = load(x + g * kLanes) * set1(D);
        odd[g] = zero();
    }
    int i = 0;
    for (; i + 1 < n; i += 2) {
        F16 b0 = set1(B[i]), c0 = set1(C[i]), b1 = set1(B[i + 1]), c1 = set1(C[i + 1]);
        for (int g = 0; g < GROUP; ++g) {
            float* s0 = state + (size_t(i) * GROUP + g) * kLanes;
            float* s1 = s0 + GROUP * kLanes;
            F16 h0 = fma(xdt[g], b0, keep * load(s0));
            F16 h1 = fma(xdt[g], b1, keep * load(s1));
            store(s0, h0);
            store(s1, h1);
            y[g] = fma(h0, c0, y[g]);
            odd[g] = fma(h1, c1, odd[g]);
        }
    }
    for (; i < n; ++i)
        for (int g = 0; g < GROUP; ++g) {
            float* s = state + (size_t(i) * GROUP + g) * kLanes;
            F16 h = fma(xdt[g], set1(B[i]), keep * load(s));
            store(s, h);
            y[g] = fma(h, set1(C[i]), y[g]);
        }
    for (int g = 0; g < GROUP; ++g) store(x + g * kLanes, y[g] + odd[g]);
}

// The state's part of `update`, in the same arithmetic.
template <int GROUP>
INLINE void decay_and_add(float* state, const float* B, const float* x, int n, float dt, float decay) {
    F16 xdt[GROUP], keep = set1(decay);
    for (int g = 0; g < GROUP; ++g) xdt[g] = load(x + g * kLanes) * set1(dt);
    for (int i = 0; i < n; ++i)
        for (int g = 0; g < GROUP; ++g) {
            float* s = state + (size_t(i) * GROUP + g) * kLanes;
            store(s, fma(xdt[g], set1(B[i]), keep * load(s)));
        }
}

template <int GROUP>
INLINE void scan_heads(const Mixer& m, float* ssm, float* x, size_t stride, int tokens, const float* dt, const float* decay, float* room, int first,
                       int last) {
    const int width = m.dt_width(), per_head = m.groups_of_lanes, heads_per_group = m.heads / m.ngroups;
    const size_t piece = size_t(m.state) * GROUP * kLanes;
    for (int h = first; h < last; ++h) {
        const size_t b = size_t(m.inner) + size_t(h / heads_per_group) * m.state_padded;
        const size_t c = b + size_t(m.ngroups) * m.state_padded;
        for (int g = 0; g < per_head; ++g) {
            float* state = ssm + (size_t(h) * per_head + g) * piece;
            float* lanes = x + (size_t(h) * per_head + g) * GROUP * kLanes;
            for (int t = 0; t < tokens; ++t) {  // the state of one head stays in the first-level cache for all tokens
                if (room && t == 1) state = static_cast<float*>(memcpy(room, state, piece * sizeof(float)));
                const float* row = x + t * stride;
                update<GROUP>(state, row + b, row + c, lanes + t * stride, m.state, dt[t * width + h], decay[t * width + h], m.D[h]);
            }
        }
    }
}

template <int GROUP>
INLINE void absorb_scan(const Mixer& m, float* ssm, const float* kept, int tokens) {
    const int per_head = m.groups_of_lanes, heads_per_group = m.heads / m.ngroups, channels = m.channels(), width = m.dt_width();
    const size_t piece = size_t(m.state) * GROUP * kLanes, row = size_t(m.kept());
    for (int h = 0; h < m.heads; ++h) {
        const size_t b = size_t(channels) + m.inner + size_t(h / heads_per_group) * m.state_padded;
        for (int g = 0; g < per_head; ++g) {
            const size_t part = size_t(h) * per_head + g;
            for (int t = 0; t < tokens; ++t) {
                const float* from = kept + t * row;
                const float* dt = from + 2 * size_t(channels);
                decay_and_add<GROUP>(ssm + part * piece, from + b, from + channels + part * GROUP * kLanes, m.state, dt[h], dt[width + h]);
            }
        }
    }
}

void absorb(const Mixer& m, float* conv, float* ssm, const float* kept, int tokens) {
    const int before = m.taps - 1, channels = m.channels();
    for (int j = 0; j < before; ++j) {
        const int from = j + tokens;  // in the old window with the tokens behind it
        const float* line = from < before ? conv + size_t(from) * channels : kept + size_t(from - before) * m.kept();
        memcpy(conv + size_t(j) * channels, line, size_t(channels) * sizeof(float));
    }
    if (m.lanes == 32) absorb_scan<2>(m, ssm, kept, tokens);
    else absorb_scan<1>(m, ssm, kept, tokens);
}

void convolve(const Mixer& m, float* conv, float* rows, size_t stride, int tokens, float* dt, float* decay, Ahead ahead) {
    float* x = rows + m.inner;
    const int width = m.dt_width();
    if (m.taps == 4) convolve_taps<4>(m, conv, x, stride, tokens, ahead.kept);
    else convolve_taps<0>(m, conv, x, stride, tokens, ahead.kept);
    for (int t = 0; t < tokens; ++t)
        for (int h = 0; h < width; h += kLanes) {
            F16 d = softplus16(load(x + t * stride + m.channels() + h) + load(m.dt_bias + h));
            store(dt + size_t(t) * width + h, d);
            store(decay + size_t(t) * width + h, exp16(d * load(m.A + h)));
        }
    if (ahead.kept)
        for (int t = 1; t < tokens; ++t) {
            float* behind = ahead.kept + size_t(t - 1) * m.kept() + m.channels();
            memcpy(behind, x + t * stride, size_t(m.channels()) * sizeof(float));
            memcpy(behind + m.channels(), dt + size_t(t) * width, size_t(width) * sizeof(float));
            memcpy(behind + m.channels() + width, decay + size_t(t) * width, size_t(width) * sizeof(float));
        }
}

void scan(const Mixer& m, float* ssm, float* rows, size_t stride, int tokens, const float* dt, const float* decay, Ahead ahead, int first, int last) {
    float* room = ahead.kept ? ahead.room : nullptr;
    if (m.lanes == 32) scan_heads<2>(m, ssm, rows + m.inner, stride, tokens, dt, decay, room, first, last);
    else scan_heads<1>(m, ssm, rows + m.inner, stride, tokens, dt, decay, room, first, last);
}

void gate(const Mixer& m, const float* rows, size_t stride, int tokens, float* out) {
    const int part = m.inner / m.norm_groups;
    for (int t = 0; t < tokens; ++t)
        for (int g = 0; g < m.norm_groups; ++g) {
            const float* z = rows + t * stride + g * part;
            const float* y = rows + m.inner + t * stride + g * part;
            float* o = out + size_t(t) * m.inner + g * part;
            for (int i = 0; i < part; i += kLanes) store(o + i, load(y + i) * silu16(load(z + i)));
            rms_norm(o, m.norm + g * part, o, m.norm_width, part, m.eps);
        }
}

constexpr Kernels table(const char* name) { return {name, rms_norm, pack, gemm, convolve, scan, gate, absorb, add_row, softmax, begin, end}; }

}  // namespace
}  // namespace netssmd
