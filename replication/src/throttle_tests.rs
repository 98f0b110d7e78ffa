//! The throttle beside disks and links that are simulated: how latency follows the rate.

use super::*;

/// An application that asks `asks` times a second and a medium that answers in `base`; in one of
/// twenty cases in twice that, and slower the nearer the resync comes to `capacity`.
struct Plant {
    asks: u64,
    base: f64,
    capacity: f64,
    /// How many times longer an answer takes beside a resync at full rate.
    slower: f64,
    /// The same from the middle of the resync on.
    then: f64,
    /// For so many seconds what was sent is felt: disks of the target write on.
    felt: f64,
}

/// What was seen in the second half of the resync.
struct Seen {
    rate: f64,
    p99: f64,
}

impl Plant {
    fn latency(&self, number: u64, rate: f64, slower: f64) -> f64 {
        let spread = if number.is_multiple_of(20) { 2.0 } else { 1.0 };
        self.base * spread * (1.0 + slower * rate / self.capacity)
    }

    /// Lets applications work for `before` seconds, and then `seconds` beside a resync.
    fn run(&self, throttle: &mut Throttle, from: Duration, before: u64, seconds: u64) -> Seen {
        let tick = Duration::from_secs(1) / u32::try_from(self.asks).unwrap();
        let mut now = from;
        let mut number = 0;
        throttle.resyncs(now, false);
        while now < from + Duration::from_secs(before) {
            number += 1;
            now += tick;
            throttle.answered(now, Duration::from_secs_f64(self.latency(number, 0.0, 0.0)));
        }
        throttle.resyncs(now, true);
        let (began, end) = (now, now + Duration::from_secs(seconds));
        let (mut late_bytes, mut rate, mut next) = (0, 0.0, now);
        let mut seen = Vec::new();
        while now < end {
            let (mut sent_now, upto) = (0, now + tick);
            while next < upto && !throttle.pauses() {
                let piece = throttle.piece_bytes(512 << 10);
                sent_now += piece;
                let link = Duration::from_secs_f64(piece as f64 / self.capacity);
                next = throttle.sent(next, piece, None).max(next + link);
            }
            next = next.max(upto);
            now = upto;
            let fresh = sent_now as f64 / tick.as_secs_f64();
            let weight = (tick.as_secs_f64() / self.felt).min(1.0);
            rate += (fresh - rate) * weight;
            number += 1;
            let late = now > began + (end - began) / 2;
            let slower = if late { self.then } else { self.slower };
            let latency = self.latency(number, rate, slower);
            throttle.answered(now, Duration::from_secs_f64(latency));
            if late {
                late_bytes += sent_now;
                seen.push(latency);
            }
        }
        seen.sort_by(f64::total_cmp);
        Seen {
            rate: late_bytes as f64 * 2.0 / seconds as f64,
            p99: seen[seen.len() * 99 / 100],
        }
    }
}

const SECONDS: u64 = 60;

/// RS-3: the 99th percentile rises by at most half, and the resync keeps a tenth of its rate.
#[test]
fn latency_is_held_while_the_resync_keeps_its_part() {
    for slower in [0.3, 1.0, 3.0] {
        for before in [0, 5] {
            let plant = Plant {
                asks: 2000,
                base: 0.001,
                capacity: 100e6,
                slower,
                then: slower,
                felt: 0.010,
            };
            let seen = plant.run(&mut Throttle::default(), Duration::ZERO, before, SECONDS);
            let risen = seen.p99 / 0.002;
            assert!(
                risen <= 1.5,
                "slower {slower}, before {before}: {risen} times"
            );
            assert!(seen.rate >= 0.1 * plant.capacity, "{} B/s", seen.rate);
            let possible = (0.4 / slower).min(1.0) * plant.capacity;
            assert!(
                seen.rate >= 0.5 * possible,
                "slower {slower}, before {before}: {} B/s of {possible}",
                seen.rate
            );
        }
    }
}

/// What is measured in a pause as the usual latency is still the resync's in part, and what it may rise
/// to rose with it.
#[test]
fn latency_is_held_where_what_was_sent_is_felt_for_long() {
    for (felt, seconds) in [(0.1, SECONDS), (0.4, 10 * SECONDS), (1.0, SECONDS)] {
        let plant = Plant {
            asks: 2000,
            base: 0.001,
            capacity: 100e6,
            slower: 3.0,
            then: 3.0,
            felt,
        };
        let seen = plant.run(&mut Throttle::default(), Duration::ZERO, 5, seconds);
        let risen = seen.p99 / 0.002;
        assert!(risen <= 1.5, "felt for {felt} s: {risen} times");
        assert!(seen.rate >= 0.1 * plant.capacity, "{} B/s", seen.rate);
    }
}

/// Where any resync at all is felt it still ends: it keeps a tenth.
#[test]
fn a_tenth_of_the_free_rate_is_kept_whatever_it_costs() {
    let plant = Plant {
        asks: 500,
        base: 0.002,
        capacity: 100e6,
        slower: 100.0,
        then: 100.0,
        felt: 0.010,
    };
    let seen = plant.run(&mut Throttle::default(), Duration::ZERO, 5, SECONDS);
    assert!(seen.rate >= 0.1 * plant.capacity, "{} B/s", seen.rate);
    assert!(seen.rate <= 0.2 * plant.capacity, "{} B/s", seen.rate);
}

#[test]
fn the_rate_rises_again_where_it_is_felt_less() {
    let plant = Plant {
        asks: 500,
        base: 0.002,
        capacity: 100e6,
        slower: 100.0,
        then: 0.5,
        felt: 0.010,
    };
    let seen = plant.run(&mut Throttle::default(), Duration::ZERO, 5, SECONDS);
    assert!(seen.rate >= 0.3 * plant.capacity, "{} B/s", seen.rate);
}

#[test]
fn nobody_who_waits_means_no_bound() {
    let mut throttle = Throttle::default();
    let second = Duration::from_secs(1);
    let plant = Plant {
        asks: 500,
        base: 0.002,
        capacity: 100e6,
        slower: 100.0,
        then: 100.0,
        felt: 0.010,
    };
    plant.run(&mut throttle, Duration::ZERO, 2, 10);
    assert!(throttle.rate().is_some());
    let now = 12 * second;
    throttle.turn(now + second);
    throttle.turn(now + 2 * second);
    assert!(!throttle.pauses());
    assert_eq!(throttle.rate(), None);
    assert_eq!(throttle.piece_bytes(512 << 10), 512 << 10);
}

/// A resync that waits for its target sends nothing for a while: that is not its free rate.
#[test]
fn a_resync_that_could_not_send_yet_is_not_held_to_nothing() {
    let mut throttle = Throttle::default();
    let (mut now, tick) = (Duration::ZERO, Duration::from_millis(1));
    for began in [false, true] {
        throttle.resyncs(now, began);
        for _ in 0..3000 {
            now += tick;
            throttle.answered(now, if began { 5 * tick } else { tick });
        }
    }
    for _ in 0..20 {
        let until = throttle.sent(now, 64 << 10, None);
        assert!(until - now < Duration::from_secs(2), "{until:?} at {now:?}");
        now = until;
        throttle.answered(now, 5 * tick);
    }
}

#[test]
fn the_operators_bound_holds_besides() {
    let mut throttle = Throttle::default();
    throttle.resyncs(Duration::ZERO, true);
    let mut next = Duration::ZERO;
    for _ in 0..100 {
        next = throttle.sent(next, 1 << 20, Some(10 << 20));
    }
    assert_eq!(next.as_secs(), 10);
    // What was not used is not saved up.
    let later = Duration::from_secs(100);
    let next = throttle.sent(later, 1 << 20, Some(10 << 20));
    assert_eq!(next, later + Duration::from_millis(100));
}

#[test]
fn the_percentile_is_within_a_bucket_of_the_truth() {
    let mut latencies = Latencies::default();
    assert_eq!(latencies.tail(), None);
    for us in 1..=100_000 {
        latencies.add(Duration::from_micros(us));
    }
    let tail = latencies.tail().unwrap();
    assert!((0.0995..=0.0995 * STEP).contains(&tail), "{tail}");
    latencies.add(Duration::from_secs(3600));
    assert!(latencies.tail().unwrap() < 0.12);
}
