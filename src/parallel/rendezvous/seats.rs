//! Who is there, and who is refused and why. Only rules; the service moves the bytes.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use super::error::seconds;
use super::watch::Standing;
use super::wire::Beat;
use super::{Identity, Who};

/// A rank that is there.
pub struct Seat {
    pub who: Who,
    /// The service's number of its connection.
    pub connection: u64,
    /// What it last said it did.
    pub beat: Beat,
    pub heard: Instant,
    pub moved: Instant,
    /// Its part of the exchange that goes on.
    pub part: Option<Vec<u8>>,
    /// It has said that it leaves.
    pub leaving: bool,
    /// It was bidden farewell: nothing is said to it any more, and its end is in order.
    pub left: bool,
    /// Its connection is at an end, in order or not.
    pub gone: bool,
    /// It knows of the stop.
    pub stopped: bool,
}

impl Seat {
    pub fn new(who: Who, connection: u64) -> Seat {
        let now = Instant::now();
        let beat = Beat { what: "starting".into(), ..Beat::default() };
        let (part, leaving, left, gone, stopped) = (None, false, false, false, false);
        Seat { who, connection, beat, heard: now, moved: now, part, leaving, left, gone, stopped }
    }

    pub fn note(&mut self, beat: Beat) {
        self.heard = Instant::now();
        if beat.counter != self.beat.counter {
            self.moved = self.heard;
        }
        self.beat = beat;
    }

    pub fn standing(&self) -> Standing {
        Standing {
            rank: self.who.rank,
            silent: self.heard.elapsed(),
            still: self.moved.elapsed(),
            waiting: self.beat.waiting,
            posted: self.part.is_some(),
        }
    }
}

/// Whom a fault concerns.
#[derive(Debug, PartialEq)]
pub enum Fault {
    /// The group cannot come together.
    Everybody(String),
    /// The others may go on without the newcomer.
    Newcomer(String),
}

/// What a rank says of itself.
pub struct Applicant<'a> {
    pub who: &'a Who,
    pub size: usize,
    pub identity: &'a Identity,
}

/// Whether an applicant fits. `own` is rank 0's.
pub fn admit(seats: &[Option<Seat>], applicant: &Applicant, own: &Identity) -> Result<(), Fault> {
    let Applicant { who, size, identity } = *applicant;
    let complete = seats.iter().all(Option::is_some);
    let fault = |why| if complete { Fault::Newcomer(why) } else { Fault::Everybody(why) };
    if who.rank >= seats.len() && size == seats.len() {
        return Err(Fault::Newcomer(format!("{who} cannot be one of {size} ranks, which count from 0")));
    }
    let differs = difference(size, identity, seats.len(), own);
    if let Some((name, theirs, ours)) = differs {
        return Err(fault(format!("{who} has {name} {theirs}, rank 0 has {ours}")));
    }
    match seats.get(who.rank).and_then(Option::as_ref) {
        Some(seat) if complete => {
            Err(fault(format!("{who} comes to a group that is complete; {} is there already", seat.who)))
        }
        Some(seat) => {
            Err(fault(format!("two processes say that they are rank {}: {} and {who}", who.rank, seat.who)))
        }
        None => Ok(()),
    }
}

/// The first thing in which a rank differs: name, its value, rank 0's.
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
    let (word, verb) = if absent.len() == 1 { ("rank", "has") } else { ("ranks", "have") };
    let mut hosts: Vec<(&str, Vec<String>)> = Vec::new();
    for seat in seats.iter().flatten() {
        let rank = seat.who.rank.to_string();
        match hosts.iter_mut().find(|(host, _)| *host == seat.who.host) {
            Some((_, ranks)) => ranks.push(rank),
            None => hosts.push((&seat.who.host, vec![rank])),
        }
    }
    let here: Vec<String> =
        hosts.iter().map(|(host, ranks)| format!("{} (host {host})", ranks.join(", "))).collect();
    let present = seats.iter().flatten().count();
    let here = match present {
        0 => "nobody is here".into(),
        1 => format!("here is {}", here.concat()),
        _ => format!("here are {}", here.join(", ")),
    };
    format!(
        "{word} {} of {} {verb} not come within {}; {here}",
        listed(&absent),
        seats.len(),
        seconds(timeout)
    )
}

/// "2, 3 and 5"
fn listed(items: &[String]) -> String {
    match items {
        [first @ .., last] if !first.is_empty() => format!("{} and {last}", first.join(", ")),
        _ => items.concat(),
    }
}

/// A rank of another protocol version; more than its number and address is not known of it.
pub fn other_protocol(rank: u32, from: IpAddr, theirs: u32, ours: u32) -> String {
    format!(
        "rank {rank} (at {from}) has protocol version {theirs}, rank 0 has {ours}; run the same effnet everywhere"
    )
}
