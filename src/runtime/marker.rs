//! What every thread runs at this moment, written where it outlives the process.
//!
//! A file in memory that is mapped as long as the process lives: one slot for each thread, which holds the tag of the version
//! that runs there and 0 when none does. Marking a run is two stores into a cache line of the thread's own. When the process
//! is killed, whatever kills it, the kernel still has the file, and `lifecycle` reads it at the next start.

use std::{
    collections::BTreeSet,
    fs::File,
    io,
    os::unix::fs::FileExt,
    ptr,
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

use rustix::{
    fs::{FallocateFlags, fallocate},
    mm::{MapFlags, ProtFlags, mmap},
};

/// The slots of the process.
#[derive(Clone, Copy, Debug)]
pub struct Marker {
    slots: &'static [Slot],
}

/// How the runs of one version are marked.
#[derive(Clone, Copy, Debug)]
pub struct Mark {
    marker: Marker,
    tag: u64,
}

/// A run that goes on; it ends when this is dropped.
pub struct Running {
    slot: Option<&'static Slot>,
}

/// A cache line, so that no thread waits for its neighbour.
#[derive(Debug)]
#[repr(align(64))]
struct Slot(AtomicU64);

/// The number of a thread's slot, given back when the thread ends.
struct Place(usize);

struct Places {
    /// Below `next`, given back.
    free: Vec<usize>,
    next: usize,
}

/// Threads past this many run unmarked.
const SLOTS: usize = 512;
const BYTES: usize = SLOTS * size_of::<Slot>();

static PLACES: Mutex<Places> = Mutex::new(Places { free: Vec::new(), next: 0 });

thread_local! {
    static PLACE: Place = Place::take();
}

// === impl Marker ===

impl Marker {
    /// Maps the file, which is new and empty, for as long as the process lives. Nobody may shorten it meanwhile.
    pub fn map(file: &File) -> io::Result<Self> {
        // The room is taken now: a store into a page that the file system has no room for would kill the process.
        fallocate(file, FallocateFlags::empty(), 0, BYTES as u64)?;
        // SAFETY: a new mapping at an address of the kernel's choice, so it aliases nothing.
        let start =
            unsafe { mmap(ptr::null_mut(), BYTES, ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED, file, 0)? };
        // SAFETY: BYTES bytes at a page's start, never unmapped, written by this process alone and through atomics alone;
        // every pattern of bits is an AtomicU64.
        let slots = unsafe { std::slice::from_raw_parts(start.cast::<Slot>(), SLOTS) };
        Ok(Self { slots })
    }

    /// Marks nothing.
    pub fn none() -> Self {
        Self { slots: &[] }
    }

    /// The tags of what ran when the process that mapped this file ended.
    pub fn read(file: &File) -> io::Result<BTreeSet<u64>> {
        let mut bytes = vec![0; BYTES];
        file.read_exact_at(&mut bytes, 0)?;
        let tags = bytes.chunks_exact(size_of::<Slot>()).filter_map(|slot| slot.first_chunk());
        let tags = tags.map(|tag| u64::from_ne_bytes(*tag));
        Ok(tags.filter(|tag| *tag != 0).collect())
    }

    /// `tag` is not 0.
    pub fn of(self, tag: u64) -> Mark {
        Mark { marker: self, tag }
    }
}

// === impl Mark ===

impl Mark {
    /// Marks this thread as running the version. Runs of one thread do not nest.
    pub fn begin(self) -> Running {
        let place = PLACE.try_with(|place| place.0).unwrap_or(SLOTS);
        let slot = self.marker.slots.get(place);
        if let Some(slot) = slot {
            slot.0.store(self.tag, Ordering::Release);
        }
        Running { slot }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(slot) = self.slot {
            slot.0.store(0, Ordering::Release);
        }
    }
}

// === impl Place ===

impl Place {
    fn take() -> Self {
        let mut places = PLACES.lock().expect("no holder panics: this is a bug");
        let place = places.free.pop().unwrap_or(places.next);
        places.next = places.next.max(place + 1);
        Self(place)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        PLACES.lock().expect("no holder panics: this is a bug").free.push(self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_shows_what_runs_and_only_while_it_runs() {
        let file = tempfile::tempfile().expect("a file");
        let marker = Marker::map(&file).expect("it can be mapped");
        let tags = || Marker::read(&file).expect("it is there").into_iter().collect::<Vec<_>>();
        let running = marker.of(7).begin();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let _running = marker.of(9).begin();
                assert_eq!(tags(), [7, 9]);
            });
        });
        assert_eq!(tags(), [7]);
        drop(running);
        assert!(tags().is_empty());
    }

    #[test]
    fn without_a_file_nothing_is_marked() {
        drop(Marker::none().of(7).begin());
    }
}
