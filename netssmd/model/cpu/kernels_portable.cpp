// Plain 128-bit vectors: SSE2 on x86-64, NEON on aarch64.
#include "kernels.inl"

namespace netssmd {
const Kernels* portable_kernels() {
    static const Kernels kernels = table("portable");
    return &kernels;
}
}  // namespace netssmd
