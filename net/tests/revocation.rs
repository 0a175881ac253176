//! Revocation lists of authorities: several of one, of two that share a name, and ones that cannot
//! be used.

#[path = "support/certs.rs"]
mod certs;
mod support;

use std::sync::Arc;

use certs::*;
use support::{Echo, Node, SERVICE, SMALL, later, until};
use tokio::sync::mpsc;
use voussoir_net::{
    Event, HandshakeError, Peers, Tcp, Tls, TlsConfig, TlsConfigError, TlsError, Transport,
};

async fn tls_node(tls: Tls, peers: &Peers) -> Node {
    let (id, any) = (tls.id(), "127.0.0.1:0".parse().unwrap());
    let peers_of_node = Arc::new(peers.clone());
    let tcp = Tcp::bind_tls(id, any, peers_of_node, support::config(), tls).await.unwrap();
    peers.insert(id, tcp.address());
    let (sender, got) = mpsc::unbounded_channel();
    tcp.serve(SERVICE, Arc::new(Echo(sender))).unwrap();
    Node { tcp, got }
}

/// Dials a node that has these certificates. Fails as that node rejects its peer.
async fn dials(config: TlsConfig, peer: Tls) -> Result<(), HandshakeError> {
    let peers = Peers::new();
    let one = tls_node(Tls::new(config).unwrap(), &peers).await;
    let two = tls_node(peer, &peers).await;
    let mut events = one.tcp.events();
    match two.tcp.call(1, SMALL, "x".into(), later()).await {
        Ok(_) => Ok(()),
        Err(_) => {
            let is_rejected = |event: &Event| matches!(event, Event::AcceptRejected { .. });
            let event = until(&mut events, "the rejection of who came in", is_rejected).await;
            let Event::AcceptRejected { error, .. } = event else { unreachable!() };
            Err(error)
        }
    }
}

const REVOKED: Result<(), HandshakeError> = Err(HandshakeError::Tls(TlsError::Revoked));

#[tokio::test]
async fn each_list_of_an_authority_revokes() {
    let authority = Authority::new("ca");
    let issued: Vec<Issued> = (2..5).map(|id| authority.issue(params(id))).collect();
    let mut config = authority.config(&authority.issue(params(1)));
    let lists = [&issued[0], &issued[1]].map(|one| authority.revoke(&[one.serial]));
    config.revocation_lists_pem = lists.concat().into();
    for (one, expected) in issued.iter().zip([REVOKED, REVOKED, Ok(())]) {
        assert_eq!(dials(config.clone(), authority.tls_of(one)).await, expected);
    }
}

/// An authority that is replaced by one of the same name with another key: the lists of neither
/// say anything about certificates of the other.
#[tokio::test]
async fn authorities_of_one_name_have_lists_of_their_own() {
    let (old, new) = (Authority::new("ca"), Authority::new("ca"));
    let authorities_pem = [&*old.pem, &*new.pem].concat();
    let config_of =
        |issued: &Issued| TlsConfig::new(&*authorities_pem, &*issued.chain_pem, &*issued.key_pem);
    let mut peers = Vec::new();
    let mut lists = Vec::new();
    // Each list has a number that is a good certificate's of the other authority.
    let issued = [&old, &new].map(|one| (one.issue(params(2)), one.issue(params(3))));
    for (authority, of_other) in [(&old, &issued[1].0), (&new, &issued[0].0)] {
        let (good, revoked) = &issued[lists.len()];
        lists.push(authority.revoke(&[revoked.serial, of_other.serial]));
        peers.push((Tls::new(config_of(good)).unwrap(), Ok(())));
        peers.push((Tls::new(config_of(revoked)).unwrap(), REVOKED));
    }
    let mut config = config_of(&new.issue(params(1)));
    for _ in 0..2 {
        config.revocation_lists_pem = lists.concat().into();
        for (peer, expected) in &peers {
            assert_eq!(dials(config.clone(), peer.clone()).await, *expected);
        }
        lists.reverse();
    }
    // The new key vouches for the old one by a certificate between, of the same name again.
    let bridge = new.intermediate("ca");
    let mut crossed = bridge.issue(params(4));
    crossed.chain_pem.push_str(&bridge.pem);
    let peer = Tls::new(config_of(&crossed)).unwrap();
    assert_eq!(dials(config.clone(), peer.clone()).await, Ok(()));
    config.revocation_lists_pem.extend(bridge.revoke(&[crossed.serial]).bytes());
    config.chain_pem.extend(bridge.pem.bytes());
    assert_eq!(dials(config, peer).await, REVOKED);
}

/// A list that cannot be used is an error of the reload, and not of each peer.
#[tokio::test]
async fn a_list_that_its_authority_has_not_signed_changes_nothing() {
    let (authority, peers) = (Authority::new("ca"), Peers::new());
    let own = authority.issue(params(1));
    let tls = authority.tls_of(&own);
    let one = tls_node(tls.clone(), &peers).await;
    let two = tls_node(authority.tls(2), &peers).await;
    assert!(two.tcp.call(1, SMALL, "x".into(), later()).await.is_ok());
    let before = two.tcp.stats();
    let good = authority.revoke(&[5]);
    let forged = Authority::new("ca").revoke(&[5]);
    let of_own = authority.revoke(&[own.serial]);
    for (list, rule) in [(forged, "must be signed"), (of_own, "must not revoke")] {
        let mut config = authority.config(&own);
        config.revocation_lists_pem = [&*good, &*list].concat().into();
        for answer in [tls.reload(config.clone()), Tls::new(config).map(drop)] {
            let error = answer.unwrap_err();
            let TlsConfigError::Pem { field, rule: told } = &error else { panic!("{error}") };
            assert_eq!(*field, "revocation_lists_pem");
            assert!(told.starts_with(rule), "{told}");
        }
    }
    assert!(two.tcp.call(1, SMALL, "x".into(), later()).await.is_ok());
    assert_eq!(two.tcp.stats().connected, before.connected, "it keeps its connections");
    // Of an authority that is not known here it says nothing.
    let mut config = authority.config(&own);
    config.revocation_lists_pem = Authority::new("another").revoke(&[5]).into();
    tls.reload(config).unwrap();
    assert!(two.tcp.call(1, SMALL, "x".into(), later()).await.is_ok());
    assert_eq!(one.tcp.stats().revoked, 0);
}
