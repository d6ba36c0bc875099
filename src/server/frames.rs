//! gRPC's framing, watched from outside: where messages begin and how long they say they are. Keeps no byte of them.

/// Where a body stands.
#[derive(Debug, Default)]
pub struct Frames {
    header: [u8; HEADER_BYTES],
    header_have: usize,
    message_left: usize,
}

/// What the five bytes before a message say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// 0 or 1; anything else is not gRPC.
    pub compressed: u8,
    pub length: usize,
}

/// The compressed flag, and the length.
pub const HEADER_BYTES: usize = 5;

// === impl Frames ===

impl Frames {
    /// Takes the next bytes of the body, in pieces of any size, and tells `begin` of each message whose header is complete.
    pub fn walk<E>(&mut self, mut bytes: &[u8], mut begin: impl FnMut(Header) -> Result<(), E>) -> Result<(), E> {
        while !bytes.is_empty() {
            if self.message_left > 0 {
                let step = self.message_left.min(bytes.len());
                self.message_left -= step;
                bytes = &bytes[step..];
                continue;
            }
            let step = (HEADER_BYTES - self.header_have).min(bytes.len());
            self.header[self.header_have..][..step].copy_from_slice(&bytes[..step]);
            self.header_have += step;
            bytes = &bytes[step..];
            if self.header_have == HEADER_BYTES {
                self.header_have = 0;
                let [compressed, length @ ..] = self.header;
                let length = u32::from_be_bytes(length) as usize;
                begin(Header { compressed, length })?;
                self.message_left = length;
            }
        }
        Ok(())
    }

    /// Whether the last message is complete and no further one has begun.
    pub fn between_messages(&self) -> bool {
        self.header_have == 0 && self.message_left == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::convert::Infallible;

    fn body(lengths: &[usize]) -> Vec<u8> {
        let mut body = Vec::new();
        for &length in lengths {
            body.push(0);
            body.extend((length as u32).to_be_bytes());
            body.extend(vec![7; length]);
        }
        body
    }

    fn headers(frames: &mut Frames, bytes: &[u8]) -> Vec<usize> {
        let mut seen = Vec::new();
        let walked = frames.walk(bytes, |header| {
            seen.push(header.length);
            Ok::<(), Infallible>(())
        });
        walked.expect("nothing refuses");
        seen
    }

    #[test]
    fn a_claim_is_seen_before_the_message_comes() {
        let mut frames = Frames::default();
        assert_eq!(headers(&mut frames, &[1, 0xff, 0xff, 0xff, 0xff]), [u32::MAX as usize]);
        assert!(!frames.between_messages());
    }

    proptest! {
        #[test]
        fn the_pieces_do_not_matter(
            lengths in proptest::collection::vec(0usize..40, 0..6),
            cuts in proptest::collection::vec(1usize..9, 1..20),
        ) {
            let body = body(&lengths);
            let mut frames = Frames::default();
            let mut seen = Vec::new();
            let mut rest = &body[..];
            for cut in cuts.iter().cycle().take(body.len() + 1) {
                let (piece, after) = rest.split_at((*cut).min(rest.len()));
                seen.extend(headers(&mut frames, piece));
                rest = after;
            }
            prop_assert_eq!(seen, lengths);
            prop_assert!(frames.between_messages());
        }
    }
}
