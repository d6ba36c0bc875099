//! prost, and before it the count of a request's parts.

use std::{any::TypeId, marker::PhantomData};

use bytes::Buf;
use prost::Message;
use tonic::{
    Status,
    codec::{DecodeBuf, Decoder},
};
use tonic_prost::{ProstDecoder, ProstEncoder};

use super::{
    fields::{self, Layout},
    proto::{
        inference::{ModelInferRequest, RepositoryModelLoadRequest, RepositoryModelUnloadRequest},
        sconce::v1::{PredictRequest, SetLabelsRequest},
    },
};

/// What the generated services and clients encode and decode with.
pub struct Codec<T, U>(PhantomData<(T, U)>);

/// Decodes what is not made of too many parts.
pub struct CountingDecoder<U>(ProstDecoder<U>);

/// Whatever so small a message holds, it stays within a megabyte.
const UNCOUNTED_BYTES: usize = 4 << 10;

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
        ProstEncoder::default()
    }

    fn decoder(&mut self) -> Self::Decoder {
        CountingDecoder(ProstDecoder::default())
    }
}

// === impl CountingDecoder ===

impl<U: Message + Default + 'static> Decoder for CountingDecoder<U> {
    type Item = U;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<U>, Status> {
        if buffer.remaining() > UNCOUNTED_BYTES
            && let Some(layout) = layout::<U>()
        {
            // The library assembles a message in one piece.
            fields::check(buffer.chunk(), layout)?;
        }
        self.0.decode(buffer)
    }
}

/// `None` where nothing in such a message is repeated, and for answers, which the commands read.
fn layout<U: 'static>() -> Option<&'static Layout> {
    let layouts: [(TypeId, &'static Layout); 5] = [
        (TypeId::of::<ModelInferRequest>(), &fields::MODEL_INFER),
        (TypeId::of::<PredictRequest>(), &fields::PREDICT),
        (TypeId::of::<RepositoryModelLoadRequest>(), &fields::REPOSITORY),
        (TypeId::of::<RepositoryModelUnloadRequest>(), &fields::REPOSITORY),
        (TypeId::of::<SetLabelsRequest>(), &fields::SET_LABELS),
    ];
    layouts.into_iter().find(|(message, _)| *message == TypeId::of::<U>()).map(|(_, layout)| layout)
}
