//! Merkle trees: kept up to date by each write, what an exchange finds and what it costs, and
//! answers that nobody may trust.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use proptest::prelude::*;
use voussoir_quorum::merkle::*;
use voussoir_quorum::version::codec::DecodeError;
use voussoir_sim::{Rng, Situations};

fn table_key() -> HashKey {
    HashKey::new(*b"the table's key.")
}

fn name(at: u64) -> Bytes {
    Bytes::from(format!("user/{at:09}/cart"))
}

fn tree(config: &MerkleConfig) -> MerkleTree {
    MerkleTree::new(table_key(), config.clone()).unwrap()
}

/// Compares over bytes, as on a wire. Returns the keys that differ and the bytes exchanged.
fn compare(own: &MerkleTree, peer: &MerkleTree) -> (BTreeSet<Bytes>, usize) {
    let (config, mut bytes) = (own.config(), 0);
    let mut exchange = Exchange::new(own);
    // Ends: each answer takes a node, a part of a bucket or an id off the lists.
    while let Some(question) = exchange.question() {
        let question = codec::encode_question(&question, config);
        let answer = peer.answer(&codec::decode_question(question.clone(), config).unwrap());
        let answer = codec::encode_answer(&answer, config);
        bytes += question.len() + answer.len();
        exchange.answer(own, codec::decode_answer(answer, config).unwrap()).unwrap();
    }
    assert!(!exchange.is_cut());
    (exchange.differing().cloned().collect(), bytes)
}

/// One million keys with `VOUSSOIR_MERKLE_KEYS=1000000`.
#[test]
fn equal_replicas_exchange_little_and_differences_are_all_found() {
    let keys = std::env::var("VOUSSOIR_MERKLE_KEYS").map_or(100_000, |n| n.parse().unwrap());
    let mut one = tree(&MerkleConfig::default());
    (0..keys).for_each(|at| one.set(name(at), table_key().digest(&[1; 100])));
    let mut two = one.clone();
    let (found, bytes) = compare(&one, &two);
    assert!(found.is_empty());
    println!("{keys} equal keys: {bytes} B");
    assert!(bytes <= 16 << 10, "{bytes} bytes for equal replicas");
    let mut rng = Rng::new(1);
    let mut changed = BTreeSet::new();
    while changed.len() < 100 {
        let key = name(rng.below(keys));
        if changed.insert(key.clone()) {
            match changed.len() % 4 {
                0 => drop(one.remove(&key)),
                1 => drop(two.remove(&key)),
                2 => one.set(key, 7),
                _ => two.set(key, 7),
            }
        }
    }
    let (found, bytes) = compare(&one, &two);
    assert_eq!(found, changed, "all that differ, and no other");
    let states = 2 * 100 * changed.len();
    println!("{keys} keys, 100 differ: {bytes} B, and {states} B of states");
    assert!(bytes + states <= 256 << 10, "{bytes} bytes for 100 keys");
    for key in found {
        one.set(key.clone(), 9);
        two.set(key, 9);
    }
    let (found, _) = compare(&one, &two);
    assert!(found.is_empty(), "repairing twice transfers nothing");
    assert_eq!(one.root(), two.root());
}

static SITUATIONS: [&str; 7] = [
    "a key was removed",
    "the trees were equal",
    "a bucket took several answers",
    "an exchange was cut at its limit",
    "a key changed during the exchange",
    "a key was gone when it was asked for",
    "an answer was lost",
];

/// Writes, removals and exchanges in any order, at any configuration; two plain maps are the model.
#[test]
fn exchanges_find_what_differs_while_keys_change() {
    let situations = Situations::new(&SITUATIONS);
    for seed in 0..400 {
        let mut rng = Rng::new(seed);
        let mut config = MerkleConfig::default();
        config.depth = 1 + rng.below(3) as u8;
        config.max_nodes = 1 + rng.below(5) as usize;
        config.max_entries = 1 + rng.below(5) as usize;
        config.max_keys = 1 + rng.below(5) as usize;
        config.max_differing = *rng.pick(&[1, 5, 1_000]).unwrap();
        let mut trees = [tree(&config), tree(&config)];
        let mut models = [BTreeMap::new(), BTreeMap::new()];
        for _ in 0..20 {
            for _ in 0..rng.below(30) {
                write(&mut rng, &mut trees, &mut models, &situations);
            }
            exchange(&mut rng, &mut trees, &mut models, &situations);
        }
        // Without writes, exchanges end with nothing to repair.
        let mut rounds = 0;
        while trees[0].root() != trees[1].root() {
            repair(&mut trees, &mut models);
            rounds += 1;
            assert!(rounds < 400, "seed {seed}: an exchange repairs nothing");
        }
        assert_eq!(models[0], models[1], "seed {seed}");
        for (tree, model) in trees.iter().zip(&models) {
            let mut anew = self::tree(&config);
            for (key, digest) in model {
                anew.set(name(*key), *digest);
            }
            assert_eq!((tree.root(), tree.len()), (anew.root(), anew.len()), "seed {seed}");
        }
    }
    situations.assert_all_reached();
}

type Models = [BTreeMap<u64, u128>; 2];

fn write(rng: &mut Rng, trees: &mut [MerkleTree; 2], models: &mut Models, counts: &Situations) {
    let (at, key) = (rng.below(2) as usize, rng.below(60));
    if rng.chance(300_000) {
        let was_there = models[at].remove(&key).is_some();
        assert_eq!(trees[at].remove(&name(key)), was_there);
        counts.add("a key was removed", was_there.into());
    } else {
        let digest = u128::from(rng.below(3));
        trees[at].set(name(key), digest);
        models[at].insert(key, digest);
    }
    assert_eq!(trees[at].get(&name(key)), models[at].get(&key).copied());
}

/// Writes go on during the exchange; what is found then differed at some time.
fn exchange(rng: &mut Rng, trees: &mut [MerkleTree; 2], models: &mut Models, counts: &Situations) {
    let mut differed: BTreeSet<Bytes> = BTreeSet::new();
    let differ = |models: &Models| -> BTreeSet<Bytes> {
        let keys = (0..60).filter(|key| models[0].get(key) != models[1].get(key));
        keys.map(name).collect()
    };
    let always = differ(models);
    let (mut stays, mut exchange) = (always, Exchange::new(&trees[0]));
    differed.extend(stays.clone());
    while let Some(question) = exchange.question() {
        if rng.chance(100_000) {
            counts.reached("an answer was lost");
            continue;
        }
        if rng.chance(50_000) {
            write(rng, trees, models, counts);
            counts.reached("a key changed during the exchange");
            let now = differ(models);
            stays = stays.intersection(&now).cloned().collect();
            differed.extend(now);
        }
        let answer = trees[1].answer(&question);
        let gone = matches!(&answer, Answer::Keys { keys } if keys.contains(&None));
        counts.add("a key was gone when it was asked for", gone.into());
        let is_more = matches!(question, Question::Entries { after: Some(_), .. });
        counts.add("a bucket took several answers", is_more.into());
        exchange.answer(&trees[0], answer).unwrap();
    }
    let found: BTreeSet<Bytes> = exchange.differing().cloned().collect();
    assert!(found.is_subset(&differed), "a key that never differed");
    counts.add("the trees were equal", differed.is_empty().into());
    counts.add("an exchange was cut at its limit", exchange.is_cut().into());
    assert!(exchange.is_cut() || stays.is_subset(&found), "a key that always differed is missed");
}

/// Takes the greater digest of each key that differs.
fn repair(trees: &mut [MerkleTree; 2], models: &mut Models) {
    let mut exchange = Exchange::new(&trees[0]);
    while let Some(question) = exchange.question() {
        exchange.answer(&trees[0], trees[1].answer(&question)).unwrap();
    }
    let keys: Vec<_> = exchange.differing().cloned().collect();
    assert!(!keys.is_empty(), "the roots differ");
    for key in keys {
        let digest = trees[0].get(&key).max(trees[1].get(&key)).expect("one side has it");
        let number: u64 = std::str::from_utf8(&key[5..14]).unwrap().parse().unwrap();
        for (tree, model) in trees.iter_mut().zip(models.iter_mut()) {
            tree.set(key.clone(), digest);
            model.insert(number, digest);
        }
    }
}

/// A peer that answers anything: the exchange ends, with an error or with keys of that peer.
#[test]
fn answers_of_a_faulty_peer_are_refused_and_the_exchange_ends() {
    let mut refused = 0;
    for seed in 0..2_000 {
        let mut rng = Rng::new(seed);
        let mut config = MerkleConfig::default();
        (config.depth, config.max_entries, config.max_differing) = (2, 4, 50);
        config.max_keys = 1 + rng.below(80) as usize;
        let mut own = tree(&config);
        (0..40).for_each(|key| own.set(name(key), 1));
        let (mut exchange, mut turns) = (Exchange::new(&own), 0);
        while let Some(question) = exchange.question() {
            let mut number = || u128::from(rng.next_u64()) << 64 | u128::from(rng.next_u64());
            let answer = match (&question, number() % 8) {
                (_, 0) => Answer::Keys { keys: vec![None; (number() % 5) as usize] },
                (_, 1) => Answer::Entries { entries: Vec::new(), is_last: number() % 2 == 0 },
                (Question::Sums { nodes }, _) => {
                    Answer::Sums { sums: vec![std::array::from_fn(|_| number()); nodes.len()] }
                }
                (Question::Entries { bucket, after }, _) => {
                    // In the bucket and ascending, without an end.
                    let from = after.map_or(u128::from(*bucket) << 120, |after| after + 1);
                    let count = number() % 6;
                    let entry = |at| Entry { id: from + at, digest: at };
                    let is_last = count == 0 || number() % 4 == 0;
                    Answer::Entries { entries: (0..count).map(entry).collect(), is_last }
                }
                (Question::Keys { ids }, 2) => {
                    Answer::Keys { keys: vec![Some(name(99)); ids.len()] }
                }
                (Question::Keys { ids }, _) => Answer::Keys { keys: vec![None; ids.len()] },
                _ => unreachable!(),
            };
            if exchange.answer(&own, answer).is_err() {
                refused += 1;
                assert!(exchange.question().is_none() && exchange.is_cut(), "it is over");
            }
            turns += 1;
            assert!(turns < 2_000, "seed {seed}: the exchange does not end");
        }
        assert!(exchange.differing().all(|key| own.get(key).is_some()), "only keys that exist");
    }
    assert!(refused > 500, "{refused}");
}

/// A peer that names one entry after the other, and knows no key of any: what it named is counted,
/// not what is left to ask for.
#[test]
fn a_peer_that_names_entries_without_end_is_left() {
    let mut config = MerkleConfig::default();
    (config.depth, config.max_keys, config.max_differing) = (1, 1, 50);
    let own = tree(&config);
    let (mut exchange, mut turns) = (Exchange::new(&own), 0);
    while let Some(question) = exchange.question() {
        let answer = match question {
            Question::Sums { nodes } => Answer::Sums { sums: vec![[1; 16]; nodes.len()] },
            Question::Entries { bucket, after } => {
                let id = after.map_or(u128::from(bucket) << 124, |after| after + 1);
                Answer::Entries { entries: vec![Entry { id, digest: 1 }], is_last: false }
            }
            Question::Keys { ids } => Answer::Keys { keys: vec![None; ids.len()] },
            other => panic!("{other:?}"),
        };
        exchange.answer(&own, answer).unwrap();
        turns += 1;
        assert!(turns < 1_000, "the exchange does not end");
    }
    assert!(exchange.is_cut());
    assert_eq!((exchange.differing().count(), turns), (0, 101));
}

#[test]
fn questions_out_of_range_are_answered_with_nothing() {
    let mut config = MerkleConfig::default();
    (config.depth, config.max_nodes) = (1, 2);
    let mut own = tree(&config);
    own.set(name(1), 1);
    let nodes = [(1, 0), (0, 1), (0, u32::MAX), (255, 0), (0, 0)];
    for (level, at) in nodes {
        let answer = own.answer(&Question::Sums { nodes: vec![NodeId { level, at }; 5] });
        let Answer::Sums { sums } = answer else { panic!() };
        assert_eq!(sums.len(), if (level, at) == (0, 0) { 2 } else { 0 });
    }
    for (bucket, after) in
        [(16, None), (u32::MAX, None), (0, Some(u128::MAX)), (15, Some(u128::MAX))]
    {
        let nothing = Answer::Entries { entries: Vec::new(), is_last: true };
        assert_eq!(own.answer(&Question::Entries { bucket, after }), nothing);
    }
    let keys = own.answer(&Question::Keys { ids: vec![5] });
    assert_eq!(keys, Answer::Keys { keys: vec![None] });
}

#[test]
fn golden_bytes_of_questions_and_answers() {
    let mut config = MerkleConfig::default();
    config.depth = 2;
    let question = Question::Sums { nodes: vec![NodeId { level: 1, at: 3 }] };
    let bytes = codec::encode_question(&question, &config);
    assert_eq!(&bytes[..], [1, 1, 2, 0, 1, 0, 0, 0, 1, 3, 0, 0, 0]);
    let with = |at: usize, byte: u8| {
        let mut changed = bytes.to_vec();
        changed[at] = byte;
        codec::decode_question(changed.into(), &config).unwrap_err()
    };
    assert_eq!(with(0, 2), DecodeError::Version(2));
    assert_eq!(with(1, 9), DecodeError::Kind(9));
    assert_eq!(with(2, 4), DecodeError::Invalid("depth"));
    assert_eq!(with(3, 1), DecodeError::Invalid("reserved field"));
    assert_eq!(with(4, 65), DecodeError::AboveLimit("count of nodes"));
    assert_eq!(with(4, 2), DecodeError::Truncated);
    assert_eq!(with(4, 0), DecodeError::Trailing);
    assert_eq!(with(8, 2), DecodeError::Invalid("node"));
    assert_eq!(with(9, 16), DecodeError::Invalid("node"));
    let answer = Answer::Keys { keys: vec![None, Some(Bytes::from_static(b"k"))] };
    let bytes = codec::encode_answer(&answer, &config);
    assert_eq!(&bytes[..], [1, 6, 2, 0, 2, 0, 0, 0, 255, 255, 255, 255, 1, 0, 0, 0, b'k']);
    config.max_key_bytes = 1;
    assert_eq!(codec::decode_answer(bytes, &config), Ok(answer));
}

fn questions() -> impl Strategy<Value = Question> {
    let node = (0..4_u8, 0..4096_u32)
        .prop_map(|(level, at)| NodeId { level, at: at % 16_u32.pow(level.into()) });
    prop_oneof![
        proptest::collection::vec(node, 0..64).prop_map(|nodes| Question::Sums { nodes }),
        (0..65_536_u32, any::<Option<u128>>())
            .prop_map(|(bucket, after)| Question::Entries { bucket, after }),
        proptest::collection::vec(any::<u128>(), 0..64).prop_map(|ids| Question::Keys { ids }),
    ]
}

fn answers() -> impl Strategy<Value = Answer> {
    let key = proptest::option::of(proptest::collection::vec(any::<u8>(), 0..9));
    let entries = proptest::collection::btree_map(any::<u128>(), any::<u128>(), 0..9);
    prop_oneof![
        proptest::collection::vec(any::<[u128; 16]>(), 0..4).prop_map(|sums| Answer::Sums { sums }),
        (entries, any::<bool>()).prop_map(|(entries, is_last)| {
            let entries = entries.into_iter().map(|(id, digest)| Entry { id, digest });
            Answer::Entries { entries: entries.collect(), is_last }
        }),
        proptest::collection::vec(key, 0..9).prop_map(|keys| Answer::Keys {
            keys: keys.into_iter().map(|key| key.map(Bytes::from)).collect()
        }),
    ]
}

proptest! {
    #[test]
    fn what_is_encoded_is_decoded(question in questions(), answer in answers()) {
        let config = MerkleConfig::default();
        let bytes = codec::encode_question(&question, &config);
        prop_assert_eq!(codec::decode_question(bytes, &config), Ok(question));
        let bytes = codec::encode_answer(&answer, &config);
        prop_assert_eq!(codec::decode_answer(bytes, &config), Ok(answer));
    }

    #[test]
    fn changed_bytes_are_refused_or_canonical(
        question in questions(),
        answer in answers(),
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let config = MerkleConfig::default();
        let changed = |bytes: Bytes| {
            let mut bytes = bytes.to_vec();
            for (at, byte) in &changes {
                let at = at.index(bytes.len());
                bytes[at] = *byte;
            }
            Bytes::from(bytes)
        };
        let bytes = changed(codec::encode_question(&question, &config));
        if let Ok(decoded) = codec::decode_question(bytes.clone(), &config) {
            prop_assert_eq!(codec::encode_question(&decoded, &config), bytes);
        }
        let bytes = changed(codec::encode_answer(&answer, &config));
        if let Ok(decoded) = codec::decode_answer(bytes.clone(), &config) {
            prop_assert_eq!(codec::encode_answer(&decoded, &config), bytes);
        }
    }

    #[test]
    fn random_bytes_are_never_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let (bytes, config) = (Bytes::from(bytes), MerkleConfig::default());
        let _ = codec::decode_question(bytes.clone(), &config);
        let _ = codec::decode_answer(bytes, &config);
    }

    #[test]
    fn a_configuration_that_validates_works(
        depth in 0..8_u8,
        limits in proptest::array::uniform5(proptest::sample::select(vec![
            0, 1, 2, 4_096, 65_536, 1_000_001,
        ])),
    ) {
        let mut config = MerkleConfig::default();
        config.depth = depth.min(5);
        [config.max_nodes, config.max_entries, config.max_keys, ..] = limits;
        [.., config.max_key_bytes, config.max_differing] = limits;
        let Ok(mut one) = MerkleTree::new(table_key(), config.clone()) else {
            prop_assert!(config.validate().is_err());
            return Ok(());
        };
        (0..9).for_each(|key| one.set(Bytes::from(vec![key]), 1));
        let two = tree(&config);
        let mut exchange = Exchange::new(&one);
        while let Some(question) = exchange.question() {
            exchange.answer(&one, two.answer(&question)).unwrap();
        }
        let found = exchange.differing().count();
        prop_assert!(found == 9 || (exchange.is_cut() && found >= config.max_differing.min(9)));
    }
}
