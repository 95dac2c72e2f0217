// The elementwise half of a Mamba-2 mixer for training on a CPU: everything between two matrix products in one pass over memory.
//
// mixer_cpu.py compiles this file, calls it through ctypes and does the products (bmm) in between; mamba2.py says what is computed, and
// in plain PyTorch it is the reference. Forward order: conv, scores, scan, gate. Backward is the reverse, each kernel recomputing the
// cheap things it needs instead of having them saved.
//
// Letters: B batch, T time = M chunks of L, E = H heads of P channels, N d_state, K d_conv, C = E + 2N convolution channels, W = E + C + H.
// Layouts (row-major; S is float or bfloat16, all other numbers are float, all sums are float):
//   proj  S [B, T, W]  z, x, B, C, dt      x, y1  S [B, M, H, L, P]    y2, xend  S [B, M, L, E]    Bm, Cm  S [B, M, L, N]
//   dt, cum  [B, M, H, L] (cum is the running sum of dt A since the chunk or the session began)
//   scores S [B, M, H, L, L]    cb  S [B, M, L, L]          states  S [B, M, E, N]
// first int32 [B, T]: the position where t's session began; far below 0 if before position 0. Position t may read j iff first[t] <= j.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

namespace {

struct Shape {
    int64_t B, T, H, P, N, K, L;
    float eps;
};

struct bf16 {
    uint16_t bits;
};

inline float get(float x) { return x; }
inline float get(bf16 x) {
    uint32_t u = uint32_t(x.bits) << 16;
    float f;
    std::memcpy(&f, &u, 4);
    return f;
}
inline void put(float& to, float x) { to = x; }
inline void put(bf16& to, float x) {  // round to nearest even
    uint32_t u;
    std::memcpy(&u, &x, 4);
    to.bits = uint16_t((u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
}

// exp to 2 ulp; the argument is clamped to where the result is a normal number.
inline float fast_exp(float x) {
    x = x < -87.0f ? -87.0f : x;
    x = x > 88.0f ? 88.0f : x;
    float n = std::nearbyint(x * 1.44269504f);
    float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    uint32_t u = uint32_t(int32_t(n) + 127) << 23;
    float scale;
    std::memcpy(&scale, &u, 4);
    return p * scale;
}
inline float sigmoid(float x) { return 1.0f / (1.0f + fast_exp(-x)); }
inline float softplus(float x) { return x > 20.0f ? x : std::log1p(std::exp(x)); }

// Row t of the convolution's input, as float: from proj, or from what came before the call.
template <class S>
void load_row(float* to, const S* proj, const float* past, int64_t b, int64_t t, const Shape& s, int64_t C, int64_t W, int64_t E) {
    if (t >= 0) {
        const S* from = proj + (b * s.T + t) * W + E;
#pragma omp simd
        for (int64_t c = 0; c < C; c++) to[c] = get(from[c]);
    } else {
        std::memcpy(to, past + (b * (s.K - 1) + s.K - 1 + t) * C, C * sizeof(float));
    }
}

// out = bias + sum of the K taps that belong to the session of t. ring[j % K] holds row j.
void taps(float* out, const float* ring, const float* w, const float* bias, int64_t t, int64_t first, int64_t K, int64_t C) {
    if (K == 4 && first <= t - 3) {
        const float *a = ring + ((t + 5) % 4) * C, *b = ring + ((t + 6) % 4) * C, *c = ring + ((t + 7) % 4) * C, *d = ring + (t % 4) * C;
        const float *wa = w, *wb = w + C, *wc = w + 2 * C, *wd = w + 3 * C;
#pragma omp simd
        for (int64_t i = 0; i < C; i++) out[i] = bias[i] + wa[i] * a[i] + wb[i] * b[i] + wc[i] * c[i] + wd[i] * d[i];
        return;
    }
    std::memcpy(out, bias, C * sizeof(float));
    for (int64_t k = 0; k < K; k++) {
        int64_t j = t - K + 1 + k;
        if (j < first) continue;
        const float *row = ring + ((j + K) % K) * C, *wk = w + k * C;
#pragma omp simd
        for (int64_t i = 0; i < C; i++) out[i] += wk[i] * row[i];
    }
}

// in: proj, past [B, K-1, C], w [K, C], bias [C], dt_bias [H], A [H], first      out: x, Bm, Cm, xend, dt, cum
template <class S, int P_>
void conv_forward(const Shape& s, void** p) {
    const S* proj = (const S*)p[0];
    const float *past = (const float*)p[1], *w = (const float*)p[2], *bias = (const float*)p[3], *dt_bias = (const float*)p[4],
                *A = (const float*)p[5];
    const int32_t* first = (const int32_t*)p[6];
    S *x = (S*)p[7], *Bm = (S*)p[8], *Cm = (S*)p[9], *xend = (S*)p[10];
    float *dt = (float*)p[11], *cum = (float*)p[12];
    const int64_t H = s.H, P = P_ ? P_ : s.P, N = s.N, K = s.K, L = s.L, M = s.T / L, E = H * P, C = E + 2 * N, W = E + C + H;
#pragma omp parallel
    {
        std::vector<float> ring(K * C), act(C);
#pragma omp for
        for (int64_t bm = 0; bm < s.B * M; bm++) {
            const int64_t b = bm / M, t0 = bm % M * L;
            float *dt_ = dt + bm * H * L, *cum_ = cum + bm * H * L;
            for (int64_t h = 0; h < H; h++) {
                float sum = 0;
                for (int64_t l = 0; l < L; l++) {
                    float d = softplus(get(proj[(b * s.T + t0 + l) * W + E + C + h]) + dt_bias[h]);
                    dt_[h * L + l] = d;
                    if (first[b * s.T + t0 + l] == t0 + l) sum = 0;  // so that not even rounding crosses a reset
                    cum_[h * L + l] = sum += d * A[h];
                }
            }
            const int64_t end_first = first[b * s.T + t0 + L - 1];
            for (int64_t j = t0 - K + 1; j < t0; j++) load_row(&ring[(j + K) % K * C], proj, past, b, j, s, C, W, E);
            for (int64_t l = 0; l < L; l++) {
                const int64_t t = t0 + l;
                load_row(&ring[t % K * C], proj, past, b, t, s, C, W, E);
                taps(act.data(), ring.data(), w, bias, t, first[b * s.T + t], K, C);
                float* a = act.data();
#pragma omp simd
                for (int64_t c = 0; c < C; c++) a[c] *= sigmoid(a[c]);
                for (int64_t h = 0; h < H; h++) {
                    const float g = t >= end_first ? dt_[h * L + l] * fast_exp(cum_[h * L + L - 1] - cum_[h * L + l]) : 0.0f;
                    S *to = x + ((bm * H + h) * L + l) * P, *end = xend + (bm * L + l) * E + h * P;
                    const float* ah = a + h * P;
#pragma omp simd
                    for (int64_t i = 0; i < P; i++) {
                        put(to[i], ah[i]);
                        put(end[i], ah[i] * g);
                    }
                }
                S *tb = Bm + (bm * L + l) * N, *tc = Cm + (bm * L + l) * N;
#pragma omp simd
                for (int64_t i = 0; i < N; i++) {
                    put(tb[i], a[E + i]);
                    put(tc[i], a[E + N + i]);
                }
            }
        }
    }
}

// in: proj, past, w, bias, dt_bias, A, first, x, dt, cum, D [H], dx1 like x, dy1 like x, dxend, dB1, dB2, dC1, dC2, dcum, ddt
// out: dproj (x, B, C, dt columns), dpast, dwb [B, K+1, C] (K taps, bias), dhead [B, 2, H] (A, dt_bias); dcum and ddt are used up
template <class S, int P_>
void conv_backward(const Shape& s, void** p) {
    const S* proj = (const S*)p[0];
    const float *past = (const float*)p[1], *w = (const float*)p[2], *bias = (const float*)p[3], *dt_bias = (const float*)p[4],
                *A = (const float*)p[5];
    const int32_t* first = (const int32_t*)p[6];
    const S* x = (const S*)p[7];
    const float *dt = (const float*)p[8], *cum = (const float*)p[9], *D = (const float*)p[10];
    const S *dx1 = (const S*)p[11], *dy1 = (const S*)p[12], *dxend = (const S*)p[13], *dB1 = (const S*)p[14], *dB2 = (const S*)p[15],
            *dC1 = (const S*)p[16], *dC2 = (const S*)p[17];
    float *dcum = (float*)p[18], *ddt = (float*)p[19];
    S* dproj = (S*)p[20];
    float *dpast = (float*)p[21], *dwb = (float*)p[22], *dhead = (float*)p[23];
    const int64_t H = s.H, P = P_ ? P_ : s.P, N = s.N, K = s.K, L = s.L, M = s.T / L, E = H * P, C = E + 2 * N, W = E + C + H;
#pragma omp parallel
    {
        std::vector<float> ring(K * C), din(K * C), pre(C), dact(C);
#pragma omp for
        for (int64_t b = 0; b < s.B; b++) {
            float *dw = dwb + b * (K + 1) * C, *dbias = dw + K * C, *dA = dhead + b * 2 * H, *ddt_bias = dA + H;
            std::fill(dw, dw + (K + 1) * C, 0.0f);
            std::fill(dA, dA + 2 * H, 0.0f);
            std::fill(din.begin(), din.end(), 0.0f);
            for (int64_t j = s.T - K + 1; j < s.T; j++) load_row(&ring[(j + K) % K * C], proj, past, b, j, s, C, W, E);
            for (int64_t m = M - 1; m >= 0; m--) {
                const int64_t bm = b * M + m, t0 = m * L, end_first = first[b * s.T + t0 + L - 1];
                const float *dt_ = dt + bm * H * L, *cum_ = cum + bm * H * L;
                float *dcum_ = dcum + bm * H * L, *ddt_ = ddt + bm * H * L;
                for (int64_t l = L - 1; l >= 0; l--) {
                    const int64_t t = t0 + l, f = first[b * s.T + t], oldest = t - K + 1;
                    load_row(&ring[(oldest + K) % K * C], proj, past, b, oldest, s, C, W, E);
                    std::fill_n(&din[(oldest + K) % K * C], K > 1 ? C : 0, 0.0f);
                    if (K == 1) std::fill(din.begin(), din.end(), 0.0f);
                    taps(pre.data(), ring.data(), w, bias, t, f, K, C);
                    float* da = dact.data();
                    for (int64_t h = 0; h < H; h++) {
                        const float to_end = t >= end_first ? fast_exp(cum_[h * L + L - 1] - cum_[h * L + l]) : 0.0f;
                        const float g = dt_[h * L + l] * to_end, Dh = D[h];
                        const int64_t at = ((bm * H + h) * L + l) * P;
                        const S *xh = x + at, *d1 = dx1 + at, *dy = dy1 + at, *de = dxend + (bm * L + l) * E + h * P;
                        float dg = 0;
#pragma omp simd reduction(+ : dg)
                        for (int64_t i = 0; i < P; i++) {
                            float e = get(de[i]);
                            dg += e * get(xh[i]);
                            da[h * P + i] = get(d1[i]) + Dh * get(dy[i]) + e * g;
                        }
                        ddt_[h * L + l] += dg * to_end;
                        dcum_[h * L + L - 1] += dg * g;
                        dcum_[h * L + l] -= dg * g;
                    }
                    const int64_t at = (bm * L + l) * N;
#pragma omp simd
                    for (int64_t i = 0; i < N; i++) {
                        da[E + i] = get(dB1[at + i]) + get(dB2[at + i]);
                        da[E + N + i] = get(dC1[at + i]) + get(dC2[at + i]);
                    }
                    const float* v = pre.data();
#pragma omp simd
                    for (int64_t c = 0; c < C; c++) {
                        float sg = sigmoid(v[c]);
                        da[c] *= sg * (1.0f + v[c] * (1.0f - sg));
                        dbias[c] += da[c];
                    }
                    for (int64_t k = 0; k < K; k++) {
                        const int64_t j = oldest + k;
                        if (j < f) continue;
                        const float *row = &ring[(j + K) % K * C], *wk = w + k * C;
                        float *dwk = dw + k * C, *dr = &din[(j + K) % K * C];
#pragma omp simd
                        for (int64_t c = 0; c < C; c++) {
                            dwk[c] += da[c] * row[c];
                            dr[c] += da[c] * wk[c];
                        }
                    }
                    S* to = dproj + (b * s.T + t) * W + E;
                    const float* done = &din[t % K * C];
#pragma omp simd
                    for (int64_t c = 0; c < C; c++) put(to[c], done[c]);
                }
                for (int64_t h = 0; h < H; h++) {
                    float sum = 0;
                    for (int64_t l = L - 1; l >= 0; l--) {
                        sum += dcum_[h * L + l];
                        const float d = dt_[h * L + l];
                        dA[h] += sum * d;
                        // softplus' = sigmoid(raw) = 1 - exp(-softplus(raw))
                        const float draw = (ddt_[h * L + l] + sum * A[h]) * -std::expm1(-d);
                        ddt_bias[h] += draw;
                        put(dproj[(b * s.T + t0 + l) * W + E + C + h], draw);
                        if (first[b * s.T + t0 + l] == t0 + l) sum = 0;
                    }
                }
            }
            for (int64_t j = 1 - K; j < 0; j++) std::memcpy(dpast + (b * (K - 1) + K - 1 + j) * C, &din[(j + K) % K * C], C * sizeof(float));
        }
    }
    (void)dt_bias;
}

// in: cb, dt, cum, first      out: scores[h, i, j] = cb[i, j] exp(cum[i] - cum[j]) dt[j] where i may read j <= i, else 0
template <class S, int>
void scores_forward(const Shape& s, void** p) {
    const S* cb = (const S*)p[0];
    const float *dt = (const float*)p[1], *cum = (const float*)p[2];
    const int32_t* first = (const int32_t*)p[3];
    S* scores = (S*)p[4];
    const int64_t H = s.H, L = s.L, M = s.T / L;
#pragma omp parallel for
    for (int64_t bm = 0; bm < s.B * M; bm++) {
        const int64_t b = bm / M, t0 = bm % M * L;
        for (int64_t h = 0; h < H; h++) {
            const float *d = dt + (bm * H + h) * L, *c = cum + (bm * H + h) * L;
            for (int64_t i = 0; i < L; i++) {
                const int32_t lo = int32_t(std::max<int64_t>(first[b * s.T + t0 + i] - t0, 0)), hi = int32_t(i);
                const S* from = cb + (bm * L + i) * L;
                S* to = scores + ((bm * H + h) * L + i) * L;
                const int32_t stop = int32_t(std::min<int64_t>((i / 16 + 1) * 16, L));
                const float ci = c[i];
#pragma omp simd
                for (int32_t j = 0; j < stop; j++) {
                    float v = get(from[j]) * fast_exp(std::min(ci - c[j], 0.0f)) * d[j];
                    put(to[j], (j >= lo) & (j <= hi) ? v : 0.0f);
                }
                std::fill(reinterpret_cast<char*>(to + stop), reinterpret_cast<char*>(to + L), 0);
            }
        }
    }
}

// in: cb, dt, cum, first, dscores      out: dcb (sum over heads), ddt (set); dcum is added to
template <class S, int>
void scores_backward(const Shape& s, void** p) {
    const S* cb = (const S*)p[0];
    const float *dt = (const float*)p[1], *cum = (const float*)p[2];
    const int32_t* first = (const int32_t*)p[3];
    const S* dscores = (const S*)p[4];
    S* dcb = (S*)p[5];
    float *ddt = (float*)p[6], *dcum = (float*)p[7];
    const int64_t H = s.H, L = s.L, M = s.T / L;
#pragma omp parallel
    {
        std::vector<float> sum(L * L), cbf(L * L), column(L);
#pragma omp for
        for (int64_t bm = 0; bm < s.B * M; bm++) {
            const int64_t b = bm / M, t0 = bm % M * L;
            std::fill(sum.begin(), sum.end(), 0.0f);
            for (int64_t i = 0; i < L * L; i++) cbf[i] = get(cb[bm * L * L + i]);
            for (int64_t h = 0; h < H; h++) {
                const float *d = dt + (bm * H + h) * L, *c = cum + (bm * H + h) * L;
                float *dd = ddt + (bm * H + h) * L, *dc = dcum + (bm * H + h) * L, *col = column.data();
                std::fill(column.begin(), column.end(), 0.0f);
                for (int64_t i = 0; i < L; i++) {
                    const int32_t lo = int32_t(std::max<int64_t>(first[b * s.T + t0 + i] - t0, 0)), hi = int32_t(i);
                    const S* ds = dscores + ((bm * H + h) * L + i) * L;
                    const float* from = &cbf[i * L];
                    float* to = &sum[i * L];
                    const int32_t stop = int32_t(std::min<int64_t>((i / 16 + 1) * 16, L));
                    const float ci = c[i];
                    float row = 0;
#pragma omp simd reduction(+ : row)
                    for (int32_t j = 0; j < stop; j++) {
                        float v = get(ds[j]) * fast_exp(std::min(ci - c[j], 0.0f));
                        v = (j >= lo) & (j <= hi) ? v : 0.0f;
                        to[j] += v * d[j];
                        v *= from[j];
                        col[j] += v;
                        row += v * d[j];
                    }
                    dc[i] += row;
                }
                for (int64_t j = 0; j < L; j++) {
                    dd[j] = col[j];
                    dc[j] -= col[j] * d[j];
                }
            }
            for (int64_t i = 0; i < L * L; i++) put(dcb[bm * L * L + i], sum[i]);
        }
    }
}

inline float carried(const Shape& s, const float* cum, const int32_t* first, int64_t b, int64_t m, int64_t h) {
    const int64_t M = s.T / s.L;
    if (first[b * s.T + (m + 1) * s.L - 1] >= m * s.L) return 0.0f;
    return fast_exp(cum[((b * M + m) * s.H + h) * s.L + s.L - 1]);
}

// in: adds like states, cum, first, initial [B, E, N]      out: states (before each chunk), last [B, E, N]
template <class S, int P_>
void scan_forward(const Shape& s, void** p) {
    const S* adds = (const S*)p[0];
    const float* cum = (const float*)p[1];
    const int32_t* first = (const int32_t*)p[2];
    const float* initial = (const float*)p[3];
    S* states = (S*)p[4];
    float* last = (float*)p[5];
    const int64_t H = s.H, M = s.T / s.L, n = s.P * s.N;
#pragma omp parallel for
    for (int64_t bh = 0; bh < s.B * H; bh++) {
        const int64_t b = bh / H, h = bh % H;
        float* state = last + bh * n;
        std::memcpy(state, initial + bh * n, n * sizeof(float));
        for (int64_t m = 0; m < M; m++) {
            const float carry = carried(s, cum, first, b, m, h);
            const int64_t at = ((b * M + m) * H + h) * n;
            const S* add = adds + at;
            S* to = states + at;
#pragma omp simd
            for (int64_t i = 0; i < n; i++) {
                const float more = get(add[i]);  // read first: adds and states may be one buffer
                put(to[i], state[i]);
                state[i] = state[i] * carry + more;
            }
        }
    }
}

// in: states, dstates, cum, first, dlast      out: dadds, dinitial; dcum is added to
template <class S, int P_>
void scan_backward(const Shape& s, void** p) {
    const S *states = (const S*)p[0], *dstates = (const S*)p[1];
    const float* cum = (const float*)p[2];
    const int32_t* first = (const int32_t*)p[3];
    const float* dlast = (const float*)p[4];
    S* dadds = (S*)p[5];
    float *dinitial = (float*)p[6], *dcum = (float*)p[7];
    const int64_t H = s.H, L = s.L, M = s.T / L, n = s.P * s.N;
#pragma omp parallel for
    for (int64_t bh = 0; bh < s.B * H; bh++) {
        const int64_t b = bh / H, h = bh % H;
        float* g = dinitial + bh * n;
        if (dlast)
            std::memcpy(g, dlast + bh * n, n * sizeof(float));
        else
            std::fill(g, g + n, 0.0f);
        for (int64_t m = M - 1; m >= 0; m--) {
            const float carry = carried(s, cum, first, b, m, h);
            const int64_t at = ((b * M + m) * H + h) * n;
            const S *st = states + at, *ds = dstates + at;
            S* to = dadds + at;
            float dcarry = 0;
#pragma omp simd reduction(+ : dcarry)
            for (int64_t i = 0; i < n; i++) {
                put(to[i], g[i]);
                dcarry += g[i] * get(st[i]);
                g[i] = g[i] * carry + get(ds[i]);
            }
            dcum[((b * M + m) * H + h) * L + L - 1] += dcarry * carry;
        }
    }
}

// y = y1 + exp(cum) y2 (if the session began before the chunk) + D x, and its gate v = y silu(z); returns sum v^2.
template <class S, int P_>
float gate_row(const Shape& s, const S* proj, const S* x, const S* y1, const S* y2, const float* start, const float* D, int64_t bm,
               int64_t l, float* y, float* v) {
    const int64_t H = s.H, P = P_ ? P_ : s.P, L = s.L, E = H * P;
    for (int64_t h = 0; h < H; h++) {
        const int64_t at = ((bm * H + h) * L + l) * P;
        const S *a = y1 + at, *xs = x + at, *c = y2 + (bm * L + l) * E + h * P;
        const float f = start[h], d = D[h];
        float* to = y + h * P;
#pragma omp simd
        for (int64_t i = 0; i < P; i++) to[i] = get(a[i]) + f * get(c[i]) + d * get(xs[i]);
    }
    float square = 0;
#pragma omp simd reduction(+ : square)
    for (int64_t i = 0; i < E; i++) {
        float z = get(proj[i]);
        v[i] = y[i] * z * sigmoid(z);
        square += v[i] * v[i];
    }
    return square;
}

template <class S, int P_>
void start_row(const Shape& s, const float* cum, const int32_t* first, int64_t b, int64_t m, int64_t l, float* start) {
    const bool reads = first[b * s.T + m * s.L + l] < m * s.L;
    for (int64_t h = 0; h < s.H; h++) start[h] = reads ? fast_exp(cum[(((b * (s.T / s.L)) + m) * s.H + h) * s.L + l]) : 0.0f;
}

// in: proj, x, y1, y2, cum, first, D, weight [E]      out: out S [B, T, E]
template <class S, int P_>
void gate_forward(const Shape& s, void** p) {
    const S *proj = (const S*)p[0], *x = (const S*)p[1], *y1 = (const S*)p[2], *y2 = (const S*)p[3];
    const float* cum = (const float*)p[4];
    const int32_t* first = (const int32_t*)p[5];
    const float *D = (const float*)p[6], *weight = (const float*)p[7];
    S* out = (S*)p[8];
    const int64_t H = s.H, P = P_ ? P_ : s.P, L = s.L, M = s.T / L, E = H * P, W = 2 * E + 2 * s.N + H;
#pragma omp parallel
    {
        std::vector<float> y(E), v(E), start(H);
#pragma omp for
        for (int64_t bm = 0; bm < s.B * M; bm++)
            for (int64_t l = 0; l < L; l++) {
                const int64_t row = bm * L + l;
                start_row<S, P_>(s, cum, first, bm / M, bm % M, l, start.data());
                float square = gate_row<S, P_>(s, proj + row * W, x, y1, y2, start.data(), D, bm, l, y.data(), v.data());
                const float r = 1.0f / std::sqrt(square / float(E) + s.eps), *vv = v.data();
                S* to = out + row * E;
#pragma omp simd
                for (int64_t i = 0; i < E; i++) put(to[i], vv[i] * r * weight[i]);
            }
    }
}

// in: proj, x, y1, y2, cum, first, D, weight, dout      out: dproj (z columns), dy1, dy2, dcum (set), dweight [B, E], dD [B, H]
template <class S, int P_>
void gate_backward(const Shape& s, void** p) {
    const S *proj = (const S*)p[0], *x = (const S*)p[1], *y1 = (const S*)p[2], *y2 = (const S*)p[3];
    const float* cum = (const float*)p[4];
    const int32_t* first = (const int32_t*)p[5];
    const float *D = (const float*)p[6], *weight = (const float*)p[7];
    const S* dout = (const S*)p[8];
    S *dproj = (S*)p[9], *dy1 = (S*)p[10], *dy2 = (S*)p[11];
    float *dcum = (float*)p[12], *dweight = (float*)p[13], *dD = (float*)p[14];
    const int64_t H = s.H, P = P_ ? P_ : s.P, L = s.L, M = s.T / L, E = H * P, W = 2 * E + 2 * s.N + H;
#pragma omp parallel
    {
        std::vector<float> y(E), v(E), start(H), dy(E);
#pragma omp for
        for (int64_t b = 0; b < s.B; b++) {
            float *dw = dweight + b * E, *dd = dD + b * H;
            std::fill(dw, dw + E, 0.0f);
            std::fill(dd, dd + H, 0.0f);
            for (int64_t m = 0; m < M; m++)
                for (int64_t l = 0; l < L; l++) {
                    const int64_t bm = b * M + m, row = bm * L + l;
                    const S *z = proj + row * W, *g = dout + row * E;
                    start_row<S, P_>(s, cum, first, b, m, l, start.data());
                    float square = gate_row<S, P_>(s, z, x, y1, y2, start.data(), D, bm, l, y.data(), v.data());
                    const float r = 1.0f / std::sqrt(square / float(E) + s.eps), *vv = v.data(), *yy = y.data();
                    float* dyy = dy.data();
                    float dot = 0;
#pragma omp simd reduction(+ : dot)
                    for (int64_t i = 0; i < E; i++) {
                        float gi = get(g[i]);
                        dw[i] += gi * vv[i] * r;
                        dyy[i] = gi * weight[i];
                        dot += dyy[i] * vv[i];
                    }
                    const float pull = dot * r * r * r / float(E);
                    S* dz = dproj + row * W;
#pragma omp simd
                    for (int64_t i = 0; i < E; i++) {
                        float zi = get(z[i]), sg = sigmoid(zi), dv = r * dyy[i] - pull * vv[i];
                        put(dz[i], dv * yy[i] * sg * (1.0f + zi * (1.0f - sg)));
                        dyy[i] = dv * zi * sg;
                    }
                    for (int64_t h = 0; h < H; h++) {
                        const int64_t at = ((bm * H + h) * L + l) * P;
                        const S *xs = x + at, *c = y2 + row * E + h * P;
                        S *to1 = dy1 + at, *to2 = dy2 + row * E + h * P;
                        const float *d = dyy + h * P, f = start[h];
                        float sx = 0, sy = 0;
#pragma omp simd reduction(+ : sx, sy)
                        for (int64_t i = 0; i < P; i++) {
                            sx += d[i] * get(xs[i]);
                            sy += d[i] * get(c[i]);
                            put(to1[i], d[i]);
                            put(to2[i], d[i] * f);
                        }
                        dd[h] += sx;
                        dcum[(bm * H + h) * L + l] = sy * f;
                    }
                }
        }
    }
}

// A pre-norm with its residual. in: residual f32 [n, width], branch S [n, width] or null, weight      out: sum f32, normed S
template <class S, int>
void norm_forward(const Shape& s, void** p) {
    const float* residual = (const float*)p[0];
    const S* branch = (const S*)p[1];
    const float* weight = (const float*)p[2];
    float* sum = (float*)p[3];
    S* out = (S*)p[4];
    const int64_t width = s.P;
#pragma omp parallel for
    for (int64_t t = 0; t < s.B * s.T; t++) {
        const float* from = residual + t * width;
        if (branch) {
            const S* add = branch + t * width;
            float* to = sum + t * width;
#pragma omp simd
            for (int64_t i = 0; i < width; i++) to[i] = from[i] + get(add[i]);
            from = to;
        }
        float square = 0;
#pragma omp simd reduction(+ : square)
        for (int64_t i = 0; i < width; i++) square += from[i] * from[i];
        const float r = 1.0f / std::sqrt(square / float(width) + s.eps);
        S* to = out + t * width;
#pragma omp simd
        for (int64_t i = 0; i < width; i++) put(to[i], from[i] * r * weight[i]);
    }
}

// in: sum f32, weight, dout S, dsum f32 or null      out: dresidual f32, dbranch S or null, dweight [B, width]
template <class S, int>
void norm_backward(const Shape& s, void** p) {
    const float *sum = (const float*)p[0], *weight = (const float*)p[1];
    const S* dout = (const S*)p[2];
    const float* dsum = (const float*)p[3];
    float* dresidual = (float*)p[4];
    S* dbranch = (S*)p[5];
    float* dweight = (float*)p[6];
    const int64_t width = s.P;
#pragma omp parallel for
    for (int64_t b = 0; b < s.B; b++) {
        float* dw = dweight + b * width;
        std::fill(dw, dw + width, 0.0f);
        for (int64_t t = b * s.T; t < (b + 1) * s.T; t++) {
            const float* v = sum + t * width;
            const S* g = dout + t * width;
            float square = 0, dot = 0;
#pragma omp simd reduction(+ : square, dot)
            for (int64_t i = 0; i < width; i++) {
                square += v[i] * v[i];
                dot += v[i] * get(g[i]) * weight[i];
            }
            const float r = 1.0f / std::sqrt(square / float(width) + s.eps), pull = dot * r * r * r / float(width);
            float* to = dresidual + t * width;
#pragma omp simd
            for (int64_t i = 0; i < width; i++) {
                float gi = get(g[i]);
                dw[i] += gi * v[i] * r;
                to[i] = gi * weight[i] * r - pull * v[i];
            }
            if (dsum) {
                const float* more = dsum + t * width;
#pragma omp simd
                for (int64_t i = 0; i < width; i++) to[i] += more[i];
            }
            if (dbranch) {
                S* tb = dbranch + t * width;
#pragma omp simd
                for (int64_t i = 0; i < width; i++) put(tb[i], to[i]);
            }
        }
    }
}

}  // namespace

#define KERNEL(name)                                                                    \
    extern "C" void name(int32_t half, const Shape* s, void** p) {                      \
        if (half)                                                                       \
            s->P == 32 ? name<bf16, 32>(*s, p) : s->P == 64 ? name<bf16, 64>(*s, p) : name<bf16, 0>(*s, p); \
        else                                                                            \
            name<float, 0>(*s, p);                                                      \
    }

KERNEL(conv_forward)
KERNEL(conv_backward)
KERNEL(scores_forward)
KERNEL(scores_backward)
KERNEL(scan_forward)
KERNEL(scan_backward)
KERNEL(gate_forward)
KERNEL(gate_backward)
KERNEL(norm_forward)
KERNEL(norm_backward)
