// The table of kernels, launches and their messages, and the functions that Rust calls.
#include <dlfcn.h>
#include <signal.h>
#include <ucontext.h>

#include <mutex>

#include "machine.h"

namespace host {

// ---- the table --------------------------------------------------------------------------------------------

// Filled before main starts, in the order in which the objects were linked.
static std::vector<Kernel>& table() {
    static std::vector<Kernel> kernels;
    return kernels;
}

Registration::Registration(const char* name, const char* file, unsigned threads, size_t size, const Field* fields,
                           size_t field_count, void (*run)(const void*)) {
    table().push_back({name, file, threads, size, fields, field_count, run});
}

constexpr unsigned MOST_COMPLAINTS = 4;

// ---- messages ---------------------------------------------------------------------------------------------

std::string text(const char* format, ...) {
    char line[2048];
    va_list list;
    va_start(list, format);
    vsnprintf(line, sizeof(line), format, list);
    va_end(list);
    return line;
}

std::string whereabouts() {
    return text("thread %u of block (%u, %u, %u)", threadIdx.x, blockIdx.x, blockIdx.y, blockIdx.z);
}

// By addr2line, which comes with the linker. Slow, and called only when something is wrong.
std::string source(const void* where) {
    Dl_info info{};
    if (!where || !dladdr(where, &info) || !info.dli_fname) return "?";
    const size_t offset = size_t(static_cast<const char*>(where) - static_cast<const char*>(info.dli_fbase)) - 1;
    FILE* pipe = popen(text("addr2line -e '%s' -i 0x%zx 2>/dev/null", info.dli_fname, offset).c_str(), "r");
    std::string all, last;
    char line[1024];
    while (pipe && fgets(line, sizeof(line), pipe)) {
        std::string place = line;
        place.erase(place.find_last_not_of('\n') + 1);
        if (const size_t slash = place.rfind('/'); slash != std::string::npos) place.erase(0, slash + 1);
        if (const size_t note = place.find(" ("); note != std::string::npos) place.erase(note);
        // From the innermost inlined function to where it was called.
        if (place != last) all += (all.empty() ? "" : " from ") + place;
        last = place;
    }
    if (pipe) pclose(pipe);
    return all.empty() ? text("%s + 0x%zx", info.dli_fname, offset) : all;
}

void complain(const std::string& what) {
    Machine& m = *active;
    // The first few are enough.
    if (m.complaints++ >= MOST_COMPLAINTS) return;
    if (!m.message.empty()) m.message += "\n";
    m.message += what;
}

bool Machine::new_complaint(const void* place, int32_t other) {
    const std::pair<const void*, int32_t> pair{place, other};
    if (std::find(complained.begin(), complained.end(), pair) != complained.end()) return false;
    if (complained.size() < 1000) complained.push_back(pair);
    return complaints < MOST_COMPLAINTS;
}

void fail(const char* format, ...) {
    char line[2048];
    va_list list;
    va_start(list, format);
    vsnprintf(line, sizeof(line), format, list);
    va_end(list);
    active->complaints = 0;
    complain(line);
    active->abandon();
}

// ---- faults -----------------------------------------------------------------------------------------------

namespace {

thread_local constinit void* fault_address = nullptr;
thread_local constinit void* fault_place = nullptr;
thread_local constinit const char* fault_kind = nullptr;
struct sigaction previous_actions[NSIG];

// A fiber continues here after it touched memory that does not exist or divided an integer by zero.
EFFNET_UNSANITISED void crashed() {
    const std::string what = fault_address ? active->device->describe(fault_address) : "";
    fail("%s %s at %s%s%s", whereabouts().c_str(), fault_kind, source(fault_place).c_str(), what.empty() ? "" : ": ",
         what.c_str());
}

EFFNET_UNSANITISED void on_fault(int signal, siginfo_t* info, void* context) {
    if (!active || !active->current) {
        // Not caused by a kernel: the previous handler takes over.
        sigaction(signal, &previous_actions[signal], nullptr);
        return;
    }
    ucontext_t* c = static_cast<ucontext_t*>(context);
    // The processor gives no address for a vector that is not aligned.
    const bool misaligned = signal == SIGSEGV && info->si_code == SI_KERNEL;
    fault_address = signal == SIGFPE || misaligned ? nullptr : info->si_addr;
    fault_kind = signal == SIGFPE ? "divides by zero"
                 : misaligned     ? "loads or stores a vector that is not aligned"
                                  : "touches memory that is not there";
    fault_place = reinterpret_cast<void*>(c->uc_mcontext.gregs[REG_RIP] + 1);
    // Continues below the used part of the fiber's stack or, if the stack is full, at its start.
    unsigned long stack = static_cast<unsigned long>(c->uc_mcontext.gregs[REG_RSP]);
    Fiber* fiber = active->current;
    unsigned char* bottom = active->stacks + fiber->index * active->stack_bytes;
    if (stack < reinterpret_cast<uintptr_t>(bottom) + 24576)
        stack = reinterpret_cast<uintptr_t>(bottom) + active->stack_bytes - 4096;
    c->uc_mcontext.gregs[REG_RSP] = static_cast<long long>((stack - 256) / 16 * 16 - 8);
    c->uc_mcontext.gregs[REG_RIP] = reinterpret_cast<long long>(&crashed);
}

void watch_faults() {
    static std::once_flag once;
    std::call_once(once, [] {
        struct sigaction action{};
        action.sa_sigaction = on_fault;
        action.sa_flags = SA_SIGINFO | SA_ONSTACK;
        for (int signal : {SIGSEGV, SIGBUS, SIGFPE}) sigaction(signal, &action, &previous_actions[signal]);
    });
}

#if defined(EFFNET_ADDRESS)
// What the sanitiser prints becomes an error of the launch.
void on_report(const char* report) {
    if (!active || !active->current) return;
    std::string lines = report;
    // The first lines say what and where; the rest is the map of shadow bytes.
    if (const size_t shadow = lines.find("Shadow bytes around"); shadow != std::string::npos) lines.erase(shadow);
    complain(whereabouts() + ": " + lines);
}
#endif

}  // namespace

// ---- launches ---------------------------------------------------------------------------------------------

bool Machine::launch(const Kernel& what, const uint32_t grid[3], size_t shared, const void* args) {
    kernel = &what;
    arguments = args;
    threads = what.threads;
    shared_bytes = shared;
    message.clear();
    complaints = 0;
    complained.clear();
    failed = false;
    interval = device->interval;
    forget_regions();
    arrivals.clear();
    random = options.seed;
    launch_interval = interval + 1;
    active = this;
    blockDim = {threads, 1, 1};
    gridDim = {grid[0], grid[1], grid[2]};
    const uint64_t blocks = uint64_t(grid[0]) * grid[1] * grid[2];
    // A random order of blocks: a stride that shares no factor with their number, from a random start.
    uint64_t stride = 1, start = 0;
    if (options.order == Order::Random && blocks > 2) {
        const auto divisor = [](uint64_t a, uint64_t b) {
            while (b) a = std::exchange(b, a % b);
            return a;
        };
        const uint32_t bound = uint32_t(std::min<uint64_t>(blocks, UINT32_MAX));
        start = draw(bound);
        do stride = 1 + draw(bound - 1);
        while (divisor(stride, blocks) != 1);
    }
    for (uint64_t i = 0; i < blocks && !failed; i++) {
        const uint64_t block = options.order == Order::Reverse ? blocks - 1 - i : (start + i * stride) % blocks;
        blockIdx = {uint32_t(block % grid[0]), uint32_t(block / grid[0] % grid[1]),
                    uint32_t(block / grid[0] / grid[1])};
        run_block();
    }
    if (const std::string outside = device->check(); !outside.empty()) complain(outside);
    device->interval = interval;
    active = nullptr;
    return message.empty();
}

}  // namespace host

// ---- for Rust ---------------------------------------------------------------------------------------------

#if defined(EFFNET_ADDRESS)
extern "C" const char* __asan_default_options() {
    // Reports become errors of the launch; Rust's test threads and the fibers' stacks are no leaks.
    return "halt_on_error=0:suppress_equal_pcs=0:detect_leaks=0:handle_segv=0:handle_sigbus=0:handle_sigfpe=0:"
           "allow_user_segv_handler=1:use_sigaltstack=0:detect_stack_use_after_return=0";
}
extern "C" const char* __ubsan_default_options() { return "halt_on_error=0:print_stacktrace=0"; }

// The sanitiser's own version warns of unknown stacks. Poison on abandoned stacks is cleared elsewhere.
extern "C" void __asan_handle_no_return() {}

extern "C" void __ubsan_get_current_report_data(const char** kind, const char** message, const char** file, unsigned* line,
                                                unsigned* column, char** address);
// Reports each place in the source once.
extern "C" void __ubsan_on_report() {
    if (!host::active || !host::active->current) return;
    const char *kind, *message, *file;
    unsigned line, column;
    char* address;
    __ubsan_get_current_report_data(&kind, &message, &file, &line, &column, &address);
    host::complain(host::whereabouts() + ": " + host::text("%s:%u: %s", basename(file), line, message));
}
#endif

extern "C" {

struct effnet_host_field {
    const char* name;
    size_t name_bytes;
    size_t offset;
    size_t size;
};

struct effnet_host_launch {
    const char* kernel;
    size_t kernel_bytes;
    uint32_t grid[3];
    uint32_t threads;
    size_t shared;
    const effnet_host_field* fields;
    size_t field_count;
    size_t size;
    const void* arguments;
    host::Options options;
};

using Text = void (*)(void* to, const char* text, size_t bytes);

static bool give(Text to, void* sink, const std::string& text) {
    to(sink, text.data(), text.size());
    return false;
}

host::Device* effnet_host_device_new() {
#if defined(EFFNET_ADDRESS)
    __asan_set_error_report_callback(host::on_report);
#endif
    host::watch_faults();
    auto device = std::make_unique<host::Device>();
    return device->base ? device.release() : nullptr;
}

void effnet_host_device_free(host::Device* device) { delete device; }
void* effnet_host_allocate(host::Device* device, size_t bytes) { return device->allocate(bytes); }
void effnet_host_guard(host::Device* device, void* begin, size_t bytes) { device->guard(begin, bytes); }
void effnet_host_unguard(host::Device* device, void* begin, size_t bytes) { device->unguard(begin, bytes); }

// Labels a part of memory. Earlier labels of this part are removed.
void effnet_host_label(host::Device* device, void* begin, size_t bytes, const char* label, size_t label_bytes) {
    const uintptr_t from = reinterpret_cast<uintptr_t>(begin), to = from + bytes;
    std::vector<host::Region> kept;
    for (const host::Region& r : device->regions) {
        if (r.end <= from || r.begin >= to) {
            kept.push_back(r);
            continue;
        }
        if (r.begin < from) kept.push_back({r.begin, from, r.label, r.loaded, r.stored});
        if (r.end > to) kept.push_back({to, r.end, r.label, 0, 0});
    }
    if (bytes) kept.push_back({from, to, std::string(label, label_bytes), 0, 0});
    std::sort(kept.begin(), kept.end(), [](const auto& a, const auto& b) { return a.begin < b.begin; });
    device->regions = std::move(kept);
}

void effnet_host_describe(host::Device* device, const void* address, Text to, void* sink) {
    give(to, sink, device->describe(address));
}

void effnet_host_reset_counts(host::Device* device) {
    for (host::Region& r : device->regions) r.loaded = r.stored = 0;
    device->elsewhere.loaded = device->elsewhere.stored = 0;
}

// Calls `to` with the label of every region that was touched, then `numbers` with bytes loaded and stored.
void effnet_host_counts(host::Device* device, Text to, void (*numbers)(void*, uint64_t, uint64_t), void* sink) {
    const auto one = [&](const host::Region& r) {
        if (r.loaded == 0 && r.stored == 0) return;
        give(to, sink, r.label);
        numbers(sink, r.loaded, r.stored);
    };
    for (const host::Region& r : device->regions) one(r);
    one(device->elsewhere);
}

size_t effnet_host_kernel_count() { return host::table().size(); }

const host::Kernel* effnet_host_kernel(size_t number) { return &host::table()[number]; }

bool effnet_host_run(host::Device* device, const effnet_host_launch* launch, Text to, void* sink) {
    using namespace host;
    const std::string name(launch->kernel, launch->kernel_bytes);
    const Kernel* kernel = nullptr;
    for (const Kernel& k : table())
        if (name == k.name) kernel = &k;
    if (!kernel) return give(to, sink, "no kernel is called `" + name + "`");
    if (launch->threads != kernel->threads)
        return give(to, sink, text("%s: launched with %u threads a block, compiled for %u", kernel->name, launch->threads,
                                   kernel->threads));
    if (launch->threads % LANES_OF_WARP || launch->threads == 0 || launch->threads > MOST_THREADS)
        return give(to, sink, text("%s: a block of %u threads", kernel->name, launch->threads));
    const size_t fields = std::max(launch->field_count, kernel->field_count);
    for (size_t i = 0; i < fields; i++) {
        if (i >= launch->field_count)
            return give(to, sink, text("%s: the launch lacks the field `%s`", kernel->name, kernel->fields[i].name));
        const effnet_host_field& got = launch->fields[i];
        const std::string got_name(got.name, got.name_bytes);
        if (i >= kernel->field_count)
            return give(to, sink, text("%s: the kernel has no field `%s`", kernel->name, got_name.c_str()));
        const Field& own = kernel->fields[i];
        if (got_name != own.name || got.offset != own.offset || got.size != own.size)
            return give(to, sink,
                        text("%s: field %zu is `%s` of %zu bytes at %zu in the launch, `%s` of %zu bytes at %zu in the "
                             "kernel",
                             kernel->name, i, got_name.c_str(), got.size, got.offset, own.name, own.size, own.offset));
    }
    if (launch->size != kernel->size)
        return give(to, sink, text("%s: arguments of %zu bytes in the launch, of %zu in the kernel", kernel->name,
                                   launch->size, kernel->size));
    for (uint32_t blocks : launch->grid)
        if (blocks == 0) return give(to, sink, name + ": an empty grid");
    Machine& m = machine();
    m.device = device;
    m.options = launch->options;
    if (m.launch(*kernel, launch->grid, launch->shared, launch->arguments)) return true;
    return give(to, sink, name + ": " + m.message);
}

}  // extern "C"
