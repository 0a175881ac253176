//! Answers of the real systems, each with its source. One that changes moves somebody's data.

use std::num::NonZeroU32;

use voussoir_ring::compat::{cassandra, kafka, ketama, nginx, redis};
use voussoir_ring::hash::{self, crc16, crc32, md5, murmur2};
use voussoir_ring::{HashRing, Maglev, Memento, Node, Partitioner, Rendezvous, Topology, Weight};

/// lithammer/go-jump-consistent-hash, `jump_test.go`.
#[test]
fn jump_hash_as_published() {
    for (key, buckets, bucket) in
        [(1, 1, 0), (42, 57, 43), (0xDEAD_10CC, 1, 0), (0xDEAD_10CC, 666, 361), (256, 1024, 520)]
    {
        assert_eq!(voussoir_ring::jump(key, NonZeroU32::new(buckets).unwrap()), bucket);
    }
}

/// Redis 7.0.15, `CLUSTER KEYSLOT`; the check value also in the Redis Cluster specification.
#[test]
fn redis_slots_and_hash_tags() {
    assert_eq!(crc16(b"123456789"), 0x31C3);
    for (key, slot) in [
        ("123456789", 12739),
        ("foo", 12182),
        ("{foo}bar", 12182),
        ("foo{}{bar}", 8363),
        ("foo{{bar}}zap", 4015),
        ("foo{bar}{zap}", 5061),
        ("hello", 866),
        ("{user1000}.following", 3443),
        ("{user1000}.followers", 3443),
        ("", 0),
    ] {
        assert_eq!(redis::slot(key.as_bytes()), slot, "{key}");
    }
}

/// apache/kafka, `UtilsTest.testMurmur2`; the last four from librdkafka's `rdmurmur2.c`.
#[test]
fn kafka_murmur2() {
    for (key, hash) in [
        ("21", -973_932_308),
        ("foobar", -790_332_482),
        ("a-little-bit-long-string", -985_981_536),
        ("a-little-bit-longer-string", -1_486_304_829),
        ("lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58_897_971),
        ("abc", 479_470_107),
        ("kafka", 0xd067_cf64_u32.cast_signed()),
        ("giberish123456789", 0x8f55_2b0c_u32.cast_signed()),
        ("1234", 0x9fc9_7b14_u32.cast_signed()),
        ("", 0x106e_08d9),
    ] {
        assert_eq!(murmur2(key.as_bytes()).cast_signed(), hash, "{key}");
        let twelve = NonZeroU32::new(12).unwrap();
        assert_eq!(kafka::partition(key.as_bytes(), twelve), (hash & i32::MAX) as u32 % 12);
    }
}

/// The first five are in the tests of python-driver, ruby-driver and elixir-cassandra alike; the
/// rest in `TokenTests.cs` of datastax/csharp-driver, "inputs and result values from Cassandra",
/// and in elixir-cassandra's `murmur3_test.exs`.
#[test]
fn cassandra_murmur3_tokens() {
    let repeated = |bytes: &[u8], times: usize| bytes.repeat(times);
    for (key, token) in [
        (b"123".to_vec(), -7_468_325_962_851_647_638),
        (repeated(b"\x00\xff\x10\xfa\x99", 10), 5_837_342_703_291_459_765),
        (repeated(b"\xfe", 8), -8_927_430_733_708_461_935),
        (repeated(b"\x10", 8), 1_446_172_840_243_228_796),
        (b"9223372036854775807".to_vec(), 7_162_290_910_810_015_547),
        ((1..=16).collect(), -5_563_837_382_979_743_776),
        ((2..=17).collect(), -1_513_403_162_740_402_161),
        ((3..=18).collect(), -495_360_443_712_684_655),
        ((4..=19).collect(), 1_734_091_135_765_407_943),
        ((5..=20).collect(), -3_199_412_112_042_527_988),
        ((6..=21).collect(), -6_316_563_938_475_080_831),
        ((7..=22).collect(), 8_228_893_370_679_682_632),
        (repeated(b"\x00", 16), 5_457_549_051_747_178_710),
        (repeated(b"\xff", 16), -2_824_192_546_314_762_522),
        (repeated(b"\xfe", 16), -833_317_529_301_936_754),
        (repeated(b"\xfe", 17), -1_672_437_813_826_982_685),
        (repeated(b"\xfe", 4), 4_566_408_979_886_474_012),
        (repeated(b"\x00", 4), -3_485_513_579_396_041_028),
        (b"\x00\x01\x7f\x7f".to_vec(), 6_573_459_401_642_635_627),
        (b"\x00\xff\xff\xff".to_vec(), 123_573_637_386_978_882),
        (b"\xff\x01\x02\x03".to_vec(), -2_839_127_690_952_877_842),
        (b"\xe2\xe7".to_vec(), -8_582_699_461_035_929_883),
        (b"\xe2\xe7\xe2\xe7\xe2\xe7\x01".to_vec(), 2_222_373_981_930_033_306),
    ] {
        assert_eq!(cassandra::token(&key), token, "{key:x?}");
    }
    // `Murmur3Partitioner.getToken` answers MINIMUM for the empty key, which the first token of
    // the ring owns.
    assert_eq!(cassandra::token(b""), i64::MIN);
    let ring = cassandra::TokenRing::new([(i64::MAX, 3), (0, 2), (i64::MIN + 1, 1)]).unwrap();
    assert_eq!(&*ring.owners(b"", 3), [1, 2, 3]);
}

fn hex(digest: [u8; 16]) -> String {
    format!("{:032x}", u128::from_be_bytes(digest))
}

/// RFC 1321, appendix A.5.
#[test]
fn md5_suite() {
    for (text, digest) in [
        ("", "d41d8cd98f00b204e9800998ecf8427e"),
        ("a", "0cc175b9c0f1b6a831c399e269772661"),
        ("abc", "900150983cd24fb0d6963f7d28e17f72"),
        ("message digest", "f96b697d7cb7938d525a2f31aaf161d0"),
        ("abcdefghijklmnopqrstuvwxyz", "c3fcd3d76192e4007dfb496cca67e13b"),
        (
            "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789",
            "d174ab98d277d9f5a5611c2c9f419d9f",
        ),
        (
            "12345678901234567890123456789012345678901234567890123456789012345678901234567890",
            "57edf4a22be3c955ac49da2e2107b67a",
        ),
    ] {
        assert_eq!(hex(md5(text.as_bytes())), digest);
    }
}

/// libketama's own test (`libketama/test.sh` of RJ/ketama): the MD5 of what `ketama_test` prints
/// for its `ketama.servers` is known. It prints hash, point and server of a million keys.
#[test]
fn ketama_golden_output() {
    let memory = [600, 300, 200, 350, 1000, 800, 950, 100];
    let servers: Vec<ketama::Server> = memory
        .into_iter()
        .zip(1..)
        .map(|(memory, id)| ketama::Server::new(id, format!("10.0.1.{id}:11211"), memory))
        .collect();
    let continuum = ketama::Ketama::new(&servers).unwrap();
    let mut printed = String::from("\n");
    for number in 0..1_000_000_u32 {
        let key = number.to_string();
        let (point, id) = continuum.point(key.as_bytes());
        let address = &servers[id as usize - 1].address;
        std::fmt::Write::write_fmt(
            &mut printed,
            format_args!("{} {point} {address}\n", ketama::hash(key.as_bytes())),
        )
        .unwrap();
    }
    let digest = hex(md5(printed.as_bytes()));
    assert_eq!(digest, "5672b131391f5aa2b280936aec1eea74");
}

/// Rows of `pingora-ketama/test-data/sample-nginx-upstream.csv` of cloudflare/pingora, the access
/// log of an nginx with nine servers of weight 100; and nginx 1.22.1 asked for key0 to key19 over
/// three servers of weight 1.
#[test]
fn nginx_consistent_hash() {
    assert_eq!(crc32(b"123456789"), 0xCBF4_3926);
    let nine: Vec<_> =
        (1..=9).map(|n| nginx::Server::new(n, format!("10.0.0.{n}:443"), 100)).collect();
    let nine = nginx::Consistent::new(&nine).unwrap();
    for (uri, server) in [
        ("/81fa1d251d605775d647b5b55565e71526d4cef6", 7),
        ("/2fec328e6ccdda6a7edf329f9f780e546ea183b4", 5),
        ("/19fb835d90883a6263ec4279c6da184e3f1a79b2", 4),
        ("/da7a88e542f7aaddc074f988164b9df7e5f7fea6", 4),
        ("/8f87cfd8005306643b6528b3d4125cf005139a7e", 5),
        ("/26d2769eab098458bc3e4e641a4b7d8abffd0aea", 6),
        ("/aa5b5323980f2d3e21246212ebd820c3949c1e88", 7),
        ("/d9c4bc3cc4517c629e8f4c911c2fd8baf260ae65", 1),
        ("/28c1c069a2904bb3b3e0f9731b1ff8de9ab7a76d", 4),
        ("/fe5199bdfeee5cd431ae7e9f77f178164f9995a0", 9),
        ("/43992eee187920c5e8695332f71ca6e23ef6ac4b", 3),
        ("/668fd6d99bfb50b85b0928a8915761be2ca19089", 2),
        ("/fefbfb22035c938b44d305dbb71b11d531257af8", 2),
        ("/77766138aaf0c016bdd1f6b996177fc8ca1d2204", 8),
        ("/a8762dc488e1a1af31e53af8ddb887d4f3cca990", 8),
        ("/4902696d40151e903ec5bf810f2b82af7bf92799", 3),
    ] {
        assert_eq!(nine.owner(uri.as_bytes()), server, "{uri}");
    }
    let ports = [(0, 18191), (1, 18192), (2, 18193)];
    let three = ports.map(|(id, port)| nginx::Server::new(id, format!("127.0.0.1:{port}"), 1));
    let three = nginx::Consistent::new(&three).unwrap();
    let answered: String = (0..20)
        .map(|n| ['a', 'b', 'c'][three.owner(format!("key{n}").as_bytes()) as usize])
        .collect();
    assert_eq!(answered, "cabcccaaacbbcbbcbaca");
    // Without a port, with port 80, and a Unix socket: as `tests/nginx_live.rs` sees it.
    let named = ["127.0.0.2", "127.0.0.3:80", "unix:/nonexistent/a.sock"];
    let named = named.iter().zip(0..).map(|(name, id)| nginx::Server::new(id, *name, 1));
    let named = nginx::Consistent::new(&named.collect::<Vec<_>>()).unwrap();
    let answered: String = (0..20)
        .map(|n| ['a', 'b', 'c'][named.owner(format!("key-{n}").as_bytes()) as usize])
        .collect();
    assert_eq!(answered, "acbbacabacacabbcbcca");
}

/// The xxHash specification's sanity checks, and the finaliser of SplitMix64 for its first outputs
/// from seed 0 (as in the reference implementation by Vigna).
#[test]
fn our_own_hashes_are_pinned() {
    assert_eq!(hash::key(b""), 0x2d06_8005_38d3_94c2);
    let golden = 0x9e37_79b9_7f4a_7c15_u64;
    assert_eq!(hash::mix(golden), 0xe220_a839_7b1d_cdaf);
    assert_eq!(hash::mix(golden.wrapping_mul(2)), 0x6e78_9e6a_a1b9_65f4);
    assert_eq!(hash::mix(golden.wrapping_mul(3)), 0x06c4_5d18_8009_454f);
}

fn fingerprint(partitioner: &dyn Partitioner) -> u64 {
    (0..10_000_u32).fold(0, |sum, n| {
        let key = n.to_le_bytes();
        let owners = partitioner.owners(&key, 3);
        assert_eq!(owners[0], partitioner.owner(&key));
        owners.iter().fold(sum, |sum, id| hash::mix(sum ^ id))
    })
}

/// Our own placements, pinned: a release that changes one of these moves users' data.
#[test]
fn our_own_placements_are_pinned() {
    let zones = ["a", "b", "c"];
    let even =
        Topology::new(1, (0..30).map(|id| Node::new(id * id).in_zone(zones[id as usize % 3])))
            .unwrap();
    let uneven = even
        .nodes()
        .iter()
        .cloned()
        .enumerate()
        .map(|(at, node)| node.weighing(Weight::milli(500 + 100 * at as u32).unwrap()));
    let uneven = Topology::new(2, uneven).unwrap();
    let mut memento = Memento::new(&even).unwrap();
    for id in [16, 0, 841, 100] {
        memento.remove(id).unwrap();
    }
    let pinned: [(&str, Box<dyn Partitioner>, u64); 6] = [
        ("ring", Box::new(HashRing::new(&even).unwrap()), 7_198_375_377_689_324_818),
        ("ring, weighted", Box::new(HashRing::new(&uneven).unwrap()), 11_793_755_151_359_413_955),
        ("rendezvous", Box::new(Rendezvous::new(&even).unwrap()), 15_053_922_012_283_106_888),
        (
            "rendezvous, weighted",
            Box::new(Rendezvous::new(&uneven).unwrap()),
            12_043_632_417_502_737_404,
        ),
        ("Maglev, weighted", Box::new(Maglev::new(&uneven).unwrap()), 15_931_380_864_007_540_683),
        ("Memento", Box::new(memento), 6_497_970_804_443_972_142),
    ];
    let found: Vec<_> = pinned.iter().map(|(name, it, _)| (*name, fingerprint(&**it))).collect();
    let wanted: Vec<_> = pinned.iter().map(|(name, _, print)| (*name, *print)).collect();
    assert_eq!(found, wanted);
}
