// The race checker, and the counting of memory traffic.
//
// In the `race` build kernels are compiled with -fsanitize=thread, which calls a hook before every access to memory.
// These hooks replace those of the sanitiser: they know fibers, barriers and blocks. For every two bytes of shared and
// global memory a cell stores the last write and the readers since then. Two accesses, one of them a write, must be
// ordered: by a barrier of the block, by a warp barrier between lanes of a warp, or by different launches. Blocks of one
// launch are ordered by a count of arrivals alone: what a block wrote before the barrier that is part of it comes before all
// that the last block does after it. The order in which the fibers actually run does not matter.
#include <sys/mman.h>

#include "machine.h"

#if !defined(EFFNET_RACE)

namespace host {

void note_load(const void*, size_t, const void*) {}
void note_store(const void*, size_t, const void*) {}
void note_atomic(const void*, size_t) {}
void note_arrival(const unsigned*) {}
void note_copy_end(const void*, size_t, const void*) {}
void* reserve_shadow(size_t) { return nullptr; }
void release_shadow(void*, size_t) {}
void mark_shadow(void*, size_t, size_t, Mark) {}
void forget_regions() {}

}  // namespace host

#else

namespace host {

namespace {

constexpr size_t GRANULE = 2;

struct Cell {
    uint64_t write, read;
    // Places in the program, as distances from `anchor`.
    int32_t write_place, read_place;
};

// A stamp contains the thread and the time:
//   bits 0..31 the interval between barriers, 32..41 the thread, 42..60 its warp's barriers so far;
//   of reads: 61 other blocks have read too, 62 other warps in this interval, 63 other lanes in this warp's epoch.
constexpr uint64_t OTHER_BLOCKS = uint64_t(1) << 61;
constexpr uint64_t OTHER_WARPS = uint64_t(1) << 62;
constexpr uint64_t OTHER_LANES = uint64_t(1) << 63;
constexpr uint64_t WHO_AND_WHEN = OTHER_BLOCKS - 1;

// Special values of the last write: forbidden bytes, and bytes that were never written.
constexpr uint64_t FORBIDDEN = ~uint64_t(0), NEVER_WRITTEN = ~uint64_t(0) - 1;

uint32_t interval_of(uint64_t stamp) { return uint32_t(stamp); }
unsigned thread_of(uint64_t stamp) { return unsigned(stamp >> 32) & 1023; }
unsigned epoch_of(uint64_t stamp) { return unsigned(stamp >> 42) & 0x7ffff; }
uint64_t stamp_of(const Machine& m, unsigned thread) {
    const uint64_t epoch = m.warps[thread / LANES_OF_WARP].epoch & 0x7ffff;
    return uint64_t(m.interval) | uint64_t(thread) << 32 | epoch << 42;
}

void anchor() {}
int32_t place_of(const void* where) {
    return int32_t(reinterpret_cast<intptr_t>(where) - reinterpret_cast<intptr_t>(&anchor));
}
std::string source_of(int32_t place) {
    return source(reinterpret_cast<const void*>(reinterpret_cast<intptr_t>(&anchor) + place));
}

std::string where(const Machine& m, const void* at) {
    const unsigned char* address = static_cast<const unsigned char*>(at);
    return address >= m.arena && address < m.arena + ARENA_BYTES ? m.describe_shared(address)
                                                                 : m.device->describe(at);
}

[[gnu::noinline, gnu::cold]] void report(Machine& m, const void* at, bool writes, const void* place, bool wrote,
                                         uint64_t other, int32_t other_place) {
    if (!m.new_complaint(place, other_place)) return;
    const bool same_block = interval_of(other) >= m.block_interval;
    complain(text("race on %s: %s %s at %s what ", where(m, at).c_str(), whereabouts().c_str(),
                  writes ? "writes" : "reads", source(place).c_str()) +
             (same_block ? text("thread %u of the same block", thread_of(other)) : std::string("another block")) +
             (wrote ? " wrote at " : " read at ") + source_of(other_place));
}

[[gnu::noinline, gnu::cold]] void report_marked(Machine& m, const void* at, bool writes, const void* place,
                                                uint64_t mark) {
    if (!m.new_complaint(place, 0)) return;
    const char* what = writes ? "writes" : "reads";
    complain(text("%s %s %s at %s", whereabouts().c_str(), what, where(m, at).c_str(), source(place).c_str()) +
             (mark == FORBIDDEN ? "" : ", which nobody has written"));
}

// Whether another block of this launch was in this interval before it arrived at a count at which this block was the last.
[[gnu::noinline]] bool seen(const Machine& m, uint32_t interval) {
    const auto after = std::upper_bound(m.seen.begin(), m.seen.end(), interval,
                                        [](uint32_t interval, const Span& span) { return interval < span.begin; });
    return after != m.seen.begin() && interval < std::prev(after)->end;
}

// Whether a write with this stamp is ordered before an access of this thread.
inline bool ordered(const Machine& m, uint64_t stamp, uint64_t own) {
    const uint32_t interval = interval_of(stamp);
    if (interval < m.launch_interval) return true;
    if (interval < m.block_interval) return seen(m, interval);
    if (interval < m.interval) return true;
    const unsigned thread = thread_of(stamp), self = thread_of(own);
    return thread == self || (thread / LANES_OF_WARP == self / LANES_OF_WARP && epoch_of(stamp) != epoch_of(own));
}

// The same for the stamp of the reads.
inline bool reads_ordered(const Machine& m, uint64_t stamp, uint64_t own) {
    const uint32_t interval = interval_of(stamp);
    if (interval < m.launch_interval) return true;
    if (interval < m.block_interval || (stamp & OTHER_BLOCKS)) return false;
    if (interval < m.interval) return true;
    if (stamp & OTHER_WARPS) return false;
    const unsigned thread = thread_of(stamp), self = thread_of(own);
    if (thread / LANES_OF_WARP != self / LANES_OF_WARP) return false;
    if (epoch_of(stamp) != epoch_of(own)) return true;
    return thread == self && !(stamp & OTHER_LANES);
}

// The stamp of the reads with one more.
inline uint64_t with_read(const Machine& m, uint64_t stamp, uint64_t own) {
    const uint32_t interval = interval_of(stamp);
    if (interval < m.launch_interval) return own;
    if (interval < m.block_interval) return own | OTHER_BLOCKS;
    own |= stamp & OTHER_BLOCKS;
    if (interval < m.interval) return own;
    own |= stamp & OTHER_WARPS;
    const unsigned thread = thread_of(stamp), self = thread_of(own);
    if (thread / LANES_OF_WARP != self / LANES_OF_WARP) return own | OTHER_WARPS;
    if (epoch_of(stamp) != epoch_of(own)) return own;
    own |= stamp & OTHER_LANES;
    return thread == self ? own : own | OTHER_LANES;
}

template <bool WRITES>
inline void touch(Machine& m, Cell* cells, const unsigned char* at, size_t bytes, const void* place) {
    const uint64_t own = stamp_of(m, threadIdx.x);
    const int32_t own_place = place_of(place);
    const size_t first = reinterpret_cast<uintptr_t>(at) % GRANULE;
    const size_t count = (first + bytes + GRANULE - 1) / GRANULE;
    for (size_t i = 0; i < count; i++) {
        Cell& cell = cells[i];
        if (cell.write >= NEVER_WRITTEN) {
            if (cell.write == FORBIDDEN || !WRITES) {
                report_marked(m, at + i * GRANULE, WRITES, place, cell.write);
                continue;
            }
        } else if (!ordered(m, cell.write, own)) {
            report(m, at + i * GRANULE, WRITES, place, true, cell.write, cell.write_place);
        }
        if constexpr (WRITES) {
            if (!reads_ordered(m, cell.read, own))
                report(m, at + i * GRANULE, true, place, false, cell.read, cell.read_place);
            cell.write = own;
            cell.write_place = own_place;
            cell.read = 0;
        } else if ((cell.read & WHO_AND_WHEN) != own) {
            cell.read = with_read(m, cell.read, own);
            cell.read_place = own_place;
        }
    }
}

// Recently used regions, by page.
thread_local Region* recent[64];

template <bool WRITES>
inline void count(Machine& m, uintptr_t at, size_t bytes) {
    Region*& guess = recent[at / 4096 % 64];
    if (!guess || at < guess->begin || at >= guess->end) {
        guess = const_cast<Region*>(m.device->region(at));
        if (!guess) guess = &m.device->elsewhere;
    }
    (WRITES ? guess->stored : guess->loaded) += bytes;
}

Cell* cells_at(unsigned char* shadow, size_t offset) { return reinterpret_cast<Cell*>(shadow) + offset / GRANULE; }

template <bool WRITES>
inline void access(const void* address, size_t bytes, const void* place) {
    Machine* m = active;
    if (!m || !m->current) return;
    const unsigned char* at = static_cast<const unsigned char*>(address);
    if (size_t(at - m->arena) < ARENA_BYTES) {
        touch<WRITES>(*m, cells_at(m->arena_shadow, size_t(at - m->arena)), at, bytes, place);
    } else if (size_t(at - m->device->base) < m->device->used) {
        count<WRITES>(*m, reinterpret_cast<uintptr_t>(at), bytes);
        touch<WRITES>(*m, cells_at(m->device->shadow, size_t(at - m->device->base)), at, bytes, place);
    }
}

size_t shadow_bytes(size_t bytes) { return bytes / GRANULE * sizeof(Cell); }

}  // namespace

void note_load(const void* from, size_t bytes, const void* place) { access<false>(from, bytes, place); }
void note_store(const void* to, size_t bytes, const void* place) { access<true>(to, bytes, place); }

// Atomic operations do not race with each other; they only count.
void note_atomic(const void* at, size_t bytes) {
    Machine& m = *active;
    if (size_t(static_cast<const unsigned char*>(at) - m.device->base) >= m.device->used) return;
    count<false>(m, reinterpret_cast<uintptr_t>(at), bytes);
    count<true>(m, reinterpret_cast<uintptr_t>(at), bytes);
}

void note_arrival(const unsigned* arrivals) {
    Machine& m = *active;
    std::vector<Span>& spans = m.arrivals[arrivals];
    spans.push_back({m.block_interval, m.interval});
    // What this block relies on, the last one may rely on too.
    spans.insert(spans.end(), m.seen.begin(), m.seen.end());
    if (!m.last) return;
    m.seen = std::move(spans);
    m.arrivals.erase(arrivals);
    // Of two counts of one block, the later one comes last.
    std::sort(m.seen.begin(), m.seen.end(),
              [](const Span& a, const Span& b) { return a.begin < b.begin || (a.begin == b.begin && a.end < b.end); });
}

void note_copy_end(const void* to, size_t bytes, const void* place) {
    Machine& m = *active;
    const unsigned char* at = static_cast<const unsigned char*>(to);
    Cell* cells = cells_at(m.arena_shadow, size_t(at - m.arena));
    const uint64_t own = stamp_of(m, threadIdx.x);
    for (size_t i = 0; i < bytes / GRANULE; i++) {
        Cell& cell = cells[i];
        // Issuing the copy made this thread the last writer and forgot all reads.
        const bool written = thread_of(cell.write) != threadIdx.x, read = cell.read != 0;
        if ((written || read) && m.new_complaint(place, written ? cell.write_place : cell.read_place)) {
            complain(text("race on %s: the copy that %s issued at %s was under way when thread %u %s there at %s",
                          where(m, at + i * GRANULE).c_str(), whereabouts().c_str(), source(place).c_str(),
                          thread_of(written ? cell.write : cell.read), written ? "wrote" : "read",
                          source_of(written ? cell.write_place : cell.read_place).c_str()));
        }
        cell.write = own;
        cell.read = 0;
    }
}

void* reserve_shadow(size_t bytes) {
    constexpr int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    void* at = mmap(nullptr, shadow_bytes(bytes), PROT_READ | PROT_WRITE, flags, -1, 0);
    if (at == MAP_FAILED) {
        fputs("host harness: no address space for the race checker\n", stderr);
        abort();
    }
    return at;
}

void release_shadow(void* shadow, size_t bytes) { munmap(shadow, shadow_bytes(bytes)); }

void mark_shadow(void* shadow, size_t offset, size_t bytes, Mark mark) {
    static constexpr uint64_t marks[] = {0, FORBIDDEN, NEVER_WRITTEN};
    // A cell that begins before these bytes belongs to the bytes before.
    const size_t first = (offset + GRANULE - 1) / GRANULE, last = (offset + bytes) / GRANULE;
    Cell* cells = reinterpret_cast<Cell*>(shadow);
    for (size_t i = first; i < last; i++) cells[i] = {marks[int(mark)], 0, 0, 0};
}

void forget_regions() { std::fill(std::begin(recent), std::end(recent), nullptr); }

}  // namespace host

extern "C" {

#define EFFNET_HOOKS(bytes)                                                                              \
    void __tsan_read##bytes(void* at) { host::access<false>(at, bytes, __builtin_return_address(0)); }   \
    void __tsan_write##bytes(void* at) { host::access<true>(at, bytes, __builtin_return_address(0)); }   \
    void __tsan_unaligned_read##bytes(void* at) { host::access<false>(at, bytes, __builtin_return_address(0)); } \
    void __tsan_unaligned_write##bytes(void* at) { host::access<true>(at, bytes, __builtin_return_address(0)); } \
    void __tsan_volatile_read##bytes(void* at) { host::access<false>(at, bytes, __builtin_return_address(0)); }  \
    void __tsan_volatile_write##bytes(void* at) { host::access<true>(at, bytes, __builtin_return_address(0)); }
EFFNET_HOOKS(1)
EFFNET_HOOKS(2)
EFFNET_HOOKS(4)
EFFNET_HOOKS(8)
EFFNET_HOOKS(16)
#undef EFFNET_HOOKS
void __tsan_read_range(void* at, size_t bytes) { host::access<false>(at, bytes, __builtin_return_address(0)); }
void __tsan_write_range(void* at, size_t bytes) { host::access<true>(at, bytes, __builtin_return_address(0)); }
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_update(void*, void*) {}
void __tsan_vptr_read(void*) {}

}  // extern "C"

#endif
