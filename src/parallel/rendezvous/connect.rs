//! Listening, and how a rank connects and joins.

use std::io::{self, ErrorKind, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};

use super::wire::{Frame, HELLO_LIMIT, Inbox, Message, PROTOCOL, Preamble, Scope};
use super::{GroupError, Identity, Membership, RankId};
use crate::parallel::Address;

/// A century. Longer times make no difference, and cannot be added to the clock.
const ENDLESS: Duration = Duration::from_secs(100 * 365 * 86_400);
/// Time between two attempts to connect, and between two checks whether to give up.
const PAUSE: Duration = Duration::from_millis(100);
/// The limit of one attempt: a host that drops packets does not answer at all.
const ATTEMPT: Duration = Duration::from_secs(1);
/// How long it may take to send a short message and to receive the answer.
const ANSWER: Duration = Duration::from_secs(5);
/// How much later than announced the service may answer.
const SLACK: Duration = Duration::from_secs(10);

/// Opens the port of rank 0.
pub fn listen(address: &Address) -> Result<TcpListener, GroupError> {
    let found = resolve(address)?;
    let first = found.iter().find(|found| found.is_ipv4()).unwrap_or(&found[0]);
    let ip = match first.ip() {
        own if address.is_loopback() => own,
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    TcpListener::bind((ip, address.port)).map_err(|error| match error.kind() {
        ErrorKind::AddrInUse => GroupError::PortInUse { host: address.host.clone(), port: address.port },
        _ => GroupError::Listen { address: address.clone(), error },
    })
}

fn resolve(address: &Address) -> Result<Vec<SocketAddr>, GroupError> {
    address.resolve().map_err(|error| GroupError::Unresolved { address: address.clone(), error })
}

/// The address at which rank 0 itself reaches its listener.
pub fn near(listener: &TcpListener) -> io::Result<SocketAddr> {
    let mut address = listener.local_addr()?;
    match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => address.set_ip(Ipv4Addr::LOCALHOST.into()),
        IpAddr::V6(ip) if ip.is_unspecified() => address.set_ip(Ipv6Addr::LOCALHOST.into()),
        _ => {}
    }
    Ok(address)
}

/// The connection of a rank that has joined a complete group.
pub struct Joined {
    pub stream: TcpStream,
    pub inbox: Inbox,
    /// In rank order.
    pub all: Vec<RankId>,
}

/// This process as a rank.
pub fn own_id(rank: usize) -> RankId {
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let host = if host.is_empty() { "unknown".into() } else { host };
    RankId { rank, host, pid: std::process::id() }
}

/// Connects until the service answers, then waits until all ranks have joined, unless `stop` is set. `near` is the
/// address for rank 0 itself.
pub fn join(
    membership: &Membership,
    id: &RankId,
    identity: &Identity,
    near: Option<SocketAddr>,
    stop: &AtomicBool,
) -> Result<Joined, GroupError> {
    let Membership { address, world, timeout, .. } = membership;
    let targets = match near {
        Some(near) => vec![near],
        None => resolve(address)?,
    };
    let hello = Message::Hello { id: id.clone(), size: world.size, identity: identity.clone() }.encode();
    if hello.len() > HELLO_LIMIT {
        return Err(GroupError::TooLarge { what: "joining", bytes: hello.len(), limit: HELLO_LIMIT });
    }
    let hello = [Preamble { protocol: PROTOCOL, rank: id.rank as u32 }.encode(), hello].concat();
    let deadline = Instant::now() + (*timeout).min(ENDLESS);
    let joining = Joining { leads: world.leads(), address, deadline, stop };
    loop {
        for target in &targets {
            if joining.is_cancelled() {
                return Err(GroupError::Interrupted);
            }
            if let Some(stream) = connect(target, deadline)
                && let Some(joined) = joining.apply(stream, &hello)?
            {
                let complete = joined.all.len() == world.size;
                return if complete { Ok(joined) } else { Err(joining.foreign()) };
            }
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(GroupError::NoAnswer { address: address.clone(), timeout: *timeout });
        }
        thread::sleep(left.min(PAUSE));
    }
}

fn connect(target: &SocketAddr, deadline: Instant) -> Option<TcpStream> {
    let left = deadline.saturating_duration_since(Instant::now());
    let stream = TcpStream::connect_timeout(target, left.clamp(Duration::from_millis(1), ATTEMPT)).ok()?;
    // Repeated attempts to reach a free port of the same machine may get that very port as their own, and so connect
    // to themselves.
    let itself = stream.local_addr().ok()? == stream.peer_addr().ok()?;
    (!itself).then_some(stream)
}

/// How a rank joins.
struct Joining<'a> {
    leads: bool,
    address: &'a Address,
    /// For the first answer. The answer then says how long the service waits for the other ranks.
    deadline: Instant,
    stop: &'a AtomicBool,
}

impl Joining<'_> {
    fn is_cancelled(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// Asks to join. None if the connection closed before the service had answered: another attempt may succeed.
    fn apply(&self, stream: TcpStream, hello: &[u8]) -> Result<Option<Joined>, GroupError> {
        stream.set_nodelay(true)?;
        stream.set_write_timeout(Some(ANSWER))?;
        if (&stream).write_all(hello).is_err() {
            return Ok(None);
        }
        let mut inbox = Inbox::new();
        let mut greeted = false;
        let mut accepted = false;
        let mut withdrawn = false;
        let mut deadline = self.deadline;
        loop {
            greeted = greeted || self.greet(&mut inbox)?;
            let frame = if greeted { inbox.frame().map_err(|_| self.foreign())? } else { None };
            match frame {
                Some(Frame::Control(Message::Accepted { milliseconds })) => {
                    accepted = true;
                    let time = Duration::from_millis(milliseconds) + SLACK;
                    deadline = Instant::now() + if withdrawn { ANSWER } else { time };
                    continue;
                }
                Some(Frame::Control(Message::Formed { all })) => {
                    inbox.trust();
                    return Ok(Some(Joined { stream, inbox, all }));
                }
                Some(Frame::Control(Message::Refused(refusal))) => {
                    let told = refusal.scope == Scope::All && !self.leads;
                    return Err(match refusal.scope {
                        Scope::Interrupted => GroupError::Interrupted,
                        Scope::All | Scope::One => GroupError::Refused { reason: refusal.reason, told },
                    });
                }
                Some(_) => return Err(self.foreign()),
                None => {}
            }
            if self.is_cancelled() && !withdrawn {
                // The group may be complete at this moment. Only the service knows, if it runs already.
                if (&stream).write_all(&Message::Withdraw.encode()).is_err() {
                    return Err(GroupError::Interrupted);
                }
                withdrawn = true;
                deadline = Instant::now() + if accepted { ANSWER } else { PAUSE };
            }
            if !receive(&stream, &mut inbox, deadline) {
                return match (withdrawn, accepted) {
                    (true, _) => Err(GroupError::Interrupted),
                    (false, true) => Err(GroupError::Lost(self.address.clone())),
                    (false, false) => Ok(None),
                };
            }
        }
    }

    /// Whether the service's preamble has arrived.
    fn greet(&self, inbox: &mut Inbox) -> Result<bool, GroupError> {
        let Some(Preamble { protocol: theirs, .. }) = inbox.preamble().map_err(|_| self.foreign())? else {
            return Ok(false);
        };
        if theirs != PROTOCOL {
            let reason = format!(
                "rank 0 at {} has protocol version {theirs}, this rank has {PROTOCOL}; run the same effnet",
                self.address
            );
            return Err(GroupError::Refused { reason, told: false });
        }
        Ok(true)
    }

    fn foreign(&self) -> GroupError {
        GroupError::Foreign(self.address.clone())
    }
}

/// Reads once, for a short time. False after the deadline, or if the connection has ended.
fn receive(stream: &TcpStream, inbox: &mut Inbox, deadline: Instant) -> bool {
    use ErrorKind::{Interrupted, TimedOut, WouldBlock};
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() || stream.set_read_timeout(Some(left.min(PAUSE))).is_err() {
        return false;
    }
    match inbox.fill(stream) {
        Ok(count) => count > 0,
        Err(error) => matches!(error.kind(), Interrupted | WouldBlock | TimedOut),
    }
}

/// What [`poll`] waits for: bytes that have arrived, and if `writing` space for more.
pub fn interest(socket: &impl AsFd, writing: bool) -> PollFd<'_> {
    let flags = if writing { PollFlags::IN | PollFlags::OUT } else { PollFlags::IN };
    PollFd::new(socket, flags)
}

/// Waits until a socket is ready or the time is over. Returns which sockets can be read or have failed.
pub fn poll(sockets: &mut [PollFd], time: Duration) -> Vec<bool> {
    let time = Timespec::try_from(time.min(Duration::from_secs(60))).ok();
    // After an interruption by a signal the results have no meaning.
    let done = rustix::event::poll(sockets, time.as_ref()).is_ok();
    sockets.iter().map(|socket| done && !(socket.revents() - PollFlags::OUT).is_empty()).collect()
}
