//! The first message of TLS: which server does the client want, and which protocols does it speak.
//!
//! Sources: RFC 8446 (TLS 1.3) §4.1.2 and §5.1, RFC 5246 (TLS 1.2), RFC 6066 §3 (server name),
//! RFC 7301 (ALPN).

use super::proxy_header::Decoded;

/// What a ClientHello says that decides where the connection goes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ClientHello {
    /// The server's name, in lower case. `None` if the client sends none.
    pub server_name: Option<String>,
    /// The protocols that the client offers, such as `h2`, in its order of preference.
    pub alpn: Vec<Vec<u8>>,
}

/// The connection does not begin with a ClientHello.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ClientHelloError {
    /// It begins with something other than a TLS handshake record.
    #[error("the connection does not begin with a TLS handshake record")]
    NotTls,
    /// A length or a field breaks a rule of TLS.
    #[error("ClientHello: {rule}")]
    Malformed {
        /// The rule.
        rule: &'static str,
    },
    /// The message is longer than the receiver accepts.
    #[error("the ClientHello takes more than {max} bytes")]
    TooLong {
        /// The limit, in bytes of the connection.
        max: usize,
    },
}

const RECORD_HEADER: usize = 5;
const CONTENT_HANDSHAKE: u8 = 22;
const MAX_RECORD: usize = 1 << 14;
const CLIENT_HELLO: u8 = 1;
const EXTENSION_SERVER_NAME: u16 = 0;
const EXTENSION_ALPN: u16 = 16;

fn malformed(rule: &'static str) -> ClientHelloError {
    ClientHelloError::Malformed { rule }
}

impl ClientHello {
    /// Decodes the ClientHello at the beginning of `bytes`, which may be split into any number of
    /// records. The count in [`Decoded::Complete`] ends with the last record that it needed.
    ///
    /// `max_bytes` bounds what may be needed. Nothing is allocated before the message is whole.
    ///
    /// # Errors
    /// As soon as the bytes cannot be the beginning of a ClientHello, or need more than
    /// `max_bytes`.
    pub fn decode(bytes: &[u8], max_bytes: usize) -> Result<Decoded<Self>, ClientHelloError> {
        let mut records = Records { rest: bytes, taken: 0 };
        let mut first = [0; 4];
        let mut filled = 0;
        let mut fragments = 0_usize;
        let mut total = None;
        // Ends: each round takes a record of at least six bytes.
        while total.is_none_or(|total| fragments < total) {
            if records.taken + RECORD_HEADER >= max_bytes {
                return Err(ClientHelloError::TooLong { max: max_bytes });
            }
            let Some((fragment, is_whole)) = records.next()? else {
                return Ok(Decoded::Incomplete);
            };
            fragments += fragment.len();
            for &byte in fragment.iter().take(4 - filled) {
                first[filled] = byte;
                filled += 1;
            }
            if filled > 0 && first[0] != CLIENT_HELLO {
                return Err(malformed("the first handshake message must be a ClientHello"));
            }
            if filled == 4 && total.is_none() {
                let [_, a, b, c] = first;
                let len = 4 + u32::from_be_bytes([0, a, b, c]) as usize;
                // With the header of one record at least.
                if len + RECORD_HEADER > max_bytes {
                    return Err(ClientHelloError::TooLong { max: max_bytes });
                }
                total = Some(len);
            }
            if !is_whole && total.is_none_or(|total| fragments < total) {
                return within(records.taken, max_bytes);
            }
        }
        let total = total.unwrap_or_default();
        if records.taken > max_bytes {
            return Err(ClientHelloError::TooLong { max: max_bytes });
        }
        let message = Records { rest: bytes, taken: 0 }.join(total)?;
        let hello = Self::parse(&message[4..])?;
        Ok(Decoded::Complete(hello, records.taken.min(bytes.len())))
    }

    /// Decodes the body of the message.
    fn parse(body: &[u8]) -> Result<Self, ClientHelloError> {
        let mut body = Reader(body);
        // Version and random.
        body.take(2 + 32)?;
        if body.vector8()?.0.len() > 32 {
            return Err(malformed("a session id must have at most 32 bytes"));
        }
        let suites = body.vector16()?.0;
        if suites.is_empty() || suites.len() % 2 == 1 {
            return Err(malformed("cipher suites must be one or more pairs of bytes"));
        }
        if body.vector8()?.0.is_empty() {
            return Err(malformed("there must be a compression method"));
        }
        let mut hello = Self::default();
        // TLS before 1.3 may leave the extensions out.
        if body.0.is_empty() {
            return Ok(hello);
        }
        let mut extensions = body.vector16()?;
        if !body.0.is_empty() {
            return Err(malformed("nothing may follow the extensions"));
        }
        let mut seen = (false, false);
        // Ends: each round takes four bytes or more.
        while !extensions.0.is_empty() {
            let kind = extensions.u16()?;
            let data = extensions.vector16()?;
            match kind {
                EXTENSION_SERVER_NAME => {
                    once(&mut seen.0)?;
                    hello.server_name = server_name(data)?;
                }
                EXTENSION_ALPN => {
                    once(&mut seen.1)?;
                    hello.alpn = protocols(data)?;
                }
                _ => {}
            }
        }
        Ok(hello)
    }
}

fn within(taken: usize, max: usize) -> Result<Decoded<ClientHello>, ClientHelloError> {
    // The record that is under way will not fit.
    if taken > max {
        return Err(ClientHelloError::TooLong { max });
    }
    Ok(Decoded::Incomplete)
}

fn once(seen: &mut bool) -> Result<(), ClientHelloError> {
    if std::mem::replace(seen, true) {
        return Err(malformed("an extension must not be repeated"));
    }
    Ok(())
}

fn server_name(mut data: Reader<'_>) -> Result<Option<String>, ClientHelloError> {
    let mut names = data.vector16()?;
    if !data.0.is_empty() || names.0.is_empty() {
        return Err(malformed("the server name must be a list of one or more names"));
    }
    let mut found = None;
    // Ends: each round takes three bytes or more.
    while !names.0.is_empty() {
        let kind = names.u8()?;
        let name = names.vector16()?.0;
        if kind != 0 {
            continue;
        }
        if found.is_some() {
            return Err(malformed("there must be one host name"));
        }
        found = Some(host_name(name)?);
    }
    Ok(found)
}

/// A host name in lower case. Only bytes of host names are let through: the name is compared with
/// configured ones and written to logs.
fn host_name(name: &[u8]) -> Result<String, ClientHelloError> {
    let is_name = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_');
    let is_valid = (1..=255).contains(&name.len())
        && name.iter().all(is_name)
        && name[0] != b'.'
        && name[name.len() - 1] != b'.';
    if !is_valid {
        return Err(malformed("a host name must be of 1 to 255 letters, digits, '-', '_' and '.'"));
    }
    Ok(name.iter().map(|byte| char::from(byte.to_ascii_lowercase())).collect())
}

fn protocols(mut data: Reader<'_>) -> Result<Vec<Vec<u8>>, ClientHelloError> {
    let mut list = data.vector16()?;
    if !data.0.is_empty() || list.0.is_empty() {
        return Err(malformed("ALPN must be a list of one or more protocols"));
    }
    let mut protocols = Vec::new();
    // Ends: each round takes two bytes or more.
    while !list.0.is_empty() {
        let name = list.vector8()?.0;
        if name.is_empty() {
            return Err(malformed("the name of a protocol must not be empty"));
        }
        protocols.push(name.to_vec());
    }
    Ok(protocols)
}

/// The records at the beginning of a connection.
struct Records<'a> {
    rest: &'a [u8],
    /// Bytes up to the end of the last record that was begun, which may not have arrived.
    taken: usize,
}

impl<'a> Records<'a> {
    /// What has arrived of the next record's content, and whether that is all of it. `None` if
    /// its header is not complete.
    fn next(&mut self) -> Result<Option<(&'a [u8], bool)>, ClientHelloError> {
        if self.rest.first().is_some_and(|&kind| kind != CONTENT_HANDSHAKE) {
            return Err(if self.taken == 0 {
                ClientHelloError::NotTls
            } else {
                malformed("no other record may come between those of the message")
            });
        }
        if self.rest.get(1).is_some_and(|&major| major != 3) {
            return Err(ClientHelloError::NotTls);
        }
        let Some((header, rest)) = self.rest.split_first_chunk::<RECORD_HEADER>() else {
            return Ok(None);
        };
        let len = usize::from(u16::from_be_bytes([header[3], header[4]]));
        if len == 0 || len > MAX_RECORD {
            return Err(malformed("a record must have 1 to 16384 bytes"));
        }
        self.taken += RECORD_HEADER + len;
        let (fragment, rest) = rest.split_at(len.min(rest.len()));
        self.rest = rest;
        Ok(Some((fragment, fragment.len() == len)))
    }

    /// The first `total` bytes of the content, which have all arrived.
    fn join(mut self, total: usize) -> Result<Vec<u8>, ClientHelloError> {
        let mut message = Vec::with_capacity(total);
        // Ends: each round takes a record of at least six bytes.
        while message.len() < total {
            let Some((fragment, _)) = self.next()? else { break };
            let missing = total - message.len();
            message.extend_from_slice(&fragment[..fragment.len().min(missing)]);
        }
        Ok(message)
    }
}

/// Takes fields from the beginning of bytes.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, len: usize) -> Result<&'a [u8], ClientHelloError> {
        let (taken, rest) = self
            .0
            .split_at_checked(len)
            .ok_or_else(|| malformed("a length must not reach beyond what surrounds it"))?;
        self.0 = rest;
        Ok(taken)
    }

    fn u8(&mut self) -> Result<u8, ClientHelloError> {
        Ok(self.take(1)?[0])
    }

    fn u16(&mut self) -> Result<u16, ClientHelloError> {
        let bytes = self.take(2)?;
        Ok(u16::from_be_bytes([bytes[0], bytes[1]]))
    }

    fn vector8(&mut self) -> Result<Reader<'a>, ClientHelloError> {
        let len = usize::from(self.u8()?);
        self.take(len).map(Reader)
    }

    fn vector16(&mut self) -> Result<Reader<'a>, ClientHelloError> {
        let len = usize::from(self.u16()?);
        self.take(len).map(Reader)
    }
}
