//! Who answers where new versions do not serve by themselves.

use super::{
    routes::{settle, stable},
    *,
};

/// What model.yaml says is held by all of these tests alike, whichever of the two it is.
const HOLDS: [&str; 2] = ["on_new_version: hold", "on_new_version: canary"];

fn answers(world: &World) -> u64 {
    stable(world).map_or(0, |version| version.split('.').next().expect("a number").parse().expect("a number"))
}

#[test]
fn who_answers_answers_on_beside_a_higher_one_that_is_ready() {
    for yaml in HOLDS {
        let mut world = World::new();
        world.yaml = yaml;
        settle(&mut world, "", &[(1, 1)], &[]);
        settle(&mut world, "", &[(1, 1), (2, 2)], &[]);
        assert_eq!((world.ready(), answers(&world)), (vec!["1.0.0".into(), "2.0.0".into()], 1), "{yaml}");
        settle(&mut world, "", &[(1, 1), (2, 2), (3, 3)], &[]);
        world.wait(3600);
        let expected = vec!["1.0.0".to_owned(), "3.0.0".to_owned()];
        assert_eq!((world.ready(), answers(&world)), (expected, 1), "{yaml}: 3 has the place of 2, not of 1");
    }
}

#[test]
fn a_start_takes_the_highest_whatever_is_ready_first() {
    let mut world = World::new();
    world.yaml = "on_new_version: hold\nversions: { latest: 2 }";
    world.list(&[(1, 1), (2, 2)]);
    let jobs = [world.ledger.next_job().expect("a load"), world.ledger.next_job().expect("a load")];
    for job in jobs.into_iter().rev() {
        world.finish(job, &[]);
    }
    assert_eq!((world.ready().len(), answers(&world)), (2, 2));
    settle(&mut world, "", &[(1, 1), (2, 2), (3, 3)], &[]);
    assert_eq!(answers(&world), 2, "from then on it is held");
}

#[test]
fn a_new_version_that_fails_and_is_mended_does_not_take_over() {
    let mut world = World::new();
    world.yaml = "on_new_version: hold";
    settle(&mut world, "", &[(1, 1), (2, 2)], &[2]);
    assert_eq!(answers(&world), 1, "it stands in at a start");
    world.wait(600);
    world.work(&[]);
    assert_eq!((world.ready().len(), answers(&world)), (2, 1));
}

#[test]
fn what_is_promoted_answers_and_an_unpin_changes_nothing() {
    let mut world = World::new();
    world.yaml = "on_new_version: hold";
    settle(&mut world, "", &[(1, 1)], &[]);
    settle(&mut world, "", &[(1, 1), (2, 2)], &[]);
    settle(&mut world, "revision: 1\nstable: 2.0.0", &[(1, 1), (2, 2)], &[]);
    assert_eq!((world.ready(), answers(&world)), (vec!["2.0.0".into()], 2));
    settle(&mut world, "revision: 1\nstable: 2.0.0", &[(1, 1), (2, 2), (3, 3)], &[]);
    settle(&mut world, "revision: 2\nstable: latest", &[(1, 1), (2, 2), (3, 3)], &[]);
    assert_eq!((world.ready().len(), answers(&world)), (2, 2));
}

#[test]
fn a_change_of_the_word_holds_at_once() {
    let mut world = World::new();
    settle(&mut world, "", &[(1, 1)], &[]);
    world.yaml = "on_new_version: hold";
    // With the word comes a version.
    settle(&mut world, "", &[(1, 1), (2, 2)], &[]);
    assert_eq!((world.ready().len(), answers(&world)), (2, 1));
    world.yaml = "on_new_version: serve";
    world.list(&[(1, 1), (2, 2)]);
    assert_eq!((world.ready(), answers(&world)), (vec!["2.0.0".into()], 2));
    assert_eq!(world.work(&[]).len(), 0, "no servable is made for it");
}

#[test]
fn what_is_pinned_stays_when_it_is_unpinned_by_whoever_turns_to_hold() {
    let mut world = World::new();
    settle(&mut world, "stable: 1.0.0", &[(1, 1), (2, 2)], &[]);
    world.yaml = "on_new_version: hold";
    settle(&mut world, "stable: latest", &[(1, 1), (2, 2)], &[]);
    assert_eq!((world.ready().len(), answers(&world)), (2, 1));
}

#[test]
fn what_is_rejected_is_not_held() {
    let mut world = World::new();
    world.yaml = "on_new_version: hold";
    settle(&mut world, "", &[(1, 1)], &[]);
    settle(&mut world, "", &[(1, 1), (2, 2)], &[]);
    settle(&mut world, "rejected: [1.0.0]", &[(1, 1), (2, 2)], &[]);
    assert_eq!((world.ready(), answers(&world)), (vec!["2.0.0".into()], 2));
    settle(&mut world, "rejected: [ ]", &[(1, 1), (2, 2)], &[]);
    assert_eq!(answers(&world), 2, "the one that stood in answers on");
}

#[test]
fn what_is_made_anew_is_waited_for_where_memory_is_preserved() {
    let mut world = World::new();
    world.yaml = "on_new_version: hold\nswap_policy: resource";
    settle(&mut world, "", &[(1, 1)], &[]);
    settle(&mut world, "", &[(1, 1), (2, 2)], &[]);
    world.yaml = "on_new_version: hold\nswap_policy: resource\nbatching: off";
    world.list(&[(1, 1), (2, 2)]);
    let newest = world.ledger.next_job().expect("a load");
    assert_eq!(newest.version, Version::new(2, 0, 0));
    world.finish(newest, &[]);
    assert_eq!((world.ready(), answers(&world)), (vec!["2.0.0".into()], 0), "as a pinned one is waited for");
    world.work(&[]);
    assert_eq!((world.ready().len(), answers(&world)), (2, 1));
}

#[test]
fn one_that_cannot_be_made_anew_is_not_waited_for() {
    let mut world = World::new();
    world.yaml = "on_new_version: hold\nswap_policy: resource";
    settle(&mut world, "", &[(1, 1)], &[]);
    settle(&mut world, "", &[(1, 1), (2, 2)], &[]);
    world.yaml = "on_new_version: hold\nswap_policy: resource\nbatching: off";
    settle(&mut world, "", &[(1, 1), (2, 2)], &[1]);
    assert_eq!((world.ready(), answers(&world)), (vec!["2.0.0".into()], 2));
}

#[test]
fn one_whose_folder_is_gone_serves_on_as_if_the_route_named_it() {
    let mut world = World::new();
    world.yaml = "on_new_version: hold";
    settle(&mut world, "", &[(1, 1)], &[]);
    settle(&mut world, "", &[(1, 1), (2, 2)], &[]);
    settle(&mut world, "", &[(2, 2)], &[]);
    assert_eq!((world.ready().len(), answers(&world)), (2, 1));
}
