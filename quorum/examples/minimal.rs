//! Two replicas of one shopping cart that were written at the same time, and the merge of both.
//! `cargo run -p voussoir-quorum --example quorum-minimal`

use voussoir_quorum::version::{Actor, Dot, Siblings};

fn main() {
    let (one, two) = (Actor::new(1, 1), Actor::new(2, 1));
    let mut left = Siblings::new();
    left.put_blind(Dot::new(one, 1), "milk").expect("the dot is new");
    let mut right = left.clone();
    println!("both replicas:  {:?}, context {}", values(&left), left.context());

    // Two clients have read "milk". Each writes to another replica.
    let seen = left.context().clone();
    left.put(&seen, Dot::new(one, 2), "milk, bread").expect("the dot is new");
    right.put(&seen, Dot::new(two, 1), "milk, beer").expect("the dot is new");
    println!("replica 1:      {:?}, context {}", values(&left), left.context());
    println!("replica 2:      {:?}, context {}", values(&right), right.context());

    // The replicas exchange their states, in any order and as often as they like.
    left.merge(right.clone());
    right.merge(left.clone());
    assert_eq!(left, right);
    println!("after the merge: {:?}, context {}", values(&left), left.context());

    // A client that has read both values resolves the conflict.
    let seen = right.context().clone();
    right.put(&seen, Dot::new(two, 2), "milk, bread, beer").expect("the dot is new");
    left.merge(right);
    println!("resolved:       {:?}, context {}", values(&left), left.context());
}

fn values(siblings: &Siblings<&'static str>) -> Vec<&'static str> {
    siblings.values().copied().collect()
}
