//! Version 1: `PROXY TCP4 192.0.2.1 192.0.2.2 56324 443\r\n`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::{Addresses, Decoded, MAX_V1_BYTES, ProxyHeader, ProxyHeaderError, as_v6, both_v4};

pub(super) const PREFIX: &[u8] = b"PROXY ";

fn malformed(rule: &'static str) -> ProxyHeaderError {
    super::malformed(1, rule)
}

pub(super) fn decode(bytes: &[u8]) -> Result<Decoded<ProxyHeader>, ProxyHeaderError> {
    let window = &bytes[..bytes.len().min(MAX_V1_BYTES)];
    let Some(end) = window.iter().position(|&byte| byte == b'\n') else {
        if window.len() == MAX_V1_BYTES {
            return Err(malformed("the line must end within 107 bytes"));
        }
        // A return in the middle of the line will never be the line's end.
        let early = window[..window.len() - 1].contains(&b'\r');
        return if early { Err(malformed(LINE_END)) } else { Ok(Decoded::Incomplete) };
    };
    let line = window[..end].strip_suffix(b"\r").ok_or_else(|| malformed(LINE_END))?;
    // Also where the rest of the line is ignored: else the answer would depend on the cut.
    if line.contains(&b'\r') {
        return Err(malformed(LINE_END));
    }
    let line = std::str::from_utf8(line).ok().filter(|line| line.is_ascii());
    let line = line.ok_or_else(|| malformed("the line must be ASCII"))?;
    let rest = line.strip_prefix("PROXY ").ok_or(ProxyHeaderError::Missing)?;
    let header = |addresses| ProxyHeader { addresses, local: false, tlvs: Vec::new() };
    // What follows UNKNOWN is to be ignored.
    if rest == "UNKNOWN" || rest.starts_with("UNKNOWN ") {
        return Ok(Decoded::Complete(header(Addresses::Unknown), end + 1));
    }
    let fields: Vec<&str> = rest.splitn(6, ' ').collect();
    let &[family, source, destination, source_port, destination_port] = &fields[..] else {
        return Err(malformed("the line must have a family, two addresses and two ports"));
    };
    let address = |text| address(family, text);
    let source = SocketAddr::new(address(source)?, port(source_port)?);
    let destination = SocketAddr::new(address(destination)?, port(destination_port)?);
    Ok(Decoded::Complete(header(Addresses::Tcp { source, destination }), end + 1))
}

const LINE_END: &str = "the line must end with CR LF, and have no CR before";

fn address(family: &str, text: &str) -> Result<IpAddr, ProxyHeaderError> {
    let rule = "an address must be one of the family that the line names";
    match family {
        "TCP4" => text.parse::<Ipv4Addr>().map(IpAddr::V4).map_err(|_| malformed(rule)),
        "TCP6" => text.parse::<Ipv6Addr>().map(IpAddr::V6).map_err(|_| malformed(rule)),
        _ => Err(malformed("the family must be TCP4, TCP6 or UNKNOWN")),
    }
}

/// A port without sign and leading zeros.
fn port(text: &str) -> Result<u16, ProxyHeaderError> {
    let is_canonical =
        text.bytes().all(|byte| byte.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
    let port = text.parse().ok().filter(|_| is_canonical);
    port.ok_or_else(|| malformed("a port must be a number between 0 and 65535"))
}

pub(super) fn encode(header: &ProxyHeader) -> Vec<u8> {
    let &Addresses::Tcp { source, destination } = &header.addresses else {
        return b"PROXY UNKNOWN\r\n".to_vec();
    };
    let (from, to) = (source.port(), destination.port());
    let line = match both_v4(source, destination) {
        Some((source, destination)) => format!("PROXY TCP4 {source} {destination} {from} {to}\r\n"),
        None => {
            let (source, destination) = (text(as_v6(source)), text(as_v6(destination)));
            format!("PROXY TCP6 {source} {destination} {from} {to}\r\n")
        }
    };
    line.into_bytes()
}

/// An address as HAProxy and nginx write it. The specification allows hexadecimal groups only, but
/// `inet_ntop`, which both use, writes mapped addresses with a dotted quad, and so does Rust.
fn text(address: Ipv6Addr) -> String {
    address.to_string()
}
