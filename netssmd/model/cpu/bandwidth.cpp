#include "bandwidth.hpp"

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstring>

#include "decoder.hpp"

namespace netssmd {
namespace {

typedef uint64_t Word8 __attribute__((vector_size(64)));

// target_clones would need an ifunc; 64-byte vectors are split by the compiler where the machine has shorter ones, and memory is the limit.
uint64_t read_all(const char* data, size_t bytes) {
    auto p = reinterpret_cast<const Word8*>(data);
    Word8 sum[4] = {};
    for (size_t i = 0; i + 4 <= bytes / 64; i += 4)
        for (int j = 0; j < 4; ++j) {
            __builtin_prefetch(p + i + j + 16);  // as the kernels do: more lines under way than the machine would have of itself
            sum[j] ^= p[i + j];
        }
    Word8 all = sum[0] ^ sum[1] ^ sum[2] ^ sum[3];
    return all[0] ^ all[1] ^ all[2] ^ all[3] ^ all[4] ^ all[5] ^ all[6] ^ all[7];
}

void update_all(char* data, size_t bytes, uint64_t mask) {
    auto p = reinterpret_cast<Word8*>(data);
    for (size_t i = 0; i < bytes / 64; ++i) {
        __builtin_prefetch(p + i + 16, 1);
        p[i] ^= mask;
    }
}

}  // namespace

double bandwidth(size_t read_bytes, size_t update_bytes, double seconds) {
    Block weights(read_bytes + 64), states(update_bytes + 64);
    std::memset(weights.as<char>(), 1, weights.bytes());
    std::memset(states.as<char>(), 1, states.bytes());
    using Clock = std::chrono::steady_clock;
    auto since = [](Clock::time_point t) { return std::chrono::duration<double>(Clock::now() - t).count(); };
    const auto start = Clock::now();
    double best = 1e9;
    volatile uint64_t sink = 0;
    for (int round = 0; round < 4 || since(start) < seconds; ++round) {
        const auto begin = Clock::now();
        sink = sink + read_all(weights.as<char>(), read_bytes);
        update_all(states.as<char>(), update_bytes, sink | 1);
        if (round) best = std::min(best, since(begin));
    }
    return best;
}

}  // namespace netssmd
