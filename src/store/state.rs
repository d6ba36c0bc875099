//! Routes from one place, artifacts from another: what `--state` asks for, where the store itself may not be written to.
//!
//! Two watchers, each of its own place, and one listing of both: the models and versions are the store's, route.yaml is the
//! state's. Nothing is known before both are, so that no version serves that a route has ruled out.

use std::{io, sync::Arc};

use tokio::{
    sync::watch::{self, Sender},
    task::JoinSet,
};
use tracing::Instrument;

use super::{
    Asks, Config, News,
    layout::{ModelFolder, StoreListing},
    look_once_at,
    watcher::watch_one,
};

/// Watches both places until nobody listens any more.
pub(super) async fn watch_both(store: Config, state: Config, news: Sender<News>, asks: Asks) {
    let (store_sender, mut of_store) = watch::channel(News::default());
    let (state_sender, mut of_state) = watch::channel(News::default());
    let mut watchers = JoinSet::new();
    watchers.spawn(watch_one(store, store_sender, asks.clone()));
    watchers.spawn(watch_one(state, state_sender, asks).instrument(tracing::error_span!("state")));
    loop {
        let (store, state) = (of_store.borrow_and_update().clone(), of_state.borrow_and_update().clone());
        news.send_if_modified(|known| {
            let joined = join_news(&store, &state, known.listing.as_deref());
            let is_news = joined.is_news_after(known);
            *known = joined;
            is_news
        });
        let changed = tokio::select! {
            changed = of_store.changed() => changed,
            changed = of_state.changed() => changed,
            () = news.closed() => return,
        };
        if changed.is_err() {
            // A watcher ends by itself only when the runtime goes down, or by a bug that has been logged.
            return;
        }
    }
}

/// One look at both. It blocks.
pub(super) fn look_at_both(store: &Config, state: &Config) -> io::Result<Arc<StoreListing>> {
    let (store, state) =
        (look_once_at(store)?, look_once_at(state).map_err(|error| io::Error::other(of_state(&error)))?);
    Ok(Arc::new(join(&store, &state, None)))
}

fn join_news(store: &News, state: &News, last: Option<&StoreListing>) -> News {
    let listings = store.listing.as_ref().zip(state.listing.as_ref());
    News {
        listing: listings.map(|(store, state)| Arc::new(join(store, state, last))),
        trouble: store.trouble.clone().or_else(|| state.trouble.as_ref().map(|trouble| of_state(trouble))),
        looks: store.looks + state.looks,
        asked: store.asked.min(state.asked),
    }
}

fn of_state(trouble: &dyn std::fmt::Display) -> String {
    format!("the place that `state` names: {trouble}")
}

/// What is as it was in `last` is the same `Arc` again.
fn join(store: &StoreListing, state: &StoreListing, last: Option<&StoreListing>) -> StoreListing {
    let mut models = store.models.clone();
    for (name, folder) in &mut models {
        let joined = with_state(folder, state.models.get(name).map(Arc::as_ref));
        let before = last.and_then(|last| last.models.get(name));
        *folder = match before {
            Some(before) if before.is_same(&joined) => before.clone(),
            _ => Arc::new(joined),
        };
    }
    let problems = state.problems.iter().map(|problem| of_state(problem));
    StoreListing { models, problems: store.problems.iter().cloned().chain(problems).collect() }
}

fn with_state(store: &ModelFolder, state: Option<&ModelFolder>) -> ModelFolder {
    let mut joined = store.clone();
    if joined.route_yaml.is_some() {
        joined.problems.push("route.yaml here is not followed: it is kept where `state` says".into());
    }
    joined.route_yaml = state.and_then(|state| state.route_yaml.clone());
    joined.problems.extend(state.iter().flat_map(|state| &state.problems).map(|problem| of_state(problem)));
    joined
}

// === impl News ===

impl News {
    fn is_news_after(&self, known: &News) -> bool {
        let same = match (&self.listing, &known.listing) {
            (Some(listing), Some(known)) => listing.is_same(known),
            (None, None) => true,
            _ => false,
        };
        !same || self.trouble != known.trouble || self.asked != known.asked
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        model::ModelName,
        store::{Stamp, TextFile},
    };

    fn listing(routes: &[(&str, Option<&str>)]) -> StoreListing {
        let folder = |route: &Option<&str>| {
            let stamp = Stamp { size: 1, modified_ns: 0, changed_ns: 0, inode: 0 };
            let text = |text: &str| TextFile { stamp, read_ns: 0, text: Ok(text.into()) };
            Arc::new(ModelFolder { route_yaml: route.map(text), ..ModelFolder::default() })
        };
        let name = |name: &str| ModelName::new(name).expect("a name");
        let models = routes.iter().map(|(model, route)| (name(model), folder(route))).collect();
        StoreListing { models, problems: Vec::new() }
    }

    #[test]
    fn models_are_the_stores_and_routes_the_states() {
        let store = listing(&[("a", None), ("b", Some("stable: 1")), ("c", None)]);
        let state = listing(&[("a", Some("stable: 2")), ("d", Some("stable: 3"))]);
        let joined = join(&store, &state, None);
        let route = |model: &str| joined.models[model].route_yaml.as_ref().and_then(|file| file.text.clone().ok());
        assert_eq!(joined.models.len(), 3);
        assert_eq!(route("a").as_deref(), Some("stable: 2"));
        assert_eq!((route("b"), route("c")), (None, None), "the store's own route is not followed");
        assert!(joined.models["b"].problems[0].contains("route.yaml"), "and that is said");
        assert!(join(&store, &state, Some(&joined)).is_same(&joined));
    }

    #[test]
    fn nothing_is_known_before_both_are() {
        let known = News { listing: Some(Arc::default()), looks: 2, asked: 1, ..News::default() };
        let away = News { trouble: Some("away".into()), asked: 3, ..News::default() };
        let joined = join_news(&known, &away, None);
        assert!(joined.listing.is_none() && joined.trouble.is_some_and(|trouble| trouble.contains("away")));
        assert_eq!(joined.asked, 1, "an ask is answered when both have looked");
    }
}
