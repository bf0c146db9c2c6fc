use std::sync::Barrier;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;
use crate::virtio::testing::wait_readable;

fn limit(per_second: u64, burst: u64) -> Option<Limit> {
    Some(Limit { per_second: per_second.try_into().unwrap(), burst: burst.try_into().unwrap() })
}

#[test]
fn without_limits_there_is_no_timer_and_no_wait() {
    let mut limiter = RateLimiter::new(RateLimits::default()).unwrap();
    assert!(limiter.timer().is_none());
    for _ in 0..1000 {
        let reserved = limiter.reserve(u64::MAX).unwrap();
        limiter.give_back(reserved);
    }
}

#[test]
fn either_limit_stops_and_the_timer_says_when_to_go_on() {
    for limits in [
        RateLimits { bandwidth: limit(100_000, 1000), operations: None },
        RateLimits { bandwidth: None, operations: limit(100, 1) },
        RateLimits { bandwidth: limit(100_000, 1000), operations: limit(1 << 40, 1 << 40) },
    ] {
        let mut limiter = RateLimiter::new(limits).unwrap();
        let mut reserved = limiter.reserve(0).unwrap();
        assert!(!limiter.is_waiting());
        limiter.correct(&mut reserved, 1000);
        assert!(limiter.reserve(0).is_none());
        assert!(limiter.is_waiting());
        wait_readable(limiter.timer().unwrap());
        limiter.timer_expired();
        assert!(limiter.reserve(0).is_some(), "the timer does not expire too early");
        assert!(!limiter.is_waiting());
    }
}

#[test]
fn an_operation_that_did_not_take_place_leaves_no_trace() {
    let limits = RateLimits { bandwidth: limit(1, 1), operations: limit(1, 1) };
    let mut limiter = RateLimiter::new(limits).unwrap();
    for bytes in [0, 1, 1 << 40] {
        let mut reserved = limiter.reserve(0).unwrap();
        limiter.correct(&mut reserved, bytes);
        limiter.give_back(reserved);
    }
    // What is corrected to less counts as less.
    let mut reserved = limiter.reserve(1 << 40).unwrap();
    limiter.correct(&mut reserved, 1);
    assert!(limiter.reserve(0).is_none());
    wait_readable(limiter.timer().unwrap());
}

#[test]
fn limiters_of_one_allowance_take_from_each_other_and_leave_to_those_that_come() {
    let allowance = Allowance::new(RateLimits { bandwidth: None, operations: limit(100, 2) });
    let [mut one, mut other] = [0; 2].map(|_| allowance.limiter().unwrap());
    assert!(one.reserve(0).is_some() && other.reserve(0).is_some());
    assert!(one.reserve(0).is_none() && other.reserve(0).is_none());
    // Each has its own timer: what wakes one leaves the other's alone.
    for limiter in [&mut one, &mut other] {
        wait_readable(limiter.timer().unwrap());
        limiter.timer_expired();
    }
    assert!(one.reserve(0).is_some());
    drop((one, other));
    let state = allowance.state().operations.unwrap();
    assert!(state > Duration::from_millis(10), "{state:?}");
}

#[test]
fn threads_that_reserve_at_once_get_each_token_once() {
    for _ in 0..50 {
        let allowance = Allowance::new(RateLimits { bandwidth: None, operations: limit(1, 5) });
        let (barrier, taken) = (Barrier::new(4), AtomicUsize::new(0));
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    let mut limiter = allowance.limiter().unwrap();
                    barrier.wait();
                    while limiter.reserve(0).is_some() {
                        taken.fetch_add(1, Ordering::SeqCst);
                    }
                });
            }
        });
        assert_eq!(taken.into_inner(), 5);
    }
}

#[test]
fn a_restored_limiter_owes_what_the_saved_one_owed() {
    let limits = RateLimits { bandwidth: limit(1000, 1000), operations: limit(1000, 1000) };
    let saved = Allowance::new(limits);
    let mut limiter = saved.limiter().unwrap();
    let mut reserved = limiter.reserve(0).unwrap();
    // Two hours' worth, which is not forgotten.
    limiter.correct(&mut reserved, 7_200_000);
    let state: RateLimitState =
        serde_json::from_str(&serde_json::to_string(&saved.state()).unwrap()).unwrap();
    assert!(state.bandwidth.unwrap() > Duration::from_secs(7000), "{state:?}");

    let restored = Allowance::new(limits);
    restored.restore(&state);
    assert!(restored.limiter().unwrap().reserve(0).is_none());
    // Limits that one of them lacks are no matter, and no time is too long.
    Allowance::new(RateLimits::default()).restore(&state);
    restored.restore(&RateLimitState { bandwidth: None, operations: Some(Duration::MAX) });
    assert!(restored.limiter().unwrap().reserve(0).is_none());
    let full = RateLimitState { bandwidth: Some(Duration::ZERO), operations: Some(Duration::ZERO) };
    restored.restore(&full);
    assert!(restored.limiter().unwrap().reserve(0).is_some());
}
