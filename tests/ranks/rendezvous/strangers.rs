//! Connections of those who are no ranks, and ranks of another kind. The frames are written out here once more, so
//! that a change of the protocol shows.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::Instant;

use effnet::parallel::{Group, Membership};
use proptest::prelude::*;
use proptest::test_runner::TestRunner;

use super::{here, identity, seconds, stopped};

fn preamble(protocol: u32, rank: u32) -> Vec<u8> {
    [b"EFFNETRV".as_slice(), &protocol.to_le_bytes(), &rank.to_le_bytes()].concat()
}

fn frame(kind: u8, content: &[u8]) -> Vec<u8> {
    [&[kind], (content.len() as u32).to_le_bytes().as_slice(), content].concat()
}

fn hello(rank: usize, size: usize) -> Vec<u8> {
    let identity = serde_json::to_value(identity()).unwrap();
    let who = serde_json::json!({"rank": rank, "host": "elsewhere", "pid": 77});
    let hello = serde_json::json!({"Hello": {"who": who, "size": size, "identity": identity}});
    frame(1, &serde_json::to_vec(&hello).unwrap())
}

/// All that comes until the other side ends the connection.
fn rest(mut stream: &TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    stream.set_read_timeout(Some(seconds(20))).unwrap();
    match stream.read_to_end(&mut bytes) {
        Err(error) if error.kind() != ErrorKind::ConnectionReset => panic!("{error}"),
        _ => bytes,
    }
}

/// A group of two whose rank 0 is this thread's; `before` connects before rank 1 comes, `between` while it runs.
fn visited(before: impl Fn(SocketAddr) + Sync, between: impl Fn(SocketAddr) + Sync) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let start = Instant::now();
    let rank = |number: usize| {
        let membership = Membership::local(number, 2, &listener).unwrap();
        if number == 1 {
            before(address);
        }
        let group = Group::join(&membership, identity()).unwrap();
        group.barrier("before").unwrap();
        if number == 1 {
            between(address);
        }
        let parts = group.exchange("after", &[number as u8]).unwrap();
        assert_eq!(parts, [[0], [1]]);
        group.leave().unwrap();
    };
    thread::scope(|scope| {
        scope.spawn(|| rank(0));
        rank(1);
    });
    assert!(start.elapsed() < seconds(20), "strangers held the group up");
}

fn connect(address: SocketAddr, bytes: &[u8]) -> TcpStream {
    let mut stream = TcpStream::connect(address).unwrap();
    // The other side may have had enough by then.
    let _ = stream.write_all(bytes);
    stream
}

#[test]
fn strangers_disturb_nobody() {
    let whole = [preamble(1, 1), hello(1, 2)].concat();
    let visits = [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(),
        vec![0; 1 << 20],
        preamble(1, 1),
        preamble(1, 1)[..11].to_vec(),
        whole[..whole.len() / 2].to_vec(),
        [preamble(1, 1), frame(1, b"{}")].concat(),
        [preamble(1, 1), frame(2, b"post before hello")].concat(),
        [preamble(1, 1), [1, 255, 255, 255, 255].to_vec()].concat(),
        [preamble(1, 9), hello(9, 2)].concat(),
        [preamble(1, 9), hello(usize::MAX, 2)].concat(),
        Vec::new(),
    ];
    let silent = std::sync::Mutex::new(Vec::new());
    let visit = |address| {
        for bytes in &visits {
            // Half of them stay, half are gone at once.
            silent.lock().unwrap().push(connect(address, bytes));
            drop(connect(address, bytes));
        }
    };
    visited(visit, visit);
}

#[test]
fn more_strangers_than_there_is_room_for_disturb_nobody() {
    let strangers = std::sync::Mutex::new(Vec::new());
    visited(|address| strangers.lock().unwrap().extend((0..300).map(|_| connect(address, b""))), |_| {});
    // The oldest had to give way.
    assert_eq!(rest(&strangers.into_inner().unwrap()[0]), b"");
}

#[test]
fn what_does_not_begin_with_the_magic_word_is_dropped_at_once() {
    visited(
        |_| {},
        |address| {
            let start = Instant::now();
            assert_eq!(rest(&connect(address, b"EFFNETRW")), b"");
            assert_eq!(rest(&connect(address, b"\0")), b"");
            assert!(start.elapsed() < seconds(4), "only after {:?}", start.elapsed());
        },
    );
}

#[test]
fn who_says_nothing_is_dropped_after_a_while() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let membership = Membership::local(0, 1, &listener).unwrap();
    let group = Group::join(&membership, identity()).unwrap();
    assert_eq!(rest(&connect(address, b"EFFN")), b"");
    group.leave().unwrap();
}

#[test]
fn arbitrary_bytes_disturb_nobody() {
    let bytes = || prop::collection::vec(any::<u8>(), 0..2000);
    let frames = (0..5u8, bytes()).prop_map(|(kind, content)| frame(kind, &content));
    let frames = prop::collection::vec(frames, 0..5).prop_map(|frames| frames.concat());
    let welcome = any::<bool>()
        .prop_map(|first| if first { [preamble(1, 1), hello(1, 2)].concat() } else { preamble(1, 1) });
    let anything =
        prop_oneof![bytes(), (welcome, prop_oneof![frames, bytes()]).prop_map(|(a, b)| [a, b].concat())];
    visited(
        |_| {},
        |address| {
            let mut runner = TestRunner::new(ProptestConfig {
                failure_persistence: None,
                ..ProptestConfig::with_cases(300)
            });
            let visit = |bytes: Vec<u8>| {
                connect(address, &bytes);
                Ok(())
            };
            runner.run(&anything, visit).unwrap();
        },
    );
}

/// Rank 0 in a group of two whose rank 1 is made by hand and says these words: what stops rank 0 after `act`, and how
/// rank 1 is named.
fn with_odd_rank(words: Vec<u8>, act: impl FnOnce(&Group)) -> (String, String) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let odd = thread::spawn(move || {
        let mut odd = connect(address, &[preamble(1, 1), hello(1, 2)].concat());
        let mut heard = Vec::new();
        while !String::from_utf8_lossy(&heard).contains("Welcome") {
            let mut piece = [0; 100];
            let count = odd.read(&mut piece).unwrap();
            assert!(count > 0, "{}", String::from_utf8_lossy(&heard));
            heard.extend(&piece[..count]);
        }
        odd.write_all(&words).unwrap();
        odd
    });
    let membership = Membership { watchdog: seconds(2), ..Membership::local(0, 2, &listener).unwrap() };
    let group = Group::join(&membership, identity()).unwrap();
    act(&group);
    let line = stopped(&group);
    drop(odd.join().unwrap());
    (line, here(1, &group))
}

fn post(sequence: u64, what: &str, bytes: &[u8]) -> Vec<u8> {
    let length = (what.len() as u16).to_le_bytes();
    frame(2, &[&sequence.to_le_bytes(), length.as_slice(), what.as_bytes(), bytes].concat())
}

#[test]
fn a_rank_whose_frames_make_no_sense_is_named() {
    for words in [
        frame(1, br#"{"Beat":{}}"#),
        frame(7, b""),
        frame(2, b"short"),
        frame(3, &[0; 8]),
        [frame(1, b"\"Heard\""), frame(1, b"\"Told\"")].concat(),
    ] {
        let (line, name) = with_odd_rank(words, |_| {});
        assert_eq!(name, "rank 1 (host elsewhere, pid 77)");
        assert_eq!(line, format!("{name} sent what makes no sense; it was in step 0: starting"));
    }
    let (line, _) = with_odd_rank(post(7, "late", b""), |_| {});
    assert!(line.contains("lost count of the exchanges"), "{line}");
}

#[test]
fn a_rank_that_is_not_heard_of_is_named() {
    let beat = br#"{"Beat":{"counter":1,"step":17,"what":"loading images","waiting":false}}"#;
    let (line, name) = with_odd_rank(frame(1, beat), |_| {});
    assert_eq!(line, format!("{name} has given no sign of life for 2 s; it was in step 17: loading images"));
}

#[test]
fn a_rank_that_reads_nothing_does_not_hold_the_others_up() {
    // Its results fill the connection; rank 0 gets its own until the watchdog finds the other.
    let bytes = vec![3; 32 << 20];
    let (line, name) = with_odd_rank(post(0, "large", &bytes), |group| {
        assert!(group.exchange("large", &bytes).unwrap() == [bytes.as_slice(), &bytes]);
    });
    assert!(line.starts_with(&format!("{name} has given no sign of life")), "{line}");
}

#[test]
fn a_rank_of_another_protocol_is_named() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let odd = connect(address, &[preamble(2, 1), b"who knows".to_vec()].concat());
    let error = Group::join(&Membership::local(0, 2, &listener).unwrap(), identity()).map(drop).unwrap_err();
    let expected =
        "rank 1 (at 127.0.0.1) has protocol version 2, rank 0 has 1; run the same effnet everywhere";
    assert_eq!(error.to_string(), expected);
    // It is told too, after a preamble that it understands.
    let bytes = rest(&odd);
    assert!(bytes.starts_with(&preamble(1, 0)));
    assert!(String::from_utf8_lossy(&bytes).contains(expected));
}

#[test]
fn a_rank_0_of_another_protocol_is_told() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let membership = Membership::local(1, 2, &listener).unwrap();
    let rank = thread::spawn(move || Group::join(&membership, identity()).map(drop).unwrap_err().to_string());
    let (mut stream, _) = listener.accept().unwrap();
    stream.write_all(&preamble(3, 0)).unwrap();
    let expected =
        format!("rank 0 at {address} has protocol version 3, this rank has 1; run the same effnet");
    assert_eq!(rank.join().unwrap(), expected);
}
