// Kernels that a test brings to the stand-in for the driver, and faults in them.
//
// A test program that contains the kernels' build for the CPU gives the stand-in a function that runs one of them. Images
// of modules stay text. FAKE_FAULTS lists kernels that go wrong, such as "hang residual_forward_f32; wrong keep_masks":
//
// - `hang`: it never ends, and so the stream never comes to what follows;
// - `fault`: it touches memory that is not there, after which every call of the process fails;
// - `wrong`: its last block does not run.
#pragma once
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <sstream>
#include <string>
#include <vector>

namespace kernels {

// Runs a kernel to its end. False if it made a mistake, which was printed.
using Run = bool (*)(const char* name, const unsigned grid[3], unsigned threads, size_t shared, const void* arguments);
inline Run run = nullptr;
inline bool hung = false;

struct Launch {
    std::string name;
    unsigned grid[3];
    unsigned threads;
    size_t shared;
};

// The kind of fault of each kernel that has one.
inline std::map<std::string, std::string> read_faults() {
    const char* text = std::getenv("FAKE_FAULTS");
    std::istringstream list(text ? text : "");
    std::map<std::string, std::string> found;
    for (std::string one, kind, kernel; std::getline(list, one, ';');) {
        std::istringstream words(one);
        if (!(words >> kind >> kernel) || (kind != "hang" && kind != "fault" && kind != "wrong"))
            std::fprintf(stderr, "FAKE_FAULTS: %s\n", one.c_str()), std::abort();
        found[kernel] = kind;
    }
    return found;
}
inline const std::map<std::string, std::string> faults = read_faults();

constexpr int ILLEGAL_ADDRESS = 700;

// What a stream does when it comes to this launch. `fault` becomes the answer of every call where the kernel faults.
inline std::function<bool()> launch(Launch what, const void* arguments, size_t bytes, int& fault) {
    // Eight bytes at a time, so that they are aligned.
    std::vector<unsigned long long> words((bytes + 7) / 8);
    std::memcpy(words.data(), arguments, bytes);
    const auto found = faults.find(what.name);
    const std::string kind = found == faults.end() ? "" : found->second;
    if (kind == "wrong") {
        // The last block of a grid with one block is its only one.
        unsigned* widest = what.grid;
        for (unsigned& blocks : what.grid)
            if (blocks > 1) widest = &blocks;
        if (--*widest == 0) return [] { return true; };
    }
    return [=, &fault] {
        if (kind == "hang") return hung = true, false;
        const auto runs = [&] { return run(what.name.c_str(), what.grid, what.threads, what.shared, words.data()); };
        if (!fault && (kind == "fault" || !runs())) fault = ILLEGAL_ADDRESS;
        return true;
    };
}

}  // namespace kernels

// The image of a module then names kernels that `run` knows.
extern "C" void fake_kernels(kernels::Run run) { kernels::run = run; }
