//! The watcher over real folders, with pauses so long that only what ends them early is tested.

use std::{fs, path::Path};

use tokio::sync::watch::{self, Receiver};

use super::*;
use crate::{
    model::Version,
    store::{Refresh, refresh},
};

const NEVER: Duration = Duration::from_secs(3600);
const SOON: Duration = Duration::from_secs(20);
const ONE: Version = Version::new(1, 0, 0);

struct World {
    place: tempfile::TempDir,
    news: Receiver<News>,
    refresh: Refresh,
    has_events: bool,
}

impl World {
    /// Watched, and looked at once.
    async fn new() -> Self {
        let place = tempfile::tempdir().expect("a folder");
        let root = place.path().join("store");
        fs::create_dir_all(root.join("a/1")).expect("made");
        fs::create_dir_all(root.join("version")).expect("made");
        fs::write(root.join("a/1/model.onnx"), "x").expect("written");
        let mut events = Events::new(&root);
        events.arm(std::time::Instant::now());
        let config = Config { poll_interval: NEVER, settle: NEVER, ..Config::new(&root) };
        let (sender, news) = watch::channel(News::default());
        let (refresh, asks, answers) = refresh();
        tokio::spawn(super::watch(config, sender, asks));
        // What the manager does: it takes the news in, and answers.
        let mut taken = news.clone();
        tokio::spawn(async move {
            while taken.changed().await.is_ok() {
                let news = taken.borrow_and_update().clone();
                answers.answer(news.asked, news.trouble);
            }
        });
        let mut world = Self { place, news, refresh, has_events: events.work() };
        world.sees("the first look", |news| news.listing.is_some()).await;
        world
    }

    fn path(&self, path: &str) -> std::path::PathBuf {
        self.place.path().join("store").join(path)
    }

    /// Returns when the clock of the file system has gone on: what is renamed in the tick in which it was written has to settle.
    fn tick(&self) {
        let file = self.place.path().join("tick");
        let stamp = || {
            fs::write(&file, "").expect("written");
            fs::metadata(&file).and_then(|metadata| metadata.modified()).expect("there")
        };
        let before = stamp();
        while stamp() == before {}
    }

    async fn sees(&mut self, what: &str, condition: impl FnMut(&News) -> bool) {
        let seen = tokio::time::timeout(SOON, self.news.wait_for(condition)).await;
        seen.unwrap_or_else(|_| panic!("{what}: not within {SOON:?}")).expect("the watcher lives");
    }
}

fn is_complete(news: &News, model: &str) -> bool {
    let listing = news.listing.as_ref().expect("there is one");
    listing.models.get(model).is_some_and(|model| model.versions.get(&ONE).is_some_and(|version| version.complete))
}

fn write(folder: &Path) {
    fs::create_dir_all(folder).expect("made");
    fs::write(folder.join("model.onnx"), "x").expect("written");
}

#[tokio::test]
async fn an_ask_is_answered_by_a_look_and_says_its_trouble() {
    let mut world = World::new().await;
    let looks = world.news.borrow().looks;
    assert_eq!(world.refresh.look().await, Ok(()));
    assert!(world.news.borrow().looks > looks);
    write(&world.path("b/1"));
    assert_eq!(world.refresh.look().await, Ok(()));
    assert!(world.news.borrow_and_update().listing.as_ref().is_some_and(|listing| listing.models.contains_key("b")));
    fs::rename(world.path(""), world.place.path().join("away")).expect("renamed");
    let trouble = world.refresh.look().await.expect_err("it is away");
    assert_eq!(world.news.borrow().trouble, Some(trouble));
}

#[tokio::test]
async fn a_renamed_folder_is_complete_at_once_and_a_written_one_is_not() {
    let mut world = World::new().await;
    if !world.has_events {
        return;
    }
    write(&world.path("written/1"));
    world.sees("a new folder", |news| news.listing.as_ref().is_some_and(|l| l.models.contains_key("written"))).await;
    let staging = world.place.path().join("staging");
    write(&staging);
    world.tick();
    fs::rename(&staging, world.path("version/1")).expect("renamed");
    world.sees("a version that was renamed", |news| is_complete(news, "version")).await;
    write(&staging.join("1"));
    world.tick();
    fs::rename(&staging, world.path("model")).expect("renamed");
    world.sees("a model that was renamed", |news| is_complete(news, "model")).await;
    assert!(!is_complete(&world.news.borrow(), "written"));
    assert!(!is_complete(&world.news.borrow(), "a"), "it was there before");
    fs::write(world.path("model/1/more.bin"), "y").expect("written");
    world.sees("what is written to is not complete any more", |news| !is_complete(news, "model")).await;
}

#[tokio::test]
async fn folders_that_come_later_are_watched_too() {
    let mut world = World::new().await;
    if !world.has_events {
        return;
    }
    write(&world.path("b/1/sub"));
    let has = |news: &News, file: &str| {
        let model = news.listing.as_ref().and_then(|listing| listing.models.get("b").cloned());
        model.is_some_and(|model| model.versions.get(&ONE).is_some_and(|version| version.files.contains_key(file)))
    };
    world.sees("a file in a new folder", |news| has(news, "sub/model.onnx")).await;
    fs::write(world.path("b/1/sub/late.bin"), "y").expect("written");
    world.sees("a file in it that comes later", |news| has(news, "sub/late.bin")).await;
}

#[tokio::test]
async fn a_storm_of_events_is_few_looks() {
    let mut world = World::new().await;
    if !world.has_events {
        return;
    }
    let before = world.news.borrow().looks;
    let begun = Instant::now();
    fs::create_dir(world.path("a/2")).expect("made");
    for file in 0..1000 {
        fs::write(world.path(&format!("a/2/{file}")), "x").expect("written");
    }
    let two = Version::new(2, 0, 0);
    let all = |news: &News| {
        let model = news.listing.as_ref().and_then(|listing| listing.models.get("a").cloned());
        model.is_some_and(|model| model.versions.get(&two).is_some_and(|version| version.files.len() == 1000))
    };
    world.sees("all files", all).await;
    let (looks, took) = (world.news.borrow().looks - before, begun.elapsed());
    assert!(u128::from(looks) <= took.as_millis() / GATHER.as_millis() + 1, "{looks} looks in {took:?}");
}

#[test]
fn the_pause_is_short_only_while_something_is_waited_for() {
    let quiet = Pace {
        poll_interval: Duration::from_secs(2),
        settle: Duration::from_secs(2),
        has_events: true,
        is_settling: false,
        is_doubtful: false,
        took: Duration::from_millis(1),
    };
    let ms = |pace: Pace| pace.pause().as_millis();
    assert_eq!(ms(quiet), 30_000);
    assert_eq!(ms(Pace { has_events: false, ..quiet }), 2_000);
    assert_eq!(ms(Pace { is_doubtful: true, ..quiet }), 2_000);
    assert_eq!(ms(Pace { is_settling: true, ..quiet }), 500);
    assert_eq!(ms(Pace { poll_interval: NEVER, ..quiet }), 3_600_000);
    let slow = Pace { took: Duration::from_millis(300), ..quiet };
    assert_eq!(ms(Pace { is_settling: true, ..slow }), 2_700, "looks have a tenth of a core");
    assert_eq!((quiet.gather().as_millis(), slow.gather().as_millis()), (50, 2_700));
    assert_eq!(Pace { took: NEVER, ..quiet }.gather(), FALLBACK_INTERVAL, "and yet it does not rest for ever");
}
