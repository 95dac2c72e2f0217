// The roofline's micro kernel: what one token or one batch must move at the least is its weights, read, and its states, read and rewritten.
#pragma once
#include <cstddef>

namespace netssmd {

// Seconds for one round over read_bytes and update_bytes of memory; the best round within `seconds`.
double bandwidth(size_t read_bytes, size_t update_bytes, double seconds);

}  // namespace netssmd
