//! How neighbours of a [`Chain`](super::Chain) find each other.

use std::io::{self, Read, Write};
use std::net::{IpAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::time::{Duration, Instant};

/// What a connection of the chain begins with, before the token.
const MAGIC: [u8; 8] = *b"EFFNETCH";
/// How long a neighbour may take to connect: all have met already.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// A listener on the machine that others know as `host`: at this very address where it is one of the machine's.
pub fn listen(host: &str) -> io::Result<TcpListener> {
    let host = if host == "localhost" { "127.0.0.1" } else { host };
    let own = host.parse::<IpAddr>().ok().and_then(|ip| TcpListener::bind((ip, 0)).ok());
    // Where there is no IPv6 at all, IPv4 alone.
    own.map_or_else(|| TcpListener::bind(("::", 0)).or_else(|_| TcpListener::bind(("0.0.0.0", 0))), Ok)
}

/// A number that a stranger does not guess.
pub fn token() -> u64 {
    use std::hash::{BuildHasher, Hasher};
    std::collections::hash_map::RandomState::new().build_hasher().finish()
}

pub fn parse(places: &[Vec<u8>], size: usize) -> io::Result<Vec<(u64, String, u16)>> {
    let one = |place: &Vec<u8>| {
        let text = std::str::from_utf8(place).ok()?;
        let (token, rest) = text.split_once(' ')?;
        let (host, port) = rest.rsplit_once(' ')?;
        Some((u64::from_str_radix(token, 16).ok()?, host.to_string(), port.parse().ok()?))
    };
    let all: Option<Vec<_>> = places.iter().map(one).collect();
    all.filter(|all| all.len() == size).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// Calls the neighbour.
///
/// # Errors
/// The system's, as what the neighbour does: "does not answer at node-b, port 40123: …".
pub fn call(host: &str, port: u16, token: u64) -> io::Result<TcpStream> {
    let told = |error: io::Error| {
        io::Error::new(
            error.kind(),
            format!("does not answer at {host}, port {port}: {error}; is the port open?"),
        )
    };
    let mut last = io::Error::other("the name has no address");
    for address in (host, port).to_socket_addrs().map_err(told)? {
        match TcpStream::connect_timeout(&address, PATIENCE) {
            Ok(mut link) => {
                link.set_nodelay(true)?;
                link.write_all(&[MAGIC, token.to_le_bytes()].concat()).map_err(told)?;
                return Ok(link);
            }
            Err(error) => last = error,
        }
    }
    Err(told(last))
}

/// The neighbour's call; others are hung up on.
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
