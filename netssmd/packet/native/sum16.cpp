// netssmd.packet._sum16: the sum of packet/wire.py's `sum16`, for payloads, where it is most of a checksum's cost.
//
// RFC 1071 section 2: the sum does not depend on byte order, so machine words are added and the bytes swapped at the end.
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <bit>
#include <cstdint>
#include <cstring>

namespace {

uint32_t sum16(const unsigned char* data, Py_ssize_t size) {
    uint64_t total = 0;  // of 32-bit words: 2^32 of them fit
    Py_ssize_t at = 0;
    for (; at + 4 <= size; at += 4) {
        uint32_t word;
        std::memcpy(&word, data + at, 4);
        total += word;
    }
    unsigned char rest[4] = {};
    std::memcpy(rest, data + at, size_t(size - at));
    uint32_t word;
    std::memcpy(&word, rest, 4);
    total += word;
    while (total > 0xFFFF) total = (total >> 16) + (total & 0xFFFF);
    if constexpr (std::endian::native == std::endian::little) total = (total >> 8 | total << 8) & 0xFFFF;
    return uint32_t(total);
}

PyObject* call(PyObject*, PyObject* data) {
    char* bytes;
    Py_ssize_t size;
    if (PyBytes_AsStringAndSize(data, &bytes, &size) < 0) return nullptr;
    return PyLong_FromLong(long(sum16(reinterpret_cast<const unsigned char*>(bytes), size)));
}

PyMethodDef methods[] = {{"sum16", call, METH_O, "Sum of the 16-bit big-endian words of bytes, in ones' complement."},
                         {nullptr, nullptr, 0, nullptr}};
PyModuleDef module = {PyModuleDef_HEAD_INIT, "_sum16", nullptr, 0, methods, nullptr, nullptr, nullptr, nullptr};

}  // namespace

PyMODINIT_FUNC PyInit__sum16() { return PyModule_Create(&module); }
