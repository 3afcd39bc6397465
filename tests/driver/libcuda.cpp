// A stand-in for the driver without a GPU: the functions of libcuda that the crate calls, on the host's memory.
//
// Streams are queues. Work runs as late as possible, when the host waits for it, so a transfer that is never waited for
// does not happen. "Eager" streams run as soon as the events that they wait for allow, so a transfer that should have
// waited happens too early. The same holds for the streams of a graph, which has as many as were captured. A module's
// image is text, one line per kernel: name, threads, bytes of arguments, bytes of static shared memory. Every kernel adds
// a number to floats. A capture forbids what a real one forbids. The test configures the machine and counts the objects
// that are left. A program that the test starts gets its machine from FAKE_MACHINE: the driver's version, the number of
// devices, the GPU's capability, whether this is a stub, bytes of memory.
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <sstream>
#include <string>
#include <vector>

namespace {

enum Answer {
    SUCCESS = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, NO_DEVICE = 100, INVALID_CONTEXT = 201, NOT_FOUND = 500,
    NOT_READY = 600, ILLEGAL_ADDRESS = 700, CAPTURE_UNSUPPORTED = 900, CAPTURE_UNJOINED = 904, CAPTURE_ISOLATION = 905
};

struct Machine {
    int version, devices, major, minor, stub;
    size_t memory;
} machine = {12040, 1, 9, 0, 0, size_t(1) << 30};

struct EventState {
    uint64_t recorded = 0, reached = 0;
};
// Returns false if it must wait for an event that is not reached.
using Work = std::function<bool()>;
struct Stream;
struct Capture;
struct Event {
    std::shared_ptr<EventState> state = std::make_shared<EventState>();
    Stream* stream = nullptr;
    // The last record within a capture: its number, its stream, and how much work of that stream precedes it.
    std::weak_ptr<Capture> capture;
    size_t number = 0, lane = 0, work = 0;
};
struct Node {
    enum Kind { RUN, RECORD, WAIT } kind;
    size_t lane, number;
    Work work;
};
struct Graph {
    std::vector<Node> nodes;
    size_t events = 0, lanes = 1;
};
struct Capture {
    Graph graph;
    std::vector<Stream*> streams;
    // The amount of work of each stream, and how much of it the first stream has waited for.
    std::vector<size_t> work, joined;
};
struct Stream {
    std::deque<Work> queue;
    bool eager = false;
    std::shared_ptr<Capture> capture;
    size_t lane = 0;
};
struct Function {
    std::string name;
    int threads, arguments, shared, dynamic;
};
struct Module {
    std::vector<std::unique_ptr<Function>> functions;
};

constexpr int DEFAULT_SHARED = 48 << 10, MOST_SHARED = 227 << 10;
constexpr int THREAD_LOCAL = 1, RELAXED = 2;
bool eager_transfers = false, fault = false;
int capture_mode = THREAD_LOCAL, contexts = 0;
thread_local void* current = nullptr;
std::map<uint64_t, std::unique_ptr<char[]>> memory;
std::map<uint64_t, size_t> sizes;
std::set<void*> pinned, events, graphs, modules;
std::vector<Stream*> streams, lanes;
size_t used = 0;
constexpr int LEAST_URGENT = 0, MOST_URGENT = -5;

__attribute__((constructor)) void from_environment() {
    const char* text = std::getenv("FAKE_MACHINE");
    if (!text) return;
    Machine m;
    if (std::sscanf(text, "%d %d %d %d %d %zu", &m.version, &m.devices, &m.major, &m.minor, &m.stub, &m.memory) != 6)
        std::fprintf(stderr, "FAKE_MACHINE: %s\n", text), std::abort();
    machine = m;
}

#define IN_CONTEXT if (!current) return INVALID_CONTEXT
#define FAULTS if (fault) return ILLEGAL_ADDRESS

bool step(Stream* stream) {
    if (stream->queue.empty()) return false;
    if (!stream->queue.front()()) return false;
    stream->queue.pop_front();
    return true;
}

// Runs one piece of work of a stream. If the stream must wait, runs other streams instead.
bool progress(Stream* stream) {
    if (step(stream)) return true;
    bool moved = false;
    for (auto* list : {&streams, &lanes})
        for (Stream* other : *list) moved |= other != stream && step(other);
    return moved;
}

// Runs all work of a stream.
void drain(Stream* stream) {
    while (!stream->queue.empty())
        if (!progress(stream)) std::fprintf(stderr, "streams wait for each other\n"), std::abort();
}

void run_eager() {
    for (auto* list : {&streams, &lanes})
        for (Stream* stream : *list)
            while (stream->eager && step(stream)) {}
}

int enqueue(Stream* stream, Work work) {
    FAULTS;
    if (Capture* capture = stream->capture.get()) {
        capture->graph.nodes.push_back({Node::RUN, stream->lane, 0, work});
        capture->work[stream->lane]++;
        return SUCCESS;
    }
    stream->queue.push_back(work);
    run_eager();
    return SUCCESS;
}

bool capturing() {
    for (Stream* stream : streams)
        if (stream->capture) return true;
    return false;
}
// Calls that a capture forbids unless the thread's mode is relaxed.
#define NOT_WHILE_CAPTURING if (capturing() && capture_mode != RELAXED) return CAPTURE_UNSUPPORTED

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
    fault = false;
}
void fake_eager_transfers(int eager) { eager_transfers = eager; }
void fake_fault() { fault = true; }
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

int cuDriverGetVersion(int* version) { return *version = machine.version, SUCCESS; }
int cuInit(unsigned) { return machine.stub ? 34 : machine.devices ? SUCCESS : NO_DEVICE; }
int cuDeviceGetCount(int* count) { return *count = machine.devices, SUCCESS; }
int cuDeviceGet(int* device, int index) { return *device = index, SUCCESS; }
int cuDeviceGetName(char* name, int length, int) { return std::snprintf(name, length, "Fake GPU"), SUCCESS; }
int cuDeviceTotalMem_v2(size_t* bytes, int) { return *bytes = machine.memory, SUCCESS; }
int cuDeviceGetAttribute(int* value, int attribute, int) {
    switch (attribute) {
        case 16: *value = 4; break;             // multiprocessors
        case 75: *value = machine.major; break;  // compute capability
        case 76: *value = machine.minor; break;
        case 97: *value = MOST_SHARED; break;  // of a block that requests it
        default: return INVALID_VALUE;
    }
    return SUCCESS;
}
int cuDeviceGetPCIBusId(char* text, int length, int device) {
    return std::snprintf(text, length, "00000000:%02d:00.0", device), SUCCESS;
}
int cuGetErrorName(int error, const char** name) {
    if (error == ILLEGAL_ADDRESS) return *name = "CUDA_ERROR_ILLEGAL_ADDRESS", SUCCESS;
    if (error == CAPTURE_UNJOINED) return *name = "CUDA_ERROR_STREAM_CAPTURE_UNJOINED", SUCCESS;
    if (error == CAPTURE_UNSUPPORTED) return *name = "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED", SUCCESS;
    return INVALID_VALUE;
}
int cuGetErrorString(int error, const char** text) {
    if (error == ILLEGAL_ADDRESS) return *text = "an illegal memory access was encountered", SUCCESS;
    return INVALID_VALUE;
}

int cuDevicePrimaryCtxRetain(void** context, int) { return contexts++, *context = &machine, SUCCESS; }
int cuDevicePrimaryCtxRelease_v2(int) { return contexts--, SUCCESS; }
int cuCtxSetCurrent(void* context) { return current = context, SUCCESS; }

int cuMemGetInfo_v2(size_t* free, size_t* total) {
    IN_CONTEXT;
    return *free = machine.memory - used, *total = machine.memory, SUCCESS;
}
int cuMemAlloc_v2(uint64_t* at, size_t bytes) {
    IN_CONTEXT; FAULTS; NOT_WHILE_CAPTURING;
    if (bytes == 0) return INVALID_VALUE;
    if (used + bytes > machine.memory) return OUT_OF_MEMORY;
    auto block = std::make_unique<char[]>(bytes + 256);
    const uint64_t start = (reinterpret_cast<uint64_t>(block.get()) + 255) / 256 * 256;
    std::memset(reinterpret_cast<void*>(start), 0xa5, bytes);
    memory[start] = std::move(block);
    sizes[start] = bytes;
    used += bytes;
    return *at = start, SUCCESS;
}
int cuMemFree_v2(uint64_t at) {
    IN_CONTEXT;
    if (!memory.erase(at)) return INVALID_VALUE;
    used -= sizes[at];
    sizes.erase(at);
    return SUCCESS;
}
int cuMemHostAlloc(void** at, size_t bytes, unsigned) {
    IN_CONTEXT; NOT_WHILE_CAPTURING;
    if (bytes > machine.memory) return OUT_OF_MEMORY;
    return *at = std::malloc(bytes), pinned.insert(*at), SUCCESS;
}
int cuMemFreeHost(void* at) {
    IN_CONTEXT;
    return std::free(at), pinned.erase(at) ? SUCCESS : INVALID_VALUE;
}

int cuStreamCreate(Stream** stream, unsigned) {
    IN_CONTEXT;
    *stream = new Stream;
    // The crate's second stream is for transfers.
    (*stream)->eager = eager_transfers && streams.size() == 1;
    return streams.push_back(*stream), SUCCESS;
}
int cuCtxGetStreamPriorityRange(int* least, int* greatest) {
    IN_CONTEXT;
    return *least = LEAST_URGENT, *greatest = MOST_URGENT, SUCCESS;
}
int cuStreamCreateWithPriority(Stream** stream, unsigned, int priority) {
    IN_CONTEXT;
    if (priority != MOST_URGENT) return INVALID_VALUE;
    *stream = new Stream;
    (*stream)->eager = eager_transfers;
    return streams.push_back(*stream), SUCCESS;
}
int cuStreamQuery(Stream* stream) {
    IN_CONTEXT; FAULTS; NOT_WHILE_CAPTURING;
    if (stream->queue.empty()) return SUCCESS;
    return progress(stream), NOT_READY;
}
int cuStreamDestroy_v2(Stream* stream) {
    IN_CONTEXT;
    for (size_t i = 0; i < streams.size(); i++)
        if (streams[i] == stream) streams.erase(streams.begin() + i);
    return delete stream, SUCCESS;
}
int cuStreamSynchronize(Stream* stream) {
    IN_CONTEXT; FAULTS; NOT_WHILE_CAPTURING;
    return drain(stream), SUCCESS;
}
int cuEventCreate(Event** event, unsigned) {
    IN_CONTEXT; NOT_WHILE_CAPTURING;
    return *event = new Event, events.insert(*event), SUCCESS;
}
int cuEventDestroy_v2(Event* event) {
    IN_CONTEXT;
    return events.erase(event), delete event, SUCCESS;
}
int cuEventRecord(Event* event, Stream* stream) {
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
int cuStreamWaitEvent(Stream* stream, Event* event, unsigned) {
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
int cuEventQuery(Event* event) {
    IN_CONTEXT; FAULTS; NOT_WHILE_CAPTURING;
    if (event->state->reached >= event->state->recorded) return SUCCESS;
    return progress(event->stream), NOT_READY;
}
int cuEventSynchronize(Event* event) {
    IN_CONTEXT; FAULTS; NOT_WHILE_CAPTURING;
    while (event->state->reached < event->state->recorded)
        if (!step(event->stream)) drain(event->stream);
    return SUCCESS;
}
int cuEventElapsedTime(float* milliseconds, Event* from, Event* to) {
    IN_CONTEXT;
    if (!from->state->reached || !to->state->reached) return INVALID_VALUE;
    return *milliseconds = 1.5f, SUCCESS;
}

int cuMemcpyHtoDAsync_v2(uint64_t to, const void* from, size_t bytes, Stream* stream) {
    IN_CONTEXT;
    if (!within(to, bytes)) return INVALID_VALUE;
    return enqueue(stream, [=] { return std::memcpy(reinterpret_cast<void*>(to), from, bytes), true; });
}
int cuMemcpyDtoHAsync_v2(void* to, uint64_t from, size_t bytes, Stream* stream) {
    IN_CONTEXT;
    if (!within(from, bytes)) return INVALID_VALUE;
    return enqueue(stream, [=] { return std::memcpy(to, reinterpret_cast<void*>(from), bytes), true; });
}
int cuMemcpyDtoDAsync_v2(uint64_t to, uint64_t from, size_t bytes, Stream* stream) {
    IN_CONTEXT;
    if (!within(from, bytes) || !within(to, bytes)) return INVALID_VALUE;
    return enqueue(stream, [=] {
        return std::memcpy(reinterpret_cast<void*>(to), reinterpret_cast<void*>(from), bytes), true;
    });
}
int cuMemsetD8Async(uint64_t to, unsigned char value, size_t bytes, Stream* stream) {
    IN_CONTEXT;
    if (!within(to, bytes)) return INVALID_VALUE;
    return enqueue(stream, [=] { return std::memset(reinterpret_cast<void*>(to), value, bytes), true; });
}

int cuThreadExchangeStreamCaptureMode(int* mode) { return std::swap(*mode, capture_mode), SUCCESS; }
int cuStreamBeginCapture_v2(Stream* stream, int mode) {
    IN_CONTEXT;
    if (stream->capture || mode != THREAD_LOCAL) return INVALID_VALUE;
    stream->capture = std::make_shared<Capture>();
    stream->lane = 0;
    stream->capture->streams = {stream};
    stream->capture->work = stream->capture->joined = {0};
    return SUCCESS;
}
int cuStreamEndCapture(Stream* stream, Graph** graph) {
    IN_CONTEXT;
    if (!stream->capture || stream->lane != 0) return INVALID_VALUE;
    auto capture = stream->capture;
    for (Stream* one : capture->streams) one->capture.reset();
    for (size_t lane = 1; lane < capture->work.size(); lane++)
        if (capture->joined[lane] < capture->work[lane]) return CAPTURE_UNJOINED;
    return graphs.insert(*graph = new Graph(capture->graph)), SUCCESS;
}
int cuGraphInstantiateWithFlags(Graph** executable, Graph* graph, unsigned long long) {
    IN_CONTEXT;
    return graphs.insert(*executable = new Graph(*graph)), SUCCESS;
}
int cuGraphDestroy(Graph* graph) { return graphs.erase(graph), delete graph, SUCCESS; }
int cuGraphExecDestroy(Graph* graph) { return cuGraphDestroy(graph); }
int cuGraphUpload(Graph*, Stream*) { return SUCCESS; }
int cuGraphLaunch(Graph* graph, Stream* stream) {
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

int cuModuleLoadData(Module** module, const void* image) {
    IN_CONTEXT; NOT_WHILE_CAPTURING;
    modules.insert(*module = new Module);
    std::istringstream lines(static_cast<const char*>(image));
    Function f;
    while (lines >> f.name >> f.threads >> f.arguments >> f.shared) {
        f.dynamic = DEFAULT_SHARED - f.shared;
        (*module)->functions.push_back(std::make_unique<Function>(f));
    }
    return SUCCESS;
}
int cuModuleUnload(Module* module) {
    IN_CONTEXT;
    return modules.erase(module), delete module, SUCCESS;
}
int cuModuleGetFunction(Function** function, Module* module, const char* name) {
    IN_CONTEXT;
    for (auto& f : module->functions)
        if (f->name == name) return *function = f.get(), SUCCESS;
    return NOT_FOUND;
}
int cuFuncGetAttribute(int* value, int attribute, Function* f) {
    const int values[] = {f->threads, f->shared, 0, 0, 32, 0, 0, 0, f->dynamic};
    return *value = values[attribute], SUCCESS;
}
int cuFuncSetAttribute(Function* f, int attribute, int value) {
    if (attribute != 8 || value + f->shared > MOST_SHARED) return INVALID_VALUE;
    return f->dynamic = value, SUCCESS;
}
int cuFuncGetParamInfo(Function* f, size_t index, size_t* offset, size_t* size) {
    // A driver before 12.4 does not have this function, and would end the program.
    if (machine.version < 12040) std::abort();
    if (index > 0 && f->name.find("two") == std::string::npos) return INVALID_VALUE;
    return *offset = 0, *size = f->arguments, SUCCESS;
}
int cuLaunchKernel(Function* f, unsigned x, unsigned y, unsigned z, unsigned threads, unsigned ty, unsigned tz,
                   unsigned shared, Stream* stream, void** parameters, void** extra) {
    IN_CONTEXT;
    if (x * y * z == 0 || int(threads) > f->threads || ty * tz != 1 || int(shared) > f->dynamic || extra)
        return INVALID_VALUE;
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
