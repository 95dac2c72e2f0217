// AVX-512 with AMX tiles (Sapphire Rapids and later) for bf16 and int8 matrices. bf16: activations are split in a high and a low half, which
// are rows of the same tile, so eight slots with 16 bits of mantissa cost one tile product. int8: the two digits likewise.
#define NETSSMD_AMX
#include "kernels.inl"

#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace netssmd {
namespace {

bool machine_has_tiles() {
    unsigned a, b, c, d;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return false;
    const bool tiles = (d >> 22 & 1) && (d >> 24 & 1) && (d >> 25 & 1);  // AMX-BF16, AMX-TILE, AMX-INT8
    if (!__get_cpuid_count(7, 1, &a, &b, &c, &d)) return false;
    return tiles && (a >> 5 & 1);  // AVX512-BF16, for the split
}

bool kernel_grants_tiles() {
    constexpr long request_permission = 0x1023, tile_data = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA; for the whole process
    return syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
}

}  // namespace

const Kernels* amx_kernels() {
    static const Kernels kernels = table("amx");
    static const bool usable = avx512_kernels() && machine_has_tiles() && kernel_grants_tiles();
    return usable ? &kernels : nullptr;
}
}  // namespace netssmd
