//! What goes over a connection.
//!
//! Both sides begin with a preamble of sixteen bytes that every version of the protocol understands: the magic word,
//! the protocol's version, the sender's rank (both 32 bits, little-endian). Frames follow: a byte for the kind, the
//! length (32 bits) and the content. Small messages are JSON, the bytes that ranks exchange are as they are.
//!
//! Nothing that comes in is trusted: a length beyond the limit, an unknown kind or a broken message is an error of
//! that connection, and memory grows only with bytes that have come.

use std::io::{self, Read};

use serde::{Deserialize, Serialize};

use super::{Identity, Stopped, Who};

const MAGIC: [u8; 8] = *b"EFFNETRV";
/// Raised whenever frames change.
pub const PROTOCOL: u32 = 1;
/// Most bytes that a rank may give to one exchange.
pub const LIMIT: usize = 64 << 20;
/// Most bytes of a frame before a connection has become a rank's.
pub const HELLO_LIMIT: usize = 1 << 20;
/// Room for what precedes an exchange's bytes within a frame.
const MARGIN: usize = 1 << 16;
const HEADER: usize = 5;
const PREAMBLE: usize = 16;

/// The bytes make no sense.
#[derive(Debug)]
pub struct Malformed;

/// First words of a connection.
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

/// Small messages.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub enum Message {
    /// Rank → service: may I join?
    Hello {
        who: Who,
        size: usize,
        identity: Identity,
    },
    /// Service → rank: yes; the others are waited for so long.
    Seated {
        milliseconds: u64,
    },
    /// Service → rank: all are there.
    Welcome {
        all: Vec<Who>,
    },
    /// Service → rank: no.
    Refused {
        why: String,
        whom: Whom,
    },
    /// Rank → service: I was asked to stop while I wait for the others. Once all are there it means nothing.
    Withdraw,
    /// Both ways: alive. The service tells what rank 0 does.
    Beat(Beat),
    /// Rank → service: my work failed. One that is only a `consequence`, a lost neighbour for example, waits a
    /// moment for the cause.
    Fail {
        step: u64,
        what: String,
        message: String,
        consequence: bool,
    },
    /// Service → ranks: all stop.
    Stop(Stopped),
    /// Rank → service: the stop has come.
    Heard,
    /// Service → the rank that failed: all know.
    Told,
    /// Rank → service: I am done. And the answer.
    Bye,
    Farewell,
}

/// Whom a refusal concerns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Whom {
    /// This rank. The others go on without it.
    One,
    /// All: the group does not come together.
    All,
    /// All, and not for an error: a rank was asked to stop.
    Interrupted,
}

/// What a rank does.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Beat {
    /// Changes whenever the rank moves.
    pub counter: u64,
    pub step: u64,
    pub what: String,
    /// It waits for other ranks.
    pub waiting: bool,
}

impl Beat {
    pub fn doing(&self) -> (u64, &str) {
        (self.step, &self.what)
    }
}

/// What comes in.
#[derive(Debug, PartialEq)]
pub enum Frame {
    Control(Message),
    /// Rank → service: its part of an exchange.
    Post {
        sequence: u64,
        what: String,
        bytes: Vec<u8>,
    },
    /// Service → rank: one rank's part; parts come in rank order.
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
        // Structs of numbers and strings: they always have a form in JSON.
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

/// Bytes that have come and are not yet understood.
pub struct Inbox {
    bytes: Vec<u8>,
    start: usize,
    limit: usize,
}

impl Inbox {
    /// Of a connection that may be anybody's.
    pub fn new() -> Inbox {
        Inbox { bytes: Vec::new(), start: 0, limit: HELLO_LIMIT }
    }

    /// From here on it is a rank's.
    pub fn trust(&mut self) {
        self.limit = LIMIT + MARGIN;
    }

    /// Reads once; 0 is the end.
    ///
    /// # Errors
    /// The connection's.
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

    /// The preamble, once it is there.
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

    /// The next frame, once it is there.
    ///
    /// # Errors
    /// Where it is too long or makes no sense; the connection is then of no more use.
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

    /// All frames of bytes that come in pieces of this length.
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
        fn frames_come_out_as_they_went_in(
            sequence: u64, what in ".{0,20}", bytes: Vec<u8>, step: u64, waiting: bool, piece in 1..400usize,
        ) {
            let beat = || Message::Beat(Beat { counter: sequence, step, what: what.clone(), waiting });
            let sent = [beat().encode(), post(sequence, &what, &bytes), part(sequence, &bytes)].concat();
            let expected = [
                Frame::Control(beat()),
                Frame::Post { sequence, what: what.clone(), bytes: bytes.clone() },
                Frame::Part { sequence, bytes },
            ];
            prop_assert_eq!(frames(&mut Inbox::new(), &sent, piece).unwrap(), expected);
        }

        #[test]
        fn arbitrary_bytes_are_frames_or_malformed(kind in 0..5u8, bytes: Vec<u8>, piece in 1..40usize) {
            let mut inbox = Inbox::new();
            let whole = frame(kind, &[&bytes]);
            if let Ok(found) = frames(&mut inbox, &whole, piece) {
                prop_assert_eq!(found.len(), 1);
            }
            let _ = frames(&mut Inbox::new(), &bytes, piece);
        }
    }

    #[test]
    fn a_length_beyond_the_limit_is_refused_before_it_comes() {
        let header = |length: usize| [&[PART][..], &(length as u32).to_le_bytes()].concat();
        let mut inbox = Inbox::new();
        assert!(frames(&mut inbox, &header(HELLO_LIMIT), 5).unwrap().is_empty());
        assert!(frames(&mut Inbox::new(), &header(HELLO_LIMIT + 1), 5).is_err());
        let mut trusted = Inbox::new();
        trusted.trust();
        assert!(frames(&mut trusted, &header(LIMIT + MARGIN), 5).unwrap().is_empty());
        let mut trusted = Inbox::new();
        trusted.trust();
        assert!(frames(&mut trusted, &header(LIMIT + MARGIN + 1), 5).is_err());
    }

    #[test]
    fn a_preamble_is_known_by_its_first_bytes() {
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
