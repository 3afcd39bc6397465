//! How neighbours of a [`Chain`](super::Chain) find each other.

use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

/// What a connection of the chain begins with, before the token.
const MAGIC: [u8; 8] = *b"EFFNETCH";
/// How long a neighbour may take to connect: all have met already.
const PATIENCE: Duration = Duration::from_secs(30);

/// A listener on the machine that others know as `host`: on its loopback alone where that is what they use.
pub fn listen(host: &str) -> io::Result<TcpListener> {
    match host {
        "127.0.0.1" | "localhost" => TcpListener::bind(("127.0.0.1", 0)),
        "::1" => TcpListener::bind(("::1", 0)),
        // Where there is no IPv6 at all, IPv4 alone.
        _ => TcpListener::bind(("::", 0)).or_else(|_| TcpListener::bind(("0.0.0.0", 0))),
    }
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

pub fn call(host: &str, port: u16, token: u64) -> io::Result<TcpStream> {
    let mut link = TcpStream::connect((host, port))?;
    link.set_nodelay(true)?;
    link.write_all(&MAGIC)?;
    link.write_all(&token.to_le_bytes())?;
    Ok(link)
}

/// The neighbour's call; others are hung up on.
pub fn answer(listener: &TcpListener, token: u64) -> io::Result<TcpStream> {
    listener.set_nonblocking(true)?;
    let end = Instant::now() + PATIENCE;
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
    Err(io::Error::new(io::ErrorKind::TimedOut, "a neighbour among the ranks did not call"))
}
