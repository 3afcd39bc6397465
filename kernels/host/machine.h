// The state of the interpreter: one machine for each thread of the host that launches kernels.
#pragma once

#include <cstdarg>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "shim.h"

#if defined(__SANITIZE_ADDRESS__)
#define EFFNET_ADDRESS
#include <sanitizer/asan_interface.h>
#define EFFNET_UNSANITISED __attribute__((no_sanitize("address", "undefined")))
#else
#define ASAN_POISON_MEMORY_REGION(address, bytes) ((void)(address), (void)(bytes))
#define ASAN_UNPOISON_MEMORY_REGION(address, bytes) ((void)(address), (void)(bytes))
#define EFFNET_UNSANITISED
#endif

namespace host {

constexpr unsigned LANES_OF_WARP = 32;
constexpr unsigned MOST_THREADS = 1024;
// The value of a byte before it is written: NaN in every floating type.
constexpr unsigned char UNWRITTEN = 0xff;
// The value of the zones around memory.
constexpr unsigned char CANARY = 0xc5;

enum class Order : uint32_t { Forward, Reverse, Random };

// How a launch is run; the same in Rust.
struct Options {
    Order order;
    // Copies from global to shared memory happen when they are waited for, or when they are issued.
    uint32_t late_copies;
    uint64_t seed;
};

// ---- global memory ----------------------------------------------------------------------------------------

struct Allocation {
    unsigned char* begin;
    size_t bytes;
};

// Bytes that no kernel may touch.
struct Guard {
    unsigned char* begin;
    unsigned char* end;
};

// A named part of memory, with the traffic of the launches since the last reset.
struct Region {
    uintptr_t begin, end;
    std::string label;
    uint64_t loaded, stored;
};

struct Device {
    unsigned char* base = nullptr;
    size_t reserved = 0, used = 0;
    std::vector<Allocation> allocations;
    std::vector<Guard> guards;
    std::vector<Region> regions;  // sorted, not overlapping
    Region elsewhere{0, 0, "elsewhere", 0, 0};
    unsigned char* shadow = nullptr;  // of the race checker
    uint32_t interval = 1;            // barriers so far

    Device();
    ~Device();
    Device(const Device&) = delete;
    Device& operator=(const Device&) = delete;

    void* allocate(size_t bytes);
    void guard(void* begin, size_t bytes);
    void unguard(void* begin, size_t bytes);
    // Checks the canaries of all guards and repairs them; says what is wrong.
    std::string check();
    // Describes an address in words.
    std::string describe(const void* address) const;
    const Region* region(uintptr_t address) const;
};

// ---- blocks -----------------------------------------------------------------------------------------------

struct Kernel {
    const char* name;
    const char* file;
    unsigned threads;
    size_t size;
    const Field* fields;
    size_t field_count;
    void (*run)(const void*);
};

struct Copy {
    void* shared;
    const void* global;
    bool valid;
    uint32_t group;
    const void* where;  // in the program
};

enum class Waiting : uint8_t { No, Barrier, Warp, Exited };

struct Fiber {
    void* stack_pointer = nullptr;
    unsigned index = 0;
    Waiting waiting = Waiting::No;
    const char* file = nullptr;  // of the barrier
    int line = 0;
    std::vector<Copy> copies;
    uint32_t group = 0;  // of copies, that is being filled
};

struct Warp {
    uint32_t ready = 0;    // by position in the order
    uint32_t arrived = 0;  // by lane
    const Exchange* lanes[LANES_OF_WARP] = {};
    uint32_t epoch = 0;  // warp barriers so far
    uint8_t lane_at[LANES_OF_WARP] = {}, position_of[LANES_OF_WARP] = {};
};

struct Piece {
    size_t bytes, offset;
};

// Intervals begin, …, end − 1 of one block.
struct Span {
    uint32_t begin, end;
};

struct Machine {
    Machine();
    ~Machine();

    // Of the launch.
    const Kernel* kernel = nullptr;
    const void* arguments = nullptr;
    Device* device = nullptr;
    Options options{};
    unsigned threads = 0;
    size_t shared_bytes = 0;
    std::string message;
    unsigned complaints = 0;
    std::vector<std::pair<const void*, int32_t>> complained;
    bool failed = false;

    // Of the block.
    Fiber fibers[MOST_THREADS];
    Warp warps[MOST_THREADS / LANES_OF_WARP];
    uint32_t ready_warps = 0;  // by position
    uint8_t warp_at[LANES_OF_WARP] = {}, warp_position[LANES_OF_WARP] = {};
    Fiber* current = nullptr;
    unsigned arrived = 0, exited = 0;
    const Fiber* barrier = nullptr;  // the first thread at the barrier that the block waits at
    bool one_barrier = true;         // whether all that came since came to the same
    uint32_t interval = 0;        // barriers so far, over all blocks of the device
    uint32_t block_interval = 0;  // at the block's begin
    uint32_t launch_interval = 0;
    uint64_t random = 0;

    // For the race checker: when blocks wrote what others may read after a count of arrivals, by its address; and which
    // intervals of others the running block may rely on, having been the last to arrive.
    std::map<const unsigned*, std::vector<Span>> arrivals;
    std::vector<Span> seen;  // in order
    bool last = false;       // what the count has just said

    // Shared memory.
    unsigned char* arena = nullptr;
    size_t arena_used = 0, arena_taken = 0;
    std::vector<Piece> pieces;
    unsigned char* arena_shadow = nullptr;

    unsigned char* stacks = nullptr;
    size_t stack_bytes = 0;  // of each
    void* main_stack_pointer = nullptr;
    bool prepared = false;

    bool launch(const Kernel& kernel, const uint32_t grid[3], size_t shared, const void* arguments);
    void run_block();
    std::string describe_shared(const unsigned char* at) const;
    // Whether this launch has no complaint about these two places yet.
    bool new_complaint(const void* place, int32_t other);
    void begin_shared();
    void end_shared();
    void order_warps();
    void prepare_fibers();
    [[noreturn]] void abandon();
    void leave();
    std::string waiting_threads() const;
    uint32_t draw(uint32_t below);
};

// The machine of this thread of the host.
Machine& machine();
extern thread_local constinit Machine* active;  // while a kernel runs

// Ends the launch with an error.
[[noreturn]] __attribute__((format(printf, 1, 2))) void fail(const char* format, ...);
// Adds to the launch's errors and goes on.
void complain(const std::string& text);
std::string text(const char* format, ...) __attribute__((format(printf, 1, 2)));
// File and line of a place in the program.
std::string source(const void* where);
// "thread 3 of block 0" of the running fiber.
std::string whereabouts();
// Whether the barrier or wait at this place is removed.
bool removed(const char* file, int line);

constexpr size_t ARENA_BYTES = 1u << 20;  // pieces and the zones between
constexpr size_t ZONE = 128;

// ---- race checker (race.cpp); nothing in the other builds --------------------------------------------------

#if defined(EFFNET_RACE)
constexpr bool RACE = true;
#else
constexpr bool RACE = false;
#endif

// Notes accesses that the harness makes for the running thread.
void note_load(const void* from, size_t bytes, const void* where);
void note_store(const void* to, size_t bytes, const void* where);
// Checks that no thread touched `bytes` at `at` since this thread's copy into it was issued.
void note_copy_end(const void* at, size_t bytes, const void* where);
// Notes an atomic operation.
void note_atomic(const void* at, size_t bytes);
// Notes that the running block has arrived at this count: after a barrier, by one of its threads.
void note_arrival(const unsigned* arrivals);
void* reserve_shadow(size_t bytes);
void release_shadow(void* shadow, size_t bytes);
enum class Mark { Fresh, Forbidden, NeverWritten };
void mark_shadow(void* shadow, size_t offset, size_t bytes, Mark mark);
// The device's regions may have changed.
void forget_regions();

}  // namespace host
