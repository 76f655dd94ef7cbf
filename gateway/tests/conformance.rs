//! The conformance suite against a gateway over the in-memory mesh, on real sockets.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use shoal_gateway::conformance::{self, Registry};

macro_rules! tests {
    ($($module:ident: $($case:ident),+;)+) => {
        $($(
            #[tokio::test]
            async fn $case() {
                let gateway = support::start().await;
                let registry = Registry::new(&gateway.base_url());
                let case = conformance::cases().into_iter().find(|case| case.name == stringify!($case)).unwrap();
                if let Err(error) = (case.run)(registry).await {
                    panic!("{error}");
                }
            }
        )+)+
    };
}
shoal_gateway::conformance_cases!(tests);
