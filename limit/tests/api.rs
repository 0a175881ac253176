//! What must stay true of the public types: threads and object safety.

use std::sync::Arc;

use voussoir_limit::*;

const fn is_send_sync<T: Send + Sync>() {}
const fn is_send<T: Send>(_: &T) {}

const _: () = {
    is_send_sync::<Limiter>();
    is_send_sync::<Keyed<String>>();
    is_send_sync::<Quota>();
    is_send_sync::<Admitted>();
    is_send_sync::<Rejected>();
    is_send_sync::<Strict>();
    is_send_sync::<Leased>();
    is_send_sync::<Arc<dyn Counter>>();
    is_send_sync::<Arc<dyn Clock>>();
    is_send_sync::<SharedError>();
    is_send_sync::<ConfigError>();
};

#[test]
fn futures_can_move_between_threads() {
    let limiter = Limiter::new(Quota::gcra(1, std::time::Duration::from_secs(1))).unwrap();
    is_send(&limiter.until_ready());
    let keyed: Keyed<String> =
        Keyed::new(Quota::gcra(1, std::time::Duration::from_secs(1))).unwrap();
    is_send(&keyed.until_ready("a"));
}
