// A stand-in for the driver without a GPU: the functions of libcuda that the crate calls, on the host's memory.
//
// Work runs as late or as early as it may (`streams.h`). A module's image is text, one line per kernel: name, threads,
// bytes of arguments, bytes of static shared memory. Every kernel adds a number to floats, but one whose name begins
// with "fault" faults, unless the test brings its own (`kernels.h`). The image "*" has a kernel of every name, which
// does nothing. A capture forbids what a real one forbids, and loading code with it, as drivers before CUDA 12.3 do.
// After a fault every call fails. Memory is given out in pieces of 2 MiB, also for code and graphs. The test configures
// the machine, counts the objects that are left, and asks what happened: calls that failed, waits of the host, contexts
// made, graphs without their streams' priorities, copies to the device, and how many of them are large and from the
// start of pinned memory. A program that the test starts gets its machine from FAKE_MACHINE: the driver's version, the
// number of devices, the GPU's capability, whether this is a stub, bytes of memory. It writes what happened to the file
// FAKE_REPORT.
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <sstream>
#include <string>
#include <vector>

#include "streams.h"

namespace {

struct Machine {
    int version, devices, major, minor, stub;
    size_t memory;
} machine = {12040, 1, 9, 0, 0, size_t(1) << 30};

// What happened since the machine was set up.
struct Report {
    int failures, waits, contexts, lost_priorities, sends, large;
} report;

// The answer of a call. "Not ready" is no failure.
struct Counted {
    int answer;
    Counted(int answer) : answer(answer) {
        if (answer != SUCCESS && answer != NOT_READY) report.failures++;
    }
};

struct Function {
    std::string name;
    int threads, arguments, shared, dynamic;
    bool idle = false;
};
struct Module {
    std::vector<std::unique_ptr<Function>> functions;
    // Has a kernel of every name.
    bool any = false;
};

constexpr int DEFAULT_SHARED = 48 << 10, MOST_SHARED = 227 << 10;
constexpr int THREAD_LOCAL = 1, USE_NODE_PRIORITY = 8;
bool pinnable = true;
int contexts = 0;
thread_local void* current = nullptr;
std::map<uint64_t, std::unique_ptr<char[]>> memory;
std::map<uint64_t, size_t> sizes;
std::set<void*> pinned, events, graphs, modules;
// Bytes in use: of allocations, and of code and graphs.
size_t used = 0;
constexpr size_t LARGE = 4 << 10, PIECE = 2 << 20, GRAPH_NODE = 1 << 10;
constexpr int LEAST_URGENT = 0, MOST_URGENT = -5;

__attribute__((destructor)) void to_file() {
    const char* name = std::getenv("FAKE_REPORT");
    if (FILE* file = name ? std::fopen(name, "w") : nullptr) {
        std::fprintf(file, "failures %d contexts %d\n", report.failures, report.contexts);
        std::fclose(file);
    }
}

__attribute__((constructor)) void from_environment() {
    const char* text = std::getenv("FAKE_MACHINE");
    if (!text) return;
    Machine m;
    if (std::sscanf(text, "%d %d %d %d %d %zu", &m.version, &m.devices, &m.major, &m.minor, &m.stub, &m.memory) != 6)
        std::fprintf(stderr, "FAKE_MACHINE: %s\n", text), std::abort();
    machine = m;
}

// Calls may come from several threads.
std::recursive_mutex calls;
#define IN_CONTEXT                                       \
    std::lock_guard<std::recursive_mutex> locked(calls); \
    if (!current) return INVALID_CONTEXT;                \
    FAULTS

size_t pieces(size_t bytes) { return (bytes + PIECE - 1) / PIECE * PIECE; }

// Takes memory of the device, if there is enough.
bool take(size_t bytes) {
    if (used + pieces(bytes) > machine.memory) return false;
    return used += pieces(bytes), true;
}
void give(size_t bytes) { used -= pieces(bytes); }

bool within(uint64_t at, size_t bytes) {
    auto after = sizes.upper_bound(at);
    if (after == sizes.begin()) return false;
    auto [start, size] = *std::prev(after);
    return at + bytes <= start + size;
}

}  // namespace

extern "C" {

// ---- for the test -----------------------------------------------------------------------------------------

void fake_machine(int version, int devices, int major, int minor, int stub, size_t bytes) {
    machine = {version, devices, major, minor, stub, bytes};
    report = {};
    pinnable = true;
    if (!fault) return;
    // After a fault nothing could be freed.
    fault = SUCCESS;
    memory.clear(), sizes.clear(), pinned.clear(), events.clear(), graphs.clear(), modules.clear(), streams.clear();
    used = contexts = 0;
}
void fake_eager_transfers(int eager) { eager_transfers = eager; }
void fake_fault(int answer) { fault = answer; }
// Bytes of the device that another process takes.
void fake_taken(size_t bytes) { used += bytes; }
void fake_pinnable(int yes) { pinnable = yes; }
Report fake_report() { return report; }
int fake_graphs() { return int(graphs.size()); }
// For the stand-in of NCCL.
int fake_enqueue(Stream* stream, bool (*work)(void*), void* argument) {
    return enqueue(stream, [=] { return work(argument); });
}
// The number of objects that were created and not freed.
int fake_live() {
    return int(memory.size() + pinned.size() + events.size() + graphs.size() + modules.size() + streams.size()) +
           contexts;
}

// ---- the driver -------------------------------------------------------------------------------------------

Counted cuDriverGetVersion(int* version) {
    if (machine.stub) return STUB;
    return *version = machine.version, SUCCESS;
}
Counted cuInit(unsigned) { return machine.stub ? STUB : machine.devices ? SUCCESS : NO_DEVICE; }
Counted cuDeviceGetCount(int* count) { return *count = machine.devices, SUCCESS; }
Counted cuDeviceGet(int* device, int index) { return *device = index, SUCCESS; }
Counted cuDeviceGetName(char* name, int length, int) { return std::snprintf(name, length, "Fake GPU"), SUCCESS; }
Counted cuDeviceTotalMem_v2(size_t* bytes, int) { return *bytes = machine.memory, SUCCESS; }
Counted cuDeviceGetAttribute(int* value, int attribute, int) {
    switch (attribute) {
        case 13: *value = 1'980'000; break;      // kHz
        case 16: *value = 4; break;             // multiprocessors
        case 36: *value = 2'619'000; break;      // kHz of the memory
        case 37: *value = 5120; break;          // bits of its bus
        case 75: *value = machine.major; break;  // compute capability
        case 76: *value = machine.minor; break;
        case 97: *value = MOST_SHARED; break;  // of a block that requests it
        default: return INVALID_VALUE;
    }
    return SUCCESS;
}
Counted cuDeviceGetPCIBusId(char* text, int length, int device) {
    return std::snprintf(text, length, "00000000:%02d:00.0", device), SUCCESS;
}
Counted cuGetErrorName(int error, const char** name) {
    if (error == ILLEGAL_ADDRESS) return *name = "CUDA_ERROR_ILLEGAL_ADDRESS", SUCCESS;
    if (error == CAPTURE_UNJOINED) return *name = "CUDA_ERROR_STREAM_CAPTURE_UNJOINED", SUCCESS;
    if (error == CAPTURE_UNSUPPORTED) return *name = "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED", SUCCESS;
    return INVALID_VALUE;
}
Counted cuGetErrorString(int error, const char** text) {
    if (error == ILLEGAL_ADDRESS) return *text = "an illegal memory access was encountered", SUCCESS;
    return INVALID_VALUE;
}

Counted cuDevicePrimaryCtxRetain(void** context, int) {
    std::lock_guard<std::recursive_mutex> locked(calls);
    if (contexts++ == 0) report.contexts++;
    return *context = &machine, SUCCESS;
}
Counted cuDevicePrimaryCtxRelease_v2(int) {
    std::lock_guard<std::recursive_mutex> locked(calls);
    return contexts--, SUCCESS;
}
Counted cuCtxSetCurrent(void* context) { return current = context, SUCCESS; }

Counted cuMemGetInfo_v2(size_t* free, size_t* total) {
    IN_CONTEXT;
    return *free = machine.memory - used, *total = machine.memory, SUCCESS;
}
Counted cuMemAlloc_v2(uint64_t* at, size_t bytes) {
    IN_CONTEXT; NOT_WHILE_CAPTURING;
    if (bytes == 0) return INVALID_VALUE;
    if (!take(bytes)) return OUT_OF_MEMORY;
    auto block = std::make_unique<char[]>(bytes + 256);
    const uint64_t start = (reinterpret_cast<uint64_t>(block.get()) + 255) / 256 * 256;
    std::memset(reinterpret_cast<void*>(start), 0xa5, bytes);
    memory[start] = std::move(block);
    sizes[start] = bytes;
    return *at = start, SUCCESS;
}
Counted cuMemFree_v2(uint64_t at) {
    IN_CONTEXT;
    if (!memory.erase(at)) return INVALID_VALUE;
    give(sizes[at]);
    sizes.erase(at);
    return SUCCESS;
}
Counted cuMemHostAlloc(void** at, size_t bytes, unsigned) {
    IN_CONTEXT; NOT_WHILE_CAPTURING;
    if (!pinnable || bytes > machine.memory) return OUT_OF_MEMORY;
    return *at = std::malloc(bytes), pinned.insert(*at), SUCCESS;
}
Counted cuMemFreeHost(void* at) {
    IN_CONTEXT;
    return std::free(at), pinned.erase(at) ? SUCCESS : INVALID_VALUE;
}

Counted cuStreamCreate(Stream** stream, unsigned) {
    IN_CONTEXT;
    *stream = new Stream;
    // The crate's second stream is for transfers.
    (*stream)->eager = eager_transfers && streams.size() == 1;
    return streams.push_back(*stream), SUCCESS;
}
Counted cuCtxGetStreamPriorityRange(int* least, int* greatest) {
    IN_CONTEXT;
    return *least = LEAST_URGENT, *greatest = MOST_URGENT, SUCCESS;
}
Counted cuStreamCreateWithPriority(Stream** stream, unsigned, int priority) {
    IN_CONTEXT;
    if (priority != MOST_URGENT) return INVALID_VALUE;
    *stream = new Stream;
    (*stream)->eager = eager_transfers;
    return streams.push_back(*stream), SUCCESS;
}
Counted cuStreamQuery(Stream* stream) {
    IN_CONTEXT; NOT_WHILE_CAPTURING;
    if (stream->queue.empty()) return report.waits++, SUCCESS;
    progress(stream);
    FAULTS;
    return NOT_READY;
}
Counted cuStreamDestroy_v2(Stream* stream) {
    IN_CONTEXT;
    for (size_t i = 0; i < streams.size(); i++)
        if (streams[i] == stream) streams.erase(streams.begin() + i);
    return delete stream, SUCCESS;
}
Counted cuEventCreate(Event** event, unsigned) {
    IN_CONTEXT; NOT_WHILE_CAPTURING;
    return *event = new Event, events.insert(*event), SUCCESS;
}
Counted cuEventDestroy_v2(Event* event) {
    IN_CONTEXT;
    return events.erase(event), delete event, SUCCESS;
}
Counted cuEventRecord(Event* event, Stream* stream) {
    IN_CONTEXT;
    if (Capture* capture = stream->capture.get()) {
        event->capture = stream->capture;
        event->number = capture->graph.events++;
        event->lane = stream->lane;
        event->work = capture->work[stream->lane];
        return capture->graph.nodes.push_back({Node::RECORD, stream->lane, event->number, {}}), SUCCESS;
    }
    auto state = event->state;
    const uint64_t number = ++state->recorded;
    event->stream = stream;
    event->capture.reset();
    return enqueue(stream, [=] { return state->reached = number, true; });
}
Counted cuStreamWaitEvent(Stream* stream, Event* event, unsigned) {
    IN_CONTEXT;
    if (auto capture = event->capture.lock()) {
        if (!stream->capture) {
            stream->capture = capture;
            stream->lane = capture->graph.lanes++;
            capture->streams.push_back(stream);
            capture->work.push_back(0);
            capture->joined.push_back(0);
        }
        if (stream->capture != capture) return CAPTURE_ISOLATION;
        if (stream->lane == 0) capture->joined[event->lane] = event->work;
        return capture->graph.nodes.push_back({Node::WAIT, stream->lane, event->number, {}}), SUCCESS;
    }
    if (stream->capture) return CAPTURE_ISOLATION;
    auto state = event->state;
    const uint64_t number = state->recorded;
    return enqueue(stream, [=] { return state->reached >= number; });
}
Counted cuEventQuery(Event* event) {
    IN_CONTEXT; NOT_WHILE_CAPTURING;
    if (event->state->reached >= event->state->recorded) return report.waits++, SUCCESS;
    return progress(event->stream), NOT_READY;
}
Counted cuEventElapsedTime(float* milliseconds, Event* from, Event* to) {
    IN_CONTEXT;
    for (Event* event : {from, to}) {
        if (!event->state->recorded) return INVALID_VALUE;
        if (event->state->reached < event->state->recorded) return UNREADY_TIME;
    }
    return *milliseconds = 1.5f, SUCCESS;
}

Counted cuMemcpyHtoDAsync_v2(uint64_t to, const void* from, size_t bytes, Stream* stream) {
    IN_CONTEXT;
    if (!within(to, bytes)) return INVALID_VALUE;
    report.sends++;
    report.large += bytes >= LARGE && pinned.count(const_cast<void*>(from));
    return enqueue(stream, [=] { return std::memcpy(reinterpret_cast<void*>(to), from, bytes), true; });
}
Counted cuMemcpyDtoHAsync_v2(void* to, uint64_t from, size_t bytes, Stream* stream) {
    IN_CONTEXT;
    if (!within(from, bytes)) return INVALID_VALUE;
    return enqueue(stream, [=] { return std::memcpy(to, reinterpret_cast<void*>(from), bytes), true; });
}
Counted cuMemcpyDtoDAsync_v2(uint64_t to, uint64_t from, size_t bytes, Stream* stream) {
    IN_CONTEXT;
    if (!within(from, bytes) || !within(to, bytes)) return INVALID_VALUE;
    return enqueue(stream, [=] {
        return std::memcpy(reinterpret_cast<void*>(to), reinterpret_cast<void*>(from), bytes), true;
    });
}
Counted cuMemsetD8Async(uint64_t to, unsigned char value, size_t bytes, Stream* stream) {
    IN_CONTEXT;
    if (!within(to, bytes)) return INVALID_VALUE;
    return enqueue(stream, [=] { return std::memset(reinterpret_cast<void*>(to), value, bytes), true; });
}

Counted cuStreamBeginCapture_v2(Stream* stream, int mode) {
    IN_CONTEXT;
    if (stream->capture || mode != THREAD_LOCAL) return INVALID_VALUE;
    stream->capture = std::make_shared<Capture>();
    stream->lane = 0;
    stream->capture->streams = {stream};
    stream->capture->work = stream->capture->joined = {0};
    return SUCCESS;
}
Counted cuStreamEndCapture(Stream* stream, Graph** graph) {
    IN_CONTEXT;
    if (!stream->capture || stream->lane != 0) return INVALID_VALUE;
    auto capture = stream->capture;
    for (Stream* one : capture->streams) one->capture.reset();
    for (size_t lane = 1; lane < capture->work.size(); lane++)
        if (capture->joined[lane] < capture->work[lane]) return CAPTURE_UNJOINED;
    return graphs.insert(*graph = new Graph(capture->graph)), SUCCESS;
}
Counted cuGraphInstantiateWithFlags(Graph** executable, Graph* graph, unsigned long long flags) {
    IN_CONTEXT;
    if (graph->lanes > 1 && !(flags & USE_NODE_PRIORITY)) report.lost_priorities++;
    if (!take(graph->nodes.size() * GRAPH_NODE)) return OUT_OF_MEMORY;
    return graphs.insert(*executable = new Graph(*graph)), SUCCESS;
}
Counted cuGraphDestroy(Graph* graph) { return graphs.erase(graph), delete graph, SUCCESS; }
Counted cuGraphExecDestroy(Graph* graph) {
    FAULTS;
    return give(graph->nodes.size() * GRAPH_NODE), cuGraphDestroy(graph);
}
Counted cuGraphUpload(Graph*, Stream*) { return SUCCESS; }
Counted cuGraphLaunch(Graph* graph, Stream* stream) {
    IN_CONTEXT;
    auto reached = std::make_shared<std::vector<bool>>(graph->events);
    while (lanes.size() + 1 < graph->lanes) lanes.push_back(new Stream);
    for (Stream* lane : lanes) lane->eager = eager_transfers;
    for (const Node& node : graph->nodes) {
        Stream* to = node.lane == 0 ? stream : lanes[node.lane - 1];
        const size_t number = node.number;
        Work work = node.work;
        if (node.kind == Node::RECORD) work = [=] { return (*reached)[number] = true; };
        if (node.kind == Node::WAIT) work = [=]() -> bool { return (*reached)[number]; };
        if (int answer = enqueue(to, work)) return answer;
    }
    return SUCCESS;
}

Counted cuModuleLoadData(Module** module, const void* image) {
    IN_CONTEXT; NOT_WHILE_CAPTURING;
    if (!take(PIECE)) return OUT_OF_MEMORY;
    modules.insert(*module = new Module);
    const char* text = static_cast<const char*>(image);
    (*module)->any = text[0] == '*';
    if ((*module)->any) return SUCCESS;
    std::istringstream lines(text);
    Function f;
    while (lines >> f.name >> f.threads >> f.arguments >> f.shared) {
        f.dynamic = DEFAULT_SHARED - f.shared;
        (*module)->functions.push_back(std::make_unique<Function>(f));
    }
    return SUCCESS;
}
Counted cuModuleUnload(Module* module) {
    IN_CONTEXT;
    give(PIECE);
    return modules.erase(module), delete module, SUCCESS;
}
Counted cuModuleGetFunction(Function** function, Module* module, const char* name) {
    IN_CONTEXT;
    for (auto& f : module->functions)
        if (f->name == name) return *function = f.get(), SUCCESS;
    if (!module->any) return NOT_FOUND;
    module->functions.push_back(std::make_unique<Function>(Function{name, 1024, 0, 0, DEFAULT_SHARED, true}));
    return *function = module->functions.back().get(), SUCCESS;
}
Counted cuFuncGetAttribute(int* value, int attribute, Function* f) {
    const int values[] = {f->threads, f->shared, 0, 0, 32, 0, 0, 0, f->dynamic};
    return *value = values[attribute], SUCCESS;
}
Counted cuFuncSetAttribute(Function* f, int attribute, int value) {
    if (attribute != 8 || value + f->shared > MOST_SHARED) return INVALID_VALUE;
    return f->dynamic = value, SUCCESS;
}
Counted cuFuncGetParamInfo(Function* f, size_t index, size_t* offset, size_t* size) {
    // A driver before 12.4 does not have this function, and would end the program.
    if (machine.version < 12040) std::abort();
    if (index > 0) return INVALID_VALUE;
    return *offset = 0, *size = f->arguments, SUCCESS;
}
Counted cuLaunchKernel(Function* f, unsigned x, unsigned y, unsigned z, unsigned threads, unsigned ty, unsigned tz,
                   unsigned shared, Stream* stream, void** parameters, void** extra) {
    IN_CONTEXT;
    if (x * y * z == 0 || int(threads) > f->threads || ty * tz != 1 || int(shared) > f->dynamic || extra)
        return INVALID_VALUE;
    if (f->idle) return enqueue(stream, [] { return true; });
    if (kernels::run)
        return enqueue(
            stream, kernels::launch({f->name, {x, y, z}, threads, shared}, parameters[0], f->arguments, fault));
    if (f->name.find("fault") == 0) return enqueue(stream, [] { return fault = ILLEGAL_ADDRESS, true; });
    struct Arguments {
        float* to;
        int count;
        float value;
    } arguments;
    std::memcpy(&arguments, parameters[0], sizeof arguments);
    return enqueue(stream, [=] {
        for (int i = 0; i < arguments.count; i++) arguments.to[i] += arguments.value;
        return true;
    });
}

}  // extern "C"
