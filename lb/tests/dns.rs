//! Discovery over DNS records, against a name server that answers as it is told.

use std::collections::HashMap;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use hickory_resolver::proto::op::{Message, OpCode, ResponseCode};
use hickory_resolver::proto::rr::rdata::{A, AAAA, CNAME, SRV};
use hickory_resolver::proto::rr::{Name, RData, Record, RecordType};
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, UdpSocket};
use tokio::time::{Instant, sleep};
use voussoir_lb::discovery::*;
use voussoir_lb::strategy::RoundRobin;
use voussoir_lb::*;

#[derive(Clone)]
enum Answer {
    Records(Vec<Record>),
    Fails(ResponseCode),
}

/// A name server on UDP and TCP of one port. A name that it was not told of does not exist.
#[derive(Clone, Default)]
struct Server {
    answers: Arc<Mutex<HashMap<(Name, RecordType), Answer>>>,
    asked: Arc<Mutex<Vec<(Name, RecordType)>>>,
}

impl Server {
    async fn start() -> (Self, SocketAddr) {
        let server = Self::default();
        // Ends: as soon as a port is free for both.
        let (udp, tcp) = loop {
            let tcp = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
            if let Ok(udp) = UdpSocket::bind(tcp.local_addr().expect("bound")).await {
                break (udp, tcp);
            }
        };
        let address = tcp.local_addr().expect("bound");
        tokio::spawn(server.clone().serve_udp(udp));
        tokio::spawn(server.clone().serve_tcp(tcp));
        (server, address)
    }

    async fn serve_udp(self, socket: UdpSocket) {
        let mut question = [0; 512];
        // Ends with the test's runtime.
        loop {
            let (length, client) = socket.recv_from(&mut question).await.expect("a question");
            let mut answer = self.answer(&question[..length]);
            if answer.len() > 512 {
                let mut short = Message::from_vec(&answer).expect("our own").truncate();
                short.metadata.truncation = true;
                answer = short.to_vec().expect("short");
            }
            socket.send_to(&answer, client).await.expect("sent");
        }
    }

    async fn serve_tcp(self, listener: TcpListener) {
        // Ends with the test's runtime.
        loop {
            let (mut client, _) = listener.accept().await.expect("a client");
            let server = self.clone();
            tokio::spawn(async move {
                // Ends: the client closes.
                while let Ok(length) = client.read_u16().await {
                    let mut question = vec![0; length.into()];
                    client.read_exact(&mut question).await.expect("a whole question");
                    let answer = server.answer(&question);
                    client.write_u16(answer.len() as u16).await.expect("sent");
                    client.write_all(&answer).await.expect("sent");
                }
            });
        }
    }

    fn answer(&self, question: &[u8]) -> Vec<u8> {
        let question = Message::from_vec(question).expect("a question");
        let mut answer = Message::response(question.metadata.id, OpCode::Query);
        answer.metadata.recursion_desired = true;
        let query = question.queries[0].clone();
        answer.add_query(query.clone());
        let key = (query.name.to_lowercase(), query.query_type);
        self.asked.lock().push(key.clone());
        match self.answers.lock().get(&key) {
            Some(Answer::Records(records)) => {
                answer.add_answers(records.iter().cloned());
            }
            Some(Answer::Fails(code)) => answer.metadata.response_code = *code,
            None => answer.metadata.response_code = ResponseCode::NXDomain,
        }
        answer.to_vec().expect("a message")
    }

    fn set(&self, name: &str, kind: RecordType, answer: Answer) {
        self.answers.lock().insert((full(name), kind), answer);
    }

    fn set_v4(&self, name: &str, ttl: u32, last_bytes: &[u8]) {
        let record = |last: &u8| {
            let data = RData::A(A(Ipv4Addr::new(10, 0, 0, *last)));
            Record::from_rdata(full(name), ttl, data)
        };
        let records = last_bytes.iter().map(record).collect();
        self.set(name, RecordType::A, Answer::Records(records));
    }

    fn set_v6(&self, name: &str, ttl: u32, last: u16) {
        let data = RData::AAAA(AAAA(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, last)));
        let record = Record::from_rdata(full(name), ttl, data);
        self.set(name, RecordType::AAAA, Answer::Records(vec![record]));
    }

    fn set_services(&self, name: &str, ttl: u32, services: &[(u16, u16, u16, &str)]) {
        let record = |&(priority, weight, port, target): &(u16, u16, u16, &str)| {
            let target = if target == "." { Name::root() } else { full(target) };
            let data = RData::SRV(SRV::new(priority, weight, port, target));
            Record::from_rdata(full(name), ttl, data)
        };
        let records = services.iter().map(record).collect();
        self.set(name, RecordType::SRV, Answer::Records(records));
    }

    fn asked_for(&self, name: &str, kind: RecordType) -> usize {
        self.asked.lock().iter().filter(|asked| **asked == (full(name), kind)).count()
    }
}

fn full(name: &str) -> Name {
    Name::from_utf8(format!("{name}.")).expect("a name")
}

fn shown(resolved: &Resolved) -> Vec<(String, u8, u32)> {
    resolved.endpoints.iter().map(|e| (e.name.clone(), e.priority, e.weight)).collect()
}

fn at(name: &str, priority: u8, weight: u32) -> (String, u8, u32) {
    (name.to_owned(), priority, weight)
}

async fn start() -> (Server, DnsClient) {
    let (server, address) = Server::start().await;
    (server, DnsClient::with_name_servers([address]).expect("a client"))
}

fn seconds(resolved: &Resolved) -> f64 {
    resolved.ttl.expect("a TTL").as_secs_f64()
}

#[tokio::test]
async fn addresses_of_both_families_are_valid_for_the_shorter_ttl() {
    let (server, client) = start().await;
    server.set_v4("web.test", 300, &[2, 1]);
    server.set_v6("web.test", 40, 7);
    let source = client.addresses("web.test.", 80).expect("a name");
    let found = source.resolve().await.expect("an answer");
    let names = ["10.0.0.1:80", "10.0.0.2:80", "[fd00::7]:80"];
    assert_eq!(shown(&found), names.map(|name| at(name, 0, 1)));
    assert!((38.0..=40.0).contains(&seconds(&found)), "{:?}", found.ttl);
    // A name with addresses of one family only is no failure; one with none is an empty set.
    server.set_v4("four.test", 60, &[9]);
    let four = client.addresses("four.test.", 1).expect("a name").resolve().await;
    assert_eq!(shown(&four.expect("an answer")), [at("10.0.0.9:1", 0, 1)]);
    let none = client.addresses("none.test.", 1).expect("a name").resolve().await;
    assert!(none.expect("an answer").endpoints.is_empty());
}

/// A CNAME counts with its TTL: the name may lead elsewhere when that is over.
#[tokio::test]
async fn the_ttl_of_an_alias_counts() {
    let (server, client) = start().await;
    let alias = RData::CNAME(CNAME(full("real.test")));
    let address = RData::A(A(Ipv4Addr::new(10, 0, 0, 3)));
    let records = vec![
        Record::from_rdata(full("alias.test"), 20, alias),
        Record::from_rdata(full("real.test"), 900, address),
    ];
    server.set("alias.test", RecordType::A, Answer::Records(records));
    let client = client.with_family(Family::V4);
    let source = client.addresses("alias.test.", 80).expect("a name");
    let found = source.resolve().await.expect("an answer");
    assert_eq!(shown(&found), [at("10.0.0.3:80", 0, 1)]);
    assert!(seconds(&found) <= 20.0, "{:?}", found.ttl);
}

/// When one family cannot be asked for, half of the endpoints would replace all of them.
#[tokio::test]
async fn a_family_that_fails_makes_the_answer_fail_unless_it_is_left_out() {
    let (server, client) = start().await;
    server.set_v4("web.test", 300, &[1]);
    server.set("web.test", RecordType::AAAA, Answer::Fails(ResponseCode::ServFail));
    let source = client.addresses("web.test.", 80).expect("a name");
    let error = source.resolve().await.expect_err("half an answer").to_string();
    assert!(error.contains("AAAA of web.test."), "{error}");
    let client = client.with_family(Family::V4);
    let source = client.addresses("web.test.", 80).expect("a name");
    let found = source.resolve().await.expect("an answer");
    assert_eq!(shown(&found), [at("10.0.0.1:80", 0, 1)]);
    assert_eq!(server.asked_for("four.test", RecordType::AAAA), 0);
}

#[tokio::test]
async fn services_have_the_priorities_weights_and_ports_of_their_records() {
    let (server, client) = start().await;
    let services = [
        (20, 0, 8080, "spare.test"),
        (10, 60, 8081, "one.test"),
        (10, 60, 8082, "two.test"),
        (10, 1, 8083, "gone.test"),
    ];
    server.set_services("_web._tcp.shop.test", 120, &services);
    server.set_v4("one.test", 60, &[1]);
    server.set_v4("two.test", 600, &[2, 3]);
    server.set_v4("spare.test", 600, &[4]);
    let source = client.services("_web._tcp.shop.test.").expect("a name");
    let found = source.resolve().await.expect("an answer");
    let expected = [
        at("10.0.0.1:8081", 0, 2),
        at("10.0.0.2:8082", 0, 1),
        at("10.0.0.3:8082", 0, 1),
        at("10.0.0.4:8080", 1, 1),
    ];
    assert_eq!(shown(&found), expected);
    assert!((58.0..=60.0).contains(&seconds(&found)), "{:?}", found.ttl);
    // "." says that the service is decidedly not here: an empty set, which replaces nothing.
    server.set_services("_web._tcp.none.test", 120, &[(0, 0, 0, ".")]);
    let none = client.services("_web._tcp.none.test.").expect("a name").resolve().await;
    assert!(none.expect("an answer").endpoints.is_empty());
    // A target that cannot be asked for is no target that is gone.
    server.set("two.test", RecordType::A, Answer::Fails(ResponseCode::ServFail));
    let error = source.resolve().await.expect_err("half an answer").to_string();
    assert!(error.contains("two.test"), "{error}");
}

/// 300 records do not fit into a datagram: they come by TCP, and are more than are taken.
#[tokio::test]
async fn a_long_answer_comes_by_tcp_and_is_bounded() {
    let (server, client) = start().await;
    let services: Vec<_> = (0..200).map(|n| (0, 1, n + 1, "one.test")).collect();
    server.set_services("_many._tcp.test", 60, &services);
    server.set_v4("one.test", 60, &[1]);
    let source = client.services("_many._tcp.test.").expect("a name");
    let found = source.resolve().await.expect("an answer");
    assert_eq!(found.endpoints.len(), 200);
    let asked = server.asked_for("one.test", RecordType::A);
    assert_eq!(asked, 1, "a target is asked for once");
    let services: Vec<_> = (0..300).map(|n| (0, 1, n + 1, "one.test")).collect();
    server.set_services("_many._tcp.test", 60, &services);
    let error = source.resolve().await.expect_err("too many").to_string();
    assert_eq!(error, "300 SRV records, 256 at most");
}

/// The discovery asks when the TTL is over, and a client without a cache hears what is new.
#[tokio::test]
async fn a_balancer_follows_the_records_by_their_ttl() {
    let (server, client) = start().await;
    server.set_v4("web.test", 1, &[1]);
    let balancer = Balancer::new(RoundRobin::default(), Config::default()).expect("valid");
    let mut config = DiscoveryConfig::default();
    (config.seed, config.jitter, config.interval) = (Some(1), 0.0, Duration::from_secs(600));
    let source = client.with_family(Family::V4).addresses("web.test.", 80).expect("a name");
    let discovery = Discovery::start(balancer.clone(), source, config).expect("valid");
    let names = || -> Vec<String> {
        balancer.endpoints().iter().map(|endpoint| endpoint.name().to_owned()).collect()
    };
    let follows = async |expected: &[&str]| {
        let limit = Instant::now() + Duration::from_secs(10);
        // Ends: when the set is there, or at the limit.
        while names() != expected {
            assert!(Instant::now() < limit, "{:?}, {:?}", names(), discovery.stats());
            sleep(Duration::from_millis(20)).await;
        }
    };
    follows(&["10.0.0.1:80"]).await;
    server.set_v4("web.test", 1, &[1, 2]);
    follows(&["10.0.0.1:80", "10.0.0.2:80"]).await;
    // A server that fails, or has forgotten the name, changes nothing.
    server.set("web.test", RecordType::A, Answer::Fails(ResponseCode::Refused));
    let failures = async |count: fn(&DiscoveryStats) -> u64| {
        let limit = Instant::now() + Duration::from_secs(10);
        // Ends: at the first failure, or at the limit.
        while count(&discovery.stats()) == 0 {
            assert!(Instant::now() < limit, "{:?}", discovery.stats());
            sleep(Duration::from_millis(20)).await;
        }
    };
    failures(|stats| stats.failed).await;
    server.set("web.test", RecordType::A, Answer::Fails(ResponseCode::NXDomain));
    failures(|stats| stats.empty).await;
    assert_eq!(names(), ["10.0.0.1:80", "10.0.0.2:80"], "the last good set stays");
}

#[tokio::test]
async fn what_is_no_name_is_a_typed_error() {
    let (_, client) = start().await;
    let long = format!("{}.test", "a".repeat(64));
    for bad in ["", ".", "10.0.0.1", "fd00::1", "a..b", long.as_str()] {
        assert!(client.addresses(bad, 80).is_err(), "{bad:?}");
        assert!(client.services(bad).is_err(), "{bad:?}");
    }
    assert!(DnsClient::with_name_servers([]).is_err());
}
