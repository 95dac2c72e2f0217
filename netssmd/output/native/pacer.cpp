// netssmd.output._pacer: the pacer of output/pacer.py with the interpreter lock released.
//
// Engine threads hold that lock for milliseconds, which is what a packet may be late in Python. Here a thread that calls
// `run` needs it neither to wait nor to write. One thread pushes, one runs, any reads the counters; the ring's bytes are
// copied once, from Python's frames into it.
//
//   ring of frames {due_ns, offset, length}      head: the runner's place      tail: the pusher's
//   ring of bytes, a frame never wraps           a frame keeps its bytes until its fate is known
#include <nanobind/nanobind.h>
#include <nanobind/stl/vector.h>

#include <cerrno>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <cstring>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <vector>

namespace nb = nanobind;
using namespace nb::literals;

namespace {

enum Drop { down, gone, late, busy, refused, cut, reasons };  // REASONS of output/pacer.py

constexpr int closed = 0, retry = -1;
constexpr int64_t pause_ns = 100'000;       // between two tries while the kernel has no room
constexpr int64_t nap_ns = 50'000'000;      // the longest wait in one piece
constexpr size_t bytes_per_frame = 1'024;   // room in the ring of bytes, for each frame of the capacity
constexpr std::chrono::milliseconds patience(100);  // of who pushes, while there is no room
constexpr size_t longest = 65'536 + 64;

int64_t monotonic_ns() {
    timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return int64_t(now.tv_sec) * 1'000'000'000 + now.tv_nsec;
}

bool lost(int code) { return code == EBADFD || code == EBADF || code == ENODEV || code == ENXIO; }

using Counter = std::atomic<uint64_t>;

void add(Counter& counter, uint64_t n) {  // one writer each: no locked instruction is needed
    counter.store(counter.load(std::memory_order_relaxed) + n, std::memory_order_relaxed);
}

struct Frame {
    int64_t due_ns;
    size_t at;
    uint32_t length;
};

class Pacer {
public:
    Pacer(size_t capacity, int64_t late_ns, bool wait_when_down, std::vector<int64_t> bounds, int64_t busy_ns)
        : late_ns_(late_ns), busy_ns_(busy_ns), wait_when_down_(wait_when_down), bounds_(std::move(bounds)),
          lateness_(bounds_.size() + 1), frames_(std::max<size_t>(capacity, 1) + 1),
          size_(std::max(capacity * bytes_per_frame, 4 * longest)), bytes_(new char[size_]) {}

    // Copies frames in; while the ring is full it waits with the lock released, up to patience. Returns how many are in.
    size_t push(nb::sequence frames) {
        size_t done = 0;
        for (nb::handle item : frames) {
            nb::tuple pair = nb::cast<nb::tuple>(item);
            int64_t due_ns = nb::cast<int64_t>(pair[0]);
            nb::bytes data = nb::cast<nb::bytes>(pair[1]);
            if (data.size() > longest || data.size() == 0) {
                add(refused_by_push_, 1);
                ++done;
                continue;
            }
            if (!put(due_ns, data.c_str(), data.size())) {
                wake();
                nb::gil_scoped_release released;
                std::unique_lock lock(mutex_);
                waiting_for_room_.store(true);
                auto give_up = std::chrono::steady_clock::now() + patience;
                bool in = false;
                while (!(in = put(due_ns, data.c_str(), data.size())) && cut_ns_.load() < 0 && std::chrono::steady_clock::now() < give_up)
                    room_.wait_until(lock, give_up);
                waiting_for_room_.store(false);
                if (!in) return done;
            }
            ++done;
        }
        wake();
        return done;
    }

    int run(int fd, int64_t until_ns) {
        nb::gil_scoped_release released;
        while (true) {
            int64_t now_ns = monotonic_ns();
            if (fd < 0 && now_ns >= until_ns) return retry;
            size_t head = head_.load(std::memory_order_relaxed);
            int64_t cut_ns = cut_ns_.load();
            if (head == tail_.load(std::memory_order_acquire)) {
                if (cut_ns >= 0) return closed;
                wait(now_ns + nap_ns, until_ns, true);
                continue;
            }
            const Frame& frame = frames_[head];
            if (cut_ns >= 0 && frame.due_ns > cut_ns) drop(cut);
            else if (frame.due_ns > now_ns) wait(frame.due_ns, until_ns, false);
            else if (int code = send(fd, frame, now_ns)) return code;
        }
    }

    void close(int64_t cut_ns) {
        {
            std::lock_guard lock(mutex_);
            cut_ns_.store(cut_ns);
        }
        work_.notify_all();
        room_.notify_all();
    }

    uint64_t sent() const { return sent_; }
    uint64_t sent_bytes() const { return sent_bytes_; }
    uint64_t retries() const { return retries_; }
    uint64_t lateness_sum_ns() const { return lateness_sum_ns_; }
    std::vector<uint64_t> lateness() const { return {lateness_.begin(), lateness_.end()}; }
    std::vector<uint64_t> dropped() const {
        std::vector<uint64_t> counts(dropped_, dropped_ + reasons);
        counts[refused] += refused_by_push_;
        return counts;
    }
    size_t queued() const {
        size_t head = head_.load(), tail = tail_.load();
        return tail >= head ? tail - head : tail + frames_.size() - head;
    }

private:
    bool put(int64_t due_ns, const char* data, size_t length) {
        size_t tail = tail_.load(std::memory_order_relaxed), next = tail + 1 == frames_.size() ? 0 : tail + 1;
        size_t head = head_.load(std::memory_order_acquire);
        if (next == head) return false;
        size_t at = 0;  // where nothing waits, the same bytes are used again: they are in the cache
        if (head != tail) {
            size_t first = frames_[head].at;  // in use: from here to write_at_, around the end or not
            at = write_at_;
            if (at > first && at + length > size_) at = 0;
            if (at <= first && at + length >= first) return false;
        }
        std::memcpy(bytes_.get() + at, data, length);
        frames_[tail] = {due_ns, at, uint32_t(length)};
        write_at_ = at + length;
        tail_.store(next, std::memory_order_release);
        return true;
    }

    void pop() {
        size_t head = head_.load(std::memory_order_relaxed);
        head_.store(head + 1 == frames_.size() ? 0 : head + 1, std::memory_order_release);
        if (waiting_for_room_.load(std::memory_order_relaxed) && queued() * 2 <= frames_.size()) room_.notify_one();
    }

    void drop(Drop reason) {
        add(dropped_[reason], 1);
        pop();
    }

    int send(int fd, const Frame& frame, int64_t now_ns) {
        int64_t late_by_ns = frame.due_ns ? now_ns - frame.due_ns : 0;
        if (late_ns_ >= 0 && late_by_ns > late_ns_) return drop(late), 0;
        if (fd < 0) return drop(gone), 0;
        int code = write_out(fd, bytes_.get() + frame.at, frame.length);
        if (lost(code) || (code == EIO && wait_when_down_)) return code;
        if (code) return drop(code == EIO ? down : code == EAGAIN || code == ENOBUFS ? busy : refused), 0;
        add(sent_, 1);
        add(sent_bytes_, frame.length);
        add(lateness_[std::lower_bound(bounds_.begin(), bounds_.end(), late_by_ns) - bounds_.begin()], 1);
        add(lateness_sum_ns_, uint64_t(late_by_ns));
        pop();
        return 0;
    }

    int write_out(int fd, const char* data, size_t length) {
        int64_t give_up_ns = 0;
        while (true) {
            ssize_t written = ::write(fd, data, length);
            if (written == ssize_t(length)) return 0;
            if (written >= 0) return EMSGSIZE;
            int code = errno;
            if (code == EINTR) continue;
            if (code != EAGAIN && code != ENOBUFS) return code;
            int64_t now_ns = monotonic_ns();
            if (!give_up_ns) give_up_ns = now_ns + busy_ns_;
            if (now_ns >= give_up_ns || cut_ns_.load() >= 0) return EAGAIN;
            add(retries_, 1);
            timespec nap{0, long(pause_ns)};
            clock_nanosleep(CLOCK_MONOTONIC, 0, &nap, nullptr);
        }
    }

    // To an absolute time at most; woken when it is closed, and by new work if there was none.
    void wait(int64_t deadline_ns, int64_t until_ns, bool empty) {
        if (until_ns > 0) deadline_ns = std::min(deadline_ns, until_ns);
        std::chrono::steady_clock::time_point deadline{std::chrono::nanoseconds(deadline_ns)};
        std::unique_lock lock(mutex_);
        idle_ = empty;
        bool begun_closed = cut_ns_.load() >= 0;
        work_.wait_until(lock, deadline, [&] {
            return (cut_ns_.load() >= 0) != begun_closed || (empty && head_.load() != tail_.load());
        });
        idle_ = false;
    }

    void wake() {
        bool notify;
        {
            std::lock_guard lock(mutex_);
            notify = idle_;
        }
        if (notify) work_.notify_one();
    }

    const int64_t late_ns_, busy_ns_;
    const bool wait_when_down_;
    const std::vector<int64_t> bounds_;
    Counter sent_{0}, sent_bytes_{0}, retries_{0}, lateness_sum_ns_{0}, refused_by_push_{0}, dropped_[reasons]{};
    std::vector<Counter> lateness_;
    std::vector<Frame> frames_;
    const size_t size_;
    const std::unique_ptr<char[]> bytes_;
    size_t write_at_ = 0;
    std::atomic<size_t> head_{0}, tail_{0};
    std::atomic<int64_t> cut_ns_{-1};
    std::atomic<bool> waiting_for_room_{false};
    bool idle_ = false;
    std::mutex mutex_;
    std::condition_variable work_, room_;
};

}  // namespace

NB_MODULE(_pacer, m) {
    nb::class_<Pacer>(m, "Pacer")
        .def(nb::init<size_t, int64_t, bool, std::vector<int64_t>, int64_t>(), "capacity"_a, "late_ns"_a, "wait_when_down"_a,
             "bounds_ns"_a, "busy_ns"_a)
        .def("push", &Pacer::push, "frames"_a)
        .def("run", &Pacer::run, "fd"_a, "until_ns"_a = 0)
        .def("close", &Pacer::close, "cut_ns"_a)
        .def_prop_ro("sent", &Pacer::sent)
        .def_prop_ro("sent_bytes", &Pacer::sent_bytes)
        .def_prop_ro("dropped", &Pacer::dropped)
        .def_prop_ro("retries", &Pacer::retries)
        .def_prop_ro("lateness", &Pacer::lateness)
        .def_prop_ro("lateness_sum_ns", &Pacer::lateness_sum_ns)
        .def_prop_ro("queued", &Pacer::queued);
}
