//! What an instruction computes.

/// How two numbers are compared.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Compare {
    Less,
    Equal,
    LessEqual,
    Greater,
    NotEqual,
    GreaterEqual,
    /// Of floats: neither is, or one is, not a number.
    Number,
    Nan,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Join {
    And,
    Or,
    Xor,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Code {
    Move,
    /// Two registers become 0 (`CS2R` of SRZ).
    Clear,
    /// `a·b + c`; `carry`: and a carry.
    MultiplyAdd {
        carry: bool,
    },
    /// The same in 64 bits; `high`: only their upper half.
    MultiplyAddWide {
        signed: bool,
        high: bool,
        carry: bool,
    },
    Add3 {
        carry: bool,
    },
    /// VIADDMNMX: the sum of two, then the lesser or greater of it and the third.
    AddMinMax {
        signed: bool,
    },
    /// `(a << n) + b`; `high`: the upper half of the 64 bits `c:a`.
    ShiftAdd {
        high: bool,
        carry: bool,
        extend: bool,
    },
    Logic3,
    /// Of the 64 bits `c:a`.
    Shift {
        left: bool,
        signed: bool,
        high: bool,
        wide: bool,
        wrap: bool,
    },
    Compare {
        compare: Compare,
        signed: bool,
        join: Join,
        extended: bool,
    },
    MinMax {
        signed: bool,
    },
    Absolute,
    Select {
        float: bool,
    },
    Permute,
    Count,
    Leading {
        signed: bool,
        shift: bool,
    },
    Reverse,
    Vote {
        all: bool,
    },
    Predicates3,
    FromPredicates,
    ToPredicates,
    Special,
    Constant {
        words: u32,
    },
    Shuffle(Shuffle),
    Float(Float),
    FloatCompare {
        compare: Compare,
        unordered: bool,
        join: Join,
    },
    FloatCheck,
    FloatToInteger {
        signed: bool,
        wide: bool,
        from_double: bool,
        round: Round,
    },
    IntegerToFloat {
        signed: bool,
        wide: bool,
        double: bool,
        up: bool,
    },
    /// From a half-precision number (`HADD2.F32`), or two of them.
    FromHalf,
    Halves {
        multiply: bool,
    },
    PackHalves {
        brain: bool,
    },
    Double(Float),
    DoubleCompare {
        compare: Compare,
        join: Join,
    },
    FloatToDouble,
    DoubleToFloat,
    /// Results that are data only: taken as zero.
    Data {
        registers: u8,
    },
    Load {
        shared: bool,
    },
    Store {
        shared: bool,
    },
    CopyAsync,
    CopyGroup,
    Wait,
    LoadMatrix,
    Atomic {
        shared: bool,
        returns: bool,
    },
    /// The count of blocks that have come here, in global memory: wraps at its limit.
    Arrive,
    Branch,
    /// Taken only by warps whose lanes are at different places.
    BranchDivergent,
    Call,
    Return,
    Exit,
    Begin,
    Join,
    Leave,
    Together,
    Barrier,
    /// A barrier that also tells all threads whether any of them votes for something.
    BarrierVote,
    VoteResult,
    /// Until other blocks see what was written.
    Fence,
    Nothing,
    Unknown,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Round {
    Zero,
    Floor,
    Ceiling,
    Nearest,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Shuffle {
    Index,
    Up,
    Down,
    Butterfly,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Float {
    Add,
    Multiply,
    MultiplyAdd,
    MinMax,
    Reciprocal,
    ReciprocalRoot,
    Root,
    Exponential,
    Logarithm,
    Sine,
    Cosine,
    Tanh,
    Round(Round),
}

impl Code {
    pub fn of(name: &str, words: &[String]) -> Code {
        let has = |word: &str| words.iter().any(|known| known == word);
        integers(name, &has)
            .or_else(|| floats(name, words, &has))
            .or_else(|| memory(name, &has))
            .or_else(|| control(name, &has))
            .unwrap_or(Code::Unknown)
    }
}

fn integers(name: &str, has: &dyn Fn(&str) -> bool) -> Option<Code> {
    let signed = !has("U32");
    Some(match name {
        "CS2R" if !has("32") => Code::Clear,
        "MOV" | "UMOV" | "R2UR" | "CS2R" => Code::Move,
        "IMAD" | "UIMAD" if has("WIDE") || has("HI") => {
            Code::MultiplyAddWide { signed, high: has("HI"), carry: has("X") }
        }
        "IMAD" | "UIMAD" => Code::MultiplyAdd { carry: has("X") },
        "IADD3" | "UIADD3" | "VIADD" => Code::Add3 { carry: has("X") },
        "VIADDMNMX" => Code::AddMinMax { signed },
        "LEA" | "ULEA" => Code::ShiftAdd { high: has("HI"), carry: has("X"), extend: has("SX32") },
        "LOP3" | "ULOP3" => Code::Logic3,
        "SHF" | "USHF" => Code::Shift {
            left: has("L"),
            signed: has("S32") || has("S64"),
            high: has("HI"),
            wide: has("U64") || has("S64"),
            wrap: has("W"),
        },
        "ISETP" | "UISETP" => {
            Code::Compare { compare: compare(has)?.0, signed, join: join(has), extended: has("EX") }
        }
        "IMNMX" | "VIMNMX" | "UIMNMX" => Code::MinMax { signed },
        "IABS" => Code::Absolute,
        "SEL" | "USEL" | "FSEL" => Code::Select { float: name == "FSEL" },
        "PRMT" | "UPRMT" => Code::Permute,
        "POPC" | "UPOPC" => Code::Count,
        "FLO" | "UFLO" => Code::Leading { signed: !has("U32"), shift: has("SH") },
        "BREV" | "UBREV" => Code::Reverse,
        "VOTE" | "VOTEU" => Code::Vote { all: has("ALL") },
        "PLOP3" | "UPLOP3" => Code::Predicates3,
        "P2R" => Code::FromPredicates,
        "R2P" => Code::ToPredicates,
        "S2R" | "S2UR" => Code::Special,
        "LDC" | "ULDC" => Code::Constant { words: if has("64") { 2 } else { 1 } },
        "SHFL" => Code::Shuffle(match () {
            _ if has("IDX") => Shuffle::Index,
            _ if has("UP") => Shuffle::Up,
            _ if has("DOWN") => Shuffle::Down,
            _ => Shuffle::Butterfly,
        }),
        "IDP" | "REDUX" => Code::Data { registers: 1 },
        _ => return None,
    })
}

/// The comparison, and whether it is true of what is not a number.
fn compare(has: &dyn Fn(&str) -> bool) -> Option<(Compare, bool)> {
    let known = [
        ("LT", Compare::Less),
        ("EQ", Compare::Equal),
        ("LE", Compare::LessEqual),
        ("GT", Compare::Greater),
        ("NE", Compare::NotEqual),
        ("GE", Compare::GreaterEqual),
    ];
    for (word, compare) in known {
        if has(word) {
            return Some((compare, false));
        }
        if has(&format!("{word}U")) {
            return Some((compare, true));
        }
    }
    match () {
        _ if has("NUM") => Some((Compare::Number, false)),
        _ if has("NAN") => Some((Compare::Nan, false)),
        _ if has("MIN") => Some((Compare::LessEqual, false)),
        _ => None,
    }
}

fn join(has: &dyn Fn(&str) -> bool) -> Join {
    match () {
        _ if has("OR") => Join::Or,
        _ if has("XOR") => Join::Xor,
        _ => Join::And,
    }
}

fn round(has: &dyn Fn(&str) -> bool) -> Round {
    match () {
        _ if has("TRUNC") => Round::Zero,
        _ if has("FLOOR") => Round::Floor,
        _ if has("CEIL") => Round::Ceiling,
        _ => Round::Nearest,
    }
}

fn floats(name: &str, words: &[String], has: &dyn Fn(&str) -> bool) -> Option<Code> {
    let double_first =
        words.iter().position(|word| word == "F64") < words.iter().position(|word| word == "F32");
    Some(match name {
        "FADD" => Code::Float(Float::Add),
        "FMUL" => Code::Float(Float::Multiply),
        "FFMA" => Code::Float(Float::MultiplyAdd),
        "FMNMX" => Code::Float(Float::MinMax),
        "FRND" => Code::Float(Float::Round(round(has))),
        "MUFU" if has("RCP64H") => Code::Double(Float::Reciprocal),
        "MUFU" if has("RSQ64H") => Code::Double(Float::ReciprocalRoot),
        "MUFU" => Code::Float(match words.first()?.as_str() {
            "RCP" => Float::Reciprocal,
            "RSQ" => Float::ReciprocalRoot,
            "SQRT" => Float::Root,
            "EX2" => Float::Exponential,
            "LG2" => Float::Logarithm,
            "SIN" => Float::Sine,
            "COS" => Float::Cosine,
            "TANH" => Float::Tanh,
            _ => return None,
        }),
        "FSETP" => {
            let (compare, unordered) = compare(has)?;
            Code::FloatCompare { compare, unordered, join: join(has) }
        }
        "FCHK" => Code::FloatCheck,
        "F2I" => Code::FloatToInteger {
            signed: !has("U32") && !has("U64"),
            wide: has("U64") || has("S64"),
            from_double: has("F64"),
            round: round(has),
        },
        "I2F" | "I2FP" => Code::IntegerToFloat {
            signed: !has("U32") && !has("U64") && !has("U8") && !has("U16"),
            wide: has("U64") || has("S64"),
            double: has("F64"),
            up: has("RP"),
        },
        "HADD2" if has("F32") => Code::FromHalf,
        "HADD2" => Code::Halves { multiply: false },
        "HFMA2" | "HMUL2" => Code::Halves { multiply: true },
        "F2FP" => Code::PackHalves { brain: has("BF16") },
        "DADD" => Code::Double(Float::Add),
        "DMUL" => Code::Double(Float::Multiply),
        "DFMA" => Code::Double(Float::MultiplyAdd),
        "DSETP" => Code::DoubleCompare { compare: compare(has)?.0, join: join(has) },
        "F2F" if has("F64") && double_first => Code::FloatToDouble,
        "F2F" if has("F64") => Code::DoubleToFloat,
        "F2F" => Code::Data { registers: 1 },
        "HMMA" => Code::Data { registers: 4 },
        _ => return None,
    })
}

fn memory(name: &str, has: &dyn Fn(&str) -> bool) -> Option<Code> {
    Some(match name {
        "LDG" | "LD" => Code::Load { shared: false },
        "LDS" => Code::Load { shared: true },
        "STG" | "ST" => Code::Store { shared: false },
        "STS" => Code::Store { shared: true },
        "LDGSTS" => Code::CopyAsync,
        "LDGDEPBAR" => Code::CopyGroup,
        "DEPBAR" => Code::Wait,
        "LDSM" => Code::LoadMatrix,
        "ATOMS" => Code::Atomic { shared: true, returns: !has("INC") },
        "ATOMG" | "ATOM" if has("INC") => Code::Arrive,
        "ATOMG" | "ATOM" => Code::Atomic { shared: false, returns: true },
        "RED" | "REDG" => Code::Atomic { shared: false, returns: false },
        _ => return None,
    })
}

fn control(name: &str, has: &dyn Fn(&str) -> bool) -> Option<Code> {
    Some(match name {
        "BRA" if has("DIV") => Code::BranchDivergent,
        "BRA" => Code::Branch,
        "CALL" => Code::Call,
        "RET" => Code::Return,
        "EXIT" => Code::Exit,
        "BSSY" => Code::Begin,
        "BSYNC" => Code::Join,
        "BREAK" => Code::Leave,
        "WARPSYNC" => Code::Together,
        "BAR" if has("RED") && has("OR") => Code::BarrierVote,
        "BAR" if has("RED") => return None,
        "BAR" => Code::Barrier,
        "B2R" if has("RESULT") => Code::VoteResult,
        "MEMBAR" => Code::Fence,
        "NOP" | "YIELD" | "ERRBAR" | "CGAERRBAR" | "CCTL" | "ENDCOLLECTIVE" => Code::Nothing,
        _ => return None,
    })
}
