//! Messages to bytes and back: prost, and before it the count of a request's parts; whole ones with gRPC's header in front.

use std::{any::TypeId, marker::PhantomData};

use bytes::{Buf, Bytes};
use prost::Message;
use tonic::{
    Status,
    codec::{BufferSettings, DecodeBuf, Decoder},
};
use tonic_prost::{ProstDecoder, ProstEncoder};

use super::{
    fields::{self, Layout},
    frames::HEADER_BYTES,
    grpc::status::malformed,
    proto::{
        inference::{ModelInferRequest, RepositoryModelLoadRequest, RepositoryModelUnloadRequest},
        sconce::v1::{DeployRequest, PredictRequest, RecordOutcomeRequest, SetLabelsRequest, SetRouteRequest},
    },
};
use crate::error::{Code, Error, Result};

/// What the generated services and clients encode and decode with.
pub struct Codec<T, U>(PhantomData<(T, U)>);

/// An answer that leaves whole, with its header in front.
pub struct Framed(Vec<u8>);

/// Decodes what is not made of too many parts.
pub struct CountingDecoder<U>(ProstDecoder<U>);

/// Whatever so small a message holds, it stays within a megabyte.
const UNCOUNTED_BYTES: usize = 4 << 10;

/// A question that came whole, without its header.
pub fn read<Q: Message + Default + 'static>(question: Bytes) -> Result<Q> {
    count::<Q>(&question)?;
    Q::decode(question).map_err(|_| malformed())
}

// === impl Framed ===

impl Framed {
    /// Of a message of about so many bytes.
    pub fn with_capacity(bytes: usize) -> Self {
        let mut frame = Vec::with_capacity(HEADER_BYTES + bytes);
        frame.extend([0; HEADER_BYTES]);
        Self(frame)
    }

    pub fn of(answer: &impl Message) -> Self {
        let mut frame = Self::with_capacity(answer.encoded_len());
        answer.encode_raw(&mut frame.0);
        frame
    }

    /// Where its message is written.
    pub fn message(&mut self) -> &mut Vec<u8> {
        &mut self.0
    }

    pub fn finish(mut self) -> Result<Bytes> {
        let length = self.0.len() - HEADER_BYTES;
        let claim = u32::try_from(length).map_err(|_| {
            let message =
                format!("gRPC's messages have less than 4 GiB, the answer has {length} bytes; ask about fewer rows");
            Error::new(Code::ResourceExhausted, "ANSWER_TOO_LARGE", message)
        })?;
        self.0[1..HEADER_BYTES].copy_from_slice(&claim.to_be_bytes());
        Ok(self.0.into())
    }
}

// === impl Codec ===

impl<T, U> Default for Codec<T, U> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<T, U> tonic::codec::Codec for Codec<T, U>
where
    T: Message + Send + 'static,
    U: Message + Default + Send + 'static,
{
    type Encode = T;
    type Decode = U;
    type Encoder = ProstEncoder<T>;
    type Decoder = CountingDecoder<U>;

    fn encoder(&mut self) -> Self::Encoder {
        ProstEncoder::new(BufferSettings::default())
    }

    fn decoder(&mut self) -> Self::Decoder {
        CountingDecoder(ProstDecoder::new(BufferSettings::default()))
    }
}

// === impl CountingDecoder ===

impl<U: Message + Default + 'static> Decoder for CountingDecoder<U> {
    type Item = U;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<U>, Status> {
        // The library assembles a message in one piece.
        count::<U>(buffer.chunk())?;
        self.0.decode(buffer)
    }
}

fn count<U: 'static>(message: &[u8]) -> Result<()> {
    match layout::<U>() {
        Some(layout) if message.len() > UNCOUNTED_BYTES => fields::check(message, layout),
        _ => Ok(()),
    }
}

/// `None` where nothing in such a message is repeated, and for answers, which the commands read.
fn layout<U: 'static>() -> Option<&'static Layout> {
    let layouts: [(TypeId, &'static Layout); 8] = [
        (TypeId::of::<ModelInferRequest>(), &fields::MODEL_INFER),
        (TypeId::of::<PredictRequest>(), &fields::PREDICT),
        (TypeId::of::<RecordOutcomeRequest>(), &fields::RECORD_OUTCOME),
        (TypeId::of::<RepositoryModelLoadRequest>(), &fields::REPOSITORY),
        (TypeId::of::<RepositoryModelUnloadRequest>(), &fields::REPOSITORY),
        (TypeId::of::<SetLabelsRequest>(), &fields::SET_LABELS),
        (TypeId::of::<SetRouteRequest>(), &fields::SET_ROUTE),
        (TypeId::of::<DeployRequest>(), &fields::DEPLOY),
    ];
    layouts.into_iter().find(|(message, _)| *message == TypeId::of::<U>()).map(|(_, layout)| layout)
}
