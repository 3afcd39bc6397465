// The streams, events, graphs and captures of the stand-in for the driver.
//
// Streams are queues. Work runs as late as possible, when the host waits for it, so a transfer that is never waited for
// does not happen. "Eager" streams run as soon as the events that they wait for allow, so a transfer that should have
// waited happens too early. The same holds for the streams of a graph, which has as many as were captured.
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <functional>
#include <memory>
#include <thread>
#include <vector>

#include "kernels.h"

namespace {

enum Answer {
    SUCCESS = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, STUB = 34, NO_DEVICE = 100, INVALID_CONTEXT = 201,
    NOT_FOUND = 500, UNREADY_TIME = 601, NOT_READY = 600, ILLEGAL_ADDRESS = 700, CAPTURE_UNSUPPORTED = 900,
    CAPTURE_UNJOINED = 904, CAPTURE_ISOLATION = 905, UNKNOWN = 999
};

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
    // The thread that has begun it: calls of other threads are not disturbed.
    std::thread::id thread = std::this_thread::get_id();
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

bool eager_transfers = false;
// What every call answers after a fault.
int fault = SUCCESS;
std::vector<Stream*> streams, lanes;
// After so many questions of the host, a minute of them, without progress the streams never end.
constexpr long MOST_UNMOVED = 1000000;

#define FAULTS if (fault) return fault

bool step(Stream* stream) {
    if (stream->queue.empty()) return false;
    if (!stream->queue.front()()) return false;
    stream->queue.pop_front();
    return true;
}

// Runs one piece of work of a stream. If the stream must wait, runs other streams instead.
void progress(Stream* stream) {
    static long unmoved = 0;
    bool moved = step(stream);
    if (!moved)
        for (auto* list : {&streams, &lanes})
            for (Stream* other : *list) moved |= other != stream && step(other);
    unmoved = moved ? 0 : unmoved + 1;
    if (unmoved > MOST_UNMOVED && !kernels::hung) std::fprintf(stderr, "streams wait for each other\n"), std::abort();
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
        if (stream->capture && stream->capture->thread == std::this_thread::get_id()) return true;
    return false;
}
#define NOT_WHILE_CAPTURING if (capturing()) return CAPTURE_UNSUPPORTED

}  // namespace
