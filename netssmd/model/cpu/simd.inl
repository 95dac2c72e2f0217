// Sixteen floats: one AVX-512 register, two AVX2 registers, or four of 128 bits (SSE, NEON). GCC and Clang vector extensions do the work;
// only the fused multiply-add, the reciprocal and the broadcast load are named, because rounding and speed hang on them.
// Included by kernels.inl inside an anonymous namespace.

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif
constexpr int kParts = 64 / kVectorBytes;
constexpr int kWidth = kVectorBytes / 4;

typedef float V __attribute__((vector_size(kVectorBytes)));
typedef int32_t I __attribute__((vector_size(kVectorBytes)));
typedef float VU __attribute__((vector_size(kVectorBytes), aligned(4), may_alias));
typedef int32_t IU __attribute__((vector_size(kVectorBytes), aligned(4), may_alias));

#define INLINE inline __attribute__((always_inline))

INLINE I as_int(V a) { return (I)a; }  // the same bits
INLINE V as_float(I a) { return (V)a; }

INLINE V fma1(V a, V b, V c) {
#if defined(__AVX512F__)
    return _mm512_fmadd_ps(a, b, c);
#elif defined(__AVX2__)
    return _mm256_fmadd_ps(a, b, c);
#elif defined(__aarch64__)
    return vfmaq_f32(c, a, b);
#else
    return a * b + c;
#endif
}

struct F16 {
    V v[kParts];
};
struct I16 {
    I v[kParts];
};

#define EACH for (int i_ = 0; i_ < kParts; ++i_)
INLINE F16 load(const float* p) { F16 r; EACH r.v[i_] = *reinterpret_cast<const VU*>(p + i_ * kWidth); return r; }
INLINE void store(float* p, F16 a) { EACH *reinterpret_cast<VU*>(p + i_ * kWidth) = a.v[i_]; }
INLINE F16 set1(float x) { F16 r; EACH r.v[i_] = V{} + x; return r; }
INLINE F16 zero() { F16 r; EACH r.v[i_] = V{}; return r; }
INLINE F16 operator+(F16 a, F16 b) { EACH a.v[i_] = a.v[i_] + b.v[i_]; return a; }
INLINE F16 operator-(F16 a, F16 b) { EACH a.v[i_] = a.v[i_] - b.v[i_]; return a; }
INLINE F16 operator*(F16 a, F16 b) { EACH a.v[i_] = a.v[i_] * b.v[i_]; return a; }
INLINE F16 fma(F16 a, F16 b, F16 c) { EACH c.v[i_] = fma1(a.v[i_], b.v[i_], c.v[i_]); return c; }
// A NaN in `a` stays.
INLINE F16 clamp(F16 a, float lo, float hi) {
    V l = V{} + lo, h = V{} + hi;
    EACH { a.v[i_] = a.v[i_] < l ? l : a.v[i_]; a.v[i_] = a.v[i_] > h ? h : a.v[i_]; }
    return a;
}
INLINE F16 select_greater(F16 a, float limit, F16 yes, F16 no) { V l = V{} + limit; EACH no.v[i_] = a.v[i_] > l ? yes.v[i_] : no.v[i_]; return no; }
INLINE F16 select_equal(F16 a, float x, F16 yes, F16 no) { V l = V{} + x; EACH no.v[i_] = a.v[i_] == l ? yes.v[i_] : no.v[i_]; return no; }
INLINE F16 divide(F16 a, F16 b) { EACH a.v[i_] = a.v[i_] / b.v[i_]; return a; }
// a / b for normal, finite b.
INLINE F16 ratio(F16 a, F16 b) {
#if defined(__AVX512F__)
    __m512 r = _mm512_rcp14_ps(b.v[0]);
    r = _mm512_mul_ps(r, _mm512_fnmadd_ps(b.v[0], r, _mm512_set1_ps(2.0f)));
    a.v[0] = a.v[0] * r;
    return a;
#else
    return divide(a, b);
#endif
}
// Sum of lanes in one fixed order.
INLINE float sum(F16 a) {
    float t[16];
    store(t, a);
    for (int w = 8; w; w /= 2)
        for (int i = 0; i < w; ++i) t[i] += t[i + w];
    return t[0];
}

// exp, relative error < 2e-7 between the clamps. Cephes expf: x = n ln2 + r, |r| <= ln2 / 2, a polynomial of degree 7 for e^r.
INLINE F16 exp16(F16 x) {
    x = clamp(x, -87.3f, 88.0f);
    F16 n = fma(x, set1(1.44269504088896341f), set1(12582912.0f));  // rounds to the integer in the low mantissa bits
    I16 e;
    EACH e.v[i_] = (as_int(n.v[i_]) - 0x4B400000) << 23;
    n = n - set1(12582912.0f);
    F16 r = fma(n, set1(-0.693359375f), x);
    r = fma(n, set1(2.12194440e-4f), r);
    F16 p = set1(1.9875691500e-4f);
    p = fma(p, r, set1(1.3981999507e-3f));
    p = fma(p, r, set1(8.3334519073e-3f));
    p = fma(p, r, set1(4.1665795894e-2f));
    p = fma(p, r, set1(1.6666665459e-1f));
    p = fma(p, r, set1(5.0000001201e-1f));
    p = fma(p, r * r, r) + set1(1.0f);
    EACH {
        I bits = as_int(p.v[i_]) + e.v[i_];
        V scaled = as_float(bits);
        p.v[i_] = p.v[i_] == p.v[i_] ? scaled : p.v[i_];
    }
    return p;
}

// x / (1 + exp(-x))
INLINE F16 silu16(F16 x) { return ratio(x, exp16(clamp(zero() - x, -87.0f, 87.0f)) + set1(1.0f)); }

// Natural logarithm of a normal positive x, Cephes logf.
INLINE F16 log16(F16 x) {
    F16 e, m;
    EACH {
        I bits = as_int(x.v[i_]);
        I mantissa = (bits & 0x007FFFFF) | 0x3F000000;  // [0.5, 1)
        V f = as_float(mantissa);
        V ex = __builtin_convertvector((bits >> 23) - 126, V);
        I small = f < (V{} + 0.707106781186547524f);
        e.v[i_] = small ? ex - 1.0f : ex;
        m.v[i_] = (small ? f + f : f) - 1.0f;
    }
    F16 z = m * m;
    F16 p = set1(7.0376836292e-2f);
    p = fma(p, m, set1(-1.1514610310e-1f));
    p = fma(p, m, set1(1.1676998740e-1f));
    p = fma(p, m, set1(-1.2420140846e-1f));
    p = fma(p, m, set1(1.4249322787e-1f));
    p = fma(p, m, set1(-1.6668057665e-1f));
    p = fma(p, m, set1(2.0000714765e-1f));
    p = fma(p, m, set1(-2.4999993993e-1f));
    p = fma(p, m, set1(3.3333331174e-1f));
    F16 y = p * m * z;
    y = fma(e, set1(-2.12194440e-4f), y);
    y = fma(z, set1(-0.5f), y);
    return fma(e, set1(0.693359375f), m + y);
}

// log(1 + exp(x)), x itself above 20 as torch does. log1p(u) = log(w) u / (w - 1) with w = 1 + u keeps the digits of a small u (Goldberg).
INLINE F16 softplus16(F16 x) {
    F16 u = exp16(clamp(x, -87.0f, 30.0f));
    F16 w = u + set1(1.0f);
    F16 exact = select_equal(w, 1.0f, u, divide(log16(w) * u, select_equal(w, 1.0f, w, w - set1(1.0f))));
    exact = select_greater(x, 20.0f, x, exact);
    EACH exact.v[i_] = x.v[i_] == x.v[i_] ? exact.v[i_] : x.v[i_];  // a NaN stays
    return exact;
}
