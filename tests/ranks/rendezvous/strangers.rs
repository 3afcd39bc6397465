//! Connections that are not from ranks, and ranks that break the protocol. The frames are written out again here, so
//! that a change of the protocol makes these tests fail.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::Instant;

use effnet::parallel::{Group, Membership};
use proptest::prelude::*;
use proptest::test_runner::TestRunner;

use super::{barrier, identity, seconds, stopped};

const PROTOCOL: u32 = 2;

fn preamble(rank: u32) -> Vec<u8> {
    preamble_of(PROTOCOL, rank)
}

fn preamble_of(protocol: u32, rank: u32) -> Vec<u8> {
    [b"EFFNETRV".as_slice(), &protocol.to_le_bytes(), &rank.to_le_bytes()].concat()
}

fn frame(kind: u8, content: &[u8]) -> Vec<u8> {
    [&[kind], (content.len() as u32).to_le_bytes().as_slice(), content].concat()
}

fn hello(rank: usize, size: usize) -> Vec<u8> {
    let identity = serde_json::to_value(identity()).unwrap();
    let id = serde_json::json!({"rank": rank, "host": "elsewhere", "pid": 77});
    let hello = serde_json::json!({"Hello": {"id": id, "size": size, "identity": identity}});
    frame(1, &serde_json::to_vec(&hello).unwrap())
}

/// Everything that arrives until the other side closes the connection.
fn rest(mut stream: &TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    stream.set_read_timeout(Some(seconds(20))).unwrap();
    match stream.read_to_end(&mut bytes) {
        Err(error) if error.kind() != ErrorKind::ConnectionReset => panic!("{error}"),
        _ => bytes,
    }
}

/// A group of two, disturbed by connections: those of `before` before rank 1 comes, those of `between` while it runs.
fn disturbed(before: impl Fn(SocketAddr) + Sync, between: impl Fn(SocketAddr) + Sync) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let start = Instant::now();
    let rank = |number: usize| {
        let membership = Membership::local(number, 2, &listener).unwrap();
        if number == 1 {
            before(address);
        }
        let group = Group::join(&membership, identity()).unwrap();
        barrier(&group, "before").unwrap();
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
    assert!(start.elapsed() < seconds(20), "strangers delayed the group");
}

fn connect(address: SocketAddr, bytes: &[u8]) -> TcpStream {
    let mut stream = TcpStream::connect(address).unwrap();
    // The other side may already have closed the connection.
    let _ = stream.write_all(bytes);
    stream
}

#[test]
fn strangers_disturb_no_rank() {
    let whole = [preamble(1), hello(1, 2)].concat();
    let visits = [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(),
        vec![0; 1 << 20],
        preamble(1),
        preamble(1)[..11].to_vec(),
        whole[..whole.len() / 2].to_vec(),
        [preamble(1), frame(1, b"{}")].concat(),
        [preamble(1), frame(2, b"post before hello")].concat(),
        [preamble(1), [1, 255, 255, 255, 255].to_vec()].concat(),
        [preamble(9), hello(9, 2)].concat(),
        [preamble(9), hello(usize::MAX, 2)].concat(),
        Vec::new(),
    ];
    let silent = std::sync::Mutex::new(Vec::new());
    let visit = |address| {
        for bytes in &visits {
            // Half of the connections stay open, half are closed at once.
            silent.lock().unwrap().push(connect(address, bytes));
            drop(connect(address, bytes));
        }
    };
    disturbed(visit, visit);
}

#[test]
fn strangers_beyond_the_limit_disturb_no_rank() {
    let strangers = std::sync::Mutex::new(Vec::new());
    disturbed(|address| strangers.lock().unwrap().extend((0..300).map(|_| connect(address, b""))), |_| {});
    // The oldest connection was closed.
    assert_eq!(rest(&strangers.into_inner().unwrap()[0]), b"");
}

#[test]
fn stranger_without_the_magic_word_is_dropped_at_once() {
    disturbed(
        |_| {},
        |address| {
            let start = Instant::now();
            assert_eq!(rest(&connect(address, b"EFFNETRW")), b"");
            assert_eq!(rest(&connect(address, b"\0")), b"");
            assert!(start.elapsed() < seconds(4), "after {:?}", start.elapsed());
        },
    );
}

#[test]
fn silent_stranger_is_dropped_after_a_while() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let membership = Membership::local(0, 1, &listener).unwrap();
    let group = Group::join(&membership, identity()).unwrap();
    assert_eq!(rest(&connect(address, b"EFFN")), b"");
    group.leave().unwrap();
}

#[test]
fn arbitrary_bytes_disturb_no_rank() {
    let bytes = || prop::collection::vec(any::<u8>(), 0..2000);
    let frames = (0..5u8, bytes()).prop_map(|(kind, content)| frame(kind, &content));
    let frames = prop::collection::vec(frames, 0..5).prop_map(|frames| frames.concat());
    let welcome =
        any::<bool>().prop_map(|first| if first { [preamble(1), hello(1, 2)].concat() } else { preamble(1) });
    let anything =
        prop_oneof![bytes(), (welcome, prop_oneof![frames, bytes()]).prop_map(|(a, b)| [a, b].concat())];
    disturbed(
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

/// How messages name the rank 1 of [`with_odd_rank`].
const ODD: &str = "rank 1 (host elsewhere, pid 77)";

/// A group in which rank 1 sends exactly these bytes. Rank 0 runs `act`. Returns the error that stops rank 0.
fn with_odd_rank(bytes: Vec<u8>, act: impl FnOnce(&Group)) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let odd = thread::spawn(move || {
        let mut odd = connect(address, &[preamble(1), hello(1, 2)].concat());
        let mut received = Vec::new();
        while !String::from_utf8_lossy(&received).contains("Formed") {
            let mut piece = [0; 100];
            let count = odd.read(&mut piece).unwrap();
            assert!(count > 0, "{}", String::from_utf8_lossy(&received));
            received.extend(&piece[..count]);
        }
        odd.write_all(&bytes).unwrap();
        odd
    });
    let membership = Membership { watchdog: seconds(2), ..Membership::local(0, 2, &listener).unwrap() };
    let group = Group::join(&membership, identity()).unwrap();
    act(&group);
    let line = stopped(&group);
    drop(odd.join().unwrap());
    line
}

fn post(sequence: u64, what: &str, bytes: &[u8]) -> Vec<u8> {
    let length = (what.len() as u16).to_le_bytes();
    frame(2, &[&sequence.to_le_bytes(), length.as_slice(), what.as_bytes(), bytes].concat())
}

#[test]
fn rank_with_malformed_frames_is_named() {
    for bytes in [
        frame(1, br#"{"Heartbeat":{}}"#),
        frame(7, b""),
        frame(2, b"short"),
        frame(3, &[0; 8]),
        [frame(1, b"\"StopReceived\""), frame(1, b"\"AllStopped\"")].concat(),
    ] {
        let line = with_odd_rank(bytes, |_| {});
        assert_eq!(line, format!("{ODD} sent a malformed message; it was in step 0: starting"));
    }
    let line = with_odd_rank(post(7, "late", b""), |_| {});
    assert!(line.contains("sent an exchange out of order"), "{line}");
}

#[test]
fn silent_rank_is_named() {
    let beat = br#"{"Heartbeat":{"counter":1,"step":17,"what":"loading images","waiting":false}}"#;
    let line = with_odd_rank(frame(1, beat), |_| {});
    assert_eq!(line, format!("{ODD} has given no sign of life for 2 s; it was in step 17: loading images"));
}

#[test]
fn rank_that_reads_nothing_does_not_block_the_others() {
    // The results for rank 1 fill its connection. Rank 0 still gets its own, until the watchdog finds rank 1.
    let bytes = vec![3; 32 << 20];
    let line = with_odd_rank(post(0, "large", &bytes), |group| {
        assert!(group.exchange("large", &bytes).unwrap() == [bytes.as_slice(), &bytes]);
    });
    assert!(line.starts_with(&format!("{ODD} has given no sign of life")), "{line}");
}

#[test]
fn rank_with_another_protocol_is_named() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let odd = connect(address, &[preamble_of(9, 1), b"unknown".to_vec()].concat());
    let error = Group::join(&Membership::local(0, 2, &listener).unwrap(), identity()).map(drop).unwrap_err();
    let expected =
        "rank 1 (at 127.0.0.1) has protocol version 9, rank 0 has 2; run the same effnet everywhere";
    assert_eq!(error.to_string(), expected);
    // It gets the reason too, after a preamble that it understands.
    let bytes = rest(&odd);
    assert!(bytes.starts_with(&preamble(0)));
    assert!(String::from_utf8_lossy(&bytes).contains(expected));
}

#[test]
fn rank_0_with_another_protocol_is_reported() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let membership = Membership::local(1, 2, &listener).unwrap();
    let rank = thread::spawn(move || Group::join(&membership, identity()).map(drop).unwrap_err().to_string());
    let (mut stream, _) = listener.accept().unwrap();
    stream.write_all(&preamble_of(3, 0)).unwrap();
    let expected =
        format!("rank 0 at {address} has protocol version 3, this rank has 2; run the same effnet");
    assert_eq!(rank.join().unwrap(), expected);
}
