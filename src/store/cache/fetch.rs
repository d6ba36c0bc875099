//! One file from the bucket into the cache, hashed on its way, and continued where an earlier try was cut off.

use std::{
    fs,
    io::{self, Read, Seek, SeekFrom, Write},
    os::unix::fs::MetadataExt,
    path::PathBuf,
    time::Duration,
};

use rustix::fs::{FlockOperation, flock};
use sha2::{Digest, Sha256};
use tokio_stream::StreamExt as _;

use super::{Held, Room, no_space_or, open_private};
use crate::{
    error::{Code, Error, Result},
    model::FileEntry,
    store::{
        Bucket, Remote, StoreFile,
        bucket::{STORE_UNAVAILABLE, has_stamp},
    },
};

/// Tries after which a download that gets no further is given up; its part stays for the next load.
const IDLE_TRIES_MAX: u32 = 3;
const PAUSE: Duration = Duration::from_millis(300);
const BUFFER_BYTES: usize = 256 << 10;

/// A download, as far as it is.
struct Partial {
    path: PathBuf,
    file: fs::File,
    /// Of what the file holds.
    hasher: Sha256,
    bytes: u64,
}

/// Brings `file` into the cache, if it is not there yet, and holds it. It blocks.
///
/// DIGEST_MISMATCH is a file that is not what `named` says, STILL_CHANGING one that is not the one that was listed,
/// NO_SPACE names the cache.
pub fn fetch(remote: &Remote, name: &str, file: &StoreFile, named: Option<&FileEntry>) -> Result<Held> {
    let cache = remote.cache();
    let key = key(remote.bucket(), file);
    let sha256 = named.map(|entry| entry.sha256.clone()).or_else(|| cache.recall(&key));
    if let Some(held) = sha256.as_ref().and_then(|sha256| cache.find(sha256)) {
        return Ok(held);
    }
    let path = cache.folder.join("partial").join(&key);
    let _stays = cache.hold(path.clone());
    let mut partial = Partial::open(path, file.stamp.size).map_err(|error| no_space_or(&error))?;
    let _own_stays = cache.hold(partial.path.clone());
    let room = cache.reserve(file.stamp.size - partial.bytes).inspect_err(|_| partial.discard_if_empty())?;
    remote.handle().block_on(partial.complete(remote.bucket(), name, file, room))?;
    let found = hex::encode(partial.hasher.clone().finalize());
    if let Some(entry) = named.filter(|entry| !entry.sha256.eq_ignore_ascii_case(&found)) {
        partial.discard();
        let sentence = format!("the sha256 of '{name}' is {found}, version.yaml says {}", entry.sha256);
        return Err(Error::new(Code::FailedPrecondition, "DIGEST_MISMATCH", sentence));
    }
    let held = cache.hold(cache.object(&found));
    let placed = partial.file.sync_data().and_then(|()| fs::rename(&partial.path, held.path()));
    placed
        .and_then(|()| cache.write_whole(&cache.known(&key), found.as_bytes()))
        .map_err(|error| no_space_or(&error))?;
    Ok(held)
}

/// Names one state of one object of one bucket.
fn key(bucket: &Bucket, file: &StoreFile) -> String {
    let text = format!("{}\n{}\n{}\n{}", bucket.url(), file.path, file.stamp.size, file.stamp.inode);
    hex::encode(Sha256::digest(text))
}

// === impl Partial ===

impl Partial {
    /// Goes on with what is there. Where another load is at it, this one begins its own.
    fn open(path: PathBuf, size: u64) -> io::Result<Self> {
        let file = loop {
            let file = open_private(&path)?;
            if flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
                let own = path.with_extension(format!("{:x}", fastrand::u64(..)));
                return Ok(Self { file: open_private(&own)?, path: own, hasher: Sha256::new(), bytes: 0 });
            }
            // Between the two calls another load may have finished it and renamed it into place.
            let opened = file.metadata()?.ino();
            if fs::metadata(&path).is_ok_and(|there| there.ino() == opened) {
                break file;
            }
        };
        let mut partial = Self { path, file, hasher: Sha256::new(), bytes: 0 };
        let mut buffer = vec![0; BUFFER_BYTES];
        loop {
            let count = partial.file.read(&mut buffer)?;
            if count == 0 {
                break;
            }
            partial.hasher.update(&buffer[..count]);
            partial.bytes += count as u64;
        }
        if partial.bytes > size {
            partial.restart()?;
        }
        Ok(partial)
    }

    fn restart(&mut self) -> io::Result<()> {
        self.file.set_len(0)?;
        self.file.seek(SeekFrom::Start(0))?;
        (self.hasher, self.bytes) = (Sha256::new(), 0);
        Ok(())
    }

    fn discard(&self) {
        let _ = fs::remove_file(&self.path);
    }

    fn discard_if_empty(&self) {
        if self.bytes == 0 {
            self.discard();
        }
    }

    /// Fetches the rest, in as many tries as bring it further.
    async fn complete(&mut self, bucket: &Bucket, name: &str, file: &StoreFile, mut room: Room) -> Result<()> {
        let mut idle_tries = 0;
        while self.bytes < file.stamp.size {
            let before = self.bytes;
            match self.take(bucket, name, file, &mut room).await {
                Ok(()) => {}
                Err(error) if error.reason() != STORE_UNAVAILABLE => return Err(error),
                Err(error) => {
                    idle_tries = if self.bytes > before { 0 } else { idle_tries + 1 };
                    if idle_tries >= IDLE_TRIES_MAX {
                        return Err(error);
                    }
                    tracing::debug!(file = name, bytes = self.bytes, %error, "a download was cut off and goes on");
                    tokio::time::sleep(PAUSE * (idle_tries + 1)).await;
                }
            }
        }
        Ok(())
    }

    /// One request.
    async fn take(&mut self, bucket: &Bucket, name: &str, file: &StoreFile, room: &mut Room) -> Result<()> {
        let Some(download) = bucket.download(&file.path, self.bytes).await? else {
            self.discard();
            let sentence = format!("'{name}': it is not there any more");
            return Err(Error::new(Code::FailedPrecondition, "MISSING_FILE", sentence));
        };
        // The answer says which object its bytes are of: no byte of another one is ever joined to these.
        if !has_stamp(file, download.size, &download.etag) {
            self.discard();
            let sentence = format!("'{name}' changed while it was read");
            return Err(Error::new(Code::FailedPrecondition, "STILL_CHANGING", sentence));
        }
        if self.bytes > 0 {
            tracing::info!(
                file = name,
                from = self.bytes,
                of = file.stamp.size,
                "a download goes on where it was cut off"
            );
        }
        let mut pieces = download.pieces();
        while let Some(piece) = pieces.next().await {
            let piece = piece?;
            if self.bytes + piece.len() as u64 > file.stamp.size {
                self.discard();
                let sentence = format!("'{name}' is longer than it was listed");
                return Err(Error::new(Code::FailedPrecondition, "STILL_CHANGING", sentence));
            }
            if let Err(error) = self.file.write_all(&piece) {
                // What was half written is not hashed: the part must be what the hash is of.
                let _ = self.file.set_len(self.bytes);
                return Err(no_space_or(&error));
            }
            self.hasher.update(&piece);
            self.bytes += piece.len() as u64;
            room.spend(piece.len() as u64);
        }
        Ok(())
    }
}
