//! What events mean, and a watch over real folders.

use std::{fs, os::unix::fs::symlink};

use notify::event::{CreateKind, DataChange, Flag, MetadataKind, RemoveKind};

use super::*;

const SOON: Duration = Duration::from_secs(20);

fn sign(kind: EventKind, path: &str) -> Sign {
    sign_of(Ok(Event::new(kind).add_path(path.into())), Path::new("/store"))
}

#[test]
fn each_event_has_its_meaning() {
    let made = EventKind::Create(CreateKind::File);
    let written = EventKind::Modify(ModifyKind::Data(DataChange::Any));
    let to = EventKind::Modify(ModifyKind::Name(RenameMode::To));
    let from = EventKind::Modify(ModifyKind::Name(RenameMode::From));
    let removed = EventKind::Remove(RemoveKind::Folder);
    let opened = EventKind::Access(AccessKind::Open(AccessMode::Any));
    let closed = EventKind::Access(AccessKind::Close(AccessMode::Write));
    let attributes = EventKind::Modify(ModifyKind::Metadata(MetadataKind::Any));
    assert_eq!(sign(made, "/store/m/1/model.onnx"), Sign::Written("m/1/model.onnx".into()));
    assert_eq!(sign(written, "/store/m/1/model.onnx"), Sign::Written("m/1/model.onnx".into()));
    assert_eq!(sign(closed, "/store/m/1/model.onnx"), Sign::Written("m/1/model.onnx".into()));
    assert_eq!(sign(opened, "/store/m/1"), Sign::Nothing);
    assert_eq!(sign(attributes, "/store/m/1"), Sign::Changed);
    assert_eq!(sign(to, "/store/m/1"), Sign::Arrived("m/1".into()));
    assert_eq!(sign(from, "/store/m/1"), Sign::Departed("m/1".into()));
    assert_eq!(sign(removed, "/store/m"), Sign::Departed("m".into()));
    assert_eq!(sign(from, "/store"), Sign::Lost(Loss::Watch));
    assert_eq!(sign(removed, "/store"), Sign::Lost(Loss::Watch));
    assert_eq!(sign(attributes, "/store"), Sign::Changed);
    assert_eq!(sign(made, "/elsewhere/m"), Sign::Nothing);
}

#[test]
fn what_has_a_dots_name_wakes_nobody_but_for_the_swap_of_a_volume() {
    let made = EventKind::Create(CreateKind::File);
    let to = EventKind::Modify(ModifyKind::Name(RenameMode::To));
    for path in ["/store/m/.sconce/status.json", "/store/.git/index", "/store/m/.1.tmp", "/store/..2026_01/a"] {
        assert_eq!(sign(made, path), Sign::Nothing, "{path}");
    }
    assert_eq!(sign(to, "/store/..data"), Sign::Changed);
    assert_eq!(sign(to, "/store/m/..data"), Sign::Changed);
    // Out of a staging folder into its place: two paths, and the last one counts.
    let both = Event::new(EventKind::Modify(ModifyKind::Name(RenameMode::Both)));
    let both = both.add_path("/store/m/.1.tmp".into()).add_path("/store/m/1".into());
    assert_eq!(sign_of(Ok(both), Path::new("/store")), Sign::Arrived("m/1".into()));
}

#[test]
fn limits_of_the_kernel_are_told_apart() {
    let overflow = Event::new(EventKind::Other).set_flag(Flag::Rescan);
    assert_eq!(sign_of(Ok(overflow), Path::new("/store")), Sign::Lost(Loss::Queue));
    let limit = notify::Error::new(ErrorKind::MaxFilesWatch);
    assert_eq!(sign_of(Err(limit), Path::new("/store")), Sign::Lost(Loss::Limit));
    assert_eq!(sign_of(Err(notify::Error::generic("what")), Path::new("/store")), Sign::Lost(Loss::Watch));
}

/// Armed on `root`; `None` where folders as these send no events.
fn armed(root: &Path, now: Instant) -> Option<Events> {
    let mut events = Events::new(root);
    events.arm(now);
    if !events.work() {
        eprintln!("no events here, nothing is tested: {}", events.refused.why);
        return None;
    }
    Some(events)
}

async fn comes(events: &Events) {
    tokio::time::timeout(SOON, events.signs.come()).await.expect("an event comes");
}

#[tokio::test]
async fn a_full_queue_is_made_good_once_and_then_polled_for_a_while() {
    let root = tempfile::tempdir().expect("a folder");
    let now = Instant::now();
    let Some(mut events) = armed(root.path(), now) else {
        return;
    };
    events.signs.take(Sign::Arrived("m/1".into()));
    events.signs.take(Sign::Lost(Loss::Queue));
    comes(&events).await;
    assert_eq!(events.signs.renames().through("m/1"), None, "its writes may be among what was lost");
    events.arm(now + PATIENCE);
    assert!(events.work(), "armed anew");
    events.signs.take(Sign::Lost(Loss::Queue));
    events.arm(now + PATIENCE * 3 / 2);
    assert!(!events.work(), "it would be full again");
    events.arm(now + PATIENCE * 2);
    assert!(!events.work());
    events.arm(now + PATIENCE * 3);
    assert!(events.work(), "tried once more");
    events.signs.take(Sign::Lost(Loss::Limit));
    events.arm(now + PATIENCE * 9);
    assert!(!events.work(), "and polled at once when the kernel's limit is reached");
}

#[tokio::test]
async fn a_root_that_is_replaced_is_watched_anew() {
    let place = tempfile::tempdir().expect("a folder");
    let (old, new, root) = (place.path().join("old"), place.path().join("new"), place.path().join("root"));
    fs::create_dir(&old).expect("made");
    fs::create_dir(&new).expect("made");
    symlink("old", &root).expect("linked");
    let now = Instant::now();
    let Some(mut events) = armed(&root, now) else {
        return;
    };
    assert!(!events.root_is_another());
    fs::create_dir(old.join("m")).expect("made");
    comes(&events).await;
    fs::remove_file(&root).expect("removed");
    assert!(events.root_is_another());
    events.arm(now);
    assert!(!events.work(), "there is nothing to watch");
    symlink("new", &root).expect("linked");
    events.arm(now);
    assert!(events.work());
    // What the old watch may still have told.
    while tokio::time::timeout(Duration::ZERO, events.signs.come()).await.is_ok() {}
    fs::create_dir(new.join("m")).expect("made");
    comes(&events).await;
}
