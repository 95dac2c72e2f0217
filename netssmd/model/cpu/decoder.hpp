// A Mamba-2 model and a slab of recurrent states; one call advances many of them by one token, or one of them by many.
//
//   rows -> embedding sum -> [ rms norm -> in_proj -> conv, state update, gate, norm -> out_proj -> + ] x n_layer -> rms norm
//        -> head over [lo, hi) -> sample
//
// Each layer goes over all rows of the call before the next, so that its weights are read once; the rows of one slot never mix with
// another's, and every row's arithmetic has one order (kernels.hpp): a slot's numbers do not depend on batch, thread or slot number.
// Plain C++: no Python here. Errors are std::invalid_argument whose text says what was found and what would be right.
#pragma once
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include "kernels.hpp"
#include "team.hpp"

namespace netssmd {

struct Config {
    int d_model, n_layer, vocab_size, rows, d_state, d_conv, expand, headdim, ngroups, norm_groups;
    float norm_eps;

    int d_inner() const { return expand * d_model; }
    int heads() const { return d_inner() / headdim; }
    int conv_dim() const { return d_inner() + 2 * ngroups * d_state; }
};

struct Sampling {
    int top_k = 0;       // 0: all
    float top_p = 1.0f;  // 1: all
    bool penalties = false;  // what factors are
};

// What changes single logits before a draw (sampling.adjusted): 1 leaves one, 0 forbids its token, any other f multiplies the token's
// odds, or is a penalty. at[i]: where the factors of position i lie, one for each token of its range, or -1 for none.
struct Factors {
    const float* values = nullptr;  // [size]
    size_t size = 0;
    const int32_t* at = nullptr;  // [n], null: nobody has any
    float* removed = nullptr;     // [n][2], filled for those who have some: sampling.taken_away; null: nobody asks
};

// 64-byte aligned memory on huge pages where the kernel has them; zero, and not resident until touched.
class Block {
public:
    Block() = default;
    explicit Block(size_t bytes);
    ~Block();
    Block(Block&& other) noexcept;
    Block& operator=(Block&& other) noexcept;
    template <class T>
    T* as() const { return static_cast<T*>(data_); }
    size_t bytes() const { return bytes_; }

private:
    void* data_ = nullptr;
    size_t bytes_ = 0;
};

// Where the named tensors come from; a tensor is fp32, contiguous, [rows][columns].
class TensorSource {
public:
    virtual ~TensorSource() = default;
    virtual const float* get(const std::string& name, size_t size) = 0;
    virtual bool has(const std::string& name) const = 0;
};

constexpr int kAlone = 16;  // see Decoder::set_threads
constexpr int kBatch = 64;  // rows that go through the layers together; more are cut into such batches

class Decoder {
public:
    Decoder(const Config& config, TensorSource& tensors, Dtype dtype, int slots, Sampling sampling, const std::string& isa);
    ~Decoder();

    const Config& config() const { return config_; }
    int slots() const { return slots_; }
    const char* isa() const { return kernels_->name; }
    size_t layer_bytes() const { return layer_bytes_; }  // read by every step
    size_t state_bytes() const;
    // How many threads may share one call, 1 at first; what they answer is the same to the last bit. A call is shared when the kAlone ones
    // before it came from the same thread: where several threads step slots, each has a core already. Not during a call.
    void set_threads(int threads);
    int threads() const { return threads_; }

    void reset(int slot);
    // rows: [n][width]; ranges: [n][2]; out: [n]. Returns the positions in the call whose state is no longer finite (their out is -1).
    std::vector<int> step(std::span<const int32_t> slots, const int32_t* rows, int width, const int32_t* ranges, const float* uniforms,
                          const float* temperatures, int32_t* out, Factors factors = {});
    // Draws for several inputs of each slot: counts[i] of them, one slot's behind the other's in rows, drafts, ranges and so on. The first
    // input is there for certain. Each other one stands if the token drawn before it is the draft there (drafts[j] for what input j draws;
    // a slot's last is not read). out: [inputs]; taken[i]: how many of slot i's inputs stood, which is how many tokens of out are drawn and
    // by how much its state is advanced: to the last bit as by that many steps. 0 when it is no longer finite.
    void verify(std::span<const int32_t> slots, const int32_t* counts, const int32_t* rows, int width, const int32_t* drafts, const int32_t* ranges,
                const float* uniforms, const float* temperatures, int32_t* out, int32_t* taken, Factors factors = {});
    // rows: [tokens][width]. False when the slot's state is no longer finite.
    bool prefill(int slot, const int32_t* rows, int tokens, int width);
    // One step; hidden [d_model] after the last norm, logits [vocab_size].
    void inspect(int slot, const int32_t* rows, int width, float* hidden, float* logits);

    // The recurrent state in model order: header, conv [n_layer][d_conv - 1][conv_dim], ssm [n_layer][heads][headdim][d_state].
    std::string save(int slot) const;
    void load(int slot, std::span<const char> bytes);

private:
    struct Layer {
        Mixer mixer;
        Matrix in_proj, out_proj;
        const float* norm;
    };
    struct Run {  // consecutive inputs of one slot, from row `first` of a call
        int slot, first, tokens;
    };
    struct Scratch;
    class Lease;
    class Busy;
    class Modes;

    Matrix make_matrix(const float* from, int columns, const std::vector<int>& row_map, const std::vector<int>& column_map);
    void* make_room(size_t bytes);
    float* make_vector(size_t size);
    float* conv_state(int slot, int layer) const;
    float* ssm_state(int slot, int layer) const;
    void check_rows(const int32_t* rows, int n, int width) const;
    void embed(Scratch& s, const int32_t* rows, int n, int width) const;
    void check_draws(int n, const int32_t* ranges, const float* uniforms, const float* temperatures, const Factors& factors) const;
    void layers(Scratch& s, std::span<const Run> runs, int n, bool ahead = false) const;
    void recurrent(Scratch& s, const Layer& layer, int i, std::span<const Run> runs, bool ahead) const;
    float* kept_rows(Scratch& s, int layer, int row) const;
    float* room(Scratch& s, int thread) const;
    float final_norm(Scratch& s, int row, float* out) const;
    void head(Scratch& s, const int32_t* ranges, const float* uniforms, const float* temperatures, const int* which, int n, int32_t* out, Factors factors) const;

    Config config_;
    Dtype dtype_;
    Sampling sampling_;
    int slots_;
    const Kernels* kernels_;
    int d_padded_;
    std::vector<Layer> layers_;
    std::vector<Block> blocks_;
    size_t block_used_ = 0;  // of the last one
    Matrix head_{};
    const void* embedding_ = nullptr;  // [rows][d_padded], fp32 or bf16
    Dtype embedding_dtype_;
    const float* norm_f_ = nullptr;
    const float* head_bias_ = nullptr;  // [vocab_size], or none
    size_t weight_bytes_ = 0, layer_bytes_ = 0;
    size_t conv_floats_ = 0, ssm_floats_ = 0, slot_floats_ = 0;
    Block slab_;
    std::unique_ptr<std::atomic<bool>[]> busy_;
    mutable std::mutex scratch_lock_;
    mutable std::vector<std::unique_ptr<Scratch>> scratch_;
    int threads_ = 1;
    std::unique_ptr<Team> team_;
    mutable std::thread::id last_caller_;  // these three under scratch_lock_
    mutable int calls_alone_ = 0;          // of last_caller_, one after the other
    mutable int calls_now_ = 0;
};

std::vector<std::string> available_isas();

// Softmax over logits / temperature (0: the largest), top-k, top-p, then the first index whose cumulative probability exceeds uniform.
// logits is changed; p and order are room for n numbers each (p rounded up to 16).
int sample(const Kernels& kernels, float* logits, int n, float uniform, float temperature, Sampling sampling, float* p, std::vector<int>& order);

}  // namespace netssmd
