//! One connection of the service. No method blocks.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Instant;

use super::wire::{Inbox, Message};

/// Reads in a row, so that one rank that sends much does not delay the others.
const READS: usize = 16;

/// How far a connection has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Nothing has been decoded yet.
    New,
    /// The preamble has arrived.
    Greeted,
    Rank(usize),
    /// The connection was refused, and the reason is being sent.
    Refused,
}

pub struct Connection {
    pub stream: TcpStream,
    pub from: SocketAddr,
    pub inbox: Inbox,
    pub stage: Stage,
    /// When it was accepted, or refused.
    pub since: Instant,
    outbox: VecDeque<Arc<[u8]>>,
    /// Bytes of the first entry of the outbox that are sent.
    sent: usize,
    /// Sending has failed.
    broken: bool,
}

/// The result of reading.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arrived {
    Nothing,
    Bytes,
    /// The connection is closed. Bytes may have arrived before.
    End,
}

impl Connection {
    pub fn new(stream: TcpStream, from: SocketAddr) -> io::Result<Connection> {
        stream.set_nonblocking(true)?;
        stream.set_nodelay(true)?;
        Ok(Connection {
            stream,
            from,
            inbox: Inbox::new(),
            stage: Stage::New,
            since: Instant::now(),
            outbox: VecDeque::new(),
            sent: 0,
            broken: false,
        })
    }

    pub fn is_stranger(&self) -> bool {
        matches!(self.stage, Stage::New | Stage::Greeted)
    }

    pub fn send(&mut self, message: &Message) {
        self.push(message.encode().into());
    }

    /// Queues an encoded frame.
    pub fn push(&mut self, bytes: Arc<[u8]>) {
        if !self.broken {
            self.outbox.push_back(bytes);
        }
    }

    pub fn has_more(&self) -> bool {
        !self.outbox.is_empty()
    }

    /// Sends as much as the system accepts. A failure is reported by `read`, since last messages of the other side may
    /// still be unread.
    pub fn flush(&mut self) {
        while let Some(first) = self.outbox.front() {
            match (&self.stream).write(&first[self.sent..]) {
                Ok(count) => self.sent += count,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(_) => {
                    self.outbox.clear();
                    self.broken = true;
                    return;
                }
            }
            if self.outbox.front().is_some_and(|first| self.sent == first.len()) {
                self.outbox.pop_front();
                self.sent = 0;
            }
        }
    }

    /// Reads what has arrived, up to a limit.
    pub fn read(&mut self) -> Arrived {
        let mut arrived = Arrived::Nothing;
        for _ in 0..READS {
            match self.inbox.fill(&self.stream) {
                Ok(0) => return Arrived::End,
                Ok(_) => arrived = Arrived::Bytes,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(_) => return Arrived::End,
            }
        }
        arrived
    }
}
