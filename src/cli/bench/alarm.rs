//! A timer of the kernel that is exact to some microseconds. The runtime's own rounds up to whole milliseconds, which is more
//! than a call takes.

use std::{
    io,
    time::{Duration, Instant},
};

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};
use tokio::net::unix::pipe::Receiver;

/// One, to be set again and again. To the runtime it is what a pipe is: a descriptor that can be read at some time.
pub struct Alarm(Receiver);

/// The number of expiries, as the kernel writes it.
const EXPIRIES_BYTES: usize = 8;

// === impl Alarm ===

impl Alarm {
    pub fn new() -> io::Result<Self> {
        let timer = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC)?;
        Ok(Self(Receiver::from_owned_fd_unchecked(timer)?))
    }

    /// Waits until `moment`; not at all where that has passed.
    pub async fn until(&self, moment: Instant) -> io::Result<()> {
        loop {
            let left = moment.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            let never_again = Timespec { tv_sec: 0, tv_nsec: 0 };
            let once = Itimerspec { it_interval: never_again, it_value: timespec(left) };
            // Setting it also takes back an expiry that nobody has read.
            timerfd_settime(&self.0, TimerfdTimerFlags::empty(), &once)?;
            loop {
                self.0.readable().await?;
                match self.0.try_read(&mut [0; EXPIRIES_BYTES]) {
                    // It was ready for an expiry that was taken back.
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    read => break read.map(drop)?,
                }
            }
        }
    }
}

fn timespec(time: Duration) -> Timespec {
    Timespec { tv_sec: time.as_secs().try_into().unwrap_or(i64::MAX), tv_nsec: time.subsec_nanos().into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn it_goes_off_when_it_was_set_to_and_can_be_set_again() {
        let alarm = Alarm::new().unwrap();
        let begun = Instant::now();
        for micros in [300, 0, 700] {
            let moment = begun + Duration::from_micros(micros);
            alarm.until(moment).await.unwrap();
            assert!(Instant::now() >= moment);
        }
        // One that is given up and set anew.
        let far = alarm.until(begun + Duration::from_secs(3600));
        assert!(tokio::time::timeout(Duration::from_millis(1), far).await.is_err());
        alarm.until(Instant::now() + Duration::from_micros(100)).await.unwrap();
    }
}
