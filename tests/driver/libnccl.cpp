// A stand-in for NCCL without other ranks. Every rank is assumed to hold the same numbers, so a sum is this rank's numbers
// times the number of ranks. Collectives are work on the streams of libcuda.cpp, which must be loaded before. The test
// sets what goes wrong.
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <thread>
#include <vector>

extern "C" int fake_enqueue(void* stream, bool (*work)(void*), void* argument);
extern "C" int fake_graphs();

namespace {

enum Answer { SUCCESS = 0, INVALID_ARGUMENT = 4, INVALID_USAGE = 5, REMOTE = 6 };

struct Comm {
    int ranks, rank;
    std::atomic<bool> aborted{false};
};
struct Id {
    char bytes[128];
};
struct Collective {
    Comm* comm;
    const char* from;
    char* to;
    size_t count;
    int type, operation;  // -1 gathers
};

std::atomic<int> number{23203}, joining{0}, asynchronous{0}, destroyed{0}, aborted{0}, before_graphs{0}, inside{0};
std::atomic<bool> stuck{false};
int depth = 0;
std::vector<std::pair<void*, Collective*>> grouped;

template <typename T>
void reduce(const Collective& c) {
    const T* from = reinterpret_cast<const T*>(c.from);
    T* to = reinterpret_cast<T*>(c.to);
    for (size_t i = 0; i < c.count; i++) to[i] = c.operation == 0 ? T(from[i] * c.comm->ranks) : from[i];
}

bool run(void* argument) {
    const Collective& c = *static_cast<Collective*>(argument);
    if (c.comm->aborted) return true;
    if (stuck) return false;
    if (c.operation < 0) {
        for (int rank = 0; rank < c.comm->ranks; rank++) std::memcpy(c.to + rank * c.count, c.from, c.count);
    } else if (c.type == 3) {
        reduce<uint32_t>(c);
    } else if (c.type == 7) {
        reduce<float>(c);
    } else {
        reduce<double>(c);
    }
    return true;
}

int enqueue(Collective* c, void* stream) {
    if (c->comm->aborted) return INVALID_ARGUMENT;
    if (depth > 0) return grouped.emplace_back(stream, c), SUCCESS;
    return fake_enqueue(stream, run, c) == 0 ? SUCCESS : 1;
}

int end(Comm* comm, std::atomic<int>& how) {
    how++;
    if (fake_graphs() > 0) before_graphs++;
    return SUCCESS;
}

}  // namespace

extern "C" {

// ---- for the test -----------------------------------------------------------------------------------------

// Sets the library's version; the result of joining, or -1 if it never returns; the error between ranks; and whether
// collectives hang.
void fake_nccl(int version, int join, int error, int hang) {
    number = version, joining = join, asynchronous = error, stuck = hang;
    destroyed = aborted = before_graphs = 0;
}
// The number of threads that are joining.
int fake_nccl_inside() { return inside; }
// The numbers of communicators that were destroyed, aborted, and ended while graphs existed.
void fake_nccl_ends(int* counts) { counts[0] = destroyed, counts[1] = aborted, counts[2] = before_graphs; }

// ---- the library ------------------------------------------------------------------------------------------

int ncclGetVersion(int* version) { return *version = number, SUCCESS; }
int ncclGetUniqueId(Id* id) { return std::memset(id, 7, sizeof *id), SUCCESS; }
int ncclCommInitRank(Comm** comm, int ranks, Id id, int rank) {
    inside++;
    while (joining < 0) std::this_thread::sleep_for(std::chrono::milliseconds(1));
    const int answer = joining;
    inside--;
    for (char byte : id.bytes)
        if (byte != 7) return INVALID_ARGUMENT;
    if (answer > 0) return answer;
    *comm = new Comm{ranks, rank};
    return SUCCESS;
}
int ncclCommDestroy(Comm* comm) { return end(comm, destroyed); }
int ncclCommAbort(Comm* comm) { return comm->aborted = true, end(comm, aborted); }
int ncclCommGetAsyncError(Comm*, int* error) { return *error = asynchronous, SUCCESS; }
int ncclCommCuDevice(Comm*, int* device) { return *device = 0, SUCCESS; }
int ncclCommUserRank(Comm* comm, int* rank) { return *rank = comm->rank, SUCCESS; }
int ncclAllReduce(const void* from, void* to, size_t count, int type, int operation, Comm* comm, void* stream) {
    const bool known = (type == 7 && (operation == 0 || operation == 4)) || (type == 8 && operation == 0) ||
                       (type == 3 && (operation == 0 || operation == 2));
    if (!known) return INVALID_ARGUMENT;
    auto* c = new Collective{comm, static_cast<const char*>(from), static_cast<char*>(to), count, type, operation};
    return enqueue(c, stream);
}
int ncclAllGather(const void* from, void* to, size_t count, int type, Comm* comm, void* stream) {
    if (type != 0 && type != 1) return INVALID_ARGUMENT;
    return enqueue(new Collective{comm, static_cast<const char*>(from), static_cast<char*>(to), count, type, -1}, stream);
}
int ncclGroupStart() { return depth++, SUCCESS; }
int ncclGroupEnd() {
    if (--depth < 0) return INVALID_USAGE;
    if (depth > 0) return SUCCESS;
    auto list = std::move(grouped);
    grouped.clear();
    for (auto [stream, c] : list)
        if (fake_enqueue(stream, run, c) != 0) return 1;
    return SUCCESS;
}
const char* ncclGetErrorString(int error) {
    if (error == INVALID_USAGE) return "invalid usage (run with NCCL_DEBUG=WARN for details)";
    return error == REMOTE ? "remote process exited or there was a network error" : "another error";
}
const char* ncclGetLastError(void*) { return joining == INVALID_USAGE ? "Duplicate GPU detected : rank 0 and rank 1" : ""; }

}  // extern "C"
