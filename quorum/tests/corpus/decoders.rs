//! What arrives is decoded or refused; what is decoded has one encoding and is safe to use.

use bytes::Bytes;
use voussoir_quorum::crdt::codec::{Encoded, Limits};
use voussoir_quorum::crdt::{
    Flag, GCounter, LwwRegister, Map, MvRegister, OrMap, OrSet, PnCounter,
};
use voussoir_quorum::merkle::{Exchange, HashKey, MerkleConfig, MerkleTree, codec as tree_codec};
use voussoir_quorum::version::codec;

pub(crate) fn siblings(bytes: &[u8]) {
    let (bytes, limits) = (Bytes::copy_from_slice(bytes), codec::Limits::default());
    if let Ok(siblings) = codec::decode_siblings(bytes.clone(), &limits) {
        assert_eq!(codec::encode_siblings(&siblings), bytes);
        let mut merged = siblings.clone();
        merged.merge(siblings.clone());
        assert_eq!(merged, siblings);
    }
    if let Ok(context) = codec::decode_context(bytes.clone(), &limits) {
        assert_eq!(codec::encode_context(&context), bytes);
    }
}

pub(crate) fn crdt(bytes: &[u8]) {
    let bytes = Bytes::copy_from_slice(bytes);
    one_encoding::<GCounter>(&bytes);
    one_encoding::<PnCounter>(&bytes);
    one_encoding::<LwwRegister<Bytes>>(&bytes);
    one_encoding::<OrSet<Bytes>>(&bytes);
    one_encoding::<MvRegister<Bytes>>(&bytes);
    one_encoding::<OrMap<Bytes, Map<Bytes, Flag>>>(&bytes);
}

fn one_encoding<C: Encoded + PartialEq + std::fmt::Debug>(bytes: &Bytes) {
    let Ok(value) = C::decode(bytes.clone(), &Limits::default()) else { return };
    assert_eq!(value.encode(), bytes);
    let mut merged = C::default();
    merged.merge(&value);
    merged.merge(&value);
    assert_eq!(merged, value, "merging keeps it as it is");
}

pub(crate) fn merkle(bytes: &[u8]) {
    let bytes = Bytes::copy_from_slice(bytes);
    let mut config = MerkleConfig::default();
    config.depth = 2;
    let mut tree = MerkleTree::new(HashKey::new([7; 16]), config.clone()).expect("it is valid");
    (0..50).for_each(|key| tree.set(Bytes::from(vec![key]), u128::from(key)));
    if let Ok(question) = tree_codec::decode_question(bytes.clone(), &config) {
        assert_eq!(tree_codec::encode_question(&question, &config), bytes);
        let answer = tree_codec::encode_answer(&tree.answer(&question), &config);
        assert!(tree_codec::decode_answer(answer, &config).is_ok(), "what is answered is read");
    }
    if let Ok(answer) = tree_codec::decode_answer(bytes.clone(), &config) {
        assert_eq!(tree_codec::encode_answer(&answer, &config), bytes);
        let mut exchange = Exchange::new(&tree);
        // Ends: an answer that does not fit ends the exchange, and one that fits goes deeper.
        while exchange.question().is_some() && exchange.answer(&tree, answer.clone()).is_ok() {}
    }
}
