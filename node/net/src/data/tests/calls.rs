//! Questions and answers.

use super::*;
use bytes::Bytes;
use futures::future::join_all;
use protocol::CallRefusal;
use shoal_engine::io::DropReason;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_large_calls_at_once_each_get_their_own_answer() {
    const BYTES: usize = 8 * 1024 * 1024;
    let (one, mut two) = pair(node(2).await, node(3).await).await;
    let answering = async {
        let mut answers = vec![];
        for _ in 0..8 {
            let (body, answer) = two.until_call().await;
            answers.push((body, answer));
        }
        // In another order than asked.
        while let Some((body, answer)) = answers.pop() {
            let number = u32::from(body[0]);
            assert!(body[1..] == piece_bytes(number, BYTES), "question {number} has other bytes");
            answer.answer(body.slice(..BYTES));
        }
    };
    let asking = join_all((0..8u32).map(|number| {
        let (handle, peer) = (one.handle.clone(), two_peer());
        async move {
            let body = Bytes::from([&[number as u8], &*piece_bytes(number, BYTES)].concat());
            let answer = handle.call(peer, body.clone(), PATIENCE).await.unwrap();
            assert!(answer == body[..BYTES], "answer {number} has other bytes");
        }
    }));
    tokio::join!(answering, asking);
    assert_eq!((one.handle.stats().calls_out.get(), two.handle.stats().calls_in.get()), (8, 8));
}

fn two_peer() -> PeerId {
    keypair(3).peer_id()
}

fn ask(
    one: &Node,
    text: &'static str,
    timeout: Duration,
) -> tokio::task::JoinHandle<Result<Bytes, CallError>> {
    let handle = one.handle.clone();
    tokio::spawn(async move { handle.call(two_peer(), Bytes::from_static(text.as_bytes()), timeout).await })
}

#[tokio::test]
async fn beyond_the_open_calls_of_either_side_there_is_busy() {
    let one = node_with(2, |config| config.calls_max = 3).await;
    let two = node_with(3, |config| config.calls_max = 2).await;
    let (one, mut two) = pair(one, two).await;
    let first = ask(&one, "first", PATIENCE);
    let (_, first_answer) = two.until_call().await;
    let second = ask(&one, "second", PATIENCE);
    let (_, second_answer) = two.until_call().await;
    let busy = Err(CallError::Refused(CallRefusal::Busy));
    assert_eq!(ask(&one, "third", PATIENCE).await.unwrap(), busy);
    assert_eq!(two.handle.stats().calls_refused.get(), 1);
    // An answer makes room, as does a refusal.
    first_answer.answer(Bytes::from_static(b"1"));
    assert_eq!(first.await.unwrap(), Ok(Bytes::from_static(b"1")));
    drop(second_answer);
    assert_eq!(second.await.unwrap(), Err(CallError::Refused(CallRefusal::Failed)));
    let open: Vec<_> = ["a", "b"].map(|text| ask(&one, text, PATIENCE)).into_iter().collect();
    let mut answers = vec![];
    for _ in 0..2 {
        answers.push(two.until_call().await);
    }
    for (body, answer) in answers {
        answer.answer(body);
    }
    for open in open {
        assert!(open.await.unwrap().is_ok());
    }
}

#[tokio::test]
async fn a_side_has_no_more_open_calls_than_its_limit() {
    let one = node_with(2, |config| config.calls_max = 1).await;
    let (one, mut two) = pair(one, node(3).await).await;
    let first = ask(&one, "first", PATIENCE);
    let (_, answer) = two.until_call().await;
    assert_eq!(ask(&one, "second", PATIENCE).await.unwrap(), Err(CallError::TooMany));
    answer.answer(Bytes::new());
    assert_eq!(first.await.unwrap(), Ok(Bytes::new()), "an empty answer is one");
    let long = Bytes::from(vec![0; DataConfig::default().call_bytes_max + 1]);
    assert_eq!(one.handle.call(two.peer, long, PATIENCE).await, Err(CallError::TooLong));
}

#[tokio::test]
async fn a_late_answer_is_thrown_away() {
    let (one, mut two) = pair(node(2).await, node(3).await).await;
    let late = ask(&one, "late", Duration::from_millis(20));
    let (_, late_answer) = two.until_call().await;
    assert_eq!(late.await.unwrap(), Err(CallError::Timeout));
    late_answer.answer(Bytes::from(vec![1; 1024 * 1024]));
    let next = ask(&one, "next", PATIENCE);
    let (body, answer) = two.until_call().await;
    answer.answer(body);
    assert_eq!(next.await.unwrap(), Ok(Bytes::from_static(b"next")));
}

#[tokio::test]
async fn calls_end_with_their_connection() {
    let (mut one, mut two) = pair(node(2).await, node(3).await).await;
    let open = ask(&one, "open", PATIENCE);
    let (_, answer) = two.until_call().await;
    two.handle.disconnect(one.peer, DropReason::Idle);
    assert_eq!(open.await.unwrap(), Err(CallError::NotConnected));
    let bye = protocol::ByeReason::Dropped(DropReason::Idle);
    assert_eq!(one.until_disconnected().await, DisconnectReason::Bye(bye));
    assert_eq!(ask(&one, "none", PATIENCE).await.unwrap(), Err(CallError::NotConnected));
    answer.answer(Bytes::from_static(b"into the void"));
}

#[tokio::test]
async fn parts_that_do_not_fit_together_end_the_connection() {
    let part = |id: u32, total: u32, offset: u32, len: usize| {
        let head = encode_with_subhead(Kind::Call, [id, total, offset], len);
        [&head[..], &vec![0; len]].concat()
    };
    let long = DataConfig::default().call_bytes_max as u32 + 1;
    let wrong = [
        vec![part(1, 10, 5, 5)],
        vec![part(1, 10, 0, 11)],
        vec![part(1, 10, 0, 0)],
        vec![part(1, long, 0, 1)],
        vec![part(1, 10, 0, 5), part(2, 10, 0, 5)],
        vec![part(1, 10, 0, 5), part(1, 11, 5, 5)],
    ];
    let mut one = node(2).await;
    for parts in wrong {
        let mut raw = Raw::connected(3, &mut one).await;
        raw.bytes(&parts.concat()).await;
        let parts = DisconnectReason::Protocol(protocol::ProtocolError::Parts);
        assert_eq!(one.until_disconnected().await, parts);
    }
}
