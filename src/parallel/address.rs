//! `host:port` addresses.

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::str::FromStr;

/// Where rank 0 listens: `host:port`, with an IPv6 address in brackets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    /// Without brackets.
    pub host: String,
    pub port: u16,
}

/// A text that is not `host:port`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}: must be HOST:PORT, such as node-a:29500 or [fd00::1]:29500")]
pub struct AddressError(String);

impl Address {
    /// The brackets of an IPv6 address may be there or not.
    pub fn new(host: &str, port: u16) -> Address {
        let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        Address { host: bare.unwrap_or(host).into(), port }
    }

    /// All addresses of the host.
    ///
    /// # Errors
    /// If the name is unknown or has no address.
    pub(super) fn resolve(&self) -> io::Result<Vec<SocketAddr>> {
        let found: Vec<SocketAddr> = (self.host.as_str(), self.port).to_socket_addrs()?.collect();
        if found.is_empty() { Err(io::Error::other("the name has no address")) } else { Ok(found) }
    }

    /// Whether only this machine can use the address. A machine's own name does not count, although it may resolve to
    /// a loopback address on that machine.
    pub(super) fn is_loopback(&self) -> bool {
        self.host == "localhost" || self.host.parse().is_ok_and(|ip: IpAddr| ip.is_loopback())
    }
}

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Address, AddressError> {
        let parse = || {
            let (host, port) = text.rsplit_once(':')?;
            let port = port.parse().ok().filter(|&port| port > 0)?;
            let address = Address::new(host, port);
            let plain = !host.contains([':', '[', ']', '/', ' ']);
            (!address.host.is_empty() && (plain || address.host != host)).then_some(address)
        };
        parse().ok_or_else(|| AddressError(text.into()))
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Address { host, port } = self;
        if host.contains(':') { write!(f, "[{host}]:{port}") } else { write!(f, "{host}:{port}") }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn address_is_host_and_port() {
        for (text, host, port) in [
            ("node1:29500", "node1", 29500),
            ("[fd00::1]:1", "fd00::1", 1),
            ("10.0.0.1:65535", "10.0.0.1", 65535),
        ] {
            let address: Address = text.parse().unwrap();
            assert_eq!(address, Address::new(host, port));
            assert_eq!(address.to_string(), text);
        }
        for bad in [
            "",
            "node1",
            "node1:",
            ":29500",
            "node1:0",
            "node1:65536",
            "node1:x",
            "fd00::1",
            "fd00::1:29500",
            "[]:1",
            "a b:1",
            "http://a:1",
        ] {
            let error = bad.parse::<Address>().unwrap_err().to_string();
            assert!(error.starts_with(&format!("{bad}: ")) && error.contains("HOST:PORT"), "{error}");
        }
    }
}
