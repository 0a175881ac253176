//! What the types promise to compilers.

use std::sync::Arc;

use voussoir_cache::{
    Cache, Clock, Config, ConfigError, LoadError, Sink, SinkError, Source, SourceError, Stats,
    Store, WriteError,
};

fn shared<T: Send + Sync + 'static>() {}

#[test]
fn types_are_send_and_sync() {
    shared::<Cache<String, Arc<str>>>();
    shared::<(Config, ConfigError, LoadError, WriteError, SourceError, SinkError, Stats)>();
}

#[test]
fn seams_are_object_safe() {
    shared::<Arc<dyn Source<u64, u64>>>();
    shared::<Arc<dyn Sink<u64, u64>>>();
    shared::<Arc<dyn Store<u64, u64>>>();
    shared::<Arc<dyn Clock>>();
}

#[test]
fn futures_of_calls_are_send() {
    fn send<T: Send>(_: &T) {}
    let cache: Cache<String, u64> = Cache::builder().build().unwrap();
    send(&cache.get_or_load("key"));
    send(&cache.write("key".to_owned(), 1));
}
