//! The data plane: pieces, and everything said about swarms, over one connection between two processes.
//!
//! ```text
//! protocol   the wire: frames, limits, rules, examples
//! handle     what the daemon calls
//! event      what the daemon is told
//! hub        which connections there are; one a peer
//! accept     inbound connections, handshakes: how many at once; dial: outbound ones; greet: Hello
//! link       what handle, reader and writer of one connection share
//! reader     frames in; expected: which payload is welcome; pool: where it goes
//! writer     frames out; outbox: what waits
//! ```

mod accept;
mod config;
mod connection;
mod dial;
mod event;
mod expected;
mod greet;
mod handle;
mod hub;
mod link;
mod outbox;
mod pool;
pub mod protocol;
mod reader;
mod stats;
mod writer;

pub use config::{BindError, DataConfig};
pub use event::{
    AnswerHandle, CallError, ConnectError, ConnectionInfo, DataEvent, DisconnectReason, PieceSource,
    SendError, Taken,
};
pub use handle::{DataHandle, DataPlane};
pub use pool::PieceBuf;
pub use stats::DataStats;

#[cfg(test)]
mod tests;
