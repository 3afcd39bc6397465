//! Which ranks have joined, which are refused and why. Only rules; the service moves the bytes.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use super::error::seconds;
use super::watch::Activity;
use super::wire::{Heartbeat, Refusal, Scope};
use super::{Identity, RankId};

/// A rank that has joined.
pub struct Seat {
    pub id: RankId,
    /// The service's number of its connection.
    pub connection: u64,
    /// Its last heartbeat.
    pub beat: Heartbeat,
    /// When anything last arrived from it.
    pub heard: Instant,
    /// When it last made progress.
    pub moved: Instant,
    /// Its part of the exchange under way.
    pub part: Option<Vec<u8>>,
    /// It has asked to leave.
    pub leaving: bool,
    /// Goodbye sent: send nothing more; a closed connection is expected.
    pub left: bool,
    /// Its connection is closed, as expected or not.
    pub gone: bool,
    /// The stop has arrived at it.
    pub stopped: bool,
}

impl Seat {
    pub fn new(id: RankId, connection: u64) -> Seat {
        let now = Instant::now();
        Seat {
            id,
            connection,
            beat: Heartbeat::starting(),
            heard: now,
            moved: now,
            part: None,
            leaving: false,
            left: false,
            gone: false,
            stopped: false,
        }
    }

    pub fn note(&mut self, beat: Heartbeat) {
        self.heard = Instant::now();
        if beat.counter != self.beat.counter {
            self.moved = self.heard;
        }
        self.beat = beat;
    }

    pub fn activity(&self) -> Activity {
        Activity {
            rank: self.id.rank,
            silent: self.heard.elapsed(),
            idle: self.moved.elapsed(),
            waiting: self.beat.waiting,
            posted: self.part.is_some(),
        }
    }
}

/// What a rank says about itself.
pub struct Applicant<'a> {
    pub id: &'a RankId,
    pub size: usize,
    pub identity: &'a Identity,
}

/// Checks whether an applicant fits. `own` is the identity of rank 0.
pub fn admit(seats: &[Option<Seat>], applicant: &Applicant, own: &Identity) -> Result<(), Refusal> {
    let Applicant { id, size, identity } = *applicant;
    let complete = seats.iter().all(Option::is_some);
    // A complete group continues without the applicant; an incomplete one cannot be formed.
    let refuse = |reason| Refusal { reason, scope: if complete { Scope::One } else { Scope::All } };
    if id.rank >= seats.len() && size == seats.len() {
        let reason = format!("{id} cannot be one of {size} ranks, which count from 0");
        return Err(Refusal { reason, scope: Scope::One });
    }
    if let Some((name, theirs, ours)) = difference(size, identity, seats.len(), own) {
        return Err(refuse(format!("{id} has {name} {theirs}, rank 0 has {ours}")));
    }
    match seats.get(id.rank).and_then(Option::as_ref) {
        Some(seat) if complete => {
            Err(refuse(format!("{id} comes to a group that is complete; {} is there already", seat.id)))
        }
        Some(seat) => {
            Err(refuse(format!("two processes say that they are rank {}: {} and {id}", id.rank, seat.id)))
        }
        None => Ok(()),
    }
}

/// The first value in which a rank differs: its name, the rank's value, rank 0's value.
fn difference(
    size: usize,
    theirs: &Identity,
    own_size: usize,
    own: &Identity,
) -> Option<(String, String, String)> {
    if size != own_size {
        return Some(("world size".into(), size.to_string(), own_size.to_string()));
    }
    if theirs.version != own.version {
        return Some(("program version".into(), theirs.version.clone(), own.version.clone()));
    }
    let value = |identity: &Identity, name: &str| {
        let found = identity.facts.iter().find(|(of, _)| of == name);
        found.map_or("none".into(), |(_, value)| value.clone())
    };
    let names = own.facts.iter().chain(&theirs.facts).map(|(name, _)| name);
    let mut rows = names.map(|name| (name.clone(), value(theirs, name), value(own, name)));
    rows.find(|(_, theirs, ours)| theirs != ours)
}

/// "ranks 2 and 5 of 8 have not come within 120 s; here are 0, 1 (host a), 3, 4 (host b)"
pub fn missing(seats: &[Option<Seat>], timeout: Duration) -> String {
    let absent: Vec<String> =
        (0..seats.len()).filter(|rank| seats[*rank].is_none()).map(|rank| rank.to_string()).collect();
    let subject = if absent.len() == 1 { "rank" } else { "ranks" };
    let verb = if absent.len() == 1 { "has" } else { "have" };
    let mut hosts: Vec<(&str, Vec<String>)> = Vec::new();
    for seat in seats.iter().flatten() {
        let rank = seat.id.rank.to_string();
        match hosts.iter_mut().find(|(host, _)| *host == seat.id.host) {
            Some((_, ranks)) => ranks.push(rank),
            None => hosts.push((&seat.id.host, vec![rank])),
        }
    }
    let here: Vec<String> =
        hosts.iter().map(|(host, ranks)| format!("{} (host {host})", ranks.join(", "))).collect();
    let here = match seats.iter().flatten().count() {
        0 => "none is here".into(),
        1 => format!("here is {}", here.concat()),
        _ => format!("here are {}", here.join(", ")),
    };
    let absent = listed(&absent);
    format!("{subject} {absent} of {} {verb} not come within {}; {here}", seats.len(), seconds(timeout))
}

/// "2, 3 and 5"
fn listed(items: &[String]) -> String {
    match items {
        [first @ .., last] if !first.is_empty() => format!("{} and {last}", first.join(", ")),
        _ => items.concat(),
    }
}

/// For a rank with another version of the protocol: only its number and its address are known.
pub fn other_protocol(rank: u32, from: IpAddr, theirs: u32, ours: u32) -> String {
    format!(
        "rank {rank} (at {from}) has protocol version {theirs}, rank 0 has {ours}; run the same effnet everywhere"
    )
}
