//! Moves rollouts: looks at every tick where each of them stands, asks the judge, and does what it says.
//!
//! Every replica runs one, and they need not agree: each looks at the sum of what all counted, and whoever wins the
//! compare-and-swap has moved the rollout; the others see the next phase. What a replica sees of a failing version it acts upon at
//! once, by itself: the version gets nothing here from then on, whether or not the store can be written just then.

use std::{collections::HashMap, sync::Arc, time::Duration};

use tokio::{
    task::{AbortHandle, JoinSet},
    time::{Instant, MissedTickBehavior, interval, timeout},
};

use super::{
    Counts, Operator, arrivals,
    change::{Asked, Change},
    course::Judged,
    judge::{Decision, Verdict},
    progress::{Heard, now, verdict},
    told::event,
    webhook::{Note, Webhook},
};
use crate::{
    catalog::{Catalog, ModelEntry},
    error::{Error, Result},
    model::{ModelName, Rollout, Version},
    telemetry::{
        Events, Metrics,
        events::{Event, Kind},
    },
};

/// What a controller works with. Cheap to clone.
#[derive(Clone)]
pub struct Controller {
    pub operator: Operator,
    pub counts: Counts,
    pub catalog: Catalog,
    pub events: Events,
    pub metrics: Arc<Metrics>,
    pub webhook: Option<Webhook>,
    /// This replica's name.
    pub replica: String,
}

/// Follows one model's rollouts.
struct Follower {
    control: Controller,
    model: ModelName,
    clock: Option<Clock>,
    /// What is to be written as soon as it can be: the version is taken out here already.
    failing: Option<Judged>,
    /// Why nothing could be written last, so that it is said once.
    trouble: Option<&'static str>,
    /// Ticks since the last look.
    ticks: u32,
}

/// How long a rollout has lasted: by the wall clock when it was first seen as it is, and by this process's own from then on, so that
/// nobody who sets the time moves a rollout.
struct Clock {
    of: Seen,
    at: Instant,
    in_all: Duration,
    in_phase: Duration,
}

/// What a clock is started anew by.
#[derive(PartialEq)]
struct Seen {
    began: u64,
    phase_at: String,
    is_paused: bool,
    paused_seconds: u64,
}

const TICK: Duration = Duration::from_secs(1);
/// Of a rollout that waits for a person only what breaks is looked for, and each look reads what all replicas counted.
const TICKS_WHILE_PAUSED: u32 = 5;
/// Of a new version that could not be rolled out: each attempt reads the route anew.
const TICKS_AFTER_REFUSAL: u32 = 10;
/// Of an operator's change.
const WRITTEN_WITHIN: Duration = Duration::from_secs(10);
/// Of a verdict's sentence, in the history and in events.
const MESSAGE_BYTES_MAX: usize = 1000;

// === impl Controller ===

impl Controller {
    /// Until `end`. A verdict that is being written then is written by another replica, or after the next start.
    pub async fn run(self, end: impl Future<Output = ()>) {
        let mut end = std::pin::pin!(end);
        let mut followers: JoinSet<ModelName> = JoinSet::new();
        let mut followed: HashMap<ModelName, AbortHandle> = HashMap::new();
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = &mut end => return,
                _ = ticks.tick() => {}
                Some(ended) = followers.join_next() => {
                    match ended {
                        Ok(model) => drop(followed.remove(&model)),
                        // A bug in one of them is no reason to leave the others alone, nor this one.
                        Err(error) => {
                            tracing::error!(%error, "a rollout's follower ended; it is begun anew");
                            followed.retain(|_, handle| !handle.is_finished());
                        }
                    }
                    continue;
                }
            }
            let snapshot = self.catalog.load();
            for entry in snapshot.models.values().filter(|entry| self.has_to_do(entry)) {
                if !followed.contains_key(&entry.name) {
                    let follower = Follower::new(self.clone(), entry.name.clone());
                    followed.insert(entry.name.clone(), followers.spawn(follower.run()));
                }
            }
        }
    }

    fn has_to_do(&self, entry: &ModelEntry) -> bool {
        entry.route.running().is_some() || self.arrived(entry).is_some()
    }

    /// Where routes are written elsewhere, so is what becomes of new versions.
    fn arrived(&self, entry: &ModelEntry) -> Option<Change> {
        arrivals::wanted(entry).filter(|_| self.operator.closed_because().is_none())
    }
}

// === impl Follower ===

impl Follower {
    fn new(control: Controller, model: ModelName) -> Self {
        Self { control, model, clock: None, failing: None, trouble: None, ticks: 0 }
    }

    async fn run(mut self) -> ModelName {
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let snapshot = self.control.catalog.load();
            let Some(entry) = snapshot.models.get(self.model.as_str()).filter(|entry| self.control.has_to_do(entry))
            else {
                return self.model;
            };
            if let Some(rollout) = entry.route.running() {
                self.ticks += 1;
                if rollout.paused.is_none() || self.failing.is_some() || self.ticks >= TICKS_WHILE_PAUSED {
                    self.ticks = 0;
                    self.look(entry, rollout).await;
                }
            } else if let Some(change) = self.control.arrived(entry) {
                self.ticks += 1;
                if self.trouble.is_some() && self.ticks < TICKS_AFTER_REFUSAL {
                    continue;
                }
                self.ticks = 0;
                let reason = format!("on_new_version: {}", entry.on_new_version.as_str());
                let _ = self.change(change, reason).await;
            }
        }
    }

    /// One tick.
    async fn look(&mut self, entry: &Arc<ModelEntry>, rollout: &Rollout) {
        let failing = self.failing.take().filter(|judged| judged.began == rollout.began);
        let judged = match failing {
            Some(judged) => Judged { phase: rollout.phase, ..judged },
            None => match self.verdict(entry, rollout).await {
                Ok(Some(verdict)) => judged(rollout, verdict),
                Ok(None) => return,
                Err(error) => {
                    tracing::warn!(model = %self.model, %error, "the rollout cannot be judged");
                    return;
                }
            },
        };
        match judged.verdict.decision {
            Decision::Hold => {}
            Decision::RollBack => {
                if take_out(entry, rollout.version) {
                    self.tell_taken_out(rollout, &judged.verdict);
                }
                if self.write(judged.clone(), rollout).await.is_err() {
                    self.failing = Some(judged);
                }
            }
            // Whoever paused it decides when it goes on.
            Decision::Advance | Decision::Halt if rollout.paused.is_some() => {}
            Decision::Advance | Decision::Halt => drop(self.write(judged, rollout).await),
        }
    }

    /// `None` where it is over by now.
    async fn verdict(&mut self, entry: &ModelEntry, rollout: &Rollout) -> Result<Option<Verdict>> {
        let lasted = self.lasted(rollout)?;
        let heard = Heard::of(&self.control.counts, &self.control.operator, &self.model, rollout).await;
        Ok(verdict(entry, &entry.route, rollout, &heard, lasted))
    }

    fn lasted(&mut self, rollout: &Rollout) -> Result<(Duration, Duration)> {
        let seen = Seen {
            began: rollout.began,
            phase_at: rollout.phase_at.clone(),
            is_paused: rollout.paused.is_some(),
            paused_seconds: rollout.paused_seconds,
        };
        let clock = match self.clock.take().filter(|clock| clock.of == seen) {
            Some(clock) => clock,
            None => {
                let (in_all, in_phase) = rollout.lasted(now())?;
                Clock { of: seen, at: Instant::now(), in_all, in_phase }
            }
        };
        let since = if rollout.paused.is_some() { Duration::ZERO } else { clock.at.elapsed() };
        let lasted = (clock.in_all + since, clock.in_phase + since);
        self.clock = Some(clock);
        Ok(lasted)
    }

    fn tell_taken_out(&self, rollout: &Rollout, verdict: &Verdict) {
        let (model, version, why) = (&self.model, rollout.version, &verdict.message);
        tracing::warn!(%model, %version, why, "the version gets nothing here any more; stable answers");
        let event = Event::of_model(Kind::VariantTakenOut, model).because(verdict.rule, why);
        self.control.events.tell(Event { version: version.to_string(), revision: rollout.began, ..event });
    }

    /// `Err` where it is to be written again at the next tick. That somebody else was first is no error: the next tick sees what
    /// they made of it.
    async fn write(&mut self, judged: Judged, rollout: &Rollout) -> Result<()> {
        let Judged { verdict, phase, version, .. } = &judged;
        let (decision, rule) = (verdict.decision, verdict.rule);
        let reason = verdict.message.clone();
        let change = Change::Judged(Box::new(judged.clone()));
        let written = self.change(change, reason).await?;
        let Some((revision, time)) = written else { return Ok(()) };
        let (model, control) = (&self.model, &self.control);
        control.metrics.rollout_verdict(model.as_str(), decision.as_str(), rule);
        let (exposure, message) = (verdict.exposure, &verdict.message);
        match decision {
            Decision::RollBack | Decision::Halt => {
                tracing::warn!(%model, %version, %phase, decision = decision.as_str(), rule, exposure, message, "rollout judged");
            }
            _ => {
                tracing::info!(%model, %version, %phase, decision = decision.as_str(), rule, exposure, message, "rollout judged")
            }
        }
        if let Some(webhook) = &control.webhook {
            webhook.tell(Note {
                model: model.to_string(),
                version: version.to_string(),
                control: rollout.control.to_string(),
                phase: phase.to_string(),
                decision: decision.as_str(),
                rule,
                message: message.clone(),
                exposure,
                revision,
                time,
                replica: control.replica.clone(),
            });
        }
        Ok(())
    }

    /// The revision and time of what was written; `None` where nothing was to be.
    async fn change(&mut self, change: Change, reason: String) -> Result<Option<(u64, String)>> {
        let control = &self.control;
        let asked = Asked { caller: format!("sconce@{}", control.replica), reason, ..Asked::default() };
        let writing = control.operator.change(self.model.as_str(), change.clone(), asked.clone());
        let written = match timeout(WRITTEN_WITHIN, writing).await {
            Ok(written) => written,
            Err(_) => Err(Error::unavailable("STORE_UNAVAILABLE", "the store has not answered in time", TICK)),
        };
        match written {
            Ok(written) if written.time.is_empty() => Ok(None),
            Ok(written) => {
                self.trouble = None;
                control.events.tell(event(self.model.as_str(), &change, &asked, &written));
                Ok(Some((written.revision, written.time)))
            }
            Err(error) if matches!(error.reason(), "REVISION_MOVED" | "ROLLOUT_MOVED" | "NO_ROLLOUT") => Ok(None),
            Err(error) => {
                if self.trouble.replace(error.reason()) != Some(error.reason()) {
                    tracing::warn!(model = %self.model, %change, %error, "the route cannot be written; it is tried again");
                    if let Change::Deploy(version, _) = &change {
                        let refused = Event::of_model(Kind::DeployRefused, &self.model);
                        let refused = refused.because(error.reason(), error.message());
                        self.control.events.tell(Event { version: version.to_string(), ..refused });
                    }
                }
                Err(error)
            }
        }
    }
}

fn judged(rollout: &Rollout, mut verdict: Verdict) -> Judged {
    if verdict.message.len() > MESSAGE_BYTES_MAX {
        verdict.message.truncate(verdict.message.floor_char_boundary(MESSAGE_BYTES_MAX));
        verdict.message.push('…');
    }
    Judged { version: rollout.version, began: rollout.began, phase: rollout.phase, verdict }
}

/// Whether it got anything here until now.
fn take_out(entry: &ModelEntry, version: Version) -> bool {
    let arms = entry.traffic.arms.iter().filter(|arm| arm.version == version).map(|arm| &arm.cell);
    let shadows = entry.traffic.shadows.iter().filter(|shadow| shadow.version == version).map(|shadow| &shadow.cell);
    // Every one of them, not only until the first that was still in.
    arms.chain(shadows).filter(|cell| cell.take_out()).count() > 0
}
