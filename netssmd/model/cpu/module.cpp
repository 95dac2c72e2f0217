// netssmd.model._cpu: the decoder for Python. numpy arrays in and out, the interpreter lock released while it computes.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <optional>
#include <stdexcept>

#include "bandwidth.hpp"
#include "decoder.hpp"

namespace nb = nanobind;
using namespace nb::literals;
using namespace netssmd;

namespace {

template <class T, int N>
using Array = nb::ndarray<const T, nb::ndim<N>, nb::c_contig, nb::device::cpu>;
template <class T, int N>
using Output = nb::ndarray<T, nb::ndim<N>, nb::c_contig, nb::device::cpu>;

[[noreturn]] void wrong_shape(const char* name, size_t found, const char* of, size_t right) {
    throw std::invalid_argument(std::string(name) + " has " + std::to_string(found) + " " + of + "; " + std::to_string(right) + " would be right");
}

class DictSource : public TensorSource {
public:
    explicit DictSource(nb::dict tensors) : tensors_(std::move(tensors)) {}
    const float* get(const std::string& name, size_t size) override {
        if (!tensors_.contains(name.c_str())) throw std::invalid_argument("tensor " + name + " is missing");
        nb::ndarray<const float, nb::c_contig, nb::device::cpu> array;
        if (!nb::try_cast(tensors_[name.c_str()], array)) throw std::invalid_argument("tensor " + name + " is not a contiguous float32 array");
        if (array.size() != size)
            throw std::invalid_argument("tensor " + name + " has " + std::to_string(array.size()) + " numbers; " + std::to_string(size) + " would be right");
        return array.data();
    }

    bool has(const std::string& name) const override { return tensors_.contains(name.c_str()); }

private:
    nb::dict tensors_;
};

Dtype dtype_of(const std::string& name) {
    if (name == "fp32") return Dtype::fp32;
    if (name == "bf16") return Dtype::bf16;
    if (name == "int8") return Dtype::int8;
    throw std::invalid_argument("weight type '" + name + "' is not known; fp32, bf16 and int8 are");
}

void check_width(size_t width) {
    if (width < 1 || width > 4096) throw std::invalid_argument("rows has " + std::to_string(width) + " columns; 1 to 4096 would be right");
}

}  // namespace

NB_MODULE(_cpu, m) {
    nb::set_leak_warnings(false);
    m.doc() = "The C++ decode backend: a Mamba-2 model, a slab of recurrent states, sampling inside. See netssmd/model/cpu_backend.py.";
    m.def("available_isas", &available_isas, "Instruction sets this build and machine have, best first.");
    m.def("bandwidth", &bandwidth, "read_bytes"_a, "update_bytes"_a, "seconds"_a, nb::call_guard<nb::gil_scoped_release>(),
          "Seconds to read one buffer and to read and rewrite another, once each: the best of the rounds that fit.");

    nb::class_<Decoder>(m, "Decoder")
        .def(
            "__init__",
            [](Decoder* self, nb::dict config, nb::dict tensors, const std::string& weights, int slots, int top_k, float top_p, bool penalties,
               const std::string& isa) {
                auto number = [&](const char* key) { return nb::cast<int>(config[key]); };
                Config c{number("d_model"), number("n_layer"), number("vocab_size"), number("rows"), number("d_state"), number("d_conv"), number("expand"),
                         number("headdim"), number("ngroups"), number("norm_groups"), nb::cast<float>(config["norm_eps"])};
                DictSource source(tensors);
                new (self) Decoder(c, source, dtype_of(weights), slots, Sampling{top_k, top_p, penalties}, isa);
            },
            "config"_a, "tensors"_a, "weights"_a = "fp32", "slots"_a = 8, "top_k"_a = 0, "top_p"_a = 1.0f, "penalties"_a = false, "isa"_a = "auto")
        .def_prop_ro("isa", &Decoder::isa)
        .def_prop_ro("slots", &Decoder::slots)
        .def_prop_rw("threads", &Decoder::threads, &Decoder::set_threads)
        .def_prop_ro("layer_bytes", &Decoder::layer_bytes)
        .def_prop_ro("state_bytes", &Decoder::state_bytes)
        .def("reset", &Decoder::reset, "slot"_a, nb::call_guard<nb::gil_scoped_release>())
        .def(
            "step",
            [](Decoder& self, Array<int32_t, 1> slots, Array<int32_t, 2> rows, Array<int32_t, 2> ranges, Array<float, 1> uniforms, Array<float, 1> temperatures,
               Output<int32_t, 1> out, std::optional<Array<float, 1>> factors, std::optional<Array<int32_t, 1>> factors_at,
               std::optional<Output<float, 2>> removed) {
                const size_t n = slots.shape(0);
                if (rows.shape(0) != n) wrong_shape("rows", rows.shape(0), "rows", n);
                if (ranges.shape(0) != n) wrong_shape("ranges", ranges.shape(0), "rows", n);
                if (ranges.shape(1) != 2) wrong_shape("ranges", ranges.shape(1), "columns", 2);
                if (uniforms.shape(0) != n) wrong_shape("uniforms", uniforms.shape(0), "numbers", n);
                if (temperatures.shape(0) != n) wrong_shape("temperatures", temperatures.shape(0), "numbers", n);
                if (out.shape(0) != n) wrong_shape("out", out.shape(0), "numbers", n);
                if (factors.has_value() != factors_at.has_value()) throw std::invalid_argument("factors and factors_at come together");
                if (factors_at && factors_at->shape(0) != n) wrong_shape("factors_at", factors_at->shape(0), "numbers", n);
                if (removed && removed->shape(0) != n) wrong_shape("removed", removed->shape(0), "rows", n);
                if (removed && removed->shape(1) != 2) wrong_shape("removed", removed->shape(1), "columns", 2);
                check_width(rows.shape(1));
                Factors given;
                if (factors) given = {factors->data(), factors->shape(0), factors_at->data(), removed ? removed->data() : nullptr};
                nb::gil_scoped_release release;
                return self.step({slots.data(), n}, rows.data(), int(rows.shape(1)), ranges.data(), uniforms.data(), temperatures.data(), out.data(), given);
            },
            "slots"_a, "rows"_a, "ranges"_a, "uniforms"_a, "temperatures"_a, "out"_a, "factors"_a = nb::none(), "factors_at"_a = nb::none(), "removed"_a = nb::none(),
            "Advances each slot by one input and draws its next token into out. Returns the positions whose state is no longer finite.")
        .def(
            "verify",
            [](Decoder& self, Array<int32_t, 1> slots, Array<int32_t, 1> counts, Array<int32_t, 2> rows, Array<int32_t, 1> drafts, Array<int32_t, 2> ranges,
               Array<float, 1> uniforms, Array<float, 1> temperatures, Output<int32_t, 1> out, Output<int32_t, 1> taken,
               std::optional<Array<float, 1>> factors, std::optional<Array<int32_t, 1>> factors_at) {
                const size_t n = slots.shape(0);
                if (counts.shape(0) != n) wrong_shape("counts", counts.shape(0), "numbers", n);
                if (taken.shape(0) != n) wrong_shape("taken", taken.shape(0), "numbers", n);
                size_t total = 0;
                for (size_t i = 0; i < n; ++i) total += size_t(std::max(0, counts.data()[i]));
                if (rows.shape(0) != total) wrong_shape("rows", rows.shape(0), "rows", total);
                if (drafts.shape(0) != total) wrong_shape("drafts", drafts.shape(0), "numbers", total);
                if (ranges.shape(0) != total) wrong_shape("ranges", ranges.shape(0), "rows", total);
                if (ranges.shape(1) != 2) wrong_shape("ranges", ranges.shape(1), "columns", 2);
                if (uniforms.shape(0) != total) wrong_shape("uniforms", uniforms.shape(0), "numbers", total);
                if (temperatures.shape(0) != total) wrong_shape("temperatures", temperatures.shape(0), "numbers", total);
                if (out.shape(0) != total) wrong_shape("out", out.shape(0), "numbers", total);
                if (factors.has_value() != factors_at.has_value()) throw std::invalid_argument("factors and factors_at come together");
                if (factors_at && factors_at->shape(0) != total) wrong_shape("factors_at", factors_at->shape(0), "numbers", total);
                check_width(rows.shape(1));
                Factors given;
                if (factors) given = {factors->data(), factors->shape(0), factors_at->data(), nullptr};
                nb::gil_scoped_release release;
                self.verify({slots.data(), n}, counts.data(), rows.data(), int(rows.shape(1)), drafts.data(), ranges.data(), uniforms.data(),
                            temperatures.data(), out.data(), taken.data(), given);
            },
            "slots"_a, "counts"_a, "rows"_a, "drafts"_a, "ranges"_a, "uniforms"_a, "temperatures"_a, "out"_a, "taken"_a, "factors"_a = nb::none(),
            "factors_at"_a = nb::none(), "Draws for several inputs of each slot, as far as their drafts hold. See decoder.hpp.")
        .def(
            "prefill",
            [](Decoder& self, int slot, Array<int32_t, 2> rows) {
                check_width(rows.shape(1));
                nb::gil_scoped_release release;
                return self.prefill(slot, rows.data(), int(rows.shape(0)), int(rows.shape(1)));
            },
            "slot"_a, "rows"_a, "Advances one slot by many inputs. False when its state is no longer finite.")
        .def(
            "inspect",
            [](Decoder& self, int slot, Array<int32_t, 1> rows, Output<float, 1> hidden, Output<float, 1> logits) {
                check_width(rows.shape(0));
                if (hidden.shape(0) != size_t(self.config().d_model)) wrong_shape("hidden", hidden.shape(0), "numbers", self.config().d_model);
                if (logits.shape(0) != size_t(self.config().vocab_size)) wrong_shape("logits", logits.shape(0), "numbers", self.config().vocab_size);
                nb::gil_scoped_release release;
                self.inspect(slot, rows.data(), int(rows.shape(0)), hidden.data(), logits.data());
            },
            "slot"_a, "rows"_a, "hidden"_a, "logits"_a)
        .def(
            "save",
            [](const Decoder& self, int slot) {
                std::string bytes = self.save(slot);
                return nb::bytes(bytes.data(), bytes.size());
            },
            "slot"_a)
        .def(
            "load", [](Decoder& self, int slot, nb::bytes bytes) { self.load(slot, {bytes.c_str(), bytes.size()}); }, "slot"_a, "bytes"_a);
}
