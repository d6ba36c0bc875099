//! The two loops of one thread: closed, where callers wait for their answers, and open, where calls are due when they are due.
//!
//! In the open loop a latency counts from the moment at which the call was due. A server that stalls for a second is then seen
//! with all the calls that came in that second, where a closed loop would see one slow call a caller and ask less meanwhile:
//! Gil Tene named that coordinated omission.

use std::{
    pin::pin,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    task::JoinSet,
};

use super::{
    alarm::Alarm,
    generator::{Hand, Signal, Window, lock},
    schedule::{Arrivals, Schedule},
};

const SEED: u64 = 7;
/// A generator that is late goes on so long after the end; what it has not sent then, it does not send.
const TAIL: Duration = Duration::from_millis(100);

/// This thread's callers out of `in_flight`, until the end.
pub async fn closed(hand: &Arc<Hand>, window: Window, in_flight: usize) -> anyhow::Result<()> {
    let mut callers = JoinSet::new();
    for place in (hand.place..in_flight).step_by(hand.threads) {
        callers.spawn(caller(hand.clone(), place, window));
    }
    while let Some(ended) = callers.join_next().await {
        ended?;
    }
    Ok(())
}

/// This thread's share of `rate` calls a second, until the end, and then the answers that are still to come.
pub async fn open(hand: &Arc<Hand>, window: Window, rate: f64, arrivals: Arrivals) -> anyhow::Result<()> {
    let room = (hand.job.in_flight_max / hand.threads).max(1) as u32;
    let in_flight = Arc::new(Semaphore::new(room as usize));
    let alarm = Alarm::new().context("a timer of the kernel")?;
    let mut signal = hand.signal.clone();
    let mut over = pin!(signal.wait_for(|signal| matches!(signal, Signal::Over)));
    let mut schedule = Schedule::new(arrivals, rate, hand.place, hand.threads, SEED);
    let mut moments = std::iter::repeat_with(|| window.begin + schedule.next()).take_while(|due| *due < window.end);
    let mut due = moments.next();
    let mut number = hand.place;
    while let Some(moment) = due {
        tokio::select! {
            _ = &mut over => break,
            rung = alarm.until(moment) => rung?,
        }
        let now = Instant::now();
        if now > window.end + TAIL {
            let left = std::iter::once(moment).chain(moments.by_ref());
            lock(&hand.tally).unsent += left.filter(|due| *due >= window.counted).count() as u64;
            break;
        }
        while let Some(moment) = due.filter(|moment| *moment <= now) {
            match in_flight.clone().try_acquire_owned() {
                Ok(permit) => send(hand, number, moment, window, permit),
                Err(_) => lock(&hand.tally).dropped += u64::from(moment >= window.counted),
            }
            number += hand.threads;
            due = moments.next();
        }
        // Those that were begun, and the answers that have come, before what is due next.
        tokio::task::yield_now().await;
    }
    // A call lasts no longer than its timeout, and gives its permit back.
    let _all = in_flight.acquire_many(room).await?;
    Ok(())
}

/// Calls, waits, and calls again. Callers begin at different messages, so that a batch is not of one row repeated.
async fn caller(hand: Arc<Hand>, place: usize, window: Window) {
    let link = &hand.links[place / hand.threads % hand.links.len()];
    let messages = &hand.job.messages;
    for message in messages.iter().cycle().skip(place % messages.len()) {
        let begun = Instant::now();
        if begun >= window.end || matches!(*hand.signal.borrow(), Signal::Over) {
            break;
        }
        let counted = begun >= window.counted;
        if counted {
            lock(&hand.tally).sent += 1;
        }
        let ending = link.call(message).await;
        if counted {
            lock(&hand.tally).take(begun.elapsed(), ending);
        }
    }
}

/// Begins one call of the open loop.
fn send(hand: &Arc<Hand>, number: usize, due: Instant, window: Window, permit: OwnedSemaphorePermit) {
    let hand = hand.clone();
    tokio::spawn(async move {
        let counted = due >= window.counted;
        if counted {
            lock(&hand.tally).sent_late(due.elapsed());
        }
        let link = &hand.links[number / hand.threads % hand.links.len()];
        let ending = link.call(&hand.job.messages[number % hand.job.messages.len()]).await;
        if counted {
            lock(&hand.tally).take(due.elapsed(), ending);
        }
        drop(permit);
    });
}
