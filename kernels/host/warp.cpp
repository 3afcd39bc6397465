// Operations of a warp: shuffles, ballots, matrix loads and products. The lane that arrives last computes for all.
#include "machine.h"

namespace host {

namespace {

const char* name_of(WarpOperation operation) {
    switch (operation) {
        case WarpOperation::Barrier: return "barrier";
        case WarpOperation::ShuffleXor: return "shuffle_xor";
        case WarpOperation::Shuffle: return "shuffle";
        case WarpOperation::ShuffleDown: return "shuffle_down";
        case WarpOperation::ShuffleUp: return "shuffle_up";
        case WarpOperation::Ballot: return "ballot";
        case WarpOperation::LoadMatrix: return "load_matrix";
        case WarpOperation::Multiply: return "mma";
    }
    return "";
}

template <typename Word>
void shuffle_words(Warp& warp) {
    Word values[LANES_OF_WARP];
    for (unsigned lane = 0; lane < LANES_OF_WARP; lane++) memcpy(&values[lane], warp.lanes[lane]->value, sizeof(Word));
    for (int lane = 0; lane < int(LANES_OF_WARP); lane++) {
        const Exchange& e = *warp.lanes[lane];
        const int own = *static_cast<const int*>(e.second);
        int from = lane;
        switch (e.operation) {
            case WarpOperation::ShuffleXor: from = lane ^ own; break;
            case WarpOperation::Shuffle: from = own & 31; break;
            case WarpOperation::ShuffleDown: from = lane + own; break;
            case WarpOperation::ShuffleUp: from = lane - own; break;
            default: break;
        }
        if (from < 0 || from >= int(LANES_OF_WARP)) from = lane;
        memcpy(e.result, &values[from], sizeof(Word));
    }
}

void shuffle_all(Warp& warp) {
    switch (warp.lanes[0]->bytes) {
        case 1: return shuffle_words<uint8_t>(warp);
        case 2: return shuffle_words<uint16_t>(warp);
        case 4: return shuffle_words<uint32_t>(warp);
        case 8: return shuffle_words<uint64_t>(warp);
        default: fail("a shuffle of %d bytes", warp.lanes[0]->bytes);
    }
}

void ballot_all(Warp& warp) {
    unsigned bits = 0;
    for (unsigned lane = 0; lane < LANES_OF_WARP; lane++)
        bits |= unsigned(*static_cast<const bool*>(warp.lanes[lane]->value)) << lane;
    for (const Exchange* e : warp.lanes) *static_cast<unsigned*>(e->result) = bits;
}

void load_matrix_all(Warp& warp) {
    for (int matrix = 0; matrix < 4; matrix++) {
        uint16_t values[8][8];
        for (int row = 0; row < 8; row++) memcpy(values[row], warp.lanes[matrix * 8 + row]->value, 16);
        const bool transposed = warp.lanes[0]->argument;
        for (int lane = 0; lane < int(LANES_OF_WARP); lane++) {
            const int row = lane / 4, column = lane % 4 * 2;
            const uint16_t low = transposed ? values[column][row] : values[row][column];
            const uint16_t high = transposed ? values[column + 1][row] : values[row][column + 1];
            static_cast<uint32_t*>(warp.lanes[lane]->result)[matrix] = uint32_t(low) | uint32_t(high) << 16;
        }
    }
}

float widen(uint16_t bits, Half type) {
    return type == Half::F16 ? __half2float({bits}) : __bfloat162float({bits});
}

// c [m·16, n·8] += a [m·16, 16]·b [16, n·8], gathered from the lanes' registers and scattered again.
void multiply_all(Warp& warp, Half type) {
    const int m = warp.lanes[0]->argument >> 8, n = warp.lanes[0]->argument & 255;
    // Columns of b beside each other, so that the innermost loop is a vector.
    static thread_local float a[16 * 16][16], b[16][16 * 8], c[16 * 16][16 * 8];
    for (int lane = 0; lane < int(LANES_OF_WARP); lane++) {
        const Exchange& e = *warp.lanes[lane];
        const int group = lane / 4, pair = lane % 4 * 2;
        const uint32_t* as = static_cast<const uint32_t*>(e.value);
        for (int i = 0; i < m; i++)
            for (int r = 0; r < 4; r++) {
                float* to = &a[i * 16 + group + r % 2 * 8][pair + r / 2 * 8];
                to[0] = widen(uint16_t(as[i * 4 + r]), type);
                to[1] = widen(uint16_t(as[i * 4 + r] >> 16), type);
            }
        const uint32_t* bs = static_cast<const uint32_t*>(e.second);
        for (int j = 0; j < n; j++)
            for (int r = 0; r < 2; r++) {
                const int k = pair + r * 8;
                b[k][j * 8 + group] = widen(uint16_t(bs[j * 2 + r]), type);
                b[k + 1][j * 8 + group] = widen(uint16_t(bs[j * 2 + r] >> 16), type);
            }
        const float* cs = static_cast<const float*>(e.result);
        for (int i = 0; i < m; i++)
            for (int j = 0; j < n; j++)
                for (int r = 0; r < 4; r++)
                    c[i * 16 + group + r / 2 * 8][j * 8 + pair + r % 2] = cs[(i * n + j) * 4 + r];
    }
    for (int row = 0; row < m * 16; row++)
        for (int k = 0; k < 16; k++)
            for (int column = 0; column < n * 8; column++) c[row][column] += a[row][k] * b[k][column];
    for (int lane = 0; lane < int(LANES_OF_WARP); lane++) {
        const int group = lane / 4, pair = lane % 4 * 2;
        float* cs = static_cast<float*>(warp.lanes[lane]->result);
        for (int i = 0; i < m; i++)
            for (int j = 0; j < n; j++)
                for (int r = 0; r < 4; r++)
                    cs[(i * n + j) * 4 + r] = c[i * 16 + group + r / 2 * 8][j * 8 + pair + r % 2];
    }
}

}  // namespace

void run_warp_operation(Machine& m, Warp& warp) {
    const Exchange& first = *warp.lanes[0];
    for (unsigned lane = 1; lane < LANES_OF_WARP; lane++) {
        const Exchange& e = *warp.lanes[lane];
        if (e.operation != first.operation || e.argument != first.argument || e.bytes != first.bytes)
            fail("lanes of one warp meet in different operations: lane 0 in %s(%d) of %d bytes, lane %u in %s(%d) of "
                 "%d bytes, of the warp of %s",
                 name_of(first.operation), first.argument, first.bytes, lane, name_of(e.operation), e.argument, e.bytes,
                 whereabouts().c_str());
    }
    switch (first.operation) {
        case WarpOperation::Barrier: warp.epoch++; break;
        case WarpOperation::Ballot: ballot_all(warp); break;
        case WarpOperation::LoadMatrix: load_matrix_all(warp); break;
        case WarpOperation::Multiply: multiply_all(warp, Half(first.bytes)); break;
        default: shuffle_all(warp);
    }
    (void)m;
}

unsigned ballot(unsigned mask, bool value) {
    unsigned result;
    exchange({WarpOperation::Ballot, mask, 0, 0, &value, nullptr, &result});
    return result;
}

void load_matrix_x4(uint32_t (&registers)[4], const void* row, bool transposed) {
    if (reinterpret_cast<uintptr_t>(row) % 16 != 0)
        fail("%s loads a matrix row that is not aligned to 16 bytes", whereabouts().c_str());
    note_load(row, 16, __builtin_return_address(0));
    exchange({WarpOperation::LoadMatrix, ~0u, transposed, 0, row, nullptr, registers});
}

void multiply(float* c, const uint32_t* a, const uint32_t* b, int m, int n, Half type) {
    if (m < 1 || m > 16 || n < 1 || n > 16) fail("mma_tiles of %d by %d tiles: at most 16 by 16", m, n);
    exchange({WarpOperation::Multiply, ~0u, m << 8 | n, int(type), a, b, c});
}

}  // namespace host
