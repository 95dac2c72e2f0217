// AVX2 and FMA (x86-64-v3).
#include "kernels.inl"

namespace netssmd {
const Kernels* avx2_kernels() {
    static const Kernels kernels = table("avx2");
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") ? &kernels : nullptr;
}
}  // namespace netssmd
