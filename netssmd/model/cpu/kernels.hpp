// The seam between the decoder (decoder.cpp, built once for the plain machine) and the arithmetic (kernels.inl, built once per
// instruction set with its own compiler flags and chosen at run time by cpuid). Everything here is plain data and function pointers,
// so no inline function compiled for one instruction set can be picked by the linker for another.
//
// Lanes. Every vector of the model is cut into panels of 16 floats, on every instruction set, so that weights, state and snapshots have
// one layout:
//   matrix   [panel of 16 outputs][k / kp][16 outputs][kp]     kp = 1 (fp32), 2 (bf16), 4 (int8): one load feeds 16 outputs, no horizontal sums
//   ssm      [head][group of lanes][n][lanes]                  lanes = 16 or 32 of headdim, padded with zeros
//   conv     [tap, oldest first][channel]
//
// Order. An output is one chain of additions over k, whatever the number of rows in the call; a row's numbers therefore never depend on
// the rows beside it. Integer (int8) sums are exact.
#pragma once
#include <cstddef>
#include <cstdint>

namespace netssmd {

enum class Dtype : int { fp32 = 0, bf16 = 1, int8 = 2 };

constexpr int kLanes = 16;
constexpr int round_up(int value, int step) { return (value + step - 1) / step * step; }

// Weights of out = W x, packed. Rows and columns are padded with zeros.
struct Matrix {
    Dtype dtype;
    int k;                   // columns, padded: a multiple of 2 (fp32), 32 (bf16), 64 (int8)
    int panels;              // rows / 16
    const void* data;        // panels * panel_bytes()
    const float* scale;      // int8: per row, [panels * 16]
    const int32_t* row_sum;  // int8: sum of the row's integers, [panels * 16]

    size_t panel_bytes() const { return size_t(k) * kLanes * (dtype == Dtype::fp32 ? 4 : dtype == Dtype::bf16 ? 2 : 1); }
};

constexpr int k_step(Dtype dtype) { return dtype == Dtype::fp32 ? 2 : dtype == Dtype::bf16 ? 32 : 64; }

// Rows of x, in the form in which the instruction set multiplies them. `data` holds 4 bytes per row and column, rows rounded up to 8.
struct Activations {
    void* data;
    float* scale;  // int8: one per row
    int k;
};

// One Mamba-2 layer's small parameters, padded to the panel layout of a projected row: z | x | B | C | dt.
struct Mixer {
    int heads, lanes, groups_of_lanes;  // per head: groups_of_lanes * lanes >= headdim
    int inner;                          // heads * groups_of_lanes * lanes
    int state, state_padded;            // d_state; rounded up to 16
    int ngroups;                        // B and C per group
    int norm_groups, norm_width;        // groups of the gated norm; real (unpadded) channels in one
    int taps;                           // d_conv
    float eps;
    const float* conv_weight;  // [taps][channels]
    const float* conv_bias;    // [channels]
    const float* dt_bias;      // [heads rounded up to 16]
    const float* A;            // [heads rounded up to 16], negative
    const float* D;            // [heads rounded up to 16]
    const float* norm;         // [inner]

    int channels() const { return inner + 2 * ngroups * state_padded; }
    int dt_width() const { return round_up(heads, kLanes); }
    int row() const { return inner + channels() + dt_width(); }
    int kept() const { return 2 * (channels() + dt_width()); }
};

// Where a layer's recurrent part works ahead of its state, for inputs that may turn out not to be: the state is advanced by the first token
// alone, and of each other one everything is kept that `absorb` needs: before the convolution [channels] | behind it [channels] | dt | decay.
struct Ahead {
    float* kept;  // [tokens - 1][Mixer.kept()]; null: the state is advanced as ever
    float* room;  // one head's group of lanes: [state][lanes]
};

struct Kernels {
    const char* name;
    // out[i] = x[i] * weight[i] / sqrt(mean(x^2) + eps) for i < padded; x and weight are zero beyond width. Returns the sum of squares.
    float (*rms_norm)(const float* x, const float* weight, float* out, int width, int padded, float eps);
    // Puts one row of floats ([used], zeros up to activations.k) into the form `gemm` takes.
    void (*pack)(Dtype dtype, const float* x, int used, const Activations& to, int row);
    // out[row * stride + 16 * (panel - first)] (+)= W x for rows 0..n-1 and panels first..last-1.
    void (*gemm)(const Matrix& w, const Activations& x, int n, int first, int last, float* out, size_t stride, bool add);
    // The recurrent part of a layer for `tokens` consecutive tokens of one slot, in three. rows: [tokens][stride], overwritten; dt, decay: [tokens][dt_width].
    // Convolution; dt and decay of every head.
    void (*convolve)(const Mixer& m, float* conv, float* rows, size_t stride, int tokens, float* dt, float* decay, Ahead ahead);
    // State update of heads first..last-1, which no other heads have a part in.
    void (*scan)(const Mixer& m, float* ssm, float* rows, size_t stride, int tokens, const float* dt, const float* decay, Ahead ahead, int first, int last);
    // Gate and norm. out: [tokens][inner].
    void (*gate)(const Mixer& m, const float* rows, size_t stride, int tokens, float* out);
    // Advances the state by `tokens` more, the first of those that were kept: to the last bit as if it had not been ahead.
    void (*absorb)(const Mixer& m, float* conv, float* ssm, const float* kept, int tokens);
    // sum[i] += row[i]
    void (*add_row)(float* sum, const void* row, Dtype dtype, int padded);
    // p[i] = exp((logit[i] - max) * inverse_temperature); n is rounded up to 16 in memory.
    void (*softmax)(const float* logits, float* p, int n, float max, float inverse_temperature);
    // Per thread, around a run of gemm calls.
    void (*begin)();
    void (*end)();
};

// Null where the build or the machine does not have it.
const Kernels* amx_kernels();
const Kernels* avx512_kernels();
const Kernels* avx2_kernels();
const Kernels* portable_kernels();

}  // namespace netssmd
