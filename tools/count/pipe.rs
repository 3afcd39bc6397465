//! The units of a multiprocessor that instructions are issued to, as Nsight Compute names them ("Pipelines" in its
//! Kernel Profiling Guide).

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Pipe {
    /// fp32 additions, multiplications, multiply-adds.
    Fma,
    /// Integer multiply-adds, which the FMA unit does too, at half its rate where it has 128 lanes.
    IntegerFma,
    /// Arithmetic of two half-precision numbers, and conversions from them.
    Half,
    /// Integers, logic, comparisons, selections, moves, packing of half-precision numbers.
    Alu,
    Fp64,
    /// Special functions and other conversions (XU).
    Special,
    Tensor,
    /// Shared memory and shuffles.
    Shared,
    Global,
    /// Branches, barriers, constants by index.
    Control,
    /// One value for the whole warp.
    Uniform,
}

pub const PIPES: [(Pipe, &str); 11] = [
    (Pipe::Fma, "fp32"),
    (Pipe::IntegerFma, "int multiply"),
    (Pipe::Half, "half"),
    (Pipe::Alu, "int, logic"),
    (Pipe::Fp64, "fp64"),
    (Pipe::Special, "special"),
    (Pipe::Tensor, "tensor"),
    (Pipe::Shared, "shared"),
    (Pipe::Global, "global"),
    (Pipe::Control, "control"),
    (Pipe::Uniform, "uniform"),
];

impl Pipe {
    pub fn of(name: &str) -> Pipe {
        match name {
            "FFMA" | "FADD" | "FMUL" => Pipe::Fma,
            "IMAD" | "IDP" => Pipe::IntegerFma,
            "HADD2" | "HFMA2" | "HMUL2" | "HSETP2" | "HSET2" | "HMNMX2" => Pipe::Half,
            "DADD" | "DMUL" | "DFMA" | "DSETP" => Pipe::Fp64,
            "MUFU" | "F2F" | "F2I" | "I2F" | "FRND" | "POPC" | "FLO" | "BREV" | "FCHK" => Pipe::Special,
            "HMMA" | "IMMA" | "DMMA" | "BMMA" => Pipe::Tensor,
            "LDS" | "STS" | "LDSM" | "STSM" | "ATOMS" | "SHFL" => Pipe::Shared,
            "LDG" | "STG" | "LDGSTS" | "LD" | "ST" | "LDL" | "STL" | "RED" | "REDG" | "ATOMG" | "ATOM" => {
                Pipe::Global
            }
            "BRA" | "BRX" | "BSSY" | "BSYNC" | "BREAK" | "WARPSYNC" | "CALL" | "RET" | "EXIT" | "BAR"
            | "NOP" | "DEPBAR" | "LDGDEPBAR" | "YIELD" | "LDC" | "S2R" | "MEMBAR" | "ERRBAR"
            | "CGAERRBAR" | "CCTL" | "B2R" | "BMOV" | "ENDCOLLECTIVE" => Pipe::Control,
            "R2UR" | "S2UR" | "REDUX" => Pipe::Uniform,
            _ if name.starts_with('U') => Pipe::Uniform,
            _ => Pipe::Alu,
        }
    }

    pub fn index(self) -> usize {
        self as usize
    }
}
