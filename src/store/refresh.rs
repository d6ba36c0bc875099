//! An operator's ask for a look at once.
//!
//! `refresh()` makes all ends: whoever may ask holds `Refresh`, the watcher `Asks`, and whoever takes in what a look found
//! `Answers`.

use tokio::sync::watch;

/// Asks for a look, and waits for it. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Refresh {
    asked: watch::Sender<u64>,
    answered: watch::Receiver<Answer>,
}

/// The watcher's end.
#[derive(Debug)]
pub struct Asks(watch::Receiver<u64>);

/// The end of whoever takes the news in.
#[derive(Debug)]
pub struct Answers(watch::Sender<Answer>);

#[derive(Clone, Debug, Default)]
struct Answer {
    /// The last ask that came before the look began.
    ask: u64,
    /// Why the look failed.
    trouble: Option<String>,
}

pub fn refresh() -> (Refresh, Asks, Answers) {
    let (asked_sender, asked) = watch::channel(0);
    let (answered_sender, answered) = watch::channel(Answer::default());
    (Refresh { asked: asked_sender, answered }, Asks(asked), Answers(answered_sender))
}

// === impl Refresh ===

impl Refresh {
    /// Ends the watcher's pause, and returns when what a look found that began after this call was taken in. Fails with why
    /// the store could not be listed.
    pub async fn look(&self) -> Result<(), String> {
        let ask = self.ask();
        let mut answered = self.answered.clone();
        let answer = answered.wait_for(|answer| answer.ask >= ask).await;
        let answer = answer.map_err(|_| "the store is not watched any more".to_owned())?;
        answer.trouble.clone().map_or(Ok(()), Err)
    }

    /// Ends the watcher's pause, and does not wait for the look.
    pub fn hurry(&self) {
        self.ask();
    }

    fn ask(&self) -> u64 {
        let mut ask = 0;
        self.asked.send_modify(|asked| {
            *asked += 1;
            ask = *asked;
        });
        ask
    }
}

// === impl Asks ===

impl Asks {
    /// Called before a look: the asks that it answers.
    pub(super) fn taken(&mut self) -> u64 {
        *self.0.borrow_and_update()
    }

    /// Returns when somebody asks, or has asked since `taken`.
    pub(super) async fn come(&mut self) {
        if self.0.changed().await.is_err() {
            // Nobody is left who could ask.
            std::future::pending::<()>().await;
        }
    }
}

// === impl Answers ===

impl Answers {
    /// Called when the news of a look are taken in, with the ask that they name.
    pub fn answer(&self, ask: u64, trouble: Option<String>) {
        self.0.send_if_modified(|last| {
            let is_news = last.ask != ask;
            *last = Answer { ask, trouble };
            is_news
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_a_look_that_began_after_the_ask_answers_it() {
        let (refresh, mut asks, answers) = refresh();
        let early = asks.taken();
        let look = refresh.look();
        tokio::pin!(look);
        assert!(futures_util::poll!(look.as_mut()).is_pending());
        answers.answer(early, None);
        assert!(futures_util::poll!(look.as_mut()).is_pending(), "that look was under way");
        asks.come().await;
        let ask = asks.taken();
        answers.answer(ask, Some("no such folder".into()));
        assert_eq!(look.await, Err("no such folder".into()));
    }

    #[tokio::test]
    async fn nobody_waits_for_a_watcher_that_is_gone() {
        let (refresh, _asks, answers) = refresh();
        drop(answers);
        assert!(refresh.look().await.is_err());
    }
}
