// Threads of a block as fibers: which runs next, barriers, and the report if none can continue.
//
// A fiber runs until it waits. Then the next ready fiber of its warp runs, or of the next warp. If there is none, the
// block is stuck: an error that lists which threads wait where. The order within a warp and of the warps is forward,
// reverse, or drawn again at every barrier.
#include <sys/mman.h>

#include "machine.h"

thread_local constinit uint3 threadIdx;
thread_local constinit uint3 blockIdx;
thread_local constinit uint3 blockDim;
thread_local constinit uint3 gridDim;

// Saves the callee's registers and the stack pointer in *from and continues at `to`.
extern "C" void effnet_host_switch(void** from, void* to);
asm(R"(
.text
.globl effnet_host_switch
.type effnet_host_switch, @function
effnet_host_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size effnet_host_switch, .-effnet_host_switch
)");

namespace host {

thread_local constinit Machine* active = nullptr;

namespace {

#if defined(__SANITIZE_ADDRESS__)
constexpr size_t STACK = 320 << 10;
#else
constexpr size_t STACK = 128 << 10;
#endif
constexpr size_t PAGE = 4096;

// The next fiber after position `after` of the warp at `warp_position`.
EFFNET_UNSANITISED Fiber* pick(Machine& m, unsigned warp_position, unsigned after) {
    unsigned position;
    Warp* warp = &m.warps[m.warp_at[warp_position]];
    if (warp->ready) {
        const uint32_t later = after >= 31 ? 0 : warp->ready & (~0u << (after + 1));
        position = __builtin_ctz(later ? later : warp->ready);
    } else if (m.ready_warps) {
        const uint32_t later = warp_position >= 31 ? 0 : m.ready_warps & (~0u << (warp_position + 1));
        warp_position = __builtin_ctz(later ? later : m.ready_warps);
        warp = &m.warps[m.warp_at[warp_position]];
        position = __builtin_ctz(warp->ready);
    } else {
        return nullptr;
    }
    return &m.fibers[m.warp_at[warp_position] * LANES_OF_WARP + warp->lane_at[position]];
}

EFFNET_UNSANITISED void resume(Machine& m, Fiber* next) {
    Fiber* last = m.current;
    if (next == last) return;
    m.current = next;
    threadIdx.x = next->index;
    effnet_host_switch(&last->stack_pointer, next->stack_pointer);
}

EFFNET_UNSANITISED void set_waiting(Machine& m, Fiber* fiber, Waiting waiting) {
    fiber->waiting = waiting;
    const unsigned number = fiber->index / LANES_OF_WARP;
    Warp& warp = m.warps[number];
    warp.ready &= ~(1u << warp.position_of[fiber->index % LANES_OF_WARP]);
    if (!warp.ready) m.ready_warps &= ~(1u << m.warp_position[number]);
}

EFFNET_UNSANITISED void set_ready(Machine& m, unsigned number) {
    m.warps[number].ready = ~0u;
    m.ready_warps |= 1u << m.warp_position[number];
    for (unsigned lane = 0; lane < LANES_OF_WARP; lane++)
        m.fibers[number * LANES_OF_WARP + lane].waiting = Waiting::No;
}

// Every fiber starts here, and returns here for each block.
EFFNET_UNSANITISED void begin_fiber() {
    for (;;) {
        Machine& m = *active;
        m.kernel->run(m.arguments);
        m.leave();
    }
}

}  // namespace

Machine& machine() {
    thread_local std::unique_ptr<Machine> own = std::make_unique<Machine>();
    return *own;
}

Machine::Machine() {
    constexpr int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    stacks = static_cast<unsigned char*>(
        mmap(nullptr, STACK * MOST_THREADS, PROT_READ | PROT_WRITE, flags, -1, 0));
    arena = static_cast<unsigned char*>(mmap(nullptr, ARENA_BYTES, PROT_READ | PROT_WRITE, flags, -1, 0));
    if (stacks == MAP_FAILED || arena == MAP_FAILED) {
        fputs("host harness: no memory for the stacks of a block\n", stderr);
        abort();
    }
    // A stack that overflows hits a page that is not accessible.
    for (unsigned i = 0; i < MOST_THREADS; i++) mprotect(stacks + i * STACK, PAGE, PROT_NONE);
    ASAN_POISON_MEMORY_REGION(arena, ARENA_BYTES);
    arena_shadow = static_cast<unsigned char*>(reserve_shadow(ARENA_BYTES));
    stack_bytes = STACK;
    for (unsigned i = 0; i < MOST_THREADS; i++) fibers[i].index = i;
}

Machine::~Machine() {
    ASAN_UNPOISON_MEMORY_REGION(stacks, STACK * MOST_THREADS);
    ASAN_UNPOISON_MEMORY_REGION(arena, ARENA_BYTES);
    munmap(stacks, STACK * MOST_THREADS);
    munmap(arena, ARENA_BYTES);
    release_shadow(arena_shadow, ARENA_BYTES);
}

// Sets all fibers to their start: before the first block, and after a block that was abandoned.
void Machine::prepare_fibers() {
    ASAN_UNPOISON_MEMORY_REGION(stacks, STACK * MOST_THREADS);
    for (unsigned i = 0; i < MOST_THREADS; i++) {
        // Stacks that begin at different cache sets do not evict one another: those of neighbours in the first cache,
        // those of all in the second.
        unsigned char* top = stacks + (i + 1) * STACK - i % 16 * 256 - i / 16 % 16 * 4096;
        void** sp = reinterpret_cast<void**>(top) - 2;
        *sp = reinterpret_cast<void*>(&begin_fiber);
        for (int registers = 0; registers < 6; registers++) *--sp = nullptr;
        fibers[i].stack_pointer = sp;
    }
    prepared = true;
}

uint32_t Machine::draw(uint32_t below) {
    random += 0x9e3779b97f4a7c15;
    uint64_t z = random;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
    z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
    return static_cast<uint32_t>(((z ^ (z >> 31)) >> 32) * below >> 32);
}

// Sets the order of lanes and warps. All threads must be at the same place.
void Machine::order_warps() {
    const unsigned count = threads / LANES_OF_WARP;
    const auto permute = [&](uint8_t* at, uint8_t* position_of, unsigned n) {
        for (unsigned i = 0; i < n; i++) at[i] = uint8_t(options.order == Order::Reverse ? n - 1 - i : i);
        if (options.order == Order::Random)
            for (unsigned i = n; i > 1; i--) std::swap(at[i - 1], at[draw(i)]);
        for (unsigned i = 0; i < n; i++) position_of[at[i]] = uint8_t(i);
    };
    permute(warp_at, warp_position, count);
    for (unsigned w = 0; w < count; w++) permute(warps[w].lane_at, warps[w].position_of, LANES_OF_WARP);
}

void Machine::run_block() {
    if (!prepared) prepare_fibers();
    arrived = exited = 0;
    ready_warps = 0;
    block_interval = ++interval;
    seen.clear();
    order_warps();
    for (unsigned w = 0; w < threads / LANES_OF_WARP; w++) {
        warps[w].arrived = 0;
        warps[w].epoch = 0;
        set_ready(*this, w);
    }
    begin_shared();
    current = pick(*this, 0, 31);
    threadIdx = {current->index, 0, 0};
    effnet_host_switch(&main_stack_pointer, current->stack_pointer);
    current = nullptr;
    if (failed) {
        prepared = false;
        ASAN_UNPOISON_MEMORY_REGION(stacks, STACK * MOST_THREADS);
        for (unsigned t = 0; t < threads; t++) fibers[t].copies.clear();
    }
    end_shared();
}

// The running fiber has reached the end of the kernel.
EFFNET_UNSANITISED void Machine::leave() {
    Fiber* fiber = current;
    if (!fiber->copies.empty()) {
        complain("copies from global to shared memory are still under way at the end of " + whereabouts());
        fiber->copies.clear();
    }
    fiber->group = 0;
    set_waiting(*this, fiber, Waiting::Exited);
    exited++;
    if (exited == threads) {
        effnet_host_switch(&fiber->stack_pointer, main_stack_pointer);
        return;
    }
    const unsigned warp = fiber->index / LANES_OF_WARP;
    Fiber* next = pick(*this, warp_position[warp], warps[warp].position_of[fiber->index % LANES_OF_WARP]);
    if (!next) fail("threads wait for others that have returned: %s", waiting_threads().c_str());
    resume(*this, next);
}

void Machine::abandon() {
    failed = true;
    void* unused;
    effnet_host_switch(&unused, main_stack_pointer);
    __builtin_unreachable();
}

static void wait_here(Machine& m, Waiting waiting) {
    Fiber* fiber = m.current;
    set_waiting(m, fiber, waiting);
    const unsigned warp = fiber->index / LANES_OF_WARP;
    Fiber* next = pick(m, m.warp_position[warp], m.warps[warp].position_of[fiber->index % LANES_OF_WARP]);
    if (!next) fail("the block is stuck: %s", m.waiting_threads().c_str());
    resume(m, next);
}

static void meet(const char* file, int line) {
    Machine& m = *active;
    Fiber* fiber = m.current;
    fiber->file = file;
    fiber->line = line;
    if (m.arrived == 0) {
        m.barrier = fiber;
        m.one_barrier = true;
    }
    m.one_barrier &= line == m.barrier->line && (file == m.barrier->file || strcmp(file, m.barrier->file) == 0);
    if (++m.arrived < m.threads) return wait_here(m, Waiting::Barrier);
    if (!m.one_barrier) {
        fiber->waiting = Waiting::Barrier;
        fail("threads meet at different barriers: %s", m.waiting_threads().c_str());
    }
    m.arrived = 0;
    m.interval++;
    if (m.options.order == Order::Random) m.order_warps();
    m.ready_warps = 0;
    for (unsigned w = 0; w < m.threads / LANES_OF_WARP; w++) set_ready(m, w);
    resume(m, pick(m, 0, 31));
}

void sync_threads(const char* file, int line) {
    if (!removed(file, line)) meet(file, line);
}

// Between two barriers, of which the first can be removed like any other.
bool last_to_arrive(unsigned* arrivals, unsigned blocks, const char* file, int line) {
    Machine& m = *active;
    sync_threads(file, line);
    if (threadIdx.x == 0) {
        note_atomic(arrivals, sizeof(*arrivals));
        if (*arrivals >= blocks) fail("%s: %u of %u blocks have arrived before", whereabouts().c_str(), *arrivals, blocks);
        m.last = *arrivals + 1 == blocks;
        *arrivals = m.last ? 0 : *arrivals + 1;
        note_arrival(arrivals);
    }
    meet(file, line);
    return m.last;
}

// ---- warp operations --------------------------------------------------------------------------------------

void run_warp_operation(Machine& m, Warp& warp);

void exchange(const Exchange& mine) {
    Machine& m = *active;
    const unsigned number = m.current->index / LANES_OF_WARP, lane = m.current->index % LANES_OF_WARP;
    Warp& warp = m.warps[number];
    if (mine.mask != ~0u) fail("%s: a warp operation with the mask %08x", whereabouts().c_str(), mine.mask);
    warp.lanes[lane] = &mine;
    warp.arrived |= 1u << lane;
    if (warp.arrived != ~0u) return wait_here(m, Waiting::Warp);
    warp.arrived = 0;
    run_warp_operation(m, warp);
    set_ready(m, number);
}

void sync_warp(unsigned mask, const char* file, int line) {
    if (removed(file, line)) return;
    exchange({WarpOperation::Barrier, mask, 0, 0, nullptr, nullptr, nullptr});
}

// `EFFNET_HARNESS_WITHOUT=stem.cu:235` removes the barrier or the wait for copies in that line.
// The line is read once: constructors of this library run before any kernel.
static const struct Without {
    const char* file = nullptr;
    size_t bytes = 0;
    int line = 0;

    Without() {
        const char* place = getenv("EFFNET_HARNESS_WITHOUT");
        const char* colon = place ? strrchr(place, ':') : nullptr;
        if (!colon) return;
        file = place;
        bytes = size_t(colon - place);
        line = atoi(colon + 1);
    }
} without;

bool removed(const char* file, int line) {
    if (line != without.line || !without.file) return false;
    const char* name = basename(file);
    return strlen(name) == without.bytes && memcmp(name, without.file, without.bytes) == 0;
}

// Which threads wait where, in ranges.
std::string Machine::waiting_threads() const {
    const auto place = [&](const Fiber& f) -> std::string {
        switch (f.waiting) {
            case Waiting::No: return "running";
            case Waiting::Barrier: return text("at the barrier of %s:%d", basename(f.file), f.line);
            case Waiting::Warp: {
                const Exchange* e = warps[f.index / LANES_OF_WARP].lanes[f.index % LANES_OF_WARP];
                static const char* const names[] = {"barrier",      "shuffle_xor", "shuffle",     "shuffle_down",
                                                    "shuffle_up",   "ballot",      "load_matrix", "mma"};
                return text("in the warp's %s", names[int(e->operation)]);
            }
            case Waiting::Exited: return "returned";
        }
        return "";
    };
    std::string all;
    unsigned listed = 0;
    for (unsigned from = 0; from < threads;) {
        unsigned to = from;
        const std::string here = place(fibers[from]);
        while (to + 1 < threads && place(fibers[to + 1]) == here) to++;
        if (listed++ == 12) return all + ", …";
        if (!all.empty()) all += ", ";
        all += from == to ? text("thread %u %s", from, here.c_str())
                          : text("threads %u to %u %s", from, to, here.c_str());
        from = to + 1;
    }
    return all;
}

}  // namespace host
