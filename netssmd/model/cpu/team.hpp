// Threads that help another one with a call: a model that comes from memory with every step comes faster to two cores than to one.
//
//   caller   enter -> share (a stage of the call, cut in pieces) -> share -> ... -> leave
//   helper   sleeps -> a call is on: takes pieces of whatever stage there is -> the call is over -> sleeps
//
// The caller takes pieces from the front, helpers from the back, so that each mostly meets what its own caches had in the step before. The
// caller waits for pieces that were taken, never for a helper: one that the system does not run costs nothing but its help. What a piece
// computes does not depend on who does it.
#pragma once
#include <atomic>
#include <cstdint>
#include <functional>
#include <thread>
#include <vector>

namespace netssmd {

constexpr int kMostThreads = 16;  // of one call

class Team {
public:
    // begin and end: on each helper, around its part in a call.
    Team(int helpers, std::function<void()> begin, std::function<void()> end);
    ~Team();

    // One caller at a time.
    void enter();
    void leave();
    // work(piece, thread) for pieces 0..pieces-1, each once; thread 0 is the caller. At most 65,535 pieces.
    template <class F>
    void share(int pieces, F&& work) {
        share(pieces, [](void* f, int piece, int thread) { (*static_cast<std::remove_reference_t<F>*>(f))(piece, thread); }, &work);
    }

private:
    using Work = void (*)(void* what, int piece, int thread);
    void share(int pieces, Work work, void* what);
    int take(bool front);
    void help(int thread);

    std::function<void()> begin_, end_;
    alignas(64) std::atomic<uint32_t> calls_{0};  // odd: one is on
    std::atomic<bool> over_{false};
    Work work_ = nullptr;
    void* what_ = nullptr;
    alignas(64) std::atomic<uint64_t> left_{0};  // stage << 32 | first piece that nobody has << 16 | behind the last one
    alignas(64) std::atomic<int> done_{0};
    std::vector<std::thread> helpers_;
};

}  // namespace netssmd
