//! Collectives of ranks on the harness, through their group.
//!
//! Sums are taken in rank order, so they equal, bit by bit, those of one rank that accumulates as many micro-batches. A
//! collective runs when it is enqueued or, if transfers are late, when it is waited for: both must give the same.

use std::sync::Arc;

use effnet::ops::cuda::gpu::{Piece, Reduce};
use effnet::ops::cuda::{Address, Gpu};
use effnet::ops::{OpsError, Result};
use effnet::parallel::Group;

use super::{Command, HostGpu, device_error};

/// What can be enqueued.
#[derive(Clone)]
pub enum Collective {
    Begin,
    AllReduce(Vec<Piece>),
    AllGather(Address, Address, usize),
    End,
}

/// Of one rank.
#[derive(Default)]
pub struct Collectives {
    group: Option<Arc<Group>>,
    /// Between a begin and an end of collectives: while enqueuing, and while executing.
    enqueuing: bool,
    exchanging: bool,
    /// Collectives that were not waited for yet.
    waiting: Vec<Collective>,
}

impl Collectives {
    pub fn connect(&mut self, ranks: &Arc<Group>) -> Result {
        ranks.exchange("joining", &[])?;
        self.group = Some(ranks.clone());
        Ok(())
    }

    /// The ranks that were joined.
    pub fn group(&self) -> Result<&Arc<Group>> {
        self.group.as_ref().ok_or(OpsError::NotConnected)
    }

    /// A capture must end the collectives that it begins.
    pub fn capture_ends(&mut self) -> Result {
        match std::mem::take(&mut self.enqueuing) {
            true => Err(device_error("a capture that ends before its collectives do")),
            false => Ok(()),
        }
    }
}

impl HostGpu {
    pub(super) fn enqueue(&mut self, collective: Collective) -> Result {
        self.collectives.group()?;
        match collective {
            Collective::Begin => self.collectives.enqueuing = true,
            Collective::End => self.collectives.enqueuing = false,
            _ => {}
        }
        self.run(Command::Collective(collective))
    }

    /// Executes a collective, or keeps it until it is waited for.
    pub(super) fn collective(&mut self, collective: &Collective) -> Result {
        let own = &mut self.collectives;
        match collective {
            Collective::Begin => own.exchanging = true,
            Collective::End => {
                own.exchanging = false;
                let waiting = std::mem::take(&mut own.waiting);
                waiting.iter().try_for_each(|collective| self.exchange(collective))?;
            }
            _ if !own.exchanging => {
                return Err(device_error("a collective that does not wait for what is computed"));
            }
            _ if self.late_transfers => own.waiting.push(collective.clone()),
            _ => self.exchange(collective)?,
        }
        Ok(())
    }

    fn exchange(&mut self, collective: &Collective) -> Result {
        let group = self.collectives.group()?.clone();
        match collective {
            Collective::AllReduce(pieces) => {
                let mut own = Vec::new();
                for piece in pieces {
                    own.extend(self.bytes(piece.at, piece.elements * piece.how.bytes())?);
                }
                let all = group.exchange("an all-reduce", &own)?;
                let mut start = 0;
                for piece in pieces {
                    let end = start + piece.elements * piece.how.bytes();
                    let parts: Vec<&[u8]> = all.iter().map(|bytes| &bytes[start..end]).collect();
                    self.write(piece.at, &reduced(&parts, piece.how))?;
                    start = end;
                }
                Ok(())
            }
            Collective::AllGather(from, to, bytes) => {
                let own = self.bytes(*from, *bytes)?;
                self.write(*to, &group.exchange("an all-gather", &own)?.concat())
            }
            Collective::Begin | Collective::End => unreachable!("nothing is exchanged there"),
        }
    }

    fn bytes(&mut self, at: Address, bytes: usize) -> Result<Vec<u8>> {
        let mut own = vec![0; bytes];
        self.read(at, &mut own)?;
        Ok(own)
    }
}

/// Reduces the numbers of the ranks, in rank order, to one.
fn reduced(parts: &[&[u8]], how: Reduce) -> Vec<u8> {
    fn fold<T: bytemuck::Pod>(parts: &[&[u8]], add: impl Fn(T, T) -> T, finish: impl Fn(T) -> T) -> Vec<u8> {
        let parts: Vec<Vec<T>> = parts.iter().map(|part| bytemuck::pod_collect_to_vec(part)).collect();
        let one = |i: usize| finish(parts[1..].iter().fold(parts[0][i], |sum, part| add(sum, part[i])));
        let all: Vec<T> = (0..parts[0].len()).map(one).collect();
        bytemuck::cast_slice(&all).to_vec()
    }
    let share = 1.0 / parts.len() as f32;
    match how {
        Reduce::SumF32 => fold(parts, |a: f32, b| a + b, |sum| sum),
        Reduce::AverageF32 => fold(parts, |a: f32, b| a + b, |sum| sum * share),
        Reduce::SumF64 => fold(parts, |a: f64, b| a + b, |sum| sum),
        Reduce::SumU32 => fold(parts, |a: u32, b| a + b, |sum| sum),
        Reduce::MaxU32 => fold(parts, |a: u32, b| a.max(b), |most| most),
    }
}
