// Memory: that of the device, in its own address range with zones around every allocation; the shared pieces of a block;
// copies between the two.
#include <sys/mman.h>

#include "machine.h"

namespace host {

namespace {

constexpr size_t RESERVED = size_t(1) << 35;
constexpr size_t PAGE = 4096;
// The zone beside every allocation. After it there is no memory.
constexpr size_t GUARD = 4096;
constexpr size_t ALIGNMENT = 256;

size_t round_up(size_t bytes, size_t to) { return (bytes + to - 1) / to * to; }

}  // namespace

Device::Device() {
    void* at = mmap(nullptr, RESERVED, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (at == MAP_FAILED) return;
    base = static_cast<unsigned char*>(at);
    reserved = RESERVED;
    shadow = static_cast<unsigned char*>(reserve_shadow(RESERVED));
}

Device::~Device() {
    if (!base) return;
    ASAN_UNPOISON_MEMORY_REGION(base, used);
    munmap(base, reserved);
    release_shadow(shadow, reserved);
}

void* Device::allocate(size_t bytes) {
    const size_t begin = used + GUARD, end = begin + bytes, next = round_up(end + GUARD, PAGE);
    if (!base || bytes > RESERVED || next > reserved) return nullptr;
    if (mprotect(base + used, next - used, PROT_READ | PROT_WRITE) != 0) return nullptr;
    guard(base + used, GUARD);
    guard(base + end, next - end);
    // One inaccessible page before the next allocation.
    used = next + PAGE;
    static_assert(GUARD % ALIGNMENT == 0 && PAGE % ALIGNMENT == 0);
    allocations.push_back({base + begin, bytes});
    return base + begin;
}

void Device::guard(void* begin, size_t bytes) {
    if (bytes == 0) return;
    unsigned char* from = static_cast<unsigned char*>(begin);
    ASAN_UNPOISON_MEMORY_REGION(from, bytes);
    memset(from, CANARY, bytes);
    ASAN_POISON_MEMORY_REGION(from, bytes);
    mark_shadow(shadow, size_t(from - base), bytes, Mark::Forbidden);
    guards.push_back({from, from + bytes});
}

void Device::unguard(void* begin, size_t bytes) {
    unsigned char* from = static_cast<unsigned char*>(begin);
    unsigned char* to = from + bytes;
    std::vector<Guard> kept;
    for (const Guard& g : guards) {
        if (g.end <= from || g.begin >= to) {
            kept.push_back(g);
            continue;
        }
        if (g.begin < from) kept.push_back({g.begin, from});
        if (g.end > to) kept.push_back({to, g.end});
    }
    guards = std::move(kept);
    mark_shadow(shadow, size_t(from - base), bytes, Mark::Fresh);
    ASAN_UNPOISON_MEMORY_REGION(from, bytes);
}

EFFNET_UNSANITISED std::string Device::check() {
    std::string found;
    for (const Guard& g : guards) {
        unsigned char* first = nullptr;
        size_t wrong = 0;
        for (unsigned char* at = g.begin; at < g.end; at++) {
            // Eight bytes at a time until one differs.
            while (at + 8 <= g.end) {
                uint64_t word;
                __builtin_memcpy(&word, at, 8);
                if (word != 0x0101010101010101u * CANARY) break;
                at += 8;
            }
            if (at >= g.end) break;
            if (*at == CANARY) continue;
            if (!first) first = at;
            *at = CANARY;
            wrong++;
        }
        if (!first) continue;
        if (!found.empty()) found += "; ";
        found += text("%zu bytes were written outside of memory, the first at ", wrong) + describe(first);
    }
    return found;
}

const Region* Device::region(uintptr_t address) const {
    size_t low = 0, high = regions.size();
    while (low < high) {
        const size_t middle = (low + high) / 2;
        if (regions[middle].begin <= address) low = middle + 1;
        else high = middle;
    }
    return low > 0 && address < regions[low - 1].end ? &regions[low - 1] : nullptr;
}

std::string Device::describe(const void* address) const {
    const uintptr_t at = reinterpret_cast<uintptr_t>(address);
    if (const Region* r = region(at)) return text("%s + %zu", r->label.c_str(), size_t(at - r->begin));
    const unsigned char* byte = static_cast<const unsigned char*>(address);
    if (byte < base || byte >= base + reserved) return text("address %p, which is not the device's", address);
    // The nearest region that ends before it, or begins after it.
    const Region *before = nullptr, *after = nullptr;
    for (const Region& r : regions) {
        if (r.end <= at) before = &r;
        if (r.begin > at && !after) after = &r;
    }
    if (before && (!after || at - before->end <= after->begin - at))
        return text("%zu bytes past the end of %s", size_t(at - before->end), before->label.c_str());
    if (after) return text("%zu bytes before %s", size_t(after->begin - at), after->label.c_str());
    for (size_t i = 0; i < allocations.size(); i++) {
        const uintptr_t begin = reinterpret_cast<uintptr_t>(allocations[i].begin), end = begin + allocations[i].bytes;
        if (at >= begin && at < end) return text("allocation %zu + %zu", i, size_t(at - begin));
        if (at >= end && at < end + 2 * GUARD)
            return text("%zu bytes past the end of allocation %zu", size_t(at - end), i);
        if (at < begin && at + GUARD >= begin)
            return text("%zu bytes before allocation %zu", size_t(begin - at), i);
    }
    return text("address %p", address);
}

// ---- shared memory ----------------------------------------------------------------------------------------

void Machine::begin_shared() {
    arena_used = arena_taken = 0;
    pieces.clear();
}

EFFNET_UNSANITISED void Machine::end_shared() {
    // The zones between the pieces.
    size_t at = 0;
    for (size_t i = 0; i <= pieces.size(); i++) {
        const size_t end = i < pieces.size() ? pieces[i].offset : arena_used;
        for (; at < end; at++) {
            if (arena[at] != CANARY && !failed) {
                complain(text("block (%u, %u, %u) wrote %zu bytes past the end of piece %zu of shared memory", blockIdx.x,
                              blockIdx.y, blockIdx.z, i ? at - pieces[i - 1].offset - pieces[i - 1].bytes : 0,
                              i ? i - 1 : 0));
                at = end;
            }
        }
        if (i < pieces.size()) at = pieces[i].offset + pieces[i].bytes;
    }
    ASAN_POISON_MEMORY_REGION(arena, arena_used);
}

std::string Machine::describe_shared(const unsigned char* at) const {
    const size_t offset = size_t(at - arena);
    for (size_t i = pieces.size(); i-- > 0;) {
        const Piece& piece = pieces[i];
        if (offset >= piece.offset + piece.bytes)
            return text("%zu bytes past the end of piece %zu of shared memory", offset - piece.offset - piece.bytes, i);
        if (offset >= piece.offset) return text("piece %zu of shared memory + %zu", i, offset - piece.offset);
    }
    return "what lies before shared memory";
}

void* take_shared(size_t piece, size_t bytes) {
    Machine& m = *active;
    if (piece < m.pieces.size()) {
        if (m.pieces[piece].bytes != bytes)
            fail("%s takes %zu bytes as piece %zu of shared memory, another thread took %zu", whereabouts().c_str(), bytes,
                 piece, m.pieces[piece].bytes);
        return m.arena + m.pieces[piece].offset;
    }
    if (piece > m.pieces.size()) fail("%s takes piece %zu of shared memory first", whereabouts().c_str(), piece);
    m.arena_taken += round_up(bytes, 16);
    if (m.arena_taken > m.shared_bytes)
        fail("piece %zu makes %zu bytes of shared memory, launched with %zu", piece, m.arena_taken, m.shared_bytes);
    const size_t begin = m.arena_used + ZONE, end = begin + round_up(bytes, 16);
    if (end + ZONE > ARENA_BYTES) fail("more than %zu bytes of shared memory", ARENA_BYTES);
    ASAN_UNPOISON_MEMORY_REGION(m.arena + m.arena_used, end + ZONE - m.arena_used);
    memset(m.arena + m.arena_used, CANARY, begin - m.arena_used);
    memset(m.arena + begin, UNWRITTEN, bytes);
    memset(m.arena + begin + bytes, CANARY, end + ZONE - begin - bytes);
    ASAN_POISON_MEMORY_REGION(m.arena + m.arena_used, begin - m.arena_used);
    ASAN_POISON_MEMORY_REGION(m.arena + begin + bytes, end + ZONE - begin - bytes);
    mark_shadow(m.arena_shadow, m.arena_used, end + ZONE - m.arena_used, Mark::Forbidden);
    mark_shadow(m.arena_shadow, begin, bytes, Mark::NeverWritten);
    m.arena_used = end + ZONE;
    m.pieces.push_back({bytes, begin});
    return m.arena + begin;
}

// ---- copies -----------------------------------------------------------------------------------------------

static void perform(const Copy& copy) {
    if (copy.valid) memcpy(copy.shared, copy.global, 16);
    else memset(copy.shared, 0, 16);
}

void copy_async_16(void* shared, const void* global, bool valid) {
    Machine& m = *active;
    Fiber& fiber = *m.current;
    const auto aligned = [](const void* at) { return reinterpret_cast<uintptr_t>(at) % 16 == 0; };
    if (!aligned(shared) || (valid && !aligned(global)))
        fail("%s copies 16 bytes that are not aligned to 16", whereabouts().c_str());
    const unsigned char* to = static_cast<unsigned char*>(shared);
    if (to < m.arena || to + 16 > m.arena + m.arena_used)
        fail("%s copies to what is not shared memory", whereabouts().c_str());
    const void* where = __builtin_return_address(0);
    if (valid) note_load(global, 16, where);
    note_store(shared, 16, where);
    const Copy copy{shared, global, valid, fiber.group, where};
    if (!m.options.late_copies) perform(copy);
    fiber.copies.push_back(copy);
}

void copy_async_commit() { active->current->group++; }

void copy_async_wait(int groups, const char* file, int line) {
    if (removed(file, line)) return;
    Machine& m = *active;
    Fiber& fiber = *m.current;
    size_t done = 0;
    // Groups are closed in order, so the copies of earlier groups come first.
    while (done < fiber.copies.size() && fiber.copies[done].group + unsigned(groups) < fiber.group) {
        const Copy& copy = fiber.copies[done];
        if (m.options.late_copies) perform(copy);
        note_copy_end(copy.shared, 16, copy.where);
        done++;
    }
    fiber.copies.erase(fiber.copies.begin(), fiber.copies.begin() + ptrdiff_t(done));
}

namespace {
// y without its last bits, rounded: off by at most half a unit of the last bit that is kept. What would be denormal is 0.
float rounded_off(float y, unsigned bits) {
    if (fabsf(y) < std::numeric_limits<float>::min()) return 0.0f * y;
    if (!std::isfinite(y)) return y;
    return __uint_as_float((__float_as_uint(y) + (1u << (bits - 1))) & ~((1u << bits) - 1));
}
}  // namespace

float exp2_approximate(float x) { return rounded_off(exp2f(x), 2); }

float reciprocal_approximate(float x) { return rounded_off(1.0f / x, 1); }

void atomic_or(unsigned* word, unsigned bits) {
    note_atomic(word, sizeof(*word));
    __atomic_fetch_or(word, bits, __ATOMIC_RELAXED);
}

// Of a count in shared memory. It is noted like a read: counts do not race with each other, but what is written otherwise
// must be ordered before or after.
void atomic_add(unsigned* word, unsigned by) {
    note_load(word, sizeof(*word), __builtin_return_address(0));
    __atomic_fetch_add(word, by, __ATOMIC_RELAXED);
}

}  // namespace host
