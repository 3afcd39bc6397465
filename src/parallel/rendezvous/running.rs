//! What the service does while the group runs: exchanges, errors, farewells, and the watch over who moves.

use std::time::Instant;

use super::error::seconds;
use super::member::interval;
use super::seats::Seat;
use super::service::{CAUSE, Desk, Phase};
use super::watch::{Standing, Verdict, culprit};
use super::wire::{Frame, Message, part};
use super::{Cause, Stopped};

impl Desk {
    /// The first error wins.
    pub fn stop(&mut self, stopped: Stopped) {
        if matches!(self.phase, Phase::Running) {
            self.tell(&Message::Stop(stopped));
            self.enter(Phase::Stopped { all: false });
        }
    }

    pub fn hear(&mut self, rank: usize, frame: Frame) {
        let Some(seat) = &mut self.seats[rank] else { return };
        match frame {
            Frame::Control(Message::Beat(beat)) => seat.note(beat),
            Frame::Control(Message::Heard) => seat.stopped = true,
            Frame::Control(Message::Fail { step, what, message, consequence }) => {
                let stopped = seat.who.stopped(Cause::Failed, (step, &what), message);
                self.asking.push(rank);
                if !consequence {
                    self.stop(stopped);
                } else if self.suspicion.is_none() {
                    self.suspicion = Some((Instant::now(), stopped));
                }
            }
            Frame::Post { sequence, what, bytes } => self.take(rank, sequence, what, bytes),
            Frame::Control(Message::Bye) => self.leave(rank),
            Frame::Control(Message::Withdraw) => self.withdraw(rank),
            _ => {
                let number = seat.connection;
                self.ended(number, "sent what makes no sense");
            }
        }
    }

    /// A rank's part of an exchange.
    fn take(&mut self, rank: usize, sequence: u64, what: String, bytes: Vec<u8>) {
        if !matches!(self.phase, Phase::Running) {
            return;
        }
        let Some(seat) = &mut self.seats[rank] else { return };
        if sequence != self.sequence || seat.part.is_some() {
            let number = seat.connection;
            return self.ended(number, "lost count of the exchanges");
        }
        seat.moved = Instant::now();
        seat.part = Some(bytes);
        if let Some(gone) = self.seats.iter().flatten().find(|seat| seat.leaving) {
            let other = format!("{} has left", gone.who);
            return self.mismatch(rank, &what, &other);
        }
        match &self.what {
            None => self.what = Some((what, rank)),
            Some((first, of)) if *first != what => {
                let other = self.seats[*of].as_ref().map(|seat| format!("{} is at `{first}`", seat.who));
                return self.mismatch(rank, &what, &other.unwrap_or_default());
            }
            Some(_) => {}
        }
        if self.seats.iter().flatten().all(|seat| seat.part.is_some()) {
            for rank in 0..self.seats.len() {
                let bytes = self.seats[rank].as_mut().and_then(|seat| seat.part.take());
                self.pass(&part(self.sequence, &bytes.unwrap_or_default()).into());
            }
            self.sequence += 1;
            self.what = None;
            // Who waited for this goes on now; its next heartbeat would say so too late.
            self.seats.iter_mut().flatten().for_each(|seat| seat.moved = Instant::now());
        }
    }

    fn mismatch(&mut self, rank: usize, what: &str, other: &str) {
        let Some(seat) = &self.seats[rank] else { return };
        let message = format!("{} is at `{what}` while {other}; ranks must do the same", seat.who);
        let stopped = seat.who.stopped(Cause::Mismatch, seat.beat.doing(), message);
        self.stop(stopped);
    }

    fn leave(&mut self, rank: usize) {
        if !matches!(self.phase, Phase::Running) {
            return;
        }
        let Some(seat) = &self.seats[rank] else { return };
        let owes = seat.part.is_none();
        let own = seat.who.clone();
        if let Some((what, first)) = &self.what
            && owes
        {
            let (what, first) = (what.clone(), *first);
            return self.mismatch(first, &what, &format!("{own} has left"));
        }
        let all = self.seats.iter().flatten().all(|seat| seat.leaving || seat.who.rank == rank);
        // Rank 0 leaves last: its process carries the service.
        for seat in self.seats.iter_mut().flatten() {
            seat.leaving |= seat.who.rank == rank;
            let leaves = seat.leaving && !seat.left && (seat.who.rank != 0 || all);
            if leaves && let Some(connection) = self.connections.get_mut(&seat.connection) {
                connection.say(&Message::Farewell);
            }
            seat.left |= leaves;
        }
        if all {
            self.enter(Phase::Left);
        }
    }

    pub fn watch(&mut self, closing: bool) {
        if let Some((_, stopped)) = self.suspicion.take_if(|(since, _)| since.elapsed() > CAUSE) {
            return self.stop(stopped);
        }
        if closing && let Some(seat) = &self.seats[0] {
            let number = seat.connection;
            return self.ended(number, "ended without a word");
        }
        if self.beat.elapsed() > interval(self.watchdog) {
            self.beat = Instant::now();
            let beat = self.seats[0].as_ref().map(|seat| seat.beat.clone()).unwrap_or_default();
            self.tell(&Message::Beat(beat));
        }
        let present = self.seats.iter().flatten().filter(|seat| !seat.leaving);
        let standings: Vec<Standing> = present.map(Seat::standing).collect();
        let Some((rank, verdict)) = culprit(&standings, self.watchdog) else { return };
        let Some(seat) = &self.seats[rank] else { return };
        let how = match verdict {
            Verdict::Still => "has not moved",
            Verdict::Silent => "has given no sign of life",
        };
        let (step, what) = seat.beat.doing();
        let limit = seconds(self.watchdog);
        let message = format!("{} {how} for {limit}; it was in step {step}: {what}", seat.who);
        let stopped = seat.who.stopped(Cause::Stalled, seat.beat.doing(), message);
        self.stop(stopped);
    }
}
