//! What holds for any bytes that a decoder gets. Also the body of the fuzz targets.

use voussoir_lb::l4::{Addresses, ClientHello, Decoded, ProxyHeader, ProxyVersion};

const MAX: usize = 4_096;

/// A PROXY header is decoded or refused within the bound, at every cut, and means the same after
/// being encoded.
pub(crate) fn proxy_header(bytes: &[u8]) {
    let decode = |bytes: &[u8]| ProxyHeader::decode(bytes, MAX);
    let (header, len) = match decode(bytes) {
        Ok(Decoded::Complete(header, len)) => (header, len),
        Ok(Decoded::Incomplete) => {
            return assert!(bytes.len() < MAX, "more than the bound is read");
        }
        Err(error) => return assert_eq!(decode(&[bytes, b"\r\n"].concat()), Err(error)),
    };
    assert!(len <= bytes.len().min(MAX));
    assert_eq!(decode(&bytes[..len]), Ok(Decoded::Complete(header.clone(), len)));
    for cut in [0, 1, len / 2, len - 1] {
        assert_eq!(decode(&bytes[..cut]), Ok(Decoded::Incomplete));
    }
    let line = header.encode(ProxyVersion::V1);
    let Ok(Decoded::Complete(found, _)) = decode(&line) else { panic!("{line:?}") };
    // Version 1 knows TCP only.
    if let Addresses::Tcp { .. } = header.addresses {
        assert_eq!(found.source(), header.source());
    }
    let binary = header.encode(ProxyVersion::V2);
    let Ok(Decoded::Complete(found, _)) = decode(&binary) else { panic!("{binary:?}") };
    assert_eq!((&found.addresses, found.local), (&header.addresses, header.local));
    // Behind an unknown family there is nothing to be found.
    if header.addresses != Addresses::Unknown {
        assert_eq!(found.tlvs, header.tlvs);
    }
}

/// A ClientHello is decoded or refused within the bound, at every cut, and means the same in
/// records of one byte.
pub(crate) fn client_hello(bytes: &[u8]) {
    let decode = |bytes: &[u8]| ClientHello::decode(bytes, MAX);
    let (hello, len) = match decode(bytes) {
        Ok(Decoded::Complete(hello, len)) => (hello, len),
        Ok(Decoded::Incomplete) => {
            return assert!(bytes.len() < MAX, "more than the bound is read");
        }
        Err(error) => return assert_eq!(decode(&[bytes, &[0; 9]].concat()), Err(error)),
    };
    assert!(len <= bytes.len().min(MAX));
    assert_eq!(decode(&bytes[..len]), Ok(Decoded::Complete(hello.clone(), len)));
    for cut in [0, 1, 5] {
        assert_eq!(decode(&bytes[..cut]), Ok(Decoded::Incomplete));
    }
    let mut message = Vec::new();
    let mut rest = bytes;
    while let Some((&[_, _, _, high, low], after)) = rest.split_first_chunk::<5>() {
        let size = usize::from(u16::from_be_bytes([high, low])).min(after.len());
        message.extend_from_slice(&after[..size]);
        rest = &after[size..];
    }
    let end = 4 + u32::from_be_bytes([0, message[1], message[2], message[3]]) as usize;
    let tiny: Vec<u8> = message[..end].iter().flat_map(|&byte| [22, 3, 3, 0, 1, byte]).collect();
    let Ok(Decoded::Complete(found, _)) = ClientHello::decode(&tiny, 6 * MAX) else {
        panic!("{tiny:?}")
    };
    assert_eq!(found, hello);
}
