//! Shared helpers of the CBOR forms (`minicbor`): fixed byte strings and values with a text form.

/// Implements `minicbor::Encode`/`Decode` as a byte string of fixed length for a newtype over `[u8; N]`.
macro_rules! cbor_bytes {
    ($type:ty, $len:expr) => {
        impl<C> minicbor::Encode<C> for $type {
            fn encode<W: minicbor::encode::Write>(
                &self,
                e: &mut minicbor::Encoder<W>,
                _: &mut C,
            ) -> Result<(), minicbor::encode::Error<W::Error>> {
                e.bytes(&self.0)?.ok()
            }
        }
        impl<'b, C> minicbor::Decode<'b, C> for $type {
            fn decode(d: &mut minicbor::Decoder<'b>, _: &mut C) -> Result<Self, minicbor::decode::Error> {
                let at = d.position();
                let bytes: [u8; $len] = d.bytes()?.try_into().map_err(|_| {
                    minicbor::decode::Error::message(concat!("wrong length of ", stringify!($type))).at(at)
                })?;
                Ok(Self(bytes))
            }
        }
    };
}

/// Implements `minicbor` and `serde` through `Display` and `FromStr` for a value with a checked text form.
macro_rules! text_forms {
    ($type:ty) => {
        impl<C> minicbor::Encode<C> for $type {
            fn encode<W: minicbor::encode::Write>(
                &self,
                e: &mut minicbor::Encoder<W>,
                _: &mut C,
            ) -> Result<(), minicbor::encode::Error<W::Error>> {
                e.str(&self.to_string())?.ok()
            }
        }
        impl<'b, C> minicbor::Decode<'b, C> for $type {
            fn decode(d: &mut minicbor::Decoder<'b>, _: &mut C) -> Result<Self, minicbor::decode::Error> {
                let at = d.position();
                d.str()?.parse().map_err(|_| {
                    minicbor::decode::Error::message(concat!("malformed ", stringify!($type))).at(at)
                })
            }
        }
        impl serde::Serialize for $type {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }
        impl<'de> serde::Deserialize<'de> for $type {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

pub(crate) use {cbor_bytes, text_forms};
