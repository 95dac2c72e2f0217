#include "team.hpp"

#include <csignal>
#include <utility>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace netssmd {
namespace {

constexpr int kSpins = 2000;  // some 50 us: longer than any stage is alone; then whoever else wants the core may have it

void pause(int& spins) {
    if (++spins > kSpins) std::this_thread::yield();
#if defined(__x86_64__)
    else _mm_pause();
#endif
}

}  // namespace

Team::Team(int helpers, std::function<void()> begin, std::function<void()> end) : begin_(std::move(begin)), end_(std::move(end)) {
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);  // signals are the interpreter's
    for (int i = 1; i <= helpers; ++i) helpers_.emplace_back(&Team::help, this, i);
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
}

Team::~Team() {
    over_ = true;
    calls_ += 1;
    calls_.notify_all();
    for (auto& helper : helpers_) helper.join();
}

void Team::enter() {
    calls_.fetch_add(1, std::memory_order_release);
    calls_.notify_all();
}

void Team::leave() { calls_.fetch_add(1, std::memory_order_release); }

// A piece of the stage, or -1. Whoever has one holds the stage: it does not end before done_ says so.
int Team::take(bool front) {
    uint64_t left = left_.load(std::memory_order_acquire);
    for (;;) {
        const int first = int(left >> 16 & 0xFFFF), last = int(left & 0xFFFF);
        if (first >= last) return -1;
        if (left_.compare_exchange_weak(left, front ? left + 0x10000 : left - 1, std::memory_order_acquire)) return front ? first : last - 1;
    }
}

void Team::share(int pieces, Work work, void* what) {
    work_ = work;
    what_ = what;
    done_.store(0, std::memory_order_relaxed);
    const uint64_t stage = (left_.load(std::memory_order_relaxed) >> 32) + 1;
    left_.store(stage << 32 | uint64_t(pieces), std::memory_order_release);
    int own = 0;
    for (int piece; (piece = take(true)) >= 0; ++own) work(what, piece, 0);
    for (int spins = 0; done_.load(std::memory_order_acquire) != pieces - own;) pause(spins);
}

void Team::help(int thread) {
    uint32_t calls = 0;
    while (!over_) {
        calls_.wait(calls, std::memory_order_acquire);
        calls = calls_.load(std::memory_order_acquire);
        if (calls % 2 == 0 || over_) continue;
        begin_();
        for (int spins = 0; calls_.load(std::memory_order_acquire) == calls;) {
            const int piece = take(false);
            if (piece < 0) {
                pause(spins);
                continue;
            }
            work_(what_, piece, thread);
            done_.fetch_add(1, std::memory_order_release);
            spins = 0;
        }
        end_();
    }
}

}  // namespace netssmd
