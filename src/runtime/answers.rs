//! The answers of batches that have run, on their way to their callers.
//!
//! On a core they leave a few at a time, with a turn for the sockets in between: the first callers read theirs, and may ask
//! again, while the others' are still being written. Let go all at once they would all be written before the connection is
//! flushed, and server and client of one busy connection would wait for each other in turn.

use std::collections::VecDeque;

use super::work::{Outcome, Reply};
use crate::error::Result;

/// Whoever runs batches has one.
pub struct Answers {
    /// In the order of their requests.
    waiting: VecDeque<(Reply, Result<Outcome>)>,
    /// How many may still leave in this turn.
    room: usize,
    room_max: usize,
}

/// Few enough that the first callers are early, and many enough that a write to a socket, which costs as much as several
/// answers, is shared by as many.
const AT_ONCE: usize = 16;

// === impl Answers ===

impl Answers {
    /// Of a core, which has a turn for the sockets after each few of them.
    pub fn in_turns() -> Self {
        Self { waiting: VecDeque::new(), room: AT_ONCE, room_max: AT_ONCE }
    }

    /// Of a thread that does nothing else.
    pub fn at_once() -> Self {
        Self { waiting: VecDeque::new(), room: usize::MAX, room_max: usize::MAX }
    }

    /// Lets it go now if few enough have gone in this turn, else in one of the next.
    pub fn give(&mut self, reply: Reply, answer: Result<Outcome>) {
        if self.room == 0 {
            return self.waiting.push_back((reply, answer));
        }
        if self.room_max != usize::MAX {
            self.room -= 1;
        }
        reply.send(answer);
    }

    /// Whether some must wait for a turn; where none does, the next ones need not.
    pub fn wait(&mut self) -> bool {
        if self.waiting.is_empty() {
            self.room = self.room_max;
        }
        !self.waiting.is_empty()
    }

    /// A new turn: lets the next few go.
    pub fn take_turn(&mut self) {
        let count = self.room_max.min(self.waiting.len());
        self.room = self.room_max - count;
        for (reply, answer) in self.waiting.drain(..count) {
            reply.send(answer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;

    /// Gives that many answers; which of them have arrived can be asked.
    fn given(answers: &mut Answers, count: usize) -> Vec<tokio::sync::oneshot::Receiver<Result<Outcome>>> {
        let give = |_| {
            let (reply, answer) = Reply::channel();
            answers.give(reply, Err(Error::internal("TEST", "an answer")));
            answer
        };
        (0..count).map(give).collect()
    }

    fn arrived(callers: &mut [tokio::sync::oneshot::Receiver<Result<Outcome>>]) -> Vec<bool> {
        callers.iter_mut().map(|caller| caller.try_recv().is_ok()).collect()
    }

    #[test]
    fn a_few_leave_in_each_turn_in_order_and_none_is_lost() {
        let mut answers = Answers::in_turns();
        let mut callers = given(&mut answers, 2 * AT_ONCE + 3);
        let (first, rest) = callers.split_at_mut(AT_ONCE);
        assert_eq!(arrived(first), [true; AT_ONCE]);
        assert_eq!(arrived(rest), [false; AT_ONCE + 3]);
        assert!(answers.wait());
        answers.take_turn();
        let (second, third) = rest.split_at_mut(AT_ONCE);
        assert_eq!((arrived(second), arrived(third)), (vec![true; AT_ONCE], vec![false; 3]));
        answers.take_turn();
        assert_eq!(arrived(third), [true; 3]);
        assert!(!answers.wait());
    }

    #[test]
    fn a_turn_has_room_for_new_ones_once_the_old_have_gone() {
        let mut answers = Answers::in_turns();
        let mut old = given(&mut answers, AT_ONCE + 1);
        answers.take_turn();
        let mut new = given(&mut answers, AT_ONCE);
        assert_eq!(arrived(&mut old), [true; AT_ONCE + 1]);
        assert_eq!(arrived(&mut new).iter().filter(|came| **came).count(), AT_ONCE - 1);
    }

    #[test]
    fn a_thread_keeps_nobody_waiting() {
        let mut answers = Answers::at_once();
        let mut callers = given(&mut answers, 10 * AT_ONCE);
        assert!(arrived(&mut callers).iter().all(|came| *came));
    }
}
