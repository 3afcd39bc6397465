//! What the service does while the group runs: exchanges, errors, goodbyes, and the watchdog.

use std::time::Instant;

use super::error::seconds;
use super::member::interval;
use super::seats::Seat;
use super::service::{CAUSE, Coordinator, Phase};
use super::watch::{Activity, Symptom, find_stalled};
use super::wire::{Frame, Message, part};
use super::{Cause, Stopped};

impl Coordinator {
    /// Stops the group. Only the first call has an effect.
    pub fn stop(&mut self, stopped: Stopped) {
        if matches!(self.phase, Phase::Running) {
            self.send_to_all(&Message::Stop(stopped).encode().into());
            self.enter(Phase::Stopped { all: false });
        }
    }

    /// Handles a frame of a rank.
    pub fn handle(&mut self, rank: usize, frame: Frame) {
        let Some(seat) = &mut self.seats[rank] else { return };
        match frame {
            Frame::Control(Message::Heartbeat(beat)) => seat.note(beat),
            Frame::Control(Message::StopReceived) => seat.stopped = true,
            Frame::Control(Message::Fail { step, what, message, consequence }) => {
                let stopped = seat.id.stopped(Cause::Failed, (step, &what), message);
                self.reporters.push(rank);
                if !consequence {
                    self.stop(stopped);
                } else if self.suspicion.is_none() {
                    self.suspicion = Some((Instant::now(), stopped));
                }
            }
            Frame::Post { sequence, what, bytes } => self.take(rank, sequence, what, bytes),
            Frame::Control(Message::Leave) => self.leave(rank),
            Frame::Control(Message::Withdraw) => self.withdraw(rank),
            _ => {
                let number = seat.connection;
                self.ended(number, "sent a malformed message");
            }
        }
    }

    /// Takes a rank's part of an exchange. The last part completes it.
    fn take(&mut self, rank: usize, sequence: u64, what: String, bytes: Vec<u8>) {
        if !matches!(self.phase, Phase::Running) {
            return;
        }
        let Some(seat) = &mut self.seats[rank] else { return };
        if sequence != self.sequence || seat.part.is_some() {
            let number = seat.connection;
            return self.ended(number, "sent an exchange out of order");
        }
        seat.moved = Instant::now();
        seat.part = Some(bytes);
        if let Some(gone) = self.seats.iter().flatten().find(|seat| seat.leaving) {
            let other = format!("{} has left", gone.id);
            return self.mismatch(rank, &what, &other);
        }
        match &self.what {
            None => self.what = Some((what, rank)),
            Some((first, of)) if *first != what => {
                let other = self.seats[*of].as_ref().map(|seat| format!("{} is at `{first}`", seat.id));
                return self.mismatch(rank, &what, &other.unwrap_or_default());
            }
            Some(_) => {}
        }
        if self.seats.iter().flatten().all(|seat| seat.part.is_some()) {
            for rank in 0..self.seats.len() {
                let bytes = self.seats[rank].as_mut().and_then(|seat| seat.part.take());
                self.send_to_all(&part(self.sequence, &bytes.unwrap_or_default()).into());
            }
            self.sequence += 1;
            self.what = None;
            // The ranks that waited continue now. Their next heartbeat would say so too late.
            self.seats.iter_mut().flatten().for_each(|seat| seat.moved = Instant::now());
        }
    }

    fn mismatch(&mut self, rank: usize, what: &str, other: &str) {
        let Some(seat) = &self.seats[rank] else { return };
        let message = format!("{} is at `{what}` while {other}; ranks must do the same", seat.id);
        let stopped = seat.id.stopped(Cause::Mismatch, seat.beat.doing(), message);
        self.stop(stopped);
    }

    fn leave(&mut self, rank: usize) {
        if !matches!(self.phase, Phase::Running) {
            return;
        }
        let Some(seat) = &mut self.seats[rank] else { return };
        if let Some((what, first)) = &self.what
            && seat.part.is_none()
        {
            let other = format!("{} has left", seat.id);
            let what = what.clone();
            return self.mismatch(*first, &what, &other);
        }
        seat.leaving = true;
        let all = self.seats.iter().flatten().all(|seat| seat.leaving);
        for seat in self.seats.iter_mut().flatten() {
            // Rank 0 leaves last: its process runs the service.
            let leaves = seat.leaving && !seat.left && (seat.id.rank != 0 || all);
            if leaves && let Some(connection) = self.connections.get_mut(&seat.connection) {
                connection.send(&Message::Goodbye);
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
            return self.ended(number, "ended without a message");
        }
        if self.beat.elapsed() > interval(self.watchdog) {
            self.beat = Instant::now();
            let beat = self.seats[0].as_ref().map(|seat| seat.beat.clone()).unwrap_or_default();
            self.send_to_all(&Message::Heartbeat(beat).encode().into());
        }
        let present = self.seats.iter().flatten().filter(|seat| !seat.leaving);
        let activities: Vec<Activity> = present.map(Seat::activity).collect();
        let Some((rank, symptom)) = find_stalled(&activities, self.watchdog) else { return };
        let Some(seat) = &self.seats[rank] else { return };
        let how = match symptom {
            Symptom::Idle => "has made no progress",
            Symptom::Silent => "has given no sign of life",
        };
        let how = format!("{how} for {}", seconds(self.watchdog));
        let stopped = seat.id.observed(Cause::Stalled, &how, &seat.beat);
        self.stop(stopped);
    }
}
