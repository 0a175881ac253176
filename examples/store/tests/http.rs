//! The interface as `curl` sees it: three processes, every kind of request, and bad ones.

mod support;

use bytes::Bytes;
use hyper::{Method, StatusCode};
use store::client::{Client, Reply};
use store::cluster::Cluster;
use store::kv::{MAX_KEY_BYTES, MAX_VALUE_BYTES};

use support::{ask, program};

struct Store {
    client: Client,
    cluster: Cluster,
    leader: u64,
    _folder: tempfile::TempDir,
}

impl Store {
    async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut cluster = Cluster::new(program(), folder.path(), 3).unwrap();
        cluster.start_all().unwrap();
        let client = cluster.client();
        let leader = cluster.leader(&client).await.unwrap().id;
        Self { client, cluster, leader, _folder: folder }
    }

    async fn ask(&self, method: Method, path: &str, if_match: Option<u64>, body: &[u8]) -> Reply {
        self.client.send(method, path, if_match, Bytes::copy_from_slice(body)).await.unwrap()
    }

    async fn get(&self, path: &str) -> (StatusCode, Bytes) {
        let reply = self.ask(Method::GET, path, None, b"").await;
        (reply.status, reply.body)
    }
}

#[tokio::test]
async fn values_are_written_compared_listed_and_deleted() {
    let store = Store::start().await;
    let first = store.ask(Method::PUT, "/kv/a/b", None, b"one").await;
    assert_eq!(first.status, StatusCode::NO_CONTENT);
    assert_eq!(store.get("/kv/a/b").await, (StatusCode::OK, Bytes::from_static(b"one")));

    let second = store.ask(Method::PUT, "/kv/a/b", first.version, b"two").await;
    assert_eq!(second.status, StatusCode::NO_CONTENT);
    let late = store.ask(Method::PUT, "/kv/a/b", first.version, b"three").await;
    assert_eq!((late.status, late.version), (StatusCode::PRECONDITION_FAILED, second.version));
    assert_eq!(store.get("/kv/a/b").await.1, "two");

    store.ask(Method::PUT, "/kv/a/c", None, b"").await;
    store.ask(Method::PUT, "/kv/b", None, b"x").await;
    let keys = |body: &[u8]| -> Vec<String> {
        let listed: serde_json::Value = serde_json::from_slice(body).unwrap();
        let listed = listed.as_array().unwrap().iter();
        listed.map(|each| each["key"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(keys(&store.get("/kv?prefix=a").await.1), ["a/b", "a/c"]);
    assert_eq!(keys(&store.get("/kv?prefix=a&after=a/b").await.1), ["a/c"]);
    assert_eq!(keys(&store.get("/kv?limit=1").await.1), ["a/b"]);

    let late = store.ask(Method::DELETE, "/kv/a/b", first.version, b"").await;
    assert_eq!(late.status, StatusCode::PRECONDITION_FAILED);
    let gone = store.ask(Method::DELETE, "/kv/a/b", None, b"").await;
    assert_eq!(gone.status, StatusCode::NO_CONTENT);
    let again = store.ask(Method::DELETE, "/kv/a/b", None, b"").await;
    assert_eq!(again.status, StatusCode::NOT_FOUND);
    assert_eq!(store.get("/kv/a/b").await.0, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn a_write_may_ask_that_the_key_exists() {
    let store = Store::start().await;
    let (_, node) = store.cluster.addresses()[store.leader as usize - 1];
    let put = |headers: &str| ask(node, "PUT", "/kv/a", headers, "x").unwrap();
    let missing = put("if-match: *\r\n");
    assert_eq!((missing.status, missing.headers.get("etag")), (412, None));
    assert_eq!(put("if-match: \"7\"\r\n").status, 412);
    assert_eq!(put("if-match: +7\r\n").status, 400);
    assert_eq!(put("if-none-match: *\r\n").status, 204);
    let held = put("if-none-match: *\r\n");
    assert_eq!(held.status, 412);
    assert!(held.headers.contains_key("etag"));
    assert_eq!(put("if-match: *\r\n").status, 204);
    assert_eq!(put("if-match: *\r\nif-none-match: *\r\n").status, 400);
    let delete = |headers: &str| ask(node, "DELETE", "/kv/a", headers, "").unwrap();
    assert_eq!(delete("if-match: *\r\n").status, 204);
    assert_eq!(delete("if-match: *\r\n").status, 412);
    assert_eq!(delete("").status, 404);
}

#[tokio::test]
async fn what_is_wrong_is_said_as_json_and_changes_nothing() {
    let store = Store::start().await;
    let long = format!("/kv/{}", "k".repeat(MAX_KEY_BYTES + 1));
    let large = vec![0; MAX_VALUE_BYTES + 1];
    let wrong: [(Method, &str, &[u8], StatusCode); 8] = [
        (Method::PUT, &long, b"", StatusCode::BAD_REQUEST),
        (Method::PUT, "/kv/", b"", StatusCode::BAD_REQUEST),
        (Method::GET, "/kv/", b"", StatusCode::BAD_REQUEST),
        (Method::PUT, "/kv/%ff", b"", StatusCode::BAD_REQUEST),
        (Method::PUT, "/kv/large", &large, StatusCode::PAYLOAD_TOO_LARGE),
        (Method::GET, "/kv/a?consistency=eventual", b"", StatusCode::BAD_REQUEST),
        (Method::GET, "/kv?limit=-1", b"", StatusCode::BAD_REQUEST),
        (Method::GET, "/kv?prefix=%ff&limit=x", b"", StatusCode::BAD_REQUEST),
    ];
    for (method, path, body, status) in wrong {
        let reply = store.ask(method, path, None, body).await;
        assert_eq!(reply.status, status, "{path}");
        let said: serde_json::Value = serde_json::from_slice(&reply.body).unwrap();
        assert_eq!(said["outcome"], "not_applied", "{path}");
        let error = said["error"].as_str().unwrap();
        assert!(!error.is_empty(), "{path}");
        if status == StatusCode::PAYLOAD_TOO_LARGE {
            assert_eq!(error, format!("a value has at most {MAX_VALUE_BYTES} bytes"));
        }
    }
    assert_eq!(store.get("/kv").await, (StatusCode::OK, Bytes::from_static(b"[]")));
    assert_eq!(store.get("/health").await.0, StatusCode::OK);
}
