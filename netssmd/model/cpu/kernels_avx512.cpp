// AVX-512 F, BW, DQ, VL and VNNI (Cascade Lake, Zen 4 and later). bf16 weights are widened to fp32: VDPBF16PS would have to take the
// activations in two halves to keep their digits, and then is no faster.
#include "kernels.inl"

namespace netssmd {
const Kernels* avx512_kernels() {
    static const Kernels kernels = table("avx512");
    bool usable = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
                  __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("fma");
    return usable ? &kernels : nullptr;
}
}  // namespace netssmd
