//! How neighbours of a [`Chain`](super::Chain) connect.

use std::io::{self, Read, Write};
use std::net::{IpAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::time::{Duration, Instant};

/// The first bytes of a connection, followed by the token.
const MAGIC: [u8; 8] = *b"EFFNETCH";
/// How long a neighbour may take to connect. All ranks have joined the group before.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// A listener on this machine, which others know as `host`: at that very address if it is an address of this machine.
pub fn listen(host: &str) -> io::Result<TcpListener> {
    let host = if host == "localhost" { "127.0.0.1" } else { host };
    let own = host.parse::<IpAddr>().ok().and_then(|ip| TcpListener::bind((ip, 0)).ok());
    // A machine without IPv6 listens with IPv4.
    own.map_or_else(|| TcpListener::bind(("::", 0)).or_else(|_| TcpListener::bind(("0.0.0.0", 0))), Ok)
}

/// A number that strangers cannot guess.
pub fn token() -> u64 {
    use std::hash::{BuildHasher, Hasher};
    std::collections::hash_map::RandomState::new().build_hasher().finish()
}

/// Where a rank listens for its neighbour.
pub struct Place {
    pub token: u64,
    pub host: String,
    pub port: u16,
}

/// The places of all ranks, each from the text "token host port".
pub fn parse(places: &[Vec<u8>], size: usize) -> io::Result<Vec<Place>> {
    let one = |place: &Vec<u8>| {
        let text = std::str::from_utf8(place).ok()?;
        let (token, rest) = text.split_once(' ')?;
        let (host, port) = rest.rsplit_once(' ')?;
        let token = u64::from_str_radix(token, 16).ok()?;
        Some(Place { token, host: host.into(), port: port.parse().ok()? })
    };
    let all: Option<Vec<_>> = places.iter().map(one).collect();
    all.filter(|all| all.len() == size).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// Connects to a neighbour.
///
/// # Errors
/// The system's, as what the neighbour does: "does not answer at node-b, port 40123: …".
pub fn call(Place { host, port, .. }: &Place, token: u64) -> io::Result<TcpStream> {
    let no_answer = |error: io::Error| {
        let text = format!("does not answer at {host}, port {port}: {error}; is the port open?");
        io::Error::new(error.kind(), text)
    };
    let mut last = io::Error::other("the name has no address");
    for address in (host.as_str(), *port).to_socket_addrs().map_err(no_answer)? {
        match TcpStream::connect_timeout(&address, PATIENCE) {
            Ok(mut link) => {
                link.set_nodelay(true)?;
                link.write_all(&[MAGIC, token.to_le_bytes()].concat()).map_err(no_answer)?;
                return Ok(link);
            }
            Err(error) => last = error,
        }
    }
    Err(no_answer(last))
}

/// Accepts the neighbour's connection; drops connections of strangers.
pub fn answer(listener: &TcpListener, token: u64, patience: Duration) -> io::Result<TcpStream> {
    listener.set_nonblocking(true)?;
    let end = Instant::now() + patience;
    while Instant::now() < end {
        let mut link = match listener.accept() {
            Ok((link, _)) => link,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                std::thread::sleep(Duration::from_millis(2));
                continue;
            }
            Err(error) => return Err(error),
        };
        link.set_nonblocking(false)?;
        link.set_read_timeout(Some(Duration::from_secs(2)))?;
        let mut hello = [0; 16];
        if link.read_exact(&mut hello).is_ok() && hello[..8] == MAGIC && hello[8..] == token.to_le_bytes() {
            link.set_read_timeout(None)?;
            link.set_nodelay(true)?;
            return Ok(link);
        }
    }
    let port = listener.local_addr()?.port();
    let text = format!("has not called port {port} within {} s; is the port open?", patience.as_secs());
    Err(io::Error::new(io::ErrorKind::TimedOut, text))
}
