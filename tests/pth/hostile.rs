//! Pickles and archives that were written to do harm: each is refused, soon, and with little memory.

use super::write::*;
use super::*;

/// Memory beside what a test's file itself gives reason for.
const LITTLE: usize = 1 << 20;

fn refused_pickle(pickle: &[u8]) -> String {
    refused(&archive(pickle, &[("0", &[0; 16])]))
}

#[test]
fn sound_file_by_hand_is_read() {
    let numbers: Vec<u8> = [1_f32, 2.0, 3.0, 4.0].iter().flat_map(|number| number.to_le_bytes()).collect();
    let pickle = program(dictionary(&[("w", view("0", 4, 0, &[2, 2], &[1, 2]))]));
    let tensors = read(&archive(&pickle, &[("0", &numbers)])).unwrap();
    let transposed: Vec<u8> = [1_f32, 3.0, 2.0, 4.0].iter().flat_map(|number| number.to_le_bytes()).collect();
    assert_eq!(tensors["w"].bytes, transposed);
}

#[test]
fn names_outside_of_the_list_are_refused_by_their_full_name() {
    let line = |name: &str| {
        format!("its pickle names {name}, which is not among what weights need; nothing of it was run")
    };
    let command = tuple(&[text("touch owned")]);
    let stack_global = |module: &str, name: &str| [text(module), text(name), vec![0x93]].concat();
    let names = [
        ("os", "system"),
        ("posix", "system"),
        ("builtins", "eval"),
        ("__builtin__", "eval"),
        ("builtins", "getattr"),
        ("builtins", "setattr"),
        ("builtins", "__import__"),
        ("torch", "load"),
        ("torch", "Storage"),
        ("torch.hub", "load"),
        ("torch", "serialization.os.system"),
        ("collections", "OrderedDict.fromkeys"),
        ("numpy", "load"),
        ("numpy.core.multiarray", "fromfile"),
        ("torch._utils", "_rebuild_device_tensor_from_numpy"),
        ("argparse", "FileType"),
        ("argparse", "Namespace.__init__"),
        ("", ""),
    ];
    for (module, name) in names {
        let expected = line(&format!("{module}.{name}"));
        let called = |function: Vec<u8>| program([function, command.clone(), b"R".to_vec()].concat());
        assert_eq!(refused_pickle(&called(global(module, name))), expected);
        assert_eq!(refused_pickle(&called(stack_global(module, name))), expected);
        // The name alone, which is never called.
        assert_eq!(refused_pickle(&program(global(module, name))), expected);
        let inst = [b"(", &text("echo")[..], format!("i{module}\n{name}\n").as_bytes()].concat();
        assert_eq!(refused_pickle(&program(inst)), expected);
    }
}

#[test]
fn names_cannot_spoil_the_terminal_or_the_line() {
    let message =
        refused_pickle(&program([text("o\x1b[2Js\n"), text(&"x".repeat(5000)), vec![0x93]].concat()));
    assert!(message.contains("o\\u{1b}[2Js\\n.xxx") && message.contains('…'), "{message}");
}

#[test]
fn instructions_that_torch_does_not_write_are_refused_by_name() {
    let cases: [(&[u8], &str); 8] = [
        (b"\x82\x01", "EXT1"),
        (b"\x83\x01\x00", "EXT2"),
        (b"\x84\x01\x00\x00\x00", "EXT4"),
        (b"(o", "OBJ"),
        (b"Pstorage\n", "PERSID"),
        (b"iargparse\nNamespace\n", "INST"),
        (b"\x97", "NEXT_BUFFER"),
        (b"N2", "DUP"),
    ];
    for (body, name) in cases {
        let expected = format!(
            "its pickle has the instruction {name}, which torch.save does not write; nothing of it was run"
        );
        assert_eq!(refused_pickle(&program(body)), expected);
    }
}

/// Runs a pickle's body after `{'w': vector}` is on the stack and the vector's value is 7 in the memo.
fn after_a_tensor(body: &[u8]) -> String {
    let memoised = [vector("0", 4), b"q\x07".to_vec()].concat();
    refused_pickle(&program([&dictionary(&[("w", memoised)])[..], body].concat()))
}

#[test]
fn state_is_set_of_nothing_that_uses_it() {
    let state = dictionary(&[("data", vector("0", 4))]);
    for target in
        [&b"h\x07"[..], b"]", b")", &global("argparse", "Namespace"), &global("torch", "Tensor"), b"N"]
    {
        let message = after_a_tensor(&[target, &state[..], b"b"].concat());
        assert!(message.ends_with("it sets the state of what has none"), "{message}");
    }
}

#[test]
fn calls_and_objects_of_other_values_are_refused() {
    let size = tuple(&[integers(&[1])]);
    let cases = [
        (vec![text("os.system"), tuple(&[])], "R", "it calls what is no function"),
        (vec![global("torch", "float32"), tuple(&[])], "R", "it calls a function with other arguments"),
        (vec![global("torch", "FloatStorage"), tuple(&[])], "R", "it calls a function with other arguments"),
        (
            vec![global("collections", "OrderedDict"), size.clone()],
            "R",
            "it calls a function with other arguments",
        ),
        (vec![global("torch", "Size"), b"]".to_vec()], "R", "a call's arguments are no tuple"),
        (
            vec![global("torch._utils", "_rebuild_tensor_v2"), size.clone()],
            "R",
            "a tensor is made of other arguments",
        ),
        (
            vec![global("torch._utils", "_rebuild_parameter"), integers(&[1, 2, 3])],
            "R",
            "a parameter is no tensor",
        ),
        (vec![global("torch", "Tensor"), tuple(&[])], "\u{81}", "it makes an object of what is no class"),
        (vec![text("storage")], "Q", "it names a storage in another way"),
        (vec![tuple(&[text("module"), text("x")])], "Q", "it names a storage in another way"),
        (vec![storage("FloatStorage", "0", -1)], "", "a storage has an impossible size"),
        (vec![storage("DoubleStorage", "0", i64::MAX)], "", "a storage has an impossible size"),
    ];
    for (parts, end, expected) in cases {
        let end: Vec<u8> = end.chars().map(|letter| letter as u8).collect();
        let message = refused_pickle(&program([parts.concat(), end].concat()));
        assert!(message.contains(expected), "{message}; expected {expected}");
    }
}

#[test]
fn rebuilding_functions_cannot_be_nested() {
    let from_type = || global("torch._tensor", "_rebuild_from_type_v2");
    let mut arguments = tuple(&[]);
    for _ in 0..1000 {
        arguments = [b"(", &from_type()[..], &global("torch", "Tensor"), &arguments, b"Nt"].concat();
    }
    let message = refused_pickle(&program([from_type(), arguments, b"R".to_vec()].concat()));
    assert!(message.contains("a tensor is made of what is no tensor"), "{message}");
}

#[test]
fn lengths_beyond_the_pickle_cost_no_memory() {
    let all = [0xff; 8];
    for (code, bytes) in
        [(0x8d, 8), (0x8e, 8), (0x96, 8), (b'X', 4), (b'B', 4), (0x8c, 1), (b'C', 1), (0x8b, 4), (0x8a, 1)]
    {
        for length in [&all[..bytes], &[&[0xff; 7][..bytes - 1], &[0x7f]].concat()] {
            let file = archive(&program([&[code][..], length, b"abc"].concat()), &[]);
            let (message, memory) = memory_of(|| refused(&file));
            assert!(message.ends_with("it ends too early"), "{code:02x}: {message}");
            assert!(memory < LITTLE, "{code:02x}: {memory} bytes");
        }
    }
    assert!(
        refused_pickle(&program([&[0x95][..], &all].concat())).ends_with("a frame is longer than the pickle")
    );
}

#[test]
fn stack_and_memo_are_checked() {
    let cases: [(&[u8], &str); 10] = [
        (b"", "it takes a value from an empty stack"),
        (b"0", "it takes a value from an empty stack"),
        (b"N(0", "it takes a value from an empty stack"),
        (b"N(q\x00", "it takes a value from an empty stack"),
        (b"N\x86", "it takes a value from an empty stack"),
        (b"Nt", "a mark is missing"),
        (b"}(Nu", "a key has no value"),
        (b"NNa", "it appends to what is no list"),
        (b"]NNs", "it sets an item of what is no dictionary"),
        (b"h\x05", "the memo has no value 5"),
    ];
    for (body, expected) in cases {
        let message = refused_pickle(&program(body));
        assert!(message.ends_with(expected), "{body:?}: {message}");
    }
    assert!(refused(&archive(b"", &[])).ends_with("it ends too early"));
    assert!(refused(&archive(b"\x80\x02N", &[])).ends_with("it ends too early"));
    assert!(refused(&archive(b"\x80\x06N.", &[])).ends_with("protocol 6 is not known"));
    assert!(refused_pickle(b"\x80\x02\xff.").ends_with("0xff is no instruction"));
}

#[test]
fn integers_have_their_sign_and_their_width() {
    let cases: [(&[u8], &str); 8] = [
        (b"J\xff\xff\xff\xff", "-1"),
        (b"J\x00\x00\x00\x80", "-2147483648"),
        (b"K\xff", "255"),
        (b"M\xff\xff", "65535"),
        (b"\x8a\x00", "0"),
        (b"\x8a\x01\xff", "-1"),
        (b"\x8a\x02\xff\x00", "255"),
        (b"\x8b\x08\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x80", "-9223372036854775808"),
    ];
    for (key, name) in cases {
        let pickle = program([b"}", key, &vector("0", 4), b"s"].concat());
        let tensors = read(&archive(&pickle, &[("0", &[0; 16])])).unwrap();
        assert_eq!(Vec::from_iter(tensors.keys()), [name], "{key:?}");
    }
    // Wider than any number that is needed: a key without a name.
    let wide =
        program([b"}\x8a\x09\x00\x00\x00\x00\x00\x00\x00\x00\x01", &vector("0", 4)[..], b"s"].concat());
    assert_eq!(refused_pickle(&wide), "there are no tensors in it");
}

#[test]
fn memo_may_be_numbered_anyhow_and_costs_what_is_in_it() {
    let entry: Vec<u8> =
        [b"r\xff\xff\xff\xff0j\xff\xff\xff\xff".to_vec(), b"r\x00\x00\x00\x80".to_vec()].concat();
    let pickle = program([dictionary(&[("w", vector("0", 4))]), entry].concat());
    let file = archive(&pickle, &[("0", &[0; 16])]);
    let (tensors, memory) = memory_of(|| read(&file).unwrap());
    assert!(tensors.contains_key("w") && memory < LITTLE, "{memory} bytes");
}

#[test]
fn instructions_are_bounded() {
    let mut most = 0;
    let repeated = |piece: &[u8]| program(piece.repeat(2_100_000));
    for piece in [&b"N"[..], b"]", b"}", b")", b"(", b"]\x94", b"(t", b"]q\x00"] {
        let file = archive(&repeated(piece), &[]);
        let (message, memory) = memory_of(|| refused(&file));
        assert_eq!(message, "its pickle has more than 2000000 instructions");
        most = most.max(memory);
    }
    println!("{} MiB at most", most >> 20);
    assert!(most < 256 << 20, "{most} bytes");
}

#[test]
fn nests_end_with_an_error() {
    let deep = [b"]".repeat(900_000), b"a".repeat(899_999)].concat();
    let expected = "its dictionaries are nested more than 64 deep, or hold themselves";
    assert_eq!(refused_pickle(&program(deep)), expected);
    // A dictionary and a list that hold themselves, and a pair that hold each other.
    assert_eq!(refused_pickle(&program([&b"}q\x00"[..], &text("a"), b"h\x00s"].concat())), expected);
    assert_eq!(refused_pickle(&program(b"]q\x00h\x00a")), expected);
    let pair = [&b"}q\x00"[..], &text("a"), b"}q\x01", &text("b"), b"h\x00ss"].concat();
    assert_eq!(refused_pickle(&program(pair)), expected);
}

#[test]
fn dictionaries_that_hold_each_other_many_times_end_with_an_error() {
    // Level n holds level n − 1 twice: 2^60 ways to the first one.
    let laughs = |first: Vec<u8>, levels: u8| {
        let mut body = [first, b"q\x00".to_vec()].concat();
        for level in 0..levels {
            let below = vec![b'h', level];
            body.extend(dictionary(&[("a", below.clone()), ("b", below)]));
            body.extend([b'q', level + 1]);
        }
        archive(&program(body), &[("0", &[0; 64])])
    };
    let (message, memory) = memory_of(|| refused(&laughs(b"]".to_vec(), 60)));
    assert_eq!(message, "its dictionaries hold each other too many times");
    assert!(memory < LITTLE, "{memory} bytes");
    let weights = || dictionary(&[("w", vector("0", 16))]);
    let (message, memory) = memory_of(|| refused(&laughs(weights(), 60)));
    assert_eq!(message, "it has more than 100000 tensors");
    assert!(memory < 64 << 20, "{memory} bytes");
    // 2^16 tensors of 64 bytes are more than the file gives reason for, and 2^8 are not.
    let message = refused(&laughs(weights(), 16));
    assert!(message.starts_with("its tensors have 4194304 bytes, far more"), "{message}");
    assert_eq!(read(&laughs(weights(), 8)).unwrap().len(), 256);
}

/// A pickle that makes a large container, a tuple or a list of `piece`s, and uses it 100,000 times.
fn used_often(container: &[u8], used: &[u8]) -> String {
    let begin = std::time::Instant::now();
    let pickle = program([container, b"q\x000](", &used.repeat(100_000), b"e"].concat());
    let message = refused_pickle(&pickle);
    // Each use of each item would be 10^11 steps, which take minutes.
    assert!(begin.elapsed().as_secs() < 20, "{:?}", begin.elapsed());
    message
}

#[test]
fn large_containers_that_are_used_often_take_no_time() {
    let million = |item: &[u8], end: &[u8]| [b"(", &item.repeat(1_000_000)[..], end].concat();
    // A sparse tensor's size is the last tuple of its parts.
    let parts = [b"(", &integers(&[2])[..], &b"N".repeat(1_000_000), b"t"].concat();
    let sparse = [&global("torch._utils", "_rebuild_sparse_tensor")[..], b"q\x020", &parts].concat();
    let message = used_often(&sparse, b"h\x02(Nh\x00tR");
    assert!(message.ends_with("a tensor's shape is no tuple of numbers"), "{message}");
    // Items of lists that hold no tensors, and arguments of functions that take none.
    let list = [b"]", &million(b"N", b"e")[..]].concat();
    assert_eq!(used_often(&list, b"h\x00"), "its dictionaries hold each other too many times");
    let harmless = [&global("torch", "device")[..], b"q\x020", &million(b"N", b"t")].concat();
    assert_eq!(used_often(&harmless, b"h\x02h\x00R"), "there are no tensors in it");
}

#[test]
fn names_are_bounded_and_unique() {
    let long = "n".repeat(1000);
    let twice = dictionary(&[(&long, dictionary(&[(&long, vector("0", 4))]))]);
    assert!(refused_pickle(&program(twice)).starts_with("a name in it is longer than 1024 bytes: nnn"));
    let alike = dictionary(&[("a.b", vector("0", 4)), ("a", dictionary(&[("b", vector("0", 4))]))]);
    assert_eq!(refused_pickle(&program(alike)), "a.b: two tensors have this name");
    let again = dictionary(&[("a", vector("0", 4)), ("a", vector("0", 4))]);
    assert_eq!(refused_pickle(&program(again)), "a: two tensors have this name");
}

#[test]
fn views_stay_within_their_storage() {
    let max = i64::MAX;
    let cases: [(i64, i64, &[i64], &[i64]); 15] = [
        (4, 1, &[4], &[1]),
        (4, 0, &[5], &[1]),
        (4, 0, &[2, 2], &[3, 1]),
        (4, 5, &[0], &[1]),
        (4, max, &[1], &[1]),
        (4, max, &[2], &[max]),
        (4, 0, &[max, max], &[0, 0]),
        (4, 0, &[1 << 40], &[0]),
        (4, 0, &[5], &[0]),
        (4, 0, &[2], &[max]),
        (4, 0, &[2, 2, 2], &[max, max, max]),
        (4, 0, &[max, 2], &[1, 1]),
        (4, 0, &[0, max, max], &[1, 1, 1]),
        (4, 0, &[2, 2], &[1]),
        (0, 0, &[1], &[1]),
    ];
    for (count, offset, size, stride) in cases {
        let message = refused_pickle(&program(dictionary(&[("w", view("0", count, offset, size, stride))])));
        assert!(message.contains("does not fit into its storage"), "{size:?}, {stride:?}: {message}");
    }
    let negative = |size, stride, offset| program(view("0", 4, offset, size, stride));
    assert!(refused_pickle(&negative(&[-1], &[1], 0)).ends_with("a tensor's shape is no tuple of numbers"));
    assert!(refused_pickle(&negative(&[2], &[-1], 1)).ends_with("a tensor's shape is no tuple of numbers"));
    assert!(
        refused_pickle(&negative(&[1; 65], &[1; 65], 0)).ends_with("a tensor's shape is no tuple of numbers")
    );
    assert!(refused_pickle(&negative(&[2], &[1], -1)).contains("does not fit into its storage"));
    // A stride that no step takes may be anything.
    let one = program(dictionary(&[("w", view("0", 4, 3, &[1, 1], &[max, max]))]));
    assert_eq!(read(&archive(&one, &[("0", &[7; 16])])).unwrap()["w"].bytes, [7; 4]);
    let none = program(dictionary(&[("w", view("0", 4, 4, &[0, 7], &[max, 1]))]));
    assert_eq!(read(&archive(&none, &[("0", &[7; 16])])).unwrap()["w"].shape, [0, 7]);
}

#[test]
fn storages_must_be_there_in_their_size() {
    let pickle = program(dictionary(&[("w", vector("0", 4))]));
    assert_eq!(refused(&archive(&pickle, &[])), "w: its entry data/0 is missing");
    for size in [0, 12, 20] {
        let message = refused(&archive(&pickle, &[("0", &vec![0; size])]));
        assert_eq!(message, format!("w: its entry data/0 has {size} bytes, and by the pickle 16"));
    }
    // By the pickle, the storage has 2^60 bytes: the entry's size counts.
    let huge = program(dictionary(&[("w", view("0", 1 << 58, 0, &[1], &[1]))]));
    let (message, memory) = memory_of(|| refused(&archive(&huge, &[("0", &[0; 16])])));
    assert!(
        message.ends_with("has 16 bytes, and by the pickle 1152921504606846976") && memory < LITTLE,
        "{message}"
    );
    // Two views that do not agree on a storage.
    let two = program(dictionary(&[("w", vector("0", 4)), ("x", vector("0", 2))]));
    assert!(refused(&archive(&two, &[("0", &[0; 16])])).contains("has 16 bytes, and by the pickle 8"));
    let elsewhere = program(dictionary(&[("w", vector("../../version", 4))]));
    assert_eq!(refused(&archive(&elsewhere, &[])), "w: its entry data/../../version is missing");
}
