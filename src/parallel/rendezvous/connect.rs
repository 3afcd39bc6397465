//! Addresses, listening, and the way from a connection to a seat.

use std::io::{self, ErrorKind, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::os::fd::{AsRawFd, FromRawFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::wire::{Frame, HELLO_LIMIT, Inbox, Message, PROTOCOL, Preamble, Whom};
use super::{GroupError, Identity, Membership, Who};

/// A century: longer times are no different, and cannot be added to the clock.
const ENDLESS: Duration = Duration::from_secs(100 * 365 * 86_400);
/// Between two tries to connect, and between two looks at whether it is to be given up.
const PAUSE: Duration = Duration::from_millis(100);
/// What one try may take: a host that drops packets says nothing.
const TRY: Duration = Duration::from_secs(1);
/// What the way of a short message may take, and that of its answer.
const WORD: Duration = Duration::from_secs(5);
/// What the service's answer may take beyond the time that it announced.
const SLACK: Duration = Duration::from_secs(10);

/// `host:port`, an IPv6 address in brackets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    pub host: String,
    pub port: u16,
}

impl Address {
    pub fn parse(text: &str) -> Result<Address, GroupError> {
        let parts = text.rsplit_once(':').and_then(|(host, port)| {
            let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
            let plain = (!host.is_empty() && !host.contains(':')).then_some(host);
            Some(Address {
                host: bare.or(plain)?.to_owned(),
                port: port.parse().ok().filter(|port| *port > 0)?,
            })
        });
        parts.ok_or_else(|| GroupError::Address(text.into()))
    }

    /// All addresses that the name stands for.
    fn resolve(&self) -> Result<Vec<SocketAddr>, GroupError> {
        let found = (self.host.as_str(), self.port).to_socket_addrs().map(Vec::from_iter);
        let nothing = || io::Error::other("the name has no address");
        found
            .and_then(|found| if found.is_empty() { Err(nothing()) } else { Ok(found) })
            .map_err(|error| GroupError::Unresolved { address: self.to_string(), error })
    }

    /// Whether only this machine can use it. A machine's own name does not count, though it may stand for a loopback
    /// address on that machine itself.
    fn is_loopback(&self) -> bool {
        self.host == "localhost" || self.host.parse().is_ok_and(|ip: IpAddr| ip.is_loopback())
    }
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Address { host, port } = self;
        if host.contains(':') { write!(f, "[{host}]:{port}") } else { write!(f, "{host}:{port}") }
    }
}

/// Rank 0's socket: the inherited one, or a new one.
pub fn listen(address: &Address, inherited: Option<RawFd>) -> Result<TcpListener, GroupError> {
    let cannot = |error| GroupError::Listen { address: address.to_string(), error };
    if let Some(descriptor) = inherited {
        return adopt(descriptor).map_err(cannot);
    }
    let found = address.resolve()?;
    let first = found.iter().find(|found| found.is_ipv4()).unwrap_or(&found[0]);
    let ip = match first.ip() {
        own if address.is_loopback() => own,
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    TcpListener::bind((ip, address.port)).map_err(|error| match error.kind() {
        ErrorKind::AddrInUse => GroupError::PortInUse { host: address.host.clone(), port: address.port },
        _ => cannot(error),
    })
}

/// A descriptor that came with the process becomes this thread's and is not handed on to further processes.
fn adopt(descriptor: RawFd) -> io::Result<TcpListener> {
    let mut listening: libc::c_int = 0;
    let mut length = size_of::<libc::c_int>() as libc::socklen_t;
    let to = (&raw mut listening).cast();
    // SAFETY: the kernel writes at most `length` bytes to an integer of that size.
    let done =
        unsafe { libc::getsockopt(descriptor, libc::SOL_SOCKET, libc::SO_ACCEPTCONN, to, &mut length) };
    if done != 0 {
        return Err(io::Error::last_os_error());
    }
    if listening == 0 {
        return Err(io::Error::other(format!("descriptor {descriptor} does not listen")));
    }
    // SAFETY: a plain call on a descriptor that is open.
    if unsafe { libc::fcntl(descriptor, libc::F_SETFD, libc::FD_CLOEXEC) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: it is an open socket, and the caller gives it away.
    Ok(unsafe { TcpListener::from_raw_fd(descriptor) })
}

/// How rank 0 itself reaches its listener.
pub fn within(listener: &TcpListener) -> io::Result<SocketAddr> {
    let mut address = listener.local_addr()?;
    match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => address.set_ip(Ipv4Addr::LOCALHOST.into()),
        IpAddr::V6(ip) if ip.is_unspecified() => address.set_ip(Ipv6Addr::LOCALHOST.into()),
        _ => {}
    }
    Ok(address)
}

/// A rank with a seat in a complete group.
pub struct Seated {
    pub stream: TcpStream,
    pub inbox: Inbox,
    /// In rank order.
    pub all: Vec<Who>,
}

/// This process as a rank.
pub fn myself(rank: usize) -> Who {
    let mut name = [0u8; 256];
    // SAFETY: the name is cut off to what fits, the last byte stays zero.
    let done = unsafe { libc::gethostname(name.as_mut_ptr().cast(), name.len() - 1) };
    let end = name.iter().position(|byte| *byte == 0).unwrap_or(0);
    let host = String::from_utf8_lossy(&name[..end]).into_owned();
    let host = if done == 0 && !host.is_empty() { host } else { "unknown".into() };
    Who { rank, host, pid: std::process::id() }
}

/// Joins as `who`: tries until the service answers, then waits until all are there, or `stop` is raised. `near` is rank
/// 0's own way.
pub fn take_seat(
    membership: &Membership,
    who: &Who,
    identity: &Identity,
    near: Option<SocketAddr>,
    stop: &AtomicBool,
) -> Result<Seated, GroupError> {
    let address = Address::parse(&membership.address)?;
    let targets = match near {
        Some(near) => vec![near],
        None => address.resolve()?,
    };
    let hello = Message::Hello { who: who.clone(), size: membership.world.size, identity: identity.clone() };
    let hello = hello.encode();
    if hello.len() > HELLO_LIMIT {
        return Err(GroupError::TooLarge { what: "joining", bytes: hello.len(), limit: HELLO_LIMIT });
    }
    let hello = [Preamble { protocol: PROTOCOL, rank: who.rank as u32 }.encode(), hello].concat();
    let deadline = Instant::now() + membership.timeout.min(ENDLESS);
    let wait = Wait { leads: who.rank == 0, address: &address, deadline, stop };
    loop {
        for target in &targets {
            if wait.is_over() {
                return Err(GroupError::Interrupted);
            }
            if let Some(stream) = connect(target, deadline)
                && let Some(seated) = wait.apply(stream, &hello)?
            {
                if seated.all.len() != membership.world.size {
                    return Err(GroupError::Foreign(address.to_string()));
                }
                return Ok(seated);
            }
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            let (address, timeout) = (address.to_string(), membership.timeout);
            return Err(GroupError::NobodyAnswers { address, timeout });
        }
        thread::sleep(left.min(PAUSE));
    }
}

fn connect(target: &SocketAddr, deadline: Instant) -> Option<TcpStream> {
    let left = deadline.saturating_duration_since(Instant::now());
    let stream = TcpStream::connect_timeout(target, left.clamp(Duration::from_millis(1), TRY)).ok()?;
    // Trying a free port of one's own machine again and again, a socket happens to be given that very port and
    // connects to itself.
    let myself = stream.local_addr().ok()? == stream.peer_addr().ok()?;
    (!myself).then_some(stream)
}

/// How a rank waits for the others.
struct Wait<'a> {
    leads: bool,
    address: &'a Address,
    /// For the first answer; the service then says how long the others are waited for.
    deadline: Instant,
    stop: &'a AtomicBool,
}

impl Wait<'_> {
    /// Whether nobody wants the group any more.
    fn is_over(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// Asks for a seat. None where the connection ended before the service said anything; that is worth another try.
    fn apply(&self, stream: TcpStream, hello: &[u8]) -> Result<Option<Seated>, GroupError> {
        stream.set_nodelay(true)?;
        stream.set_write_timeout(Some(WORD))?;
        if (&stream).write_all(hello).is_err() {
            return Ok(None);
        }
        let mut inbox = Inbox::new();
        let (mut greeted, mut seated, mut withdrawn) = (false, false, false);
        let mut deadline = self.deadline;
        loop {
            if !greeted && let Some(preamble) = inbox.preamble().map_err(|_| self.foreign())? {
                greeted = true;
                if preamble.protocol != PROTOCOL {
                    let (address, theirs) = (self.address, preamble.protocol);
                    let why = format!(
                        "rank 0 at {address} has protocol version {theirs}, this rank has {PROTOCOL}; run the same \
                         effnet"
                    );
                    return Err(GroupError::Refused { why, told: false });
                }
            }
            let frame = if greeted { inbox.frame().map_err(|_| self.foreign())? } else { None };
            match frame {
                Some(Frame::Control(Message::Seated { milliseconds })) => {
                    seated = true;
                    let time = Duration::from_millis(milliseconds) + SLACK;
                    deadline = Instant::now() + if withdrawn { WORD } else { time };
                    continue;
                }
                Some(Frame::Control(Message::Welcome { all })) => {
                    inbox.trust();
                    return Ok(Some(Seated { stream, inbox, all }));
                }
                Some(Frame::Control(Message::Refused { why, whom })) => {
                    return Err(match whom {
                        Whom::Interrupted => GroupError::Interrupted,
                        Whom::All => GroupError::Refused { why, told: !self.leads },
                        Whom::One => GroupError::Refused { why, told: false },
                    });
                }
                Some(_) => return Err(self.foreign()),
                None => {}
            }
            if self.is_over() && !withdrawn {
                // All may be there at this moment; the service knows, if it runs already.
                if (&stream).write_all(&Message::Withdraw.encode()).is_err() {
                    return Err(GroupError::Interrupted);
                }
                (withdrawn, deadline) = (true, Instant::now() + if seated { WORD } else { PAUSE });
            }
            let left = deadline.saturating_duration_since(Instant::now());
            let ended = left.is_zero()
                || stream.set_read_timeout(Some(left.min(PAUSE))).is_err()
                || match inbox.fill(&stream) {
                    Ok(count) => count == 0,
                    Err(error) => !matches!(
                        error.kind(),
                        ErrorKind::Interrupted | ErrorKind::WouldBlock | ErrorKind::TimedOut
                    ),
                };
            if ended {
                return match (withdrawn, seated) {
                    (true, _) => Err(GroupError::Interrupted),
                    (false, true) => Err(GroupError::Lost(self.address.to_string())),
                    (false, false) => Ok(None),
                };
            }
        }
    }

    fn foreign(&self) -> GroupError {
        GroupError::Foreign(self.address.to_string())
    }
}

/// Waits until one of the sockets is ready or the time is over; the results are in `revents`.
pub fn poll(sockets: &mut [libc::pollfd], time: Duration) {
    let milliseconds = time.as_millis().min(60_000) as libc::c_int;
    // SAFETY: pointer and length are the slice's.
    let ready = unsafe { libc::poll(sockets.as_mut_ptr(), sockets.len() as libc::nfds_t, milliseconds) };
    if ready < 0 {
        // A signal came in between. What the kernel left in `revents` means nothing then.
        sockets.iter_mut().for_each(|socket| socket.revents = 0);
    }
}

pub fn interest(socket: &impl AsRawFd, writing: bool) -> libc::pollfd {
    let events = if writing { libc::POLLIN | libc::POLLOUT } else { libc::POLLIN };
    libc::pollfd { fd: socket.as_raw_fd(), events, revents: 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_host_and_port() {
        let good = [
            ("node1:29500", "node1", 29500),
            ("[fd00::1]:1", "fd00::1", 1),
            ("10.0.0.1:65535", "10.0.0.1", 65535),
        ];
        for (text, host, port) in good {
            let address = Address::parse(text).unwrap();
            assert_eq!((address.host.as_str(), address.port), (host, port));
            assert_eq!(address.to_string(), text);
        }
        for bad in ["", "node1", "node1:", ":29500", "node1:0", "node1:65536", "node1:x", "fd00::1:29500"] {
            let error = Address::parse(bad).unwrap_err().to_string();
            assert!(error.contains(&format!("`{bad}`")) && error.contains("host:port"), "{error}");
        }
    }
}
