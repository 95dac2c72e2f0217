#include "decoder.hpp"

#include <sys/mman.h>
#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <numeric>
#include <optional>
#include <stdexcept>
#include <utility>

namespace netssmd {
namespace {

constexpr size_t kHuge = size_t(2) << 20;
constexpr size_t kWeightBlock = size_t(32) << 20;  // not resident until touched
constexpr size_t kPiece = size_t(48) << 10;        // bytes that are worth another thread's while: some 3 us

template <class... Parts>
[[noreturn]] void refuse(const Parts&... parts) {
    std::string text;
    auto put = [&](const auto& part) {
        if constexpr (std::is_arithmetic_v<std::decay_t<decltype(part)>>) text += std::to_string(part);
        else text += part;
    };
    (put(parts), ...);
    throw std::invalid_argument(text);
}

uint16_t to_bf16(float f) {
    uint32_t bits = std::bit_cast<uint32_t>(f);
    if (std::isnan(f)) return uint16_t(bits >> 16 | 0x40);
    return uint16_t((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16);
}

const Kernels* kernels_of(const std::string& name) {
#ifdef NETSSMD_HAVE_AMX
    if (name == "amx") return amx_kernels();
#endif
#ifdef NETSSMD_HAVE_AVX512
    if (name == "avx512") return avx512_kernels();
#endif
#ifdef NETSSMD_HAVE_AVX2
    if (name == "avx2") return avx2_kernels();
#endif
    if (name == "portable") return portable_kernels();
    return nullptr;
}

// In how many pieces a stage over so many bytes is shared, at most `most`.
int pieces_of(size_t bytes, int most) { return int(std::clamp<size_t>(bytes / kPiece, 1, size_t(most))); }

// Where the real rows of a padded section lie: -1 is padding.
std::vector<int> identity_map(int size, int padded) {
    std::vector<int> map(padded, -1);
    std::iota(map.begin(), map.begin() + size, 0);
    return map;
}

// `pieces` pieces of `real` numbers, each padded, beginning at `base` in the original.
void append_pieces(std::vector<int>& map, int base, int pieces, int real, int padded) {
    for (int i = 0; i < pieces; ++i)
        for (int j = 0; j < padded; ++j) map.push_back(j < real ? base + i * real + j : -1);
}

struct Header {
    char magic[8];
    uint32_t version, n_layer, taps, conv_dim, heads, headdim, d_state, reserved;
};
constexpr char kMagic[8] = {'N', 'S', 'S', 'M', 'S', 'T', 'A', 'T'};

}  // namespace

// ---- memory ----------------------------------------------------------------------------------------------------------------------------

Block::Block(size_t bytes) {
    bytes_ = (bytes + 4095) / 4096 * 4096;
    if (bytes_ >= kHuge) bytes_ = (bytes_ + kHuge - 1) / kHuge * kHuge;
    const size_t room = bytes_ >= kHuge ? bytes_ + kHuge : bytes_;  // to begin on a huge page
    void* p = mmap(nullptr, room, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) throw std::bad_alloc();
    data_ = p;
    if (bytes_ >= kHuge) {
        auto begin = reinterpret_cast<uintptr_t>(p), aligned = (begin + kHuge - 1) / kHuge * kHuge;
        if (aligned > begin) munmap(p, aligned - begin);
        if (aligned + bytes_ < begin + room) munmap(reinterpret_cast<void*>(aligned + bytes_), begin + room - aligned - bytes_);
        data_ = reinterpret_cast<void*>(aligned);
        madvise(data_, bytes_, MADV_HUGEPAGE);
    }
}

Block::~Block() {
    if (data_) munmap(data_, bytes_);
}

Block::Block(Block&& other) noexcept : data_(std::exchange(other.data_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}

Block& Block::operator=(Block&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
    return *this;
}

// Working room of one call.
struct Decoder::Scratch {
    Block memory;
    float *residual, *normed, *rows, *mixed, *dt, *decay, *logits, *p;
    Activations narrow, wide;  // d_model and inner columns
    std::vector<int> order, which;
    std::vector<Run> runs;
    Block ahead;  // what `verify` keeps, and behind it room for one head's state, a thread; none before it is called
    size_t row_stride;
    Team* team = nullptr;  // in this call

    Scratch(const Decoder& d) {
        const Mixer& m = d.layers_[0].mixer;
        const size_t logits_stride = size_t(d.head_.panels) * kLanes;
        row_stride = m.row();
        size_t sizes[] = {size_t(kBatch) * d.d_padded_,
                          size_t(d.d_padded_),
                          kBatch * row_stride,
                          size_t(kBatch) * m.inner,
                          size_t(kBatch) * m.dt_width(),
                          size_t(kBatch) * m.dt_width(),
                          kBatch * logits_stride,
                          logits_stride,
                          size_t(kBatch) * d.layers_[0].in_proj.k,
                          size_t(kBatch) * d.layers_[0].out_proj.k,
                          size_t(kBatch),
                          size_t(kBatch)};
        float** places[] = {&residual, &normed, &rows, &mixed, &dt, &decay, &logits, &p, reinterpret_cast<float**>(&narrow.data),
                            reinterpret_cast<float**>(&wide.data), &narrow.scale, &wide.scale};
        size_t total = 0;
        for (size_t size : sizes) total += (size + 15) / 16 * 16 + 16;
        memory = Block(total * 4);
        float* at = memory.as<float>();
        for (size_t i = 0; i < std::size(sizes); ++i) {
            *places[i] = at;
            at += (sizes[i] + 15) / 16 * 16 + 16;
        }
        narrow.k = d.layers_[0].in_proj.k;
        wide.k = d.layers_[0].out_proj.k;
    }
};

// Processor modes of a thread while it computes.
class Decoder::Modes {
public:
    explicit Modes(const Kernels& kernels) : kernels_(kernels) {
        kernels_.begin();
#if defined(__x86_64__)
        control_ = _mm_getcsr();
        _mm_setcsr(control_ | 0x8040);  // denormals are zero: a state that fades away must not slow the machine down
#endif
    }
    ~Modes() {
#if defined(__x86_64__)
        _mm_setcsr(control_);
#endif
        kernels_.end();
    }

private:
    const Kernels& kernels_;
    unsigned control_ = 0;
};

// Working room, processor modes and helpers, held for one call; calls on several threads each take their own, and none has helpers then.
class Decoder::Lease {
public:
    explicit Lease(const Decoder& d) : decoder_(d), modes_(*d.kernels_) {
        bool shared;
        {
            std::lock_guard lock(d.scratch_lock_);
            if (!d.scratch_.empty()) {
                scratch_ = std::move(d.scratch_.back());
                d.scratch_.pop_back();
            }
            const auto caller = std::this_thread::get_id();
            if (std::exchange(d.last_caller_, caller) != caller) d.calls_alone_ = 0;
            shared = d.team_ && d.calls_now_ == 0 && d.calls_alone_ >= kAlone;
            d.calls_alone_ = std::min(d.calls_alone_ + 1, kAlone);
            ++d.calls_now_;
        }
        if (!scratch_) scratch_ = std::make_unique<Scratch>(d);
        scratch_->team = shared ? d.team_.get() : nullptr;
        if (shared) d.team_->enter();
    }
    ~Lease() {
        if (scratch_->team) scratch_->team->leave();
        std::lock_guard lock(decoder_.scratch_lock_);
        decoder_.scratch_.push_back(std::move(scratch_));
        --decoder_.calls_now_;
    }
    Scratch& operator*() const { return *scratch_; }

private:
    const Decoder& decoder_;
    Modes modes_;
    std::unique_ptr<Scratch> scratch_;
};

// Holds slots for one call: a slot named twice, or in a call of another thread, is refused.
class Decoder::Busy {
public:
    Busy(Decoder& d, std::span<const int32_t> slots) : decoder_(d), slots_(slots) {
        for (; held_ < slots.size(); ++held_) {
            if (slots[held_] < 0 || slots[held_] >= d.slots_) {
                int slot = slots[held_];
                release();
                refuse("slot ", slot, " is outside 0..", d.slots_ - 1);
            }
            if (d.busy_[slots[held_]].exchange(true, std::memory_order_acquire)) {
                int slot = slots[held_];
                release();
                refuse("slot ", slot, " is named twice or is in use by another thread; a slot takes one step at a time");
            }
        }
    }
    ~Busy() { release(); }
    void release() {
        while (held_) decoder_.busy_[slots_[--held_]].store(false, std::memory_order_release);
    }

private:
    Decoder& decoder_;
    std::span<const int32_t> slots_;
    size_t held_ = 0;
};

// ---- construction ----------------------------------------------------------------------------------------------------------------------

std::vector<std::string> available_isas() {
    std::vector<std::string> names;
    for (const char* name : {"amx", "avx512", "avx2", "portable"})
        if (kernels_of(name)) names.push_back(name);
    return names;
}

// Parts of the weights, one behind the other on huge pages: a matrix of a block of its own would often be too small for them.
void* Decoder::make_room(size_t bytes) {
    bytes = (bytes + 63) / 64 * 64;
    if (blocks_.empty() || block_used_ + bytes > blocks_.back().bytes()) {
        blocks_.emplace_back(std::max(bytes, kWeightBlock));
        block_used_ = 0;
    }
    return blocks_.back().as<char>() + std::exchange(block_used_, block_used_ + bytes);
}

float* Decoder::make_vector(size_t size) {
    weight_bytes_ += size * 4;
    return static_cast<float*>(make_room(size * 4));
}

Matrix Decoder::make_matrix(const float* from, int columns, const std::vector<int>& row_map, const std::vector<int>& column_map) {
    Matrix m{};
    m.dtype = dtype_;
    m.panels = int(row_map.size()) / kLanes;
    m.k = round_up(int(column_map.size()), k_step(dtype_));
    const int kp = dtype_ == Dtype::fp32 ? 1 : dtype_ == Dtype::bf16 ? 2 : 4;
    void* data = make_room(m.panel_bytes() * m.panels);
    m.data = data;
    weight_bytes_ += m.panel_bytes() * m.panels;
    float* scale = nullptr;
    int32_t* row_sum = nullptr;
    if (dtype_ == Dtype::int8) {
        scale = make_vector(row_map.size());
        row_sum = reinterpret_cast<int32_t*>(make_vector(row_map.size()));
        m.scale = scale;
        m.row_sum = row_sum;
    }
    for (size_t r = 0; r < row_map.size(); ++r) {
        if (row_map[r] < 0) continue;
        const float* row = from + size_t(row_map[r]) * columns;
        float largest = 0;
        if (scale) {
            for (int c = 0; c < columns; ++c) largest = std::max(largest, std::fabs(row[c]));
            scale[r] = largest / 127.0f;
        }
        for (size_t k = 0; k < column_map.size(); ++k) {
            if (column_map[k] < 0) continue;
            const float x = row[column_map[k]];
            const size_t at = (r / kLanes) * size_t(m.k) * kLanes + (k / kp) * size_t(kLanes * kp) + (r % kLanes) * kp + k % kp;
            if (dtype_ == Dtype::fp32) static_cast<float*>(data)[at] = x;
            else if (dtype_ == Dtype::bf16) static_cast<uint16_t*>(data)[at] = to_bf16(x);
            else {
                int q = largest > 0 ? int(std::lrint(x / largest * 127.0f)) : 0;
                static_cast<int8_t*>(data)[at] = int8_t(q);
                row_sum[r] += q;
            }
        }
    }
    return m;
}

Decoder::Decoder(const Config& config, TensorSource& tensors, Dtype dtype, int slots, Sampling sampling, const std::string& isa)
    : config_(config), dtype_(dtype), sampling_(sampling), slots_(slots) {
    const Config& c = config_;
    for (auto [name, value] : {std::pair{"d_model", c.d_model}, {"n_layer", c.n_layer}, {"vocab_size", c.vocab_size}, {"rows", c.rows}, {"d_state", c.d_state},
                               {"d_conv", c.d_conv}, {"expand", c.expand}, {"headdim", c.headdim}, {"ngroups", c.ngroups}, {"norm_groups", c.norm_groups}})
        if (value < 1) refuse(name, " is ", value, "; it must be at least 1");
    if (c.d_conv > 16) refuse("d_conv is ", c.d_conv, "; at most 16 taps are supported");
    if (c.rows < c.vocab_size) refuse("rows is ", c.rows, "; it must be at least vocab_size, ", c.vocab_size);
    if (c.d_inner() % c.headdim) refuse("headdim is ", c.headdim, "; it must divide expand * d_model, ", c.d_inner());
    if (c.heads() % c.ngroups) refuse("ngroups is ", c.ngroups, "; it must divide the number of heads, ", c.heads());
    if (c.heads() % c.norm_groups) refuse("norm_groups is ", c.norm_groups, "; it must divide the number of heads, ", c.heads());
    if (slots < 1) refuse("slots is ", slots, "; it must be at least 1");
    if (sampling.top_k < 0) refuse("top_k is ", sampling.top_k, "; it must be 0 (all) or more");
    if (!(sampling.top_p > 0 && sampling.top_p <= 1)) refuse("top_p is ", sampling.top_p, "; it must be above 0 and at most 1");

    const std::string wanted = isa.empty() || isa == "auto" ? available_isas().front() : isa;
    kernels_ = kernels_of(wanted);
    if (!kernels_) {
        std::string known;
        for (const auto& name : available_isas()) known += (known.empty() ? "" : ", ") + name;
        refuse("instruction set '", wanted, "' is not available here; available are ", known);
    }

    const int heads = c.heads(), head_lanes = round_up(c.headdim, kLanes), inner = heads * head_lanes;
    const int state_padded = round_up(c.d_state, kLanes), dt_width = round_up(heads, kLanes);
    const int in_rows = 2 * c.d_inner() + 2 * c.ngroups * c.d_state + heads;
    d_padded_ = round_up(c.d_model, kLanes);

    std::vector<int> xbc, projected;  // padded place -> original row
    append_pieces(xbc, 0, heads, c.headdim, head_lanes);
    const std::vector<int> lanes_of_inner = xbc;
    append_pieces(xbc, c.d_inner(), 2 * c.ngroups, c.d_state, state_padded);
    projected = lanes_of_inner;
    for (int i : xbc) projected.push_back(i < 0 ? -1 : i + c.d_inner());
    append_pieces(projected, in_rows - heads, 1, heads, dt_width);
    const std::vector<int> model = identity_map(c.d_model, d_padded_), per_head = identity_map(heads, dt_width);

    auto vector_of = [&](const std::string& name, const std::vector<int>& map, size_t size) {
        const float* from = tensors.get(name, size);
        float* to = make_vector(map.size());
        for (size_t i = 0; i < map.size(); ++i) to[i] = map[i] < 0 ? 0.0f : from[map[i]];
        return to;
    };

    for (int i = 0; i < c.n_layer; ++i) {
        const std::string name = "backbone.layers." + std::to_string(i) + ".";
        Layer layer{};
        layer.norm = vector_of(name + "norm.weight", model, c.d_model);
        layer.in_proj = make_matrix(tensors.get(name + "mixer.in_proj.weight", size_t(in_rows) * c.d_model), c.d_model, projected, model);
        layer.out_proj = make_matrix(tensors.get(name + "mixer.out_proj.weight", size_t(c.d_model) * c.d_inner()), c.d_inner(), model, lanes_of_inner);
        Mixer& m = layer.mixer;
        m.heads = heads;
        m.lanes = head_lanes % 32 == 0 ? 32 : 16;
        m.groups_of_lanes = head_lanes / m.lanes;
        m.inner = inner;
        m.state = c.d_state;
        m.state_padded = state_padded;
        m.ngroups = c.ngroups;
        m.norm_groups = c.norm_groups;
        m.norm_width = c.d_inner() / c.norm_groups;
        m.taps = c.d_conv;
        m.eps = c.norm_eps;
        const float* taps = tensors.get(name + "mixer.conv1d.weight", size_t(c.conv_dim()) * c.d_conv);
        float* conv = make_vector(xbc.size() * c.d_conv);
        for (size_t ch = 0; ch < xbc.size(); ++ch)
            for (int t = 0; t < c.d_conv; ++t) conv[t * xbc.size() + ch] = xbc[ch] < 0 ? 0.0f : taps[size_t(xbc[ch]) * c.d_conv + t];
        m.conv_weight = conv;
        m.conv_bias = vector_of(name + "mixer.conv1d.bias", xbc, c.conv_dim());
        m.dt_bias = vector_of(name + "mixer.dt_bias", per_head, heads);
        m.D = vector_of(name + "mixer.D", per_head, heads);
        float* A = vector_of(name + "mixer.A_log", per_head, heads);
        for (int h = 0; h < heads; ++h) A[h] = -std::exp(A[h]);
        m.A = A;
        m.norm = vector_of(name + "mixer.norm.weight", lanes_of_inner, c.d_inner());
        layers_.push_back(layer);
    }
    norm_f_ = vector_of("backbone.norm_f.weight", model, c.d_model);
    if (tensors.has("lm_head.bias")) head_bias_ = vector_of("lm_head.bias", identity_map(c.vocab_size, c.vocab_size), c.vocab_size);

    layer_bytes_ = weight_bytes_;

    const float* embedding = tensors.get("backbone.embedding.weight", size_t(c.rows) * c.d_model);
    head_ = make_matrix(embedding, c.d_model, identity_map(c.vocab_size, round_up(c.vocab_size, kLanes)), model);
    embedding_dtype_ = dtype == Dtype::fp32 ? Dtype::fp32 : Dtype::bf16;  // inputs are few: int8 would save nothing there
    void* inputs = make_room(size_t(c.rows) * d_padded_ * (embedding_dtype_ == Dtype::fp32 ? 4 : 2));
    embedding_ = inputs;
    for (int r = 0; r < c.rows; ++r)
        for (int k = 0; k < c.d_model; ++k) {
            const float x = embedding[size_t(r) * c.d_model + k];
            const size_t at = size_t(r) * d_padded_ + k;
            if (embedding_dtype_ == Dtype::fp32) static_cast<float*>(inputs)[at] = x;
            else static_cast<uint16_t*>(inputs)[at] = to_bf16(x);
        }

    const Mixer& m = layers_[0].mixer;
    conv_floats_ = size_t(c.d_conv - 1) * m.channels();
    ssm_floats_ = size_t(inner) * c.d_state;
    slot_floats_ = size_t(c.n_layer) * (conv_floats_ + ssm_floats_);
    slab_ = Block(slot_floats_ * 4 * slots);
    busy_ = std::make_unique<std::atomic<bool>[]>(slots);
}

Decoder::~Decoder() = default;

void Decoder::set_threads(int threads) {
    if (threads < 1 || threads > kMostThreads) refuse("threads is ", threads, "; 1 to ", kMostThreads, " would be right");
    std::lock_guard lock(scratch_lock_);
    if (calls_now_) refuse("threads can't be changed during a call");
    team_.reset();
    threads_ = threads;
    if (threads == 1) return;
    static thread_local std::optional<Modes> modes;
    team_ = std::make_unique<Team>(threads - 1, [this] { modes.emplace(*kernels_); }, [] { modes.reset(); });
}

size_t Decoder::state_bytes() const { return slot_floats_ * 4; }

// A slot: layer after layer, each the convolution window and then the SSM state, both whole multiples of 64 bytes.
float* Decoder::conv_state(int slot, int layer) const { return slab_.as<float>() + slot * slot_floats_ + layer * (conv_floats_ + ssm_floats_); }
float* Decoder::ssm_state(int slot, int layer) const { return conv_state(slot, layer) + conv_floats_; }

// ---- checks ------------------------------------------------------------------------------------------------------------------------------

void Decoder::check_rows(const int32_t* rows, int n, int width) const {
    for (int i = 0; i < n * width; ++i)
        if (rows[i] < 0 || rows[i] >= config_.rows) refuse("row ", rows[i], " (position ", i / width, ", column ", i % width, ") is outside 0..", config_.rows - 1);
}

namespace {

void check_factors(const Factors& factors, int i, int n) {
    const size_t at = factors.at[i];
    if (at + n > factors.size) refuse("factors: ", factors.size, " numbers, but position ", i, " has ", at, "..", at + n - 1);
    bool some = false;
    for (int t = 0; t < n; ++t) {
        const float f = factors.values[at + t];
        if (!(f >= 0 && f < 1e30f)) refuse("factors at position ", i, ": ", f, " is not a number of at least 0");
        some |= f > 0;
    }
    if (!some) refuse("factors at position ", i, ": all are 0; one token of the range must be left");
}

// Factors of 0 are left to `forbid`.
void adjust(float* scores, const float* factors, int n, bool penalties) {
    for (int t = 0; t < n; ++t) {
        const float f = factors[t];
        if (f == 0 || f == 1) continue;
        if (penalties)
            scores[t] = scores[t] > 0 ? scores[t] / f : scores[t] * f;
        else
            scores[t] += std::log(f);
    }
}

void forbid(float* scores, const float* factors, int n) {
    for (int t = 0; t < n; ++t)
        if (factors[t] == 0) scores[t] = -std::numeric_limits<float>::infinity();
}

}  // namespace

void Decoder::check_draws(int n, const int32_t* ranges, const float* uniforms, const float* temperatures, const Factors& factors) const {
    for (int i = 0; i < n; ++i) {
        const int lo = ranges[2 * i], hi = ranges[2 * i + 1];
        if (lo < 0 || lo >= hi || hi > config_.vocab_size)
            refuse("range [", lo, ", ", hi, ") at position ", i, " is not a non-empty part of the tokens [0, ", config_.vocab_size, ")");
        if (!(uniforms[i] >= 0 && uniforms[i] <= 1)) refuse("uniform ", uniforms[i], " at position ", i, " is outside [0, 1)");
        if (!(temperatures[i] >= 0 && temperatures[i] < 1e30f)) refuse("temperature ", temperatures[i], " at position ", i, " is not a number of at least 0");
        if (factors.at && factors.at[i] >= 0) check_factors(factors, i, hi - lo);
    }
}

// ---- the pass ------------------------------------------------------------------------------------------------------------------------------

void Decoder::embed(Scratch& s, const int32_t* rows, int n, int width) const {
    const size_t row_bytes = size_t(d_padded_) * (embedding_dtype_ == Dtype::fp32 ? 4 : 2);
    std::memset(s.residual, 0, size_t(n) * d_padded_ * 4);
    for (int i = 0; i < n; ++i)
        for (int w = 0; w < width; ++w)
            kernels_->add_row(s.residual + size_t(i) * d_padded_, static_cast<const char*>(embedding_) + rows[i * width + w] * row_bytes, embedding_dtype_, d_padded_);
}

// Where `verify` keeps a layer's part of a row.
float* Decoder::kept_rows(Scratch& s, int layer, int row) const {
    return s.ahead.as<float>() + (size_t(layer) * kBatch + row) * layers_[0].mixer.kept();
}

float* Decoder::room(Scratch& s, int thread) const {
    const Mixer& m = layers_[0].mixer;
    return kept_rows(s, config_.n_layer, 0) + size_t(thread) * m.state * m.lanes;
}

// Convolution, state update, gate and norm of layer i.
void Decoder::recurrent(Scratch& s, const Layer& layer, int i, std::span<const Run> runs, bool ahead) const {
    const Kernels& k = *kernels_;
    const Mixer& m = layer.mixer;
    auto kept = [&](const Run& run, int thread) { return ahead && run.tokens > 1 ? Ahead{kept_rows(s, i, run.first), room(s, thread)} : Ahead{}; };
    auto rows = [&](const Run& run) { return s.rows + run.first * s.row_stride; };
    auto of_heads = [&](float* numbers, const Run& run) { return numbers + size_t(run.first) * m.dt_width(); };
    auto convolve = [&](const Run& run) {
        k.convolve(m, conv_state(run.slot, i), rows(run), s.row_stride, run.tokens, of_heads(s.dt, run), of_heads(s.decay, run), kept(run, 0));
    };
    auto scan = [&](const Run& run, int thread, int first, int last) {
        k.scan(m, ssm_state(run.slot, i), rows(run), s.row_stride, run.tokens, of_heads(s.dt, run), of_heads(s.decay, run), kept(run, thread), first, last);
    };
    auto gate = [&](const Run& run) { k.gate(m, rows(run), s.row_stride, run.tokens, s.mixed + size_t(run.first) * m.inner); };
    const int parts = s.team ? pieces_of(ssm_floats_ * 4, m.heads) : 1;
    if (!s.team || (runs.size() == 1 && parts == 1)) {
        for (const Run& run : runs) {
            convolve(run);
            scan(run, 0, 0, m.heads);
            gate(run);
        }
        return;
    }
    const int n = int(runs.size());
    s.team->share(n, [&](int r, int) { convolve(runs[r]); });
    s.team->share(n * parts, [&](int piece, int thread) {
        const int part = piece % parts;
        scan(runs[piece / parts], thread, m.heads * part / parts, m.heads * (part + 1) / parts);
    });
    s.team->share(n, [&](int r, int) { gate(runs[r]); });
}

// s.residual [n] through all layers. ahead: runs advance their state by their first input only and keep what `absorb` takes of the others.
void Decoder::layers(Scratch& s, std::span<const Run> runs, int n, bool ahead) const {
    const Kernels& k = *kernels_;
    auto product = [&](const Matrix& w, const Activations& x, float* out, size_t stride, bool add) {
        const int fours = (w.panels + 3) / 4, pieces = s.team ? pieces_of(w.panel_bytes() * w.panels, fours) : 1;
        if (pieces == 1) return k.gemm(w, x, n, 0, w.panels, out, stride, add);
        s.team->share(pieces, [&](int piece, int) {
            const int first = fours * piece / pieces * 4, last = std::min(w.panels, fours * (piece + 1) / pieces * 4);
            k.gemm(w, x, n, first, last, out + size_t(first) * kLanes, stride, add);
        });
    };
    for (int i = 0; i < config_.n_layer; ++i) {
        const Layer& layer = layers_[i];
        const int inner = layer.mixer.inner;
        for (int r = 0; r < n; ++r) {
            k.rms_norm(s.residual + size_t(r) * d_padded_, layer.norm, s.normed, config_.d_model, d_padded_, config_.norm_eps);
            k.pack(dtype_, s.normed, d_padded_, s.narrow, r);
        }
        product(layer.in_proj, s.narrow, s.rows, s.row_stride, false);
        recurrent(s, layer, i, runs, ahead);
        for (int r = 0; r < n; ++r) k.pack(dtype_, s.mixed + size_t(r) * inner, inner, s.wide, r);
        product(layer.out_proj, s.wide, s.residual, d_padded_, true);
    }
}

float Decoder::final_norm(Scratch& s, int row, float* out) const {
    return kernels_->rms_norm(s.residual + size_t(row) * d_padded_, norm_f_, out, config_.d_model, d_padded_, config_.norm_eps);
}

// Rows that draw from the same range share one pass over the head's weights.
void Decoder::head(Scratch& s, const int32_t* ranges, const float* uniforms, const float* temperatures, const int* which, int n, int32_t* out,
                   Factors factors) const {
    int order[kBatch];
    std::copy(which, which + n, order);
    auto range = [&](int r) { return std::pair(ranges[2 * r], ranges[2 * r + 1]); };
    std::sort(order, order + n, [&](int a, int b) { return std::pair(range(a), a) < std::pair(range(b), b); });
    for (int i = 0, m; i < n; i += m) {
        for (m = 0; i + m < n && range(order[i + m]) == range(order[i]); ++m) {
            final_norm(s, order[i + m], s.normed);
            kernels_->pack(dtype_, s.normed, d_padded_, s.narrow, m);
        }
        const auto [lo, hi] = range(order[i]);
        const int first = lo / kLanes, last = (hi + kLanes - 1) / kLanes;
        const size_t stride = size_t(last - first) * kLanes;
        kernels_->gemm(head_, s.narrow, m, first, last, s.logits, stride, false);
        for (int j = 0; j < m; ++j) {
            const int r = order[i + j];
            float* scores = s.logits + j * stride + (lo - first * kLanes);
            if (head_bias_)
                for (int t = lo; t < hi; ++t) scores[t - lo] += head_bias_[t];
            if (factors.at && factors.at[r] >= 0) {
                const float* own = factors.values + factors.at[r];
                adjust(scores, own, hi - lo, sampling_.penalties);
                if (factors.removed) {  // what a draw without the mask would have done
                    const int drawn = sample(*kernels_, scores, hi - lo, uniforms[r], temperatures[r], sampling_, s.p, s.order);
                    double gone = own[drawn] == 0, total = 1;
                    if (temperatures[r] != 0 && hi - lo > 1) {
                        gone = total = 0;
                        for (int t = 0; t < hi - lo; ++t) {
                            total += s.p[t];
                            if (own[t] == 0) gone += s.p[t];
                        }
                    }
                    factors.removed[2 * r] = float(gone / total);
                    factors.removed[2 * r + 1] = own[drawn] == 0;
                }
                forbid(scores, own, hi - lo);
            }
            out[r] = lo + sample(*kernels_, scores, hi - lo, uniforms[r], temperatures[r], sampling_, s.p, s.order);
        }
    }
}

void Decoder::reset(int slot) {
    const int32_t one[] = {slot};
    Busy busy(*this, one);
    std::memset(conv_state(slot, 0), 0, slot_floats_ * 4);
}

std::vector<int> Decoder::step(std::span<const int32_t> slots, const int32_t* rows, int width, const int32_t* ranges, const float* uniforms,
                               const float* temperatures, int32_t* out, Factors factors) {
    const int n = int(slots.size());
    check_rows(rows, n, width);
    check_draws(n, ranges, uniforms, temperatures, factors);
    Busy busy(*this, slots);
    Lease scratch(*this);
    std::vector<int> broken;
    for (int from = 0; from < n; from += kBatch) {
        const int m = std::min(kBatch, n - from);
        Scratch& s = *scratch;
        embed(s, rows + size_t(from) * width, m, width);
        s.runs.clear();
        for (int r = 0; r < m; ++r) s.runs.push_back({slots[from + r], r, 1});
        layers(s, s.runs, m);
        s.which.clear();
        for (int r = 0; r < m; ++r) {
            if (std::isfinite(final_norm(s, r, s.normed))) s.which.push_back(r);
            else {
                broken.push_back(from + r);
                out[from + r] = -1;
            }
        }
        head(s, ranges + 2 * from, uniforms + from, temperatures + from, s.which.data(), int(s.which.size()), out + from,
             {factors.values, factors.size, factors.at ? factors.at + from : nullptr, factors.removed ? factors.removed + 2 * from : nullptr});
    }
    return broken;
}

void Decoder::verify(std::span<const int32_t> slots, const int32_t* counts, const int32_t* rows, int width, const int32_t* drafts, const int32_t* ranges,
                     const float* uniforms, const float* temperatures, int32_t* out, int32_t* taken, Factors factors) {
    int total = 0;
    for (size_t i = 0; i < slots.size(); total += counts[i++])
        if (counts[i] < 1 || counts[i] > kBatch) refuse("counts: ", counts[i], " inputs for position ", i, "; 1 to ", kBatch, " would be right");
    check_rows(rows, total, width);
    check_draws(total, ranges, uniforms, temperatures, factors);
    Busy busy(*this, slots);
    Lease scratch(*this);
    Scratch& s = *scratch;
    const Mixer& mixer = layers_[0].mixer;
    if (!s.ahead.bytes()) s.ahead = Block((size_t(config_.n_layer) * kBatch * mixer.kept() + size_t(kMostThreads) * mixer.state * mixer.lanes) * 4);
    int from = 0;
    for (size_t slot = 0; slot < slots.size();) {
        int m = 0;
        s.runs.clear();
        for (size_t i = slot; i < slots.size() && m + counts[i] <= kBatch; m += counts[i++]) s.runs.push_back({slots[i], m, counts[i]});
        embed(s, rows + size_t(from) * width, m, width);
        layers(s, s.runs, m, true);
        s.which.clear();
        for (int r = 0; r < m; ++r) {
            out[from + r] = -1;
            if (std::isfinite(final_norm(s, r, s.normed))) s.which.push_back(r);
        }
        head(s, ranges + 2 * size_t(from), uniforms + from, temperatures + from, s.which.data(), int(s.which.size()), out + from,
             {factors.values, factors.size, factors.at ? factors.at + from : nullptr, nullptr});
        for (const Run& run : s.runs) {
            const int32_t* drawn = out + from + run.first;
            int stood = 1;
            while (stood < run.tokens && drawn[stood - 1] >= 0 && drawn[stood - 1] == drafts[from + run.first + stood - 1]) ++stood;
            if (stood > 1)
                for (int i = 0; i < config_.n_layer; ++i)
                    kernels_->absorb(layers_[i].mixer, conv_state(run.slot, i), ssm_state(run.slot, i), kept_rows(s, i, run.first), stood - 1);
            taken[slot++] = drawn[stood - 1] < 0 ? 0 : stood;
        }
        from += m;
    }
}

bool Decoder::prefill(int slot, const int32_t* rows, int tokens, int width) {
    check_rows(rows, tokens, width);
    const int32_t one[] = {slot};
    Busy busy(*this, one);
    Lease scratch(*this);
    bool finite = true;
    for (int from = 0; from < tokens; from += kBatch) {
        const int m = std::min(kBatch, tokens - from);
        embed(*scratch, rows + size_t(from) * width, m, width);
        const Run run{slot, 0, m};
        layers(*scratch, {&run, 1}, m);
        finite = finite && std::isfinite(final_norm(*scratch, m - 1, (*scratch).normed));
    }
    return finite;
}

void Decoder::inspect(int slot, const int32_t* rows, int width, float* hidden, float* logits) {
    check_rows(rows, 1, width);
    const int32_t one[] = {slot};
    Busy busy(*this, one);
    Lease scratch(*this);
    Scratch& s = *scratch;
    embed(s, rows, 1, width);
    const Run run{slot, 0, 1};
    layers(s, {&run, 1}, 1);
    final_norm(s, 0, s.normed);
    std::copy(s.normed, s.normed + config_.d_model, hidden);
    kernels_->pack(dtype_, s.normed, d_padded_, s.narrow, 0);
    kernels_->gemm(head_, s.narrow, 1, 0, head_.panels, s.logits, size_t(head_.panels) * kLanes, false);
    for (int t = 0; t < config_.vocab_size; ++t) logits[t] = s.logits[t] + (head_bias_ ? head_bias_[t] : 0.0f);
}

// ---- snapshots -----------------------------------------------------------------------------------------------------------------------------

namespace {

Header header_of(const Config& c) {
    Header h{};
    std::memcpy(h.magic, kMagic, 8);
    h.version = 1;
    h.n_layer = c.n_layer;
    h.taps = c.d_conv - 1;
    h.conv_dim = c.conv_dim();
    h.heads = c.heads();
    h.headdim = c.headdim;
    h.d_state = c.d_state;
    return h;
}

// Calls visit(place in a slot's conv or ssm part, place in the model's order) for every real number of one layer.
template <class Visit>
void each_conv(const Config& c, const Mixer& m, Visit visit) {
    const int head_lanes = m.lanes * m.groups_of_lanes;
    for (int t = 0; t < c.d_conv - 1; ++t)
        for (int ch = 0; ch < c.conv_dim(); ++ch) {
            const int real = ch < c.d_inner() ? c.headdim : c.d_state, padded = ch < c.d_inner() ? head_lanes : m.state_padded;
            const int base = ch < c.d_inner() ? 0 : m.inner, i = ch < c.d_inner() ? ch : ch - c.d_inner();
            visit(size_t(t) * m.channels() + base + i / real * padded + i % real, size_t(t) * c.conv_dim() + ch);
        }
}

template <class Visit>
void each_ssm(const Config& c, const Mixer& m, Visit visit) {
    for (int h = 0; h < c.heads(); ++h)
        for (int p = 0; p < c.headdim; ++p)
            for (int n = 0; n < c.d_state; ++n)
                visit(((size_t(h) * m.groups_of_lanes + p / m.lanes) * c.d_state + n) * m.lanes + p % m.lanes, (size_t(h) * c.headdim + p) * c.d_state + n);
}

}  // namespace

std::string Decoder::save(int slot) const {
    const int32_t one[] = {slot};
    Busy busy(const_cast<Decoder&>(*this), one);
    const Config& c = config_;
    const size_t conv = size_t(c.d_conv - 1) * c.conv_dim(), ssm = size_t(c.d_inner()) * c.d_state;
    std::vector<float> numbers(c.n_layer * (conv + ssm));
    for (int i = 0; i < c.n_layer; ++i) {
        const Mixer& m = layers_[i].mixer;
        float* to_conv = numbers.data() + i * conv;
        float* to_ssm = numbers.data() + c.n_layer * conv + i * ssm;
        each_conv(c, m, [&](size_t from, size_t to) { to_conv[to] = conv_state(slot, i)[from]; });
        each_ssm(c, m, [&](size_t from, size_t to) { to_ssm[to] = ssm_state(slot, i)[from]; });
    }
    const Header header = header_of(c);
    std::string bytes(reinterpret_cast<const char*>(&header), sizeof header);
    bytes.append(reinterpret_cast<const char*>(numbers.data()), numbers.size() * 4);
    return bytes;
}

void Decoder::load(int slot, std::span<const char> bytes) {
    const Config& c = config_;
    const Header expected = header_of(c);
    const size_t conv = size_t(c.d_conv - 1) * c.conv_dim(), ssm = size_t(c.d_inner()) * c.d_state, total = c.n_layer * (conv + ssm);
    Header found{};
    if (bytes.size() < sizeof found || std::memcmp(bytes.data(), kMagic, 8)) refuse("state: ", bytes.size(), " bytes that do not begin with NSSMSTAT; not a saved slot");
    std::memcpy(&found, bytes.data(), sizeof found);
    if (found.version != expected.version) refuse("state: version ", found.version, "; this build reads ", expected.version);
    const std::pair<const char*, std::pair<uint32_t, uint32_t>> sizes[] = {
        {"n_layer", {found.n_layer, expected.n_layer}}, {"d_conv - 1", {found.taps, expected.taps}},       {"conv_dim", {found.conv_dim, expected.conv_dim}},
        {"heads", {found.heads, expected.heads}},       {"headdim", {found.headdim, expected.headdim}}, {"d_state", {found.d_state, expected.d_state}}};
    for (const auto& [name, both] : sizes)
        if (both.first != both.second) refuse("state: ", name, " is ", both.first, "; the model's is ", both.second);
    if (bytes.size() != sizeof found + total * 4) refuse("state: ", bytes.size(), " bytes; ", sizeof found + total * 4, " would be right");
    const int32_t one[] = {slot};
    Busy busy(*this, one);
    std::vector<float> numbers(total);
    std::memcpy(numbers.data(), bytes.data() + sizeof found, total * 4);
    std::memset(conv_state(slot, 0), 0, slot_floats_ * 4);
    for (int i = 0; i < c.n_layer; ++i) {
        const Mixer& m = layers_[i].mixer;
        const float* from_conv = numbers.data() + i * conv;
        const float* from_ssm = numbers.data() + c.n_layer * conv + i * ssm;
        each_conv(c, m, [&](size_t to, size_t from) { conv_state(slot, i)[to] = from_conv[from]; });
        each_ssm(c, m, [&](size_t to, size_t from) { ssm_state(slot, i)[to] = from_ssm[from]; });
    }
}

// ---- sampling ------------------------------------------------------------------------------------------------------------------------------

int sample(const Kernels& kernels, float* logits, int n, float uniform, float temperature, Sampling sampling, float* p, std::vector<int>& order) {
    int best = 0;
    for (int i = 1; i < n; ++i)
        if (logits[i] > logits[best]) best = i;
    if (temperature == 0 || n == 1) return best;
    kernels.softmax(logits, p, n, logits[best], 1.0f / temperature);
    const bool cut_k = sampling.top_k > 0 && sampling.top_k < n, cut_p = sampling.top_p < 1;
    if (cut_k || cut_p) {
        order.resize(n);
        std::iota(order.begin(), order.end(), 0);
        std::sort(order.begin(), order.end(), [&](int a, int b) { return logits[a] != logits[b] ? logits[a] > logits[b] : a < b; });
        int keep = cut_k ? sampling.top_k : n;
        if (cut_p) {
            double total = 0, sum = 0;
            for (int i = 0; i < keep; ++i) total += p[order[i]];
            int i = 0;
            while (i < keep && sum < double(sampling.top_p) * total) sum += p[order[i++]];
            keep = std::max(i, 1);
        }
        for (int i = keep; i < n; ++i) p[order[i]] = 0;
    }
    double total = 0;
    for (int i = 0; i < n; ++i) total += p[i];
    const double target = double(uniform) * total;
    double sum = 0;
    int last = best;
    for (int i = 0; i < n; ++i) {
        sum += p[i];
        if (sum > target) return i;
        if (p[i] > 0) last = i;
    }
    return last;
}

}  // namespace netssmd
