//! What in YAML may be one word, a flag or a map.

use std::marker::PhantomData;

use serde::{Deserialize, Deserializer, de};

/// What may be one word or a map. serde's untagged enums would do, but their errors no longer name the key.
pub enum WordOrMap<T> {
    Word(String),
    Flag(bool),
    Map(T),
}

// === impl WordOrMap ===

impl<'de, T: Deserialize<'de>> WordOrMap<T> {
    pub fn read<D: Deserializer<'de>>(deserializer: D, forms: &'static str) -> Result<Self, D::Error> {
        deserializer.deserialize_any(WordOrMapVisitor { forms, map: PhantomData })
    }
}

struct WordOrMapVisitor<T> {
    forms: &'static str,
    map: PhantomData<T>,
}

impl<'de, T: Deserialize<'de>> de::Visitor<'de> for WordOrMapVisitor<T> {
    type Value = WordOrMap<T>;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.forms)
    }

    fn visit_bool<E>(self, flag: bool) -> Result<Self::Value, E> {
        Ok(WordOrMap::Flag(flag))
    }

    fn visit_str<E>(self, word: &str) -> Result<Self::Value, E> {
        Ok(WordOrMap::Word(word.to_owned()))
    }

    fn visit_map<A: de::MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
        T::deserialize(de::value::MapAccessDeserializer::new(map)).map(WordOrMap::Map)
    }
}
