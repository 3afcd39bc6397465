//! What is sent over a connection.
//!
//! Both sides begin with a preamble of sixteen bytes that every version of the protocol understands: a magic word, the
//! version of the protocol, the rank of the sender (both 32 bits, little-endian). Frames follow: a byte for the kind,
//! the length (32 bits) and the content. Small messages are JSON; the bytes that ranks exchange are sent as they are.
//!
//! No input is trusted. A length beyond the limit, an unknown kind or a malformed message is an error of that
//! connection, and memory grows only with bytes that have arrived.

use std::io::{self, Read};

use serde::{Deserialize, Serialize};

use super::{Identity, RankId, Stopped};

const MAGIC: [u8; 8] = *b"EFFNETRV";
/// Must be raised with every change of the frames.
pub const PROTOCOL: u32 = 2;
/// The largest number of bytes that a rank may give to one exchange.
pub const LIMIT: usize = 64 << 20;
/// The largest frame before the service has accepted the connection as that of a rank.
pub const HELLO_LIMIT: usize = 1 << 20;
/// Space for what precedes the bytes of an exchange within a frame.
const MARGIN: usize = 1 << 16;
const HEADER: usize = 5;
const PREAMBLE: usize = 16;

/// Bytes that are no preamble or frame.
#[derive(Debug)]
pub struct Malformed;

/// The first bytes of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Preamble {
    pub protocol: u32,
    pub rank: u32,
}

impl Preamble {
    pub fn encode(self) -> Vec<u8> {
        [&MAGIC[..], &self.protocol.to_le_bytes(), &self.rank.to_le_bytes()].concat()
    }
}

/// Messages in JSON.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub enum Message {
    /// Rank → service: a request to join.
    Hello { id: RankId, size: usize, identity: Identity },
    /// Service → rank: accepted. The service waits for the other ranks for this long.
    Accepted { milliseconds: u64 },
    /// Service → rank: all ranks have joined.
    Formed { all: Vec<RankId> },
    /// Service → rank: not accepted, or not formed.
    Refused(Refusal),
    /// Rank → service: this rank was asked to stop while it waits for the others. Has no effect once all have joined.
    Withdraw,
    /// In both directions: a sign of life. The service sends what rank 0 does.
    Heartbeat(Heartbeat),
    /// Rank → service: this rank has failed. If that is only a `consequence` of another rank's failure, for example a
    /// broken connection, the service waits a moment for the cause.
    Fail { step: u64, what: String, message: String, consequence: bool },
    /// Service → ranks: all ranks stop.
    Stop(Stopped),
    /// Rank → service: the stop has arrived.
    StopReceived,
    /// Service → the rank that failed: the stop has arrived at all ranks.
    AllStopped,
    /// Rank → service: this rank has finished.
    Leave,
    /// Service → rank: the answer to it.
    Goodbye,
}

/// Why the service does not accept a rank, or why the group is not formed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    pub reason: String,
    pub scope: Scope,
}

/// Which ranks a refusal concerns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Scope {
    /// This rank; the others continue without it.
    One,
    /// All ranks: the group is not formed.
    All,
    /// All ranks, without an error: a rank was asked to stop.
    Interrupted,
}

/// What a rank does.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Heartbeat {
    /// Changes whenever the rank makes progress.
    pub counter: u64,
    pub step: u64,
    pub what: String,
    /// Whether the rank waits for other ranks.
    pub waiting: bool,
}

impl Heartbeat {
    pub fn starting() -> Heartbeat {
        Heartbeat { what: "starting".into(), ..Heartbeat::default() }
    }

    pub fn doing(&self) -> (u64, &str) {
        (self.step, &self.what)
    }
}

/// What a connection carries after the preamble.
#[derive(Debug, PartialEq)]
pub enum Frame {
    Control(Message),
    /// Rank → service: its part of an exchange.
    Post {
        sequence: u64,
        what: String,
        bytes: Vec<u8>,
    },
    /// Service → rank: the part of one rank. Parts are sent in rank order.
    Part {
        sequence: u64,
        bytes: Vec<u8>,
    },
}

const CONTROL: u8 = 1;
const POST: u8 = 2;
const PART: u8 = 3;

fn frame(kind: u8, content: &[&[u8]]) -> Vec<u8> {
    let length: usize = content.iter().map(|bytes| bytes.len()).sum();
    let mut out = Vec::with_capacity(HEADER + length);
    out.push(kind);
    out.extend((length as u32).to_le_bytes());
    content.iter().for_each(|bytes| out.extend(*bytes));
    out
}

impl Message {
    pub fn encode(&self) -> Vec<u8> {
        // Structs of numbers and strings can always be written as JSON.
        frame(CONTROL, &[&serde_json::to_vec(self).unwrap_or_default()])
    }
}

pub fn post(sequence: u64, what: &str, bytes: &[u8]) -> Vec<u8> {
    let length = what.len() as u16;
    frame(POST, &[&sequence.to_le_bytes(), &length.to_le_bytes(), what.as_bytes(), bytes])
}

pub fn part(sequence: u64, bytes: &[u8]) -> Vec<u8> {
    frame(PART, &[&sequence.to_le_bytes(), bytes])
}

fn decode(kind: u8, content: &[u8]) -> Option<Frame> {
    match kind {
        CONTROL => serde_json::from_slice(content).ok().map(Frame::Control),
        POST => {
            let (sequence, rest) = content.split_first_chunk()?;
            let (length, rest) = rest.split_first_chunk()?;
            let (what, bytes) = rest.split_at_checked(u16::from_le_bytes(*length) as usize)?;
            let what = str::from_utf8(what).ok()?.to_owned();
            Some(Frame::Post { sequence: u64::from_le_bytes(*sequence), what, bytes: bytes.to_vec() })
        }
        PART => {
            let (sequence, bytes) = content.split_first_chunk()?;
            Some(Frame::Part { sequence: u64::from_le_bytes(*sequence), bytes: bytes.to_vec() })
        }
        _ => None,
    }
}

/// Bytes that have arrived and are not decoded yet.
pub struct Inbox {
    bytes: Vec<u8>,
    start: usize,
    limit: usize,
}

impl Inbox {
    /// For a connection that may be a stranger's.
    pub fn new() -> Inbox {
        Inbox { bytes: Vec::new(), start: 0, limit: HELLO_LIMIT }
    }

    /// From now on the connection is a rank's, and frames may be large.
    pub fn trust(&mut self) {
        self.limit = LIMIT + MARGIN;
    }

    /// Reads once. 0 means that the connection is closed.
    ///
    /// # Errors
    /// Those of the connection.
    pub fn fill(&mut self, mut from: impl Read) -> io::Result<usize> {
        let mut piece = [0; 1 << 16];
        let count = from.read(&mut piece)?;
        self.bytes.extend(&piece[..count]);
        Ok(count)
    }

    fn rest(&self) -> &[u8] {
        &self.bytes[self.start..]
    }

    fn skip(&mut self, count: usize) {
        self.start += count;
        if self.start == self.bytes.len() {
            self.bytes.clear();
            self.bytes.shrink_to(HELLO_LIMIT);
            self.start = 0;
        } else if self.start > HELLO_LIMIT {
            self.bytes.drain(..self.start);
            self.start = 0;
        }
    }

    /// The preamble, once it has arrived.
    ///
    /// # Errors
    /// As soon as a byte differs from the magic word.
    pub fn preamble(&mut self) -> Result<Option<Preamble>, Malformed> {
        let rest = self.rest();
        let known = rest.len().min(MAGIC.len());
        if rest[..known] != MAGIC[..known] {
            return Err(Malformed);
        }
        let Some(whole) = rest.first_chunk::<PREAMBLE>() else { return Ok(None) };
        let number = |at: usize| u32::from_le_bytes([whole[at], whole[at + 1], whole[at + 2], whole[at + 3]]);
        let preamble = Preamble { protocol: number(8), rank: number(12) };
        self.skip(PREAMBLE);
        Ok(Some(preamble))
    }

    /// The next frame, once it has arrived.
    ///
    /// # Errors
    /// If it is too long or malformed. The connection cannot be used any more.
    pub fn frame(&mut self) -> Result<Option<Frame>, Malformed> {
        let Some(&[kind, a, b, c, d]) = self.rest().first_chunk() else { return Ok(None) };
        let length = u32::from_le_bytes([a, b, c, d]) as usize;
        if !(CONTROL..=PART).contains(&kind) || length > self.limit {
            return Err(Malformed);
        }
        let Some(content) = self.rest().get(HEADER..HEADER + length) else { return Ok(None) };
        let frame = decode(kind, content).ok_or(Malformed)?;
        self.skip(HEADER + length);
        Ok(Some(frame))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// All frames of bytes that arrive in pieces of this length.
    fn frames(inbox: &mut Inbox, bytes: &[u8], piece: usize) -> Result<Vec<Frame>, Malformed> {
        let mut found = Vec::new();
        for mut piece in bytes.chunks(piece) {
            inbox.fill(&mut piece).unwrap();
            while let Some(frame) = inbox.frame()? {
                found.push(frame);
            }
        }
        Ok(found)
    }

    proptest! {
        #[test]
        fn frames_survive_encoding_and_decoding(
            sequence: u64, what in ".{0,20}", bytes: Vec<u8>, step: u64, waiting: bool, piece in 1..400usize,
        ) {
            let beat = || Message::Heartbeat(Heartbeat { counter: sequence, step, what: what.clone(), waiting });
            let sent = [beat().encode(), post(sequence, &what, &bytes), part(sequence, &bytes)].concat();
            let expected = [
                Frame::Control(beat()),
                Frame::Post { sequence, what: what.clone(), bytes: bytes.clone() },
                Frame::Part { sequence, bytes },
            ];
            prop_assert_eq!(frames(&mut Inbox::new(), &sent, piece).unwrap(), expected);
        }

        #[test]
        fn frames_of_arbitrary_bytes_are_decoded_or_malformed(kind in 0..5u8, bytes: Vec<u8>, piece in 1..40usize) {
            let mut inbox = Inbox::new();
            let whole = frame(kind, &[&bytes]);
            if let Ok(found) = frames(&mut inbox, &whole, piece) {
                prop_assert_eq!(found.len(), 1);
            }
            let _ = frames(&mut Inbox::new(), &bytes, piece);
        }
    }

    #[test]
    fn frame_beyond_the_limit_is_refused_before_its_content() {
        let decode = |trusted: bool, length: usize| {
            let mut inbox = Inbox::new();
            if trusted {
                inbox.trust();
            }
            frames(&mut inbox, &[&[PART][..], &(length as u32).to_le_bytes()].concat(), 5)
        };
        for (trusted, limit) in [(false, HELLO_LIMIT), (true, LIMIT + MARGIN)] {
            assert!(decode(trusted, limit).unwrap().is_empty());
            assert!(decode(trusted, limit + 1).is_err());
        }
    }

    #[test]
    fn preamble_is_recognised_by_its_first_bytes() {
        let whole = Preamble { protocol: 3, rank: 700 }.encode();
        for end in 0..PREAMBLE {
            let mut inbox = Inbox::new();
            inbox.fill(&whole[..end]).unwrap();
            assert_eq!(inbox.preamble().unwrap(), None);
            inbox.fill(&whole[end..]).unwrap();
            assert_eq!(inbox.preamble().unwrap(), Some(Preamble { protocol: 3, rank: 700 }));
        }
        for odd in 0..8 {
            let mut bytes = whole[..=odd].to_vec();
            bytes[odd] ^= 1;
            let mut inbox = Inbox::new();
            inbox.fill(&bytes[..]).unwrap();
            assert!(inbox.preamble().is_err());
        }
    }
}
