//! One connection of the service: nothing here ever blocks.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Instant;

use super::wire::{Inbox, Message};

/// Reads in a row, so that one rank with much to say does not keep the others waiting.
const READS: usize = 16;

/// How far a connection has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Nothing is known of it.
    New,
    /// The preamble has come.
    Greeted,
    Rank(usize),
    /// It was refused; the line that says why is still on its way.
    Parting,
}

pub struct Connection {
    pub stream: TcpStream,
    pub from: SocketAddr,
    pub inbox: Inbox,
    pub stage: Stage,
    /// When it came, or was refused.
    pub since: Instant,
    outbox: VecDeque<Arc<[u8]>>,
    /// Bytes of the outbox's first that are sent.
    sent: usize,
    /// Nothing can be sent any more.
    deaf: bool,
}

/// What a turn of reading brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Read {
    Nothing,
    Some,
    End,
}

impl Connection {
    pub fn new(stream: TcpStream, from: SocketAddr) -> io::Result<Connection> {
        stream.set_nonblocking(true)?;
        stream.set_nodelay(true)?;
        let (inbox, since, outbox) = (Inbox::new(), Instant::now(), VecDeque::new());
        Ok(Connection { stream, from, inbox, stage: Stage::New, since, outbox, sent: 0, deaf: false })
    }

    pub fn is_stranger(&self) -> bool {
        matches!(self.stage, Stage::New | Stage::Greeted)
    }

    pub fn say(&mut self, message: &Message) {
        self.push(message.encode().into());
    }

    pub fn push(&mut self, bytes: Arc<[u8]>) {
        if !self.deaf {
            self.outbox.push_back(bytes);
        }
    }

    pub fn has_more(&self) -> bool {
        !self.outbox.is_empty()
    }

    /// Sends what the system takes. A failure shows when reading: the other side's last words may lie there.
    pub fn flush(&mut self) {
        while let Some(first) = self.outbox.front() {
            match (&self.stream).write(&first[self.sent..]) {
                Ok(count) => self.sent += count,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(_) => {
                    self.outbox.clear();
                    self.deaf = true;
                    return;
                }
            }
            if self.outbox.front().is_some_and(|first| self.sent == first.len()) {
                self.outbox.pop_front();
                self.sent = 0;
            }
        }
    }

    /// Reads what is there, up to a limit.
    pub fn read(&mut self) -> Read {
        let mut read = Read::Nothing;
        for _ in 0..READS {
            match self.inbox.fill(&self.stream) {
                Ok(0) => return Read::End,
                Ok(_) => read = Read::Some,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(_) => return Read::End,
            }
        }
        read
    }
}
